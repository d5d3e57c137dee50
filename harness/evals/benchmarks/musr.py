"""MuSR: long stories that hide who did it, where a thing is, or who should do what; the most probable choice."""

from harness.evals.benchmarks import INVENTED, Benchmark

BENCHMARK = Benchmark(
    title="MuSR, multistep soft reasoning over stories",
    paper="Sprague et al. 2023, arXiv 2310.16049",
    data="TAUR-Lab/MuSR",
    licence="not read here",
    asks="a story, a question and its choices; the most probable choice for its length",
    items=756,
    split="subsets",
    tasks="leaderboard/musr/musr_*.yaml",
    metric="acc_norm",
    floor=0.37,
    tested=INVENTED,
    example=("[a story of a thousand words] Who is the most likely murderer? (invented)\n1 - Ann\n2 - Bob\n", "Ann"),
    cluster="narrative",
    deviation="as the Open LLM Leaderboard runs it; the floor is the mean over the three kinds of one over the "
    "number of choices",
)
