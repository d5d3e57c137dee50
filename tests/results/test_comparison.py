"""One model against another: textbook paired intervals, and losses that are found where they were planted."""

import itertools

import numpy as np
import pytest
from scipy import stats

from harness.results.arms import Metric
from harness.results.comparison import Comparison
from tests.invented_records import cell, changed, items

ACCURACY = Metric("verified", "accuracy")
SOURCES = ("add", "sort", "few")


def world(sources=("add",), **scores):
    """Records by method, of seed 0, and what compares them."""
    records = {name: cell(name, 0.1, 0, list(map(float, values))) for name, values in scores.items()}
    shelf = {
        record.items["verified"]: items(list(map(float, values)), sources)
        for record, values in zip(records.values(), scores.values(), strict=True)
    }
    return records, Comparison(lambda path: shelf[path])


def test_score_and_paired_gain_have_the_textbook_intervals():
    draw = np.random.default_rng(0)
    one, two = draw.integers(0, 2, 60), draw.integers(0, 2, 60)
    records, compare = world(kd=one, sft=two)
    alone = stats.ttest_1samp(one, 0).confidence_interval(0.95)
    score = compare.score(records["kd"], ACCURACY)
    assert (score["score"], score["items"], score["covers"]) == (pytest.approx(one.mean()), 60, "items only")
    assert (score["low"], score["high"]) == pytest.approx((alone.low, alone.high))
    paired = stats.ttest_rel(one, two)
    found = compare.against(records["kd"], records["sft"], ACCURACY)
    assert found["gain"] == pytest.approx((one - two).mean()) and found["score"] == pytest.approx(two.mean())
    assert found["p"] == pytest.approx(paired.pvalue)
    interval = paired.confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))


def test_a_reference_model_is_paired_whatever_seed_it_stands_under():
    records, compare = world(kd=[1, 0] * 10, base=[0, 0] * 10)
    base = changed(records["base"], data_seed=7, train_seed=8, role="base")
    assert compare.against(records["kd"], base, ACCURACY)["gain"] == pytest.approx(0.5)


def test_without_a_score_there_is_no_comparison():
    records, compare = world(kd=[1, 0] * 10)
    unscored = cell("sft", 0.1, 0, None, status="missing")
    assert compare.against(records["kd"], unscored, ACCURACY) is None
    assert compare.score(unscored, ACCURACY) is None
    assert compare.losses(records["kd"], {"sft": unscored}, [ACCURACY]) == []


def test_a_source_that_was_lost_is_found_and_one_that_was_not_is_not():
    places = itertools.cycle(SOURCES)
    own, other = [], []
    for n, source in zip(range(120), places, strict=False):
        usual = n // 3 % 2
        own.append(0 if source == "sort" and n % 10 else usual)
        other.append(1 if source == "sort" else usual)
    records, compare = world(SOURCES, kd=own, sft=other)
    found = compare.losses(records["kd"], {"sft": records["sft"], "base": records["kd"]}, [ACCURACY])
    assert {(one["against"], one["source"]) for one in found} == {("sft", "all"), ("sft", "sort")}
    lost = next(one for one in found if one["source"] == "sort")
    assert lost["items"] == 40 and lost["gain"] == pytest.approx(lost["score"] - lost["other"]) and lost["gain"] < 0
    assert not compare.losses(records["sft"], {"kd": records["kd"]}, [ACCURACY]), "what is better is no loss"


def test_a_loss_on_every_single_item_is_one_although_its_spread_is_nothing():
    sources = ("add", "sort")
    records, compare = world(sources, kd=[1, 0] * 12, sft=[1, 1] * 12)
    found = {one["source"]: one for one in compare.losses(records["kd"], {"sft": records["sft"]}, [ACCURACY])}
    assert found["sort"]["gain"] == -1 and found["sort"]["p_holm"] == pytest.approx(2 * 2.0**-11)  # Holm: of two


def test_sources_with_too_few_items_are_not_looked_at():
    few = ("add",) * 9 + ("sort",)
    records, compare = world(few, kd=[1] * 9 + [0] + [1] * 80, sft=[1] * 90)
    assert all(one["source"] != "sort" for one in compare.losses(records["kd"], {"sft": records["sft"]}, [ACCURACY]))


def test_an_arm_of_one_seed_has_no_gain_of_its_own():
    records, compare = world(kd=[1, 0] * 10, sft=[0, 0] * 10)
    assert compare.arms_gain([records["kd"]], [records["sft"]], ACCURACY) is None
