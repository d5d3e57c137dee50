"""GSM8K: grade-school word problems, answered step by step; the number after `The answer is` is compared."""

from harness.evals.benchmarks import REAL, Benchmark

BENCHMARK = Benchmark(
    title="GSM8K, grade-school word problems",
    paper="Cobbe et al. 2021, arXiv 2110.14168",
    data="openai/gsm8k",
    licence="MIT",
    asks="a word problem; the last number of the answer is compared with the right one",
    items=1_319,
    tasks="gsm8k/gsm8k-cot.yaml",
    metric="exact_match",
    filter="flexible-extract",
    floor=0.0,
    tested=REAL,
    example=(
        "Q: Janet's ducks lay 16 eggs per day. She eats three for breakfast every morning and bakes muffins for her "
        "friends every day with four. She sells the remainder at the farmers' market daily for $2 per fresh duck egg. "
        "How much in dollars does she make every day at the farmers' market?\nA:",
        "18",
    ),
    shots=8,
    stop=("Q:",),
    max_new_tokens=512,
)
