"""Final answers are found and compared as worked out by hand, and on the real solutions of GSM8K."""

import time
from decimal import Decimal

import pytest

from harness.evals.grading.math_answers import (
    Grades,
    boxed_answer,
    final_number,
    grade_math,
    last_boxed,
)
from tests.real import benchmark


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("9 * 2 = <<9*2=18>>18\n#### 18", 18),
        ("#### $1,000\nThank you for asking 1 question", 1000),
        ("#### 3\n#### 4", 4),
        ("so #### -7 degrees", -7),
        ("#### $-1,234.50", "-1234.50"),
        ("####.5", "0.5"),
        ("#### 18.", 18),
        ("The answer is 18.", None),
        ("#### eighteen", None),
        ("", None),
    ],
)
def test_the_number_after_the_last_four_hashes_is_read(text, number):
    assert final_number(text) == (None if number is None else Decimal(number))


def test_every_real_solution_ends_in_its_number():
    rows = benchmark("gsm8k_test")
    stated = [row["answer"].split("####")[1].strip().replace(",", "") for row in rows]
    assert [final_number(row["answer"]) for row in rows] == list(map(Decimal, stated)) and len(rows) > 1000


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"so $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"\boxed{1}, no: \boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\fbox {\text{a \} b}}", r"\text{a \} b}"),
        (r"\boxed{2} and \boxed{3", "2"),
        (r"\boxed{1", None),
        ("nothing", None),
    ],
)
def test_the_last_complete_box_counts(text, inside):
    assert last_boxed(text) == inside


def test_minervas_sentence_is_read_where_there_is_no_box():
    assert boxed_answer("Final Answer: The final answer is $24$. I hope it is correct.") == "24"
    assert boxed_answer("The final answer is 3.5.\nProblem: next") == "3.5"
    assert boxed_answer(r"The final answer is $24$. \boxed{25}") == "25"
    assert boxed_answer("It is 24.") is None


@pytest.mark.parametrize(
    ("answer", "truth", "grades"),
    [
        (r"\boxed{\frac12}", "0.5", Grades(True, True)),
        (r"We get $\boxed{2\sqrt{3}}$ as asked.", r"hence \boxed{\sqrt{12}}", Grades(True, True)),
        (r"\boxed{x + 1}", "1+x", Grades(True, True)),
        (r"\boxed{[2,5)}", "[2,5)", Grades(True, True)),
        (r"\boxed{(2,5)}", "[2,5)", Grades(False, False)),
        (r"\boxed{\text{east}}", "east", Grades(True, True)),
        (r"\boxed{1,000}", "1000", Grades(True, True)),
        (r"\boxed{5}", r"\boxed{6}", Grades(False, False)),
        (r"\boxed{5} or \boxed{6}", "6", Grades(True, False)),  # math-verify takes both
        (r"\boxed{???}", "???", Grades(True, True)),
        ("It is 7", "7", Grades(None, True)),
        ("The final answer is $24$. I hope it is correct.", r"we get \boxed{24}.", Grades(True, True)),
        ("I do not know.", "5", Grades(None, None)),
        ("", "5", Grades(None, None)),
    ],
)
def test_expressions_are_compared_by_meaning(answer, truth, grades):
    assert grade_math(answer, truth) == grades


def test_an_expression_too_large_to_compare_ends_in_time_and_says_so(monkeypatch):
    monkeypatch.setattr("harness.evals.grading.math_answers.LIMIT_SECONDS", 1)
    started = time.monotonic()
    assert grade_math(r"\boxed{9^{9^{9^9}}}", "1") == Grades(False, False, timed_out=True)
    assert time.monotonic() - started < 5
