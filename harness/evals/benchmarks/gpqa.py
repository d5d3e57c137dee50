"""GPQA: graduate questions that a search does not answer, four choices, reasoning first."""

import hashlib
import random
from typing import Any

from harness.evals.benchmarks import INVENTED, Benchmark

CHOICES = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def shuffled(rows: Any) -> Any:
    """The rows, each with its choices in an order drawn from its question: the same order for every model."""
    return rows.map(_shuffle)


def _shuffle(row: dict[str, Any]) -> dict[str, Any]:
    choices = [" ".join(str(row[name]).replace("[title]", ". ").split()) for name in CHOICES]
    right = choices[0]
    # seeded by the question: the right answer is listed first in the data
    random.Random(hashlib.sha256(str(row["Question"]).encode()).digest()).shuffle(choices)
    named = {f"choice{number}": choice for number, choice in enumerate(choices, 1)}
    return {**named, "choices": choices, "answer": f"({'ABCD'[choices.index(right)]})"}


BENCHMARK = Benchmark(
    title="GPQA main, graduate-level questions",
    paper="Rein et al. 2023, arXiv 2311.12022",
    data="Idavidrein/gpqa",
    licence="CC-BY-4.0",
    asks="a question of biology, physics or chemistry with four choices; the last (A) to (D) of the answer counts",
    items=448,
    split="train",
    tasks="gpqa/cot_zeroshot/gpqa_main_cot_zeroshot.yaml",
    metric="exact_match",
    filter="flexible-extract",
    floor=0.25,
    tested=INVENTED,
    example=("(no real question is shown, as its authors ask)", "(B)"),
    max_new_tokens=2048,
    reads={"process_docs": shuffled},
    deviation="access to the data is granted by its authors; lm-eval shuffles the choices anew in every run, here "
    "each question has one order",
)
