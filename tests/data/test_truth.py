"""Truths: a value keeps its kind, and is compared by it."""

import pytest

from harness.data.truth import NoTruth, alternatives, same, shown, truth_text
from harness.evals.corpus.verified import verify


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (18.0, "18"),
        (18, "18"),
        (0.1, "0.1"),
        (-3.0, "-3"),
        (10**30, "1" + "0" * 30),
        ("18.0", "18.0"),
        (None, None),
        (float("nan"), None),
        ("", None),
        (" ", None),
        ([], None),
        ([None], None),
    ],
)
def test_a_value_of_a_file_is_a_text_or_no_truth(value, text):
    assert truth_text(value) == text


def test_a_list_is_any_of_its_members():
    truth = truth_text(["Rome", 18.0, "Rome", [True]])
    assert alternatives(truth) == ("Rome", "18", "True", "true")
    assert shown(truth) == "Rome | 18 | True | true"
    assert [verify(answer, truth) for answer in ("Rome", "18.00", "true", "rome")] == [True, True, True, False]
    assert verify("no number", truth_text(["#### 18", "#### 19"])) is None
    assert verify("#### 19", truth_text(["#### 18", "#### 19"])) is True


def test_an_object_is_no_truth():
    with pytest.raises(NoTruth, match="an object"):
        truth_text({"answer": 4})


@pytest.mark.parametrize(
    ("answer", "truth", "equal"),
    [
        ("18", "18.0", True),
        ("18.00", "18", True),
        ("1,234.50", "1234.5", True),
        ("1,8", "18", False),  # a comma stands between thousands alone
        ("2e3", "2000", True),
        ("007", "7", False),  # leading zeros: a name, not a number
        ("18 apples", "18", False),
        ("-0.5", "-.5", False),
        ("KW", "kw", False),
        (" a  b\n", "a b", True),
    ],
)
def test_numbers_are_compared_as_numbers_and_other_texts_as_texts(answer, truth, equal):
    assert same(answer, truth) is equal
