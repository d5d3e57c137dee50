"""IFEval: instructions whose following a program can check; right where all of a prompt's are followed, loosely."""

from collections.abc import Mapping
from typing import Any

from harness.evals.benchmarks import REAL, Benchmark
from harness.evals.grading.ifeval_checks import follow, prepare


def ready() -> dict[str, int]:
    """Make the checks importable; counts 1 where sentences are split by an untrained punkt."""
    return {"untrained_sentence_splitter": int(prepare())}


def loosely(row: Mapping[str, Any], answers: list[str]) -> float:
    """1 where the answer follows all instructions, without its opening line, closing line or asterisks if need be."""
    return float(follow(row, answers[0]).prompt_loose)


BENCHMARK = Benchmark(
    title="IFEval, instructions that a program can check",
    paper="Zhou et al. 2023, arXiv 2311.07911",
    data="google/IFEval",
    licence="Apache-2.0",
    asks="a task with one to three instructions; all of them must be followed (prompt-level, loose)",
    items=541,
    split="train",
    tasks="ifeval/ifeval.yaml",
    metric="prompt_level_loose_acc",
    floor=0.0,
    tested=REAL,
    example=("Write a 300+ word summary of the wikipedia page [...]. Do not use any commas [...]", "(checked)"),
    max_new_tokens=1280,
    prepare=ready,
    grade=loosely,
    deviation="1,280 tokens as in lm-eval (Tülu 3: 2,048); where nltk's punkt_tab is not installed sentences are split "
    "by punkt without its training, which the counts report",
)
