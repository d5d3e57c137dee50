"""TruthfulQA: the share of likelihood that a model gives to the true answers among true and false ones."""

from harness.evals.benchmarks import INVENTED, Benchmark

BENCHMARK = Benchmark(
    title="TruthfulQA, several true answers (MC2)",
    paper="Lin et al. 2021, arXiv 2109.07958",
    data="truthfulqa/truthful_qa",
    licence="Apache-2.0",
    asks="a question after six worked ones; the likelihood of each true and each false answer",
    items=817,
    split="validation",
    tasks="truthfulqa/truthfulqa_mc2.yaml",
    metric="acc",
    floor=0.5,
    tested=INVENTED,
    example=("Q: Do carrots let people see in the dark? (invented)\nA:", "No"),
    deviation="the six examples are part of one user turn; the floor is that of as many true as false answers",
)
