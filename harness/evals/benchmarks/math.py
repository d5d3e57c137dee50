r"""MATH: competition problems of seven subjects; the expression that an answer ends in, compared as mathematics."""

from collections.abc import Mapping
from typing import Any

from harness.evals.benchmarks import INVENTED, Benchmark
from harness.evals.grading.math_answers import grade_math


def equal(row: Mapping[str, Any], answers: list[str]) -> float:
    """1 where the answer's boxed, stated or last expression equals the solution's; 0 where comparing takes 5 s."""
    grades = grade_math(answers[0], str(row["solution"]))
    return float(grades.strict or grades.flexible or False)


BENCHMARK = Benchmark(
    title="MATH, competition problems of seven subjects",
    paper="Hendrycks et al. 2021, arXiv 2103.03874",
    data="EleutherAI/hendrycks_math",
    licence="MIT",
    asks="a problem; the expression that the answer boxes, states or ends in is compared with the solution's",
    items=5_000,
    tasks="minerva_math/minerva_math_*.yaml",
    metric="flexible_match",
    floor=0.0,
    tested=INVENTED,
    example=("Problem:\nWhat is half of $\\frac{2}{3}$? (invented)\n\nSolution:", r"\boxed{\frac{1}{3}}"),
    shots=4,
    stop=("Problem:",),
    max_new_tokens=1024,
    changes={
        "process_docs": None,
        "doc_to_text": "Problem:\n{{problem}}\n\nSolution:",
        "doc_to_target": "{{solution}}",
        "fewshot_config": {"sampler": "first_n", "split": "train"},
    },
    grade=equal,
    deviation="graded by math-verify, whose release here installs beside hydra-core (lm-eval's own task does not); "
    "the worked examples are the first four of the subject's train split, not Minerva's",
)
