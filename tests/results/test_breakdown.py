"""Scores and gains by class of item: the values by hand, the pairing, and that the intervals cover."""

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from harness.config.checks import SettingsError
from harness.results.arms import Metric
from harness.results.breakdown import breakdown, render
from harness.results.paired_gains import estimate, gain
from harness.results.table import summary
from tests.invented_records import cell, changed, grid, items
from tests.invented_suite import COLUMNS, suite

ACCURACY = Metric("verified", "accuracy")


class Told:
    """Exposures of the one evaluation by cell, as a test sets them: {cell: {prompt_hash: exposure}}."""

    def __init__(self, told):
        self.told = told

    def of_items(self, record, evaluation, items):
        series = pd.Series(self.told[record.cell], dtype="string").reindex(items["prompt_hash"])
        series.index = items.index
        return pd.DataFrame({"exposure": series, "student_rows": pd.array(series == "student", "boolean")})


def by_hand():
    """Two seeds of SFT and kd on six items, three of them the student's in seed 0 and two in seed 1."""
    scores = {
        ("sft", 0): [1, 0, 0, 0, 0, 1],
        ("kd", 0): [1, 1, 0, 0, 1, 1],
        ("sft", 1): [0, 0, 0, 1, 0, 0],
        ("kd", 1): [1, 0, 1, 1, 0, 0],
    }
    records = [cell(method, 0.1, seed, values) for (method, seed), values in scores.items()]
    shelf = {r.items["verified"]: items(scores[r.method, r.seed]) for r in records}
    mine = {0: (0, 1, 2), 1: (0, 3)}
    told = {
        r.cell: {f"0-{n}": "student" if n in mine[r.seed] else "teacher" for n in range(6)}
        for r in records
        if r.method == "kd"
    }
    return records, shelf.__getitem__, Told(told)


def test_each_seed_gains_on_its_own_items_and_sft_is_scored_on_the_same():
    records, load_items, told = by_hand()
    frame = breakdown(records, ["exposure"], told, load_items).set_index("exposure")
    assert list(frame.index) == ["student", "teacher"] and set(frame["method"]) == {"kd"}
    # seed 0: items 0, 1, 2 of kd 2/3, of SFT 1/3; seed 1: items 0, 3 of kd 2/2, of SFT 1/2
    assert frame.loc["student", ["score", "sft", "gain"]].tolist() == pytest.approx([5 / 6, 5 / 12, 5 / 12])
    assert frame.loc["student", "items"] == 2.5 and frame.loc["student", "seeds"] == 2
    # seed 0: items 3, 4, 5 of kd 2/3, of SFT 1/3; seed 1: items 1, 2, 4, 5 of kd 1/4, of SFT 0
    assert frame.loc["teacher", ["score", "sft", "gain"]].tolist() == pytest.approx([11 / 24, 1 / 6, 7 / 24])


def test_a_class_that_is_the_same_in_all_seeds_has_the_interval_of_those_items_alone():
    records, load_items = grid({"kd": {0.1: 0.1}}, seeds=2, size=120)
    found = breakdown(records, ["source"], Told({}), load_items).set_index("source")
    assert len(found) == 12
    only = {}
    for record in records:
        frame = load_items(record.items["verified"]).query("source == 'c'")
        only[record.cell] = changed(record, scores=[{**record.plain()["scores"][0], "score": frame["score"].mean()}])
    expected = summary(list(only.values()), lambda path: load_items(path).query("source == 'c'"))
    expected = expected.query("method == 'kd'").iloc[0]
    for column in ("score", "score_low", "score_high", "gain", "gain_low", "gain_high", "gain_p"):
        assert found.loc["c", column] == pytest.approx(expected[column]), column


def test_a_seed_without_items_of_a_class_is_not_counted_in_it():
    records, load_items, told = by_hand()
    kd = next(r.cell for r in records if (r.method, r.seed) == ("kd", 1))
    told.told[kd] = dict.fromkeys(told.told[kd], "teacher")
    frame = breakdown(records, ["exposure"], told, load_items).set_index("exposure")
    assert frame.loc["student", ["seeds", "score"]].tolist() == pytest.approx([1, 2 / 3])
    assert frame.loc["teacher", "seeds"] == 2
    assert frame.loc["student", "note"] == "hint: not clear (one seed); too few items"
    assert frame.loc["student", "gain_conclusion"] == "hint: not clear (one seed)"


def test_several_names_are_crossed_and_nobody_knows_is_shown_as_unknown():
    records, load_items, told = by_hand()
    frame = breakdown(records, ["source", "student_rows"], told, load_items)
    assert set(zip(frame["source"], frame["student_rows"], strict=True)) == {
        (source, seen) for source in ("add", "sort") for seen in ("yes", "no")
    }
    of_items = told.of_items
    told.of_items = lambda *asked: of_items(*asked).assign(student_rows=pd.array([pd.NA] * 6, "boolean"))
    assert set(breakdown(records, ["student_rows"], told, load_items)["student_rows"]) == {"unknown"}


def test_a_loss_per_token_is_the_ratio_within_the_class():
    records, load_items, told = by_hand()
    tokens = np.array([1, 2, 3, 4, 5, 6])
    shelf, found = {}, []
    for record in records:
        frame = load_items(record.items["verified"]).assign(nll_tokens=tokens)
        frame["nll"] = tokens * (2.0 if record.method == "sft" else 1.0) + np.arange(6) * (record.seed + 1)
        shelf[record.items["verified"]] = frame
        ratio = frame["nll"].sum() / tokens.sum()
        score = {"eval": "verified", "metric": "nll", "source": "all", "score": ratio}
        found.append(changed(record, scores=[score | {"standard_error": 0.1, "items": 6}]))
    frame = breakdown(found, ["exposure"], told, shelf.__getitem__).set_index("exposure")
    # the student's items: 0, 1, 2 with 6 tokens and 0, 3 with 5
    assert frame.loc["student", "score"] == pytest.approx(((6 + 3) / 6 + (5 + 6) / 5) / 2)
    assert frame.loc["student", "gain"] == pytest.approx(-1)
    console = Console(width=160)
    with console.capture() as shown:
        console.print(render(frame.reset_index(), ["exposure"]))
    assert "lower is better" in shown.get()


def test_a_diverged_cell_counts_as_0_on_the_items_its_partner_has_in_the_class():
    records, load_items, told = by_hand()
    lost = next(n for n, r in enumerate(records) if (r.method, r.seed) == ("kd", 1))
    records[lost] = changed(records[lost], status="failed", failure_class="diverged", scores=[], items={})
    row = breakdown(records, ["exposure"], told, load_items).set_index("exposure").loc["student"]
    assert row["gain"] == pytest.approx((1 / 3 - 1 / 2) / 2)  # seed 1: SFT's 1/2 lost
    assert "diverged" in row["note"]


def test_several_worlds_make_one_row_and_a_missing_sft_is_said():
    records, load_items = grid({"kd": {0.1: 0.1}}, seeds=2, worlds=(0, 1), size=60)
    frame = breakdown(records, ["source"], Told({}), load_items)
    assert len(frame) == 12 and set(frame["draws"]) == {2} and "2 replicates only" in frame["gain_covers"][0]
    without = breakdown([r for r in records if r.method != "sft"], ["source"], Told({}), load_items)
    assert without["gain"].isna().all() and set(without["note"]) == {"no gain: no SFT cell to pair with; too few items"}
    assert not without["score"].isna().any()


def test_a_name_items_cannot_be_told_apart_by_is_refused():
    records, load_items, told = by_hand()
    with pytest.raises(SettingsError, match=r"mood.*exposure"):
        breakdown(records, ["mood"], told, load_items)


def test_nothing_to_compare_is_an_empty_table():
    records, load_items, told = by_hand()
    frame = breakdown([r for r in records if r.method == "sft"], ["exposure"], told, load_items)
    assert frame.empty and render(frame, ["exposure"]).title.startswith("No finished cell")


def interval(draw, truth, share, seeds, count):
    """The estimate of one invented study: a gain on a class of items that each seed draws anew."""
    easy = draw.normal(0, 0.3, count)
    names = pd.DataFrame({"source": ["add", "sort"] * (count // 2), "prompt_hash": "", "count": 1.0})
    values, told, records = {}, {}, {"kd": [], "sft": []}
    for seed in range(seeds):
        gains = truth + draw.normal(0, 0.03) + easy + draw.normal(0, 0.3, count)
        for method, scores in (("kd", gains), ("sft", np.zeros(count))):
            record = cell(method, 0.1, seed, list(scores))
            values[record.items["verified"]] = names.assign(value=scores, total=scores)
            records[method].append(record)
        told[records["kd"][-1].cell] = pd.Series(draw.random(count) < share)
    pairs = gain(
        records["kd"],
        records["sft"],
        ACCURACY,
        lambda path, metric: values[path],
        lambda record, frame: told[record.cell],
    )
    return estimate("gain", {None: pairs})


def covered(repetitions, share, seeds=4, count=120, truth=0.1):
    """How often the 95 % interval holds the true gain."""
    draw = np.random.default_rng(11)
    found = [interval(draw, truth, share, seeds, count) for _ in range(repetitions)]
    return np.mean([one["gain_low"] <= truth <= one["gain_high"] for one in found])


def test_intervals_cover_where_each_seed_has_items_of_its_own():
    assert covered(50, share=0.3) >= 0.86


def test_of_a_macro_average_each_benchmark_is_broken_down():
    found, load_items = suite({"kd": {1.0: (0.2, 0.1)}}, seeds=2)
    primary = Metric("macro_average", "rescaled")
    frame = breakdown(found, ["source"], Told({}), load_items, primary=primary)
    assert list(zip(frame["eval"], frame["source"], strict=True)) == [
        ("gpqa", "a"),
        ("gpqa", "b"),
        ("gsm8k", "a"),
        ("gsm8k", "b"),
    ]
    whole = summary(found, load_items).set_index(["eval", "method"]).loc[("gsm8k", "kd"), "gain"]
    assert frame.loc[frame["eval"] == "gsm8k", "gain"].mean() == pytest.approx(whole, abs=1e-9)
    assert frame["gain_p_holm"].notna().all()  # one family over both
    alone = breakdown(found, ["source"], Told({}), load_items, primary=Metric("gsm8k", COLUMNS["gsm8k"]))
    assert set(alone["eval"]) == {"gsm8k"}
