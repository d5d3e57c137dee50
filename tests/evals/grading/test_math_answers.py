"""Final answers are found and compared as written here, and as lm-eval's own filters do on real rationales."""

import re
import time
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from harness.evals.grading.math_answers import (
    Grades,
    boxed_answer,
    grade_gsm8k,
    grade_math,
    last_boxed,
    last_number,
    stated_number,
)
from tests.real import benchmark


@pytest.mark.parametrize(
    ("text", "stated", "last"),
    [
        ("The answer is 18.", 18, 18),
        ("She has 9 left. The answer is $1,234.50 per week, every week.", "1234.50", "1234.50"),
        ("The answer is 18. Is it? 5 times.", 18, 5),
        ("9 * 2 = <<9*2=18>>18\n#### 18", 18, 18),
        ("#### $1,000\nThank you for asking 1 question", 1000, 1),
        ("#### 3\n#### 4", 4, 4),
        ("The answer is: 7", 7, 7),
        ("The answer is -7 degrees.", -7, -7),
        ("It is -$5.", None, -5),
        ("It is $-5.", None, -5),
        ("It costs €12.", None, 12),
        ("between 5-10", None, 10),
        ("x-3", None, 3),
        (".5 of them", None, "0.5"),
        ("It is 18...", None, 18),
        ("They are 18,", None, 18),
        (r"\boxed{18}", None, 18),
        ("The answer is **18**", None, 18),
        ("The answer is eighteen.", None, None),
        ("", None, None),
    ],
)
def test_numbers_are_found_and_read(text, stated, last):
    assert stated_number(text) == (None if stated is None else Decimal(stated))
    assert last_number(text) == (None if last is None else Decimal(last))


def test_a_number_is_compared_by_value():
    assert grade_gsm8k("The answer is $1,234.00.", "so\n#### 1234") == Grades(True, True)
    assert grade_gsm8k("18", "18") == Grades(None, True)
    assert grade_gsm8k("The answer is 17. Or 18", "#### 18") == Grades(False, True)
    assert grade_gsm8k("I do not know.", "#### 18") == Grades(None, None)


def test_every_real_solution_is_right_and_that_of_the_next_row_is_not():
    rows = benchmark("gsm8k_test")
    assert {grade_gsm8k(row["answer"], row["answer"]) for row in rows} == {Grades(True, True)}
    following = [*rows[1:], rows[0]]
    pairs = [(row["answer"], other["answer"]) for row, other in zip(rows, following, strict=True)]
    same = sum(one.split("####")[1].strip() == other.split("####")[1].strip() for one, other in pairs)
    assert sum(bool(grade_gsm8k(one, other).flexible) for one, other in pairs) == same < 50


@pytest.fixture(scope="module")
def lm_eval_grades():
    """lm-eval's own grades of an answer against a target: its patterns, filters and metric of `gsm8k_cot`."""
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters.extraction import RegexFilter

    package = find_spec("lm_eval")
    assert package and package.origin
    task = yaml.safe_load((Path(package.origin).parent / "tasks/gsm8k/gsm8k-cot.yaml").read_text())
    metric = {key: task["metric_list"][0][key] for key in ("regexes_to_ignore", "ignore_case", "ignore_punctuation")}
    filters = {}
    for one in task["filter_list"]:
        settings = {key: value for key, value in one["filter"][0].items() if key != "function"}
        filters[one["name"]] = RegexFilter(**settings)

    def grades(answer, target):
        found = {name: next(iter(one.apply([[answer]], [{}])))[0] for name, one in filters.items()}
        return [
            exact_match_hf_evaluate([found[name]], [target], **metric)["exact_match"] == 1
            for name in ("strict-match", "flexible-extract")
        ]

    return grades


def test_grades_of_real_rationales_are_those_of_lm_eval(lm_eval_grades):
    rows, compared = benchmark("gsm8k_test")[::4], 0
    for row, other in zip(rows, [*rows[1:], rows[0]], strict=True):
        reasons, number = re.sub(r"<<.*?>>", "", row["answer"]).split("####")
        wrong = other["answer"].split("####")[1].strip()
        for answer in (
            f"{reasons}The answer is {number.strip()}.",
            f"{reasons}The answer is ${number.strip()}.",
            f"The answer is {number.strip()}. {reasons}",
            f"The answer is {wrong}.\n",
            f"{reasons}So it is {number.strip()} in all",
            "I cannot say.",
        ):
            ours = grade_gsm8k(answer, row["answer"])
            strict, flexible = lm_eval_grades(answer, number.strip())
            if not re.search(r"\.00\D*$", answer):  # lm-eval compares text: 75.00 is not 75
                assert bool(ours.flexible) == flexible, answer
            if "is $" not in answer:  # lm-eval's strict pattern has no dollar sign
                assert bool(ours.strict) == strict, answer
            compared += 1
    assert compared > 1900


@pytest.mark.parametrize(
    ("answer", "ours", "theirs"),
    [
        ("The answer is 18", Grades(True, True), [False, True]),
        ("The answer is 18.00.", Grades(True, True), [False, False]),
        ("It is 18...", Grades(None, True), [False, False]),
        ("Hence 6-18", Grades(None, True), [False, False]),
        ("The answer is $18.", Grades(True, True), [False, True]),
    ],
)
def test_the_differences_from_lm_eval_are_these(answer, ours, theirs, lm_eval_grades):
    assert grade_gsm8k(answer, "#### 18") == ours
    assert lm_eval_grades(answer, "18") == theirs


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
