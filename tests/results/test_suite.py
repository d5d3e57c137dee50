"""The macro-average of a suite: values worked out by hand, intervals, and what is missing."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student_t

from harness.evals import Score
from harness.evals.benchmarks import load_benchmark
from harness.plan.frozen import FrozenPlan
from harness.results.arms import Metric, by_arm
from harness.results.comparison import Comparison
from harness.results.items import enough, means_of, values_of
from harness.results.paired_gains import gain, scores
from harness.results.records import records
from harness.results.stats.intervals import WITHIN, curve, seeds_and_items
from harness.results.suite import lacking, macro_scores, suite_of, with_macro_average
from harness.results.table import summary, tidy
from harness.store.store import Store
from tests.invented_records import changed, frozen_cell
from tests.invented_suite import COLUMNS, NAMES, SETTINGS, items_frame, record_of, suite

RESCALED, RAW = Metric("macro_average", "rescaled"), Metric("macro_average", "raw")
GPQA = Score("gpqa", COLUMNS["gpqa"], "all", 0.55, 0.03, 448)
GSM8K = Score("gsm8k", COLUMNS["gsm8k"], "all", 0.30, 0.03, 1319)


def sft_and_kd(sft, kd):
    """Records of SFT and KD with these items, by benchmark, and the shelf they lie on."""
    shelf: dict[str, pd.DataFrame] = {}
    return record_of("sft", 1.0, 0, sft, shelf), record_of("kd", 1.0, 0, kd, shelf), shelf


def test_each_benchmark_is_rescaled_from_its_floor_and_counts_the_same():
    assert (load_benchmark("gpqa").floor, load_benchmark("gsm8k").floor) == (0.25, 0.0)
    found = {(one.metric, one.source): one for one in macro_scores({"gpqa": GPQA, "gsm8k": GSM8K})}
    # (0.55 - 0.25) / 0.75 = 0.4 and 0.3
    assert found["rescaled", "gpqa"].score == pytest.approx(0.4) and found["rescaled", "gsm8k"].score == 0.3
    assert found["rescaled", "all"].score == pytest.approx(0.35) and found["raw", "all"].score == pytest.approx(0.425)
    # 0.03 / 0.75 = 0.04, and the root of 0.04^2 + 0.03^2 is 0.05
    assert found["rescaled", "all"].standard_error == pytest.approx(0.025)
    assert found["raw", "all"].standard_error == pytest.approx(math.sqrt(2) * 0.03 / 2)
    assert {one.items for key, one in found.items() if key[1] == "all"} == {448 + 1319}
    assert {one.eval for one in found.values()} == {"macro_average"}


def test_below_its_floor_a_score_is_negative_and_guessing_is_zero():
    low = {"gpqa": replace(GPQA, score=0.1), "gsm8k": replace(GSM8K, score=0.0)}
    assert macro_scores(low)[0].score == pytest.approx(-0.1)  # (0.1 - 0.25) / 0.75 / 2
    assert macro_scores({**low, "gpqa": replace(GPQA, score=0.25)})[0].score == 0.0


def test_without_a_standard_error_of_one_benchmark_there_is_none_of_the_mean():
    found = macro_scores({"gpqa": replace(GPQA, standard_error=None, items=1), "gsm8k": GSM8K})
    assert [one.standard_error for one in found if one.source in ("all", "gpqa")] == [None] * 4
    assert json.dumps([vars(one) for one in found], allow_nan=False)


@pytest.mark.parametrize("score", [None, math.nan, math.inf])
def test_without_a_finite_score_of_every_benchmark_there_is_no_macro_average(score):
    heldout = Score("heldout", "nll", "all", 1.0, 0.1, 30)
    whole = with_macro_average([heldout, GPQA, GSM8K], SETTINGS)
    assert [one.eval for one in whole if one.source == "all"] == ["heldout", *NAMES, "macro_average", "macro_average"]
    part = [heldout, GPQA] if score is None else [heldout, GPQA, replace(GSM8K, score=score)]
    assert with_macro_average(part, SETTINGS) == tuple(part) and lacking(part, SETTINGS) == ["gsm8k"]


def test_a_suite_has_two_benchmarks_or_more():
    assert suite_of(SETTINGS) == NAMES and suite_of({}) == ()
    assert suite_of({"evals": {"names": ["heldout", "verified", "gsm8k"]}}) == ()
    assert suite_of({"evals": {"names": ["gsm8k", "gpqa", "gsm8k"]}}) == NAMES


def test_the_interval_of_one_seed_is_that_of_a_mean_of_means_over_items():
    """One seed: variance of each benchmark's stratified mean, over the number of benchmarks squared."""
    generator = np.random.default_rng(3)
    kd, sft = (
        {
            "gpqa": items_frame("gpqa", generator.random(24) < 0.6),
            "gsm8k": items_frame("gsm8k", generator.random(60) < p),
        }
        for p in (0.5, 0.3)
    )
    *both, shelf = sft_and_kd(sft, kd)
    row = summary(both, shelf.__getitem__).set_index(["eval", "metric", "method"])
    row = row.loc[("macro_average", "rescaled", "kd")]
    means, variances, dfs = [], [], []
    for name, scale in (("gpqa", 0.75), ("gsm8k", 1.0)):
        difference = (kd[name]["score"] - sft[name]["score"]) / scale
        means.append(difference.mean())
        parts = [difference[kd[name]["source"] == source] for source in ("a", "b")]
        variances.append(sum((len(p) / len(difference)) ** 2 * p.var(ddof=1) / len(p) for p in parts) / 4)
        dfs.append(len(difference) - 2)
    df = sum(variances) ** 2 / sum(v**2 / d for v, d in zip(variances, dfs, strict=True))
    half = student_t.ppf(0.975, df) * math.sqrt(sum(variances))
    assert row["gain"] == pytest.approx(sum(means) / 2)
    assert (row["gain_low"], row["gain_high"]) == pytest.approx((row["gain"] - half, row["gain"] + half))
    assert row["gain_covers"] == "items only" and row["items"] == 84


def test_the_macro_average_is_a_metric_of_every_table():
    found, load_items = suite({"kd": {0.1: (0.1, 0.2), 1.0: (0.0, 0.1)}}, seeds=3)
    frame = summary(found, load_items)
    assert {(e, m) for e, m in zip(frame["eval"], frame["metric"], strict=True) if e == "macro_average"} == {
        ("macro_average", "rescaled"),
        ("macro_average", "raw"),
    }
    macro = frame[(frame["eval"] == "macro_average") & (frame["method"] == "kd")].set_index(["metric", "data_frac"])
    each = frame[(frame["method"] == "kd")].set_index(["eval", "data_frac"])["gain"]
    # the gain of a mean is the mean of the gains, GPQA's over the 0.75 between its floor and 1
    for fraction in (0.1, 1.0):
        gains = each["gpqa", fraction], each["gsm8k", fraction]
        assert macro.loc[("raw", fraction), "gain"] == pytest.approx(sum(gains) / 2)
        assert macro.loc[("rescaled", fraction), "gain"] == pytest.approx((gains[0] / 0.75 + gains[1]) / 2)
    assert set(macro["gain_covers"]) == {"seeds and items"} and macro["gain_p_holm"].notna().all()
    rows = tidy(found)
    assert set(rows.loc[rows["eval"] == "macro_average", "source"]) == {"all", *NAMES}
    # each benchmark's share of the macro-average is a source of it
    shares = summary(found, load_items, None, [Metric("macro_average", "rescaled", "gpqa")])
    assert shares.loc[shares["data_frac"] == 0.1, "gain"].max() == pytest.approx(each["gpqa", 0.1] / 0.75)


def test_a_receipt_compares_two_models_as_the_table_does():
    found, load_items = suite({"kd": {1.0: (0.1, 0.2)}}, seeds=1)
    sft, kd = sorted(found, key=lambda record: record.method != "sft")
    row = summary(found, load_items).set_index(["metric", "method"]).loc[("rescaled", "kd")]
    told = Comparison(load_items).against(kd, sft, RESCALED)
    assert (told["gain"], told["low"], told["high"]) == pytest.approx((row["gain"], row["gain_low"], row["gain_high"]))
    alone = Comparison(load_items).score(kd, RESCALED)
    assert (alone["score"], alone["low"]) == pytest.approx((row["score"], row["score_low"]))


def test_items_that_one_cell_lacks_are_left_out_and_benchmarks_still_count_the_same():
    whole = {"gpqa": items_frame("gpqa", [1, 1, 0, 0, 1, 1]), "gsm8k": items_frame("gsm8k", [1, 0] * 10)}
    part = {"gpqa": items_frame("gpqa", [0, 1, 1, 1], first=2), "gsm8k": items_frame("gsm8k", [0, 0] * 10)}
    sft, kd, shelf = sft_and_kd(whole, part)
    found = gain([kd], [sft], RAW, values_of(shelf.__getitem__))
    # of GPQA both have items 2 to 5, where KD has three right and SFT two; of GSM8K all, with none right and half
    assert len(found.ids) == 24 and found.values.mean() == pytest.approx((1 / 4 - 1 / 2) / 2)
    both = Comparison(shelf.__getitem__).against(kd, sft, RAW)
    assert both["gain"] == pytest.approx(found.values.mean())


def test_without_a_common_item_of_one_benchmark_no_item_is_used():
    sft, kd, shelf = sft_and_kd(
        {"gpqa": items_frame("gpqa", [1, 1, 0, 1]), "gsm8k": items_frame("gsm8k", [1, 0, 1, 1])},
        {"gpqa": items_frame("gpqa", [1, 0, 0, 0], first=50), "gsm8k": items_frame("gsm8k", [0, 0, 1, 1])},
    )
    found = gain([kd], [sft], RAW, values_of(shelf.__getitem__))
    assert found.ids == () and found.values.shape == (1, 1)
    assert found.values[0, 0] == pytest.approx((0.25 - 0.75) / 2 + (0.5 - 0.75) / 2)
    told = Comparison(shelf.__getitem__).against(kd, sft, RAW)
    assert told["low"] is None and told["gain"] == pytest.approx(-0.375)


def test_a_benchmark_of_one_item_has_no_variance_and_so_has_the_macro_average():
    frames = {"gpqa": items_frame("gpqa", [1]), "gsm8k": items_frame("gsm8k", [1, 0, 1, 1])}
    shelf: dict[str, pd.DataFrame] = {}
    found = scores([record_of("sft", 1.0, 0, frames, shelf)], RAW, values_of(shelf.__getitem__))
    assert found.ids == () and found.covers.startswith("nothing")


def test_a_diverged_cell_counts_as_guessing():
    found, load_items = suite({"kd": {1.0: (0.1, 0.2)}}, seeds=2)
    lost = [
        changed(one, status="failed", failure_class="diverged", reason="NaN", scores=[], items={})
        if (one.method, one.seed) == ("kd", 0)
        else one
        for one in found
    ]
    arm = next(arm for arm in by_arm(lost) if arm.method == "kd")
    values = scores(by_arm(lost)[arm], RESCALED, values_of(load_items))
    assert values.values.mean(1)[0] == 0 and values.values.mean(1)[1] != 0


def test_parts_have_their_own_degrees_of_freedom():
    """A part of six items with all of the variance has five degrees of freedom, whatever lies beside it."""
    few, many = np.array([0.0, 1, 0, 1, 0, 1]), np.zeros(600)
    sources = np.array([f"few{WITHIN}x"] * 6 + [f"many{WITHIN}y"] * 600)
    values = means_of(np.concatenate([few, many]), np.ones(606), sources)
    assert values.mean() == pytest.approx(0.25)
    found = seeds_and_items(values[None, :], list(sources))
    assert found.df == pytest.approx(5)
    assert found.standard_error == pytest.approx(np.std(few, ddof=1) / np.sqrt(6) / 2)
    # single items are put together within their part only
    singles = [f"few{WITHIN}{n}" for n in range(6)] + [f"many{WITHIN}y"] * 600
    assert seeds_and_items(values[None, :], singles).standard_error == pytest.approx(found.standard_error)


@pytest.mark.parametrize(("seeds", "seed_sd"), [(1, 0.0), (3, 0.02), (5, 0.02)])
def test_the_interval_of_a_macro_averages_gain_covers(seeds, seed_sd):
    """Benchmarks of 15 and 300 items, whose gains differ; the truth is the mean over benchmarks, not over items."""
    generator, repetitions, sizes, scales = np.random.default_rng(5), 1500, (15, 300), (0.75, 1.0)
    truths, spread = (0.10, -0.02), (0.5, 0.35)
    truth = (truths[0] / scales[0] + truths[1] / scales[1]) / 2
    sources = np.array([f"few{WITHIN}x"] * sizes[0] + [f"many{WITHIN}y"] * sizes[1])
    scale, level = np.repeat(scales, sizes), np.repeat(truths, sizes)
    covered = pooled = 0
    for _ in range(repetitions):
        item = generator.normal(0, np.repeat(spread, sizes))
        seed = generator.normal(0, seed_sd, (seeds, 1))
        raw = level + item + generator.normal(0, 0.2, (seeds, len(item))) + seed
        values = np.stack([means_of(row / scale, np.ones(len(item)), sources) for row in raw])
        found = seeds_and_items(values, list(sources))
        covered += found.low < truth < found.high
        mean = seeds_and_items(raw, None)
        pooled += mean.low < truth < mean.high
    assert 0.93 < covered / repetitions < 0.985
    assert pooled / repetitions < 0.8  # a mean over all items is about another number


def test_a_curve_of_one_part_is_that_without_parts():
    generator = np.random.default_rng(0)
    values = generator.normal(size=(3, 4, 20))
    names = ["a"] * 8 + ["b"] * 12
    one, other = curve(values, names), curve(values, [f"p{WITHIN}{name}" for name in names])
    assert (one.item == other.item).all() and (one.overlap == other.overlap).all()
    assert (one.item_df, one.seed_df) == (other.item_df, other.seed_df) == (18, 2)


def test_enough_items_are_two_of_every_part():
    assert enough(np.array(["a", "a"])) and not enough(np.array(["a"]))
    two = np.array([f"p{WITHIN}a", f"p{WITHIN}a", f"q{WITHIN}a", f"q{WITHIN}b"])
    assert enough(two, 2) and not enough(two[:3], 2) and not enough(two[:2], 2)


def stored(tmp_path, primary="macro_average.rescaled", lost=()):
    """Records of a grid of one cell whose benchmarks are in a store, but for those lost."""
    store = Store.open(tmp_path)
    evaluations = {name: f"evaluate-{name}" for name in NAMES}
    for name, key in evaluations.items():
        if name in lost:
            continue
        with store.scratch(key) as folder:
            one = GPQA if name == "gpqa" else GSM8K
            (folder / "scores.json").write_text(json.dumps([vars(one)]))
            (folder / "items.parquet").write_bytes(b"PAR1")
            store.publish(key, folder, {"facts": {}})
    stages = {key: {"kind": "evaluate", "inputs": {"model": "base-s"}, "address": key} for key in evaluations.values()}
    stages["base-s"] = {"kind": "base", "inputs": {}, "address": "base-s"}
    cell = frozen_cell(
        evaluations=evaluations, needs=tuple(evaluations.values()), settings=SETTINGS, data_frac=1.0, method="untrained"
    )
    (record,) = records(store, FrozenPlan("g", stages, (cell,), None, primary))
    return record


def test_a_record_read_from_a_store_has_its_macro_average(tmp_path):
    found = {(one.metric, one.source): one.score for one in stored(tmp_path).scores if one.eval == "macro_average"}
    assert found["rescaled", "all"] == pytest.approx(0.35) and found["raw", "all"] == pytest.approx(0.425)


def test_a_record_that_lacks_a_benchmark_warns_and_has_none(tmp_path):
    record = stored(tmp_path, lost=("gsm8k",))
    assert {one.eval for one in record.scores} == {"gpqa"} and record.status == "missing"
    assert record.warnings == ("macro_average: not computed, because there is no score of gsm8k",)
    # a cell that nothing was made of yet says nothing
    assert stored(tmp_path / "none", lost=NAMES).warnings == ()


def test_a_plan_of_an_earlier_version_has_the_records_it_had(tmp_path):
    assert {one.eval for one in stored(tmp_path, primary=None).scores} == set(NAMES)
    assert stored(tmp_path / "part", primary=None, lost=("gpqa",)).warnings == ()
