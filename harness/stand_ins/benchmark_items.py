"""Invented rows of public benchmarks: the fields of the real data, none of its content.

`ITEMS[benchmark]` is {file name: rows}, in the layout that `evals.data_dir` reads.
"""

import json
from pathlib import Path
from typing import Any

GSM8K = [
    {"question": "Ann has 3 nuts and finds 4. How many has she?", "answer": "3 + 4 = <<3+4=7>>7\n#### 7"},
    {"question": "Bo earns $1,000 twice. How much is that?", "answer": "#### 2,000"},
    {"question": "Cy has 9 pens and gives 2 away. How many are left?", "answer": "#### 7"},
]
PUBMEDQA = [
    {"pubid": str(n), "question": f"Does {n} help?", "contexts": [f"We gave {n}.", "They slept."], "final_decision": d}
    for n, d in enumerate(("yes", "no", "maybe"))
]
BBH = {
    "bbh/boolean_expressions_test.jsonl": [
        {"input": "not ( True ) is", "target": "False"},
        {"input": "True or False is", "target": "True"},
    ],
    "bbh/object_counting_test.jsonl": [{"input": "I have a pan and 23 pots. How many things?", "target": "24"}],
}
GPQA = [
    {
        "Question": f"What is {n} + {n}?",
        "Correct Answer": str(2 * n),
        "Incorrect Answer 1": str(2 * n + 1),
        "Incorrect Answer 2": str(2 * n + 2),
        "Incorrect Answer 3": str(2 * n + 3),
    }
    for n in range(6)
]
CHOICES = ["five", "six", "seven", "eight"]
MMLU = {
    f"mmlu/{subject}_test.jsonl": [
        {"question": f"Which follows {n}?", "subject": subject, "choices": CHOICES, "answer": n} for n in range(2)
    ]
    for subject in ("anatomy", "virology")
}
MMLU_PRO = [
    {
        "question": f"Which is {n}?",
        "options": ["zero", "one", "two"],
        "answer": "ABC"[n],
        "answer_index": n,
        "category": category,
        "cot_content": "",
    }
    for n, category in enumerate(("biology", "physics", "computer science"))
]
NO_DATE = {"day": "", "month": "", "year": ""}
DROP: list[dict[str, Any]] = [
    {
        "query_id": str(n),
        "section_id": f"s{n // 2}",
        "passage": f"The {n // 2} Lions won 2{n} to 14 against Rome.",
        "question": "Against whom?" if n % 2 else "How many did they score?",
        "answer": {
            "number": "" if n % 2 else f"2{n}",
            "date": NO_DATE,
            "spans": ["Rome"] if n % 2 else [],
            "hit_id": "",
        },
        "validated_answers": {"number": [], "date": [], "spans": []},
    }
    for n in range(4)
]
TRUTHFULQA = [
    {
        "question": f"Is {n} lucky?",
        "mc1_targets": {"choices": ["No", "Yes"], "labels": [1, 0]},
        "mc2_targets": {"choices": ["No", "Not at all", "Yes"], "labels": [1, 1, 0]},
    }
    for n in range(2)
]
POPQA = [
    {
        "id": n,
        "question": f"What is the capital of land {n}?",
        "possible_answers": json.dumps([f"City {n}", f"Town {n}"]),
    }
    for n in range(17)
]
MUSR = {
    f"musr_{kind}.jsonl": [
        {
            "narrative": f"Story {n}.",
            "question": "Who?",
            "choices": "['Ann', 'Bob']",
            "answer_index": n,
            "answer_choice": a,
        }
        for n, a in enumerate(("Ann", "Bob"))
    ]
    for kind in ("murder_mysteries", "object_placements", "team_allocation")
}

MATH = [
    {"problem": f"What is half of {n}?", "solution": f"It is $\\boxed{{\\frac{{{n}}}{{2}}}}$."} for n in (1, 3, 5, 7)
]
IFEVAL = [
    {"key": 1, "prompt": "Say hi. No commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    {"key": 2, "prompt": "End it. Be loud.", "instruction_id_list": ["change_case:english_capital"], "kwargs": [{}]},
]
HUMANEVAL = [
    {
        "task_id": f"Invented/{n}",
        "prompt": f'def more{n}(x: int) -> int:\n    """x and {n} more."""\n',
        "canonical_solution": f"    return x + {n}\n",
        "test": f"def check(candidate):\n    assert candidate(1) == {n + 1}\n",
        "entry_point": f"more{n}",
    }
    for n in range(2)
]
MBPP = [
    {
        "task_id": 11 + n,
        "text": f"Write a function to add {n}.",
        "code": f"def add(x):\n    return x + {n}",
        "test_list": [f"assert add({x}) == {x + n}" for x in range(3)],
        "test_setup_code": "",
        "challenge_test_list": [],
    }
    for n in range(2)
]

ITEMS: dict[str, dict[str, list[dict[str, Any]]]] = {
    "gsm8k": {"gsm8k_test.jsonl": GSM8K},
    "pubmedqa": {"pubmedqa.jsonl": PUBMEDQA},
    "bbh": BBH,
    "gpqa": {"gpqa.jsonl": GPQA},
    "mmlu": MMLU,
    "mmlu_pro": {"mmlu_pro_test.jsonl": MMLU_PRO},
    "drop": {"drop_validation.jsonl": DROP, "drop_train.jsonl": DROP},
    "truthfulqa": {"truthfulqa.jsonl": TRUTHFULQA},
    "popqa": {"popqa.jsonl": POPQA},
    "musr": MUSR,
    "math": {"math/algebra_test.jsonl": MATH[:2], "math/algebra_train.jsonl": MATH},
    "ifeval": {"ifeval.jsonl": IFEVAL},
    "humaneval": {"humaneval.jsonl": HUMANEVAL},
    "humaneval_plus": {"humaneval_plus.jsonl": HUMANEVAL},
    "mbpp": {"mbpp.jsonl": MBPP},
}


def write_items(name: str, folder: Path) -> Path:
    """Write a benchmark's rows into `folder`; returns it. Raises OSError where it cannot be written."""
    for file, rows in ITEMS[name].items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
