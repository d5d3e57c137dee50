"""MMLU-Pro: 14 subjects, up to ten choices, reasoning first and no examples."""

from harness.evals.benchmarks import INVENTED, Benchmark

BENCHMARK = Benchmark(
    title="MMLU-Pro, 14 subjects with ten choices",
    paper="Wang et al. 2024, arXiv 2406.01574",
    data="TIGER-Lab/MMLU-Pro",
    licence="MIT",
    asks="a question with up to ten choices; the letter after `answer is` counts",
    items=12_032,
    tasks="mmlu_pro/mmlu_pro_*.yaml",
    metric="exact_match",
    filter="custom-extract",
    floor=0.1,
    tested=INVENTED,
    example=("Question:\nWhich of these is a prime? (invented)\nOptions:\nA. 4\nB. 7\nAnswer: [...]", "B"),
    stop=("Question:",),
    max_new_tokens=2048,
    deviation="no examples, as Tülu 3 runs it; lm-eval gives five",
)
