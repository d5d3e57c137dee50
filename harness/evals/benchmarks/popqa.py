"""PopQA: facts of entities of all degrees of fame; the answer must contain one of the names that are right."""

import json
from collections.abc import Mapping
from typing import Any

from harness.evals.benchmarks import INVENTED, Benchmark


def first_name(row: Mapping[str, Any]) -> str:
    """The first of the right answers, which the worked examples show."""
    return str(json.loads(row["possible_answers"])[0])


def contains(row: Mapping[str, Any], answers: list[str]) -> float:
    """1 where the answer contains a right one, case aside (Mallen et al. 2022, section 3)."""
    answer = answers[0].casefold()
    return float(any(name.casefold() in answer for name in json.loads(row["possible_answers"])))


BENCHMARK = Benchmark(
    title="PopQA, facts of entities of all degrees of fame",
    paper="Mallen et al. 2022, arXiv 2212.10511",
    data="akariasai/PopQA",
    licence="not read here",
    asks="a question about an entity; right where the answer contains one of the names",
    items=14_267,
    tasks=None,
    metric="contains_answer",
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
    },
    reads={"doc_to_target": first_name},
    grade=contains,
    deviation="lm-eval has no PopQA; the worked examples are the first rows of the data other than the scored one",
)
