"""Fingerprints: stable across releases, blind to order, and only of values with one text form."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.store.fingerprint import canonical, differences, fingerprint


def test_the_fingerprint_is_the_sha256_of_sorted_compact_json():
    # worked out with: printf '{"a":1,"b":[0.1,null,"é"]}' with é escaped, through sha256sum
    assert canonical({"b": [0.1, None, "é"], "a": 1}) == '{"a":1,"b":[0.1,null,"\\u00e9"]}'
    assert fingerprint({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


def test_order_of_keys_has_no_part_in_identity():
    assert fingerprint({"x": 1, "y": 2}) == fingerprint({"y": 2, "x": 1})


@pytest.mark.parametrize("value", [Path("x"), {1, 2}, lambda: 0, b"x", {1: "x"}])
def test_a_value_without_one_text_form_is_refused_and_named(value):
    with pytest.raises(TypeError, match=r"settings\.leaf"):
        fingerprint({"leaf": value})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match=r"settings\.leaf"):
        fingerprint({"leaf": value})


def test_a_dataclass_has_the_identity_of_its_fields():
    @dataclass
    class Point:
        x: int
        y: float

    assert fingerprint(Point(1, 2.0)) == fingerprint({"x": 1, "y": 2.0})


def test_differences_name_the_leaf_and_both_values():
    one = {"budget": {"amount": 300, "kind": "steps"}, "span": [0.0, 0.2]}
    other = {"budget": {"amount": 100, "kind": "steps"}, "span": [0.0, 1.0]}
    assert differences(one, other) == [("budget.amount", 300, 100), ("span[1]", 0.2, 1.0)]
    assert differences(one, one) == []
