"""MMLU: 57 subjects, four choices, reasoning first and no examples."""

from harness.evals.benchmarks import INVENTED, Benchmark

BENCHMARK = Benchmark(
    title="MMLU, 57 subjects",
    paper="Hendrycks et al. 2020, arXiv 2009.03300",
    data="cais/mmlu",
    licence="MIT",
    asks="a question with four choices; the last (A) to (D) of the answer counts",
    items=14_042,
    tasks="mmlu/flan_cot_zeroshot/mmlu_*.yaml",
    metric="exact_match",
    filter="flexible-extract",
    floor=0.25,
    tested=INVENTED,
    example=("Q: How many continents are there? (invented)\n(A) five (B) six (C) seven (D) eight\nA: [...]", "(C)"),
    stop=("Q:",),
    max_new_tokens=1024,
    changes={"test_split": "test"},
    deviation="lm-eval's zero-shot chain of thought on the test split (its own file scores the validation split)",
)
