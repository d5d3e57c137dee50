"""HumanEval: complete a Python function; right where the completed program passes the tests, which run in a sandbox."""

from collections.abc import Mapping
from typing import Any

from harness.evals.benchmarks import REAL, Benchmark
from harness.evals.grading.code_answers import humaneval_program, pass_at_k
from harness.evals.grading.sandbox import run_many

SECONDS, MEMORY_MB = 5, 2048
DRAWS, TRIES = 20, 10


def passes(row: Mapping[str, Any], answers: list[str]) -> float:
    """pass@10, estimated from 20 draws. Raises SettingsError where a program cannot be confined."""
    # in a fence: lm-eval's prompt opens a block of code, in which the answer begins
    outcomes = run_many([humaneval_program(row, answer, in_fence=True) for answer in answers], SECONDS, MEMORY_MB)
    return pass_at_k(len(outcomes), sum(outcome.passed for outcome in outcomes), TRIES)


BENCHMARK = Benchmark(
    title="HumanEval, functions to complete",
    paper="Chen et al. 2021, arXiv 2107.03374",
    data="openai/openai_humaneval",
    licence="MIT",
    asks="the head of a function and what it should do; ten tries to write one that passes the tests",
    items=164,
    tasks="humaneval/humaneval_instruct.yaml",
    metric="pass@10",
    floor=0.0,
    tested=REAL,
    example=('def add(x: int, y: int):\n    """Add two numbers x and y [...]"""\n', "return x + y"),
    stop=("\n```",),
    max_new_tokens=512,
    temperature=0.8,
    top_p=0.95,
    samples=DRAWS,
    runs_code=True,
    grade=passes,
    deviation="20 draws at temperature 0.8 as in Tülu 3; the prompt is lm-eval's, which begins the answer with the "
    "function's head",
)
