"""PopQA: facts of entities of all degrees of fame; the answer must contain one of the names that are right."""

import json
from typing import Any

from harness.cards import INVENTED, Card


def first_name(row: dict[str, Any]) -> str:
    """The first of the right answers, which the worked examples show."""
    return str(json.loads(row["possible_answers"])[0])


def contains(row: dict[str, Any], answers: list[str]) -> dict[str, float]:
    """1 where the answer contains a right one, case aside (Mallen et al. 2022, section 3)."""
    said = answers[0].casefold()
    return {"exact_match": float(any(name.casefold() in said for name in json.loads(row["possible_answers"])))}


CARD = Card(
    title="PopQA, facts of entities of all degrees of fame",
    paper="Mallen et al. 2022, arXiv 2212.10511",
    data="akariasai/PopQA",
    licence="not read here",
    asks="a question about an entity; right where the answer contains one of the names",
    tasks=None,
    metric="exact_match",
    floor=0.0,
    tested=INVENTED,
    example=("Q: What is the capital of Ostania? (invented)\nA:", "Berlint"),
    shots=15,
    stop=("\n",),
    max_new_tokens=15,
    changes={
        "dataset_path": "akariasai/PopQA",
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "Q: {{question}}\nA:",
        "fewshot_config": {"sampler": "first_n", "split": "test"},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "filter_list": [{"name": "none", "filter": [{"function": "take_first"}]}],
    },
    reads={"doc_to_target": first_name, "process_results": contains},
    deviation="lm-eval has no PopQA; the worked examples are the first rows of the data other than the one asked",
)
