"""BIG-Bench Hard: 27 tasks of reasoning, three worked examples each, the text after `the answer is` compared."""

from harness.evals.benchmarks import INVENTED, Benchmark

BENCHMARK = Benchmark(
    title="BIG-Bench Hard, 27 tasks of reasoning",
    paper="Suzgun et al. 2022, arXiv 2210.09261",
    data="SaylorTwift/bbh",
    licence="MIT",
    asks="a question of one of 27 kinds; what follows the last `the answer is` is compared with the right answer",
    items=6_511,
    tasks="bbh/cot_fewshot/[!_]*.yaml",
    metric="exact_match",
    filter="get-answer",
    floor=0.0,
    tested=INVENTED,
    example=("Q: not ( ( not not True ) ) is\nA: Let's think step by step.\n", "False"),
    shots=3,
    stop=("\nQ:",),
    max_new_tokens=512,
    changes={
        "filter_list": [
            {
                "name": "get-answer",
                "filter": [
                    {
                        "function": "regex",
                        "regex_pattern": r"(?i)the answer is (.*?)\.?\s*(?:\n|$)",
                        "group_select": -1,
                    },
                    {"function": "take_first"},
                ],
            }
        ],
    },
    deviation="lm-eval ends an answer at the first `Q` or blank line and drops its last character, which suits base "
    "models only; here it ends where the next question would begin. The floor is that of an empty answer: by "
    "guessing, single tasks give up to one half",
)
