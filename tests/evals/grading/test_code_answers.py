"""Answers become programs: fenced or plain, whole functions or bodies; real solutions pass and empty ones fail."""

from itertools import combinations

import pytest

from harness.config.checks import SettingsError
from harness.evals.grading.code_answers import blocks, code_of, humaneval_program, mbpp_program, pass_at_k
from harness.evals.grading.sandbox import run, run_many
from tests.real import benchmark

ADD = {
    "prompt": "from typing import List\ndef double(x): return 2 * x\n\ndef add(a: int, b: int):\n    '''Add.'''\n",
    "entry_point": "add",
    "test": "def check(candidate):\n    assert candidate(2, 3) == 5\n    assert double(2) == 4\n",
}
AREA = {
    "test_list": ["assert area(2, 3) == 6", "assert abs(area(1, 1)) == unit"],
    "test_setup_code": "unit = area(1, 1)",
}


@pytest.mark.parametrize(
    "answer",
    [
        "    return a + b\n",
        "    return a + b\n\n",
        "def add(a: int, b: int):\n    return a + b",
        "from functools import reduce\n\ndef add(*numbers: List[int]):\n    return sum(numbers)",
        "Here it is:\n\n```python\ndef add(a, b):\n    return a + b\n```\n\nIt adds.",
        "```\n    return a + b\n```",
        "~~~python\ndef add(a, b):\n    return a + b\n~~~",
        "````python\ndef add(a, b):\n    '''\n```\n'''\n    return a + b\n````",
        "```bash\npip install it\n```\n```python\ndef add(a, b): return a + b\n```\n```python\nadd(1, 'x')\n```",
        "```python\r\ndef add(a, b):\r\n    return a + b\r\n```\r\n",
        "```python\ndef add(a, b):\n    return a + b",
        "```python\nclass Adder:\n    def add(self): ...\n```\n```\ndef other(): ...\ndef add(a, b): return a + b\n```",
    ],
)
def test_a_right_answer_passes_in_whatever_form_it_comes(answer):
    outcome = run(humaneval_program(ADD, answer), 5, 512)
    assert outcome.passed, outcome.reason


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "\n",
        "I cannot.",
        "    return a - b\n",
        "```python\n```",
        "```python\ndef other(a, b):\n    return a + b\n```",
    ],
)
def test_a_wrong_or_empty_answer_fails(answer):
    assert not run(humaneval_program(ADD, answer), 5, 512).passed


def test_a_model_that_ignores_the_open_block_and_opens_its_own_is_heard():
    answer = "Sure, here it is:\n```python\ndef add(a, b):\n    return a + b\n```\nDone."
    assert blocks(answer, in_fence=True) == ["Sure, here it is:", "def add(a, b):\n    return a + b"]
    assert run(humaneval_program(ADD, answer, in_fence=True), 5, 512).passed


def test_an_answer_that_goes_on_inside_an_open_block_ends_where_it_closes_it():
    answer = "    return a + b\n```\nThis adds `a` and `b`.\n"
    assert run(humaneval_program(ADD, answer, in_fence=True), 5, 512).passed
    assert not run(humaneval_program(ADD, answer), 5, 512).passed


def test_mbpp_tests_come_after_code_and_setup():
    program = mbpp_program(AREA, "Try this:\n```python\ndef area(a, b):\n    return a * b\n```")
    assert run(program, 5, 512).passed
    assert program.source.index("def area") < program.source.index("unit =") and "assert" not in program.source
    assert program.tests.count("assert") == 2 and program.names == ("area", "unit")
    assert not run(mbpp_program(AREA, "def area(a, b):\n    return a + b"), 5, 512).passed
    assert not run(mbpp_program(AREA, "unit = 1"), 5, 512).passed


def test_a_built_in_name_is_the_programs_where_the_tests_use_no_other():
    row = {"test_list": ["assert sum(10, 15) == 6"]}
    assert run(mbpp_program(row, "def sum(a, b): return 6"), 5, 512).passed
    row = {"test_list": ["assert sum(f(3)) == 6"]}
    assert mbpp_program(row, "").names == ("f",)
    assert not run(mbpp_program(row, "def sum(values): return 6\ndef f(n): return [n]"), 5, 512).passed


def test_the_block_that_defines_what_the_tests_call_is_taken():
    answer = "```python\nx = 1\n```\n```python\ndef f(): return 1\n```\n```python\ndef f(): return 2\n```"
    assert code_of(answer, ["f"]) == "def f(): return 1"
    assert code_of(answer, ["g"]) == "x = 1"
    assert code_of("no block", ["f"]) == "no block"


def test_fences_are_those_of_markdown():
    assert blocks("a\n```py\nb\n  c\n```\nd\n```\ne\n```") == ["b\n  c", "e"]
    assert blocks("`inline` and ```also inline``` code") == []
    assert blocks("    ```\nfour spaces are no fence\n    ```") == []
    assert blocks("```\n~~~\n```") == ["~~~"]


def test_real_solutions_pass_and_empty_answers_fail():
    problems = [*benchmark("humaneval")[::8], *benchmark("humaneval")[38:39]]
    tasks = benchmark("mbpp")[::40]
    right = [humaneval_program(row, row["canonical_solution"]) for row in problems[::2]]
    right += [
        humaneval_program(row, f"Sure.\n```python\n{row['prompt']}{row['canonical_solution']}\n```\nDone.")
        for row in problems[1::2]
    ]
    right += [mbpp_program(row, row["code"]) for row in tasks[::2]]
    right += [mbpp_program(row, f"```python\n{row['code']}\n```") for row in tasks[1::2]]
    outcomes = run_many(right, seconds=10, memory_mb=1024)
    assert [outcome.reason for outcome in outcomes if not outcome.passed] == []
    wrong = [humaneval_program(row, "") for row in problems] + [mbpp_program(row, "") for row in tasks]
    assert not any(outcome.passed for outcome in run_many(wrong, seconds=10, memory_mb=1024))


@pytest.mark.parametrize(("samples", "k"), [(1, 1), (5, 1), (5, 2), (6, 4), (6, 6)])
def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_sample(samples, k):
    for right in range(samples + 1):
        draws = [any(index < right for index in draw) for draw in combinations(range(samples), k)]
        assert pass_at_k(samples, right, k) == pytest.approx(sum(draws) / len(draws))


def test_pass_at_k_of_more_than_was_drawn_is_refused():
    with pytest.raises(SettingsError, match="k=10 cannot be run: pass@k needs from 1 to as many as the 5 samples"):
        pass_at_k(5, 1, 10)
    with pytest.raises(SettingsError, match="right=6"):
        pass_at_k(5, 6, 1)
