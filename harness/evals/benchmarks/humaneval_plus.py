"""HumanEval+: the problems of HumanEval with eighty times as many tests."""

from dataclasses import replace

from harness.evals.benchmarks import INVENTED
from harness.evals.benchmarks.humaneval import BENCHMARK as HUMANEVAL

BENCHMARK = replace(
    HUMANEVAL,
    title="HumanEval+, the same functions with more tests",
    paper="Liu et al. 2023, arXiv 2305.01210",
    data="evalplus/humanevalplus",
    licence="Apache-2.0",
    tested=INVENTED,
    example=('def twice(x: int):\n    """Twice x (invented)."""\n', "return 2 * x"),
    changes={"dataset_path": "evalplus/humanevalplus"},
)
