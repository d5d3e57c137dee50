"""MBPP: short Python programs from a sentence and three tests; right where all tests pass, in a sandbox."""

from collections.abc import Mapping
from typing import Any

from harness.evals.benchmarks import REAL, Benchmark
from harness.evals.grading.code_answers import mbpp_program
from harness.evals.grading.sandbox import run

SECONDS, MEMORY_MB = 5, 2048
TEST = range(11, 511)  # the task ids of the test split


def of_the_test_split(rows: Any) -> Any:
    """The rows of the test split, from a file that holds all splits."""
    return rows.filter(lambda row: int(row["task_id"]) in TEST)


def passes(row: Mapping[str, Any], answers: list[str]) -> float:
    """1 where the program passes all tests. Raises SettingsError where it cannot be confined."""
    # in a fence: lm-eval's prompt opens a block of code, in which the answer begins
    return float(run(mbpp_program(row, answers[0], in_fence=True), SECONDS, MEMORY_MB).passed)


BENCHMARK = Benchmark(
    title="MBPP, short Python programs",
    paper="Austin et al. 2021, arXiv 2108.07732",
    data="google-research-datasets/mbpp",
    licence="CC-BY-4.0",
    asks="a sentence and three tests; a program that passes them",
    items=500,
    tasks="mbpp/mbpp_instruct.yaml",
    metric="pass@1",
    floor=0.0,
    tested=REAL,
    example=(
        "You are an expert Python programmer, and here is your task:\nWrite a python function to remove first and "
        "last occurrence of a given character from the string.\nYour code should pass these tests: [...]",
        'assert remove_Occ("hello","l") == "heo"',
    ),
    stop=("\n```",),
    max_new_tokens=256,
    runs_code=True,
    reads={"process_docs": of_the_test_split},
    grade=passes,
    deviation="no examples (lm-eval gives three)",
)
