"""Tables: pairing, aggregation over seeds and draws, failed cells, files; values worked out by hand."""

import io
import math
import subprocess
import sys

import pandas as pd
import pytest
from rich.console import Console
from scipy import stats as reference

from harness.config.checks import SettingsError
from harness.results.arms import Arm, Metric, by_arm
from harness.results.items import item_values
from harness.results.paired_gains import crossovers
from harness.results.table import headline, render, summary, tidy, write
from tests.invented_records import cell, changed, grid, items


def by_hand():
    """Two seeds, four items, SFT and KD at 10 %: gains 0.5 and 0.25."""
    answers = {
        ("sft", 0): [1, 0, 0, 0],
        ("kd", 0): [1, 1, 1, 0],
        ("sft", 1): [0, 1, 0, 0],
        ("kd", 1): [1, 1, 0, 0],
    }
    records, shelf = [], {}
    for (method, seed), scores in answers.items():
        record = cell(method, 0.1, seed, scores)
        shelf[record.items["verified"]] = items(scores)
        records.append(record)
    return records, lambda path: shelf[path]


def row_of(frame: pd.DataFrame, **names) -> pd.Series:
    for name, value in names.items():
        frame = frame[frame[name] == value]
    assert len(frame) == 1
    return frame.iloc[0]


def test_gain_is_method_minus_sft_paired_by_seed():
    records, load_items = by_hand()
    row = row_of(summary(records, load_items), method="kd")
    assert (row["score"], row["gain"], row["seeds"], row["items"]) == (0.625, 0.375, 2, 4)
    assert row["gain_covers"] == "seeds and items"


def test_without_items_the_gain_has_a_paired_t_interval_that_says_what_it_leaves_out():
    records, _ = by_hand()
    records = [changed(record, items={}) for record in records]
    row = row_of(summary(records), method="kd")
    low, high = reference.ttest_1samp([0.5, 0.25], 0).confidence_interval()
    assert (row["gain_low"], row["gain_high"]) == pytest.approx((low, high))
    assert row["gain_covers"] == "seeds only"


def test_a_seed_without_its_sft_partner_counts_for_the_score_and_not_for_the_gain():
    records, load_items = by_hand()
    records = [r for r in records if (r.method, r.seed) != ("sft", 1)]
    row = row_of(summary(records, load_items), method="kd")
    assert (row["seeds"], row["paired_seeds"], row["gain"]) == (2, 1, 0.5)
    assert row["gain_covers"] == "items only"


def test_one_sft_cell_is_the_partner_of_every_teacher():
    records, load_items = by_hand()
    records += [changed(r, teacher="strong", cell=r.cell + "s") for r in records if r.method == "kd"]
    frame = summary(records, load_items)
    assert set(frame.loc[frame["gain"] == 0.375, "teacher"]) == {"weak", "strong"}


def test_cells_of_another_world_are_never_paired():
    records, load_items = by_hand()
    records = [changed(r, world_seed=1) if r.method == "kd" else r for r in records]
    assert row_of(summary(records, load_items), method="kd")[["gain"]].isna().all()


def test_a_failed_cell_is_a_row_with_its_reason_in_both_tables():
    records, load_items = by_hand()
    records.append(cell("kd", 1.0, 0, status="failed", reason="disk is full", failure_class="other"))
    assert row_of(tidy(records), data_frac=1.0)["reason"] == "disk is full"
    row = row_of(summary(records, load_items), data_frac=1.0)
    assert (row["failed"], row["seeds"], row["reason"]) == (1, 0, "disk is full")
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(render(summary(records, load_items)))
    assert "1 failed: disk is full" in console.export_text()


def with_learning_rate(record, rate):
    return changed(record, settings={"budget": {"learning_rate": rate}}, cell=f"{record.cell} {rate}")


def test_an_sft_cell_with_another_learning_rate_is_no_partner_and_the_table_says_why():
    records, load_items = by_hand()
    records = [with_learning_rate(r, 5e-4 if r.method == "kd" else 1e-3) for r in records]
    row = row_of(summary(records, load_items), method="kd")
    assert pd.isna(row["gain"]) and row["variant"] == "budget.learning_rate=0.0005"
    assert row["note"] == "no gain: SFT ran with budget.learning_rate=0.001"


def test_a_setting_of_the_method_or_a_teacher_beside_no_teacher_splits_nothing():
    records, load_items = by_hand()
    own = {"sft": {"method": {"name": "sft"}, "teacher": None}, "kd": {"method": {"beta": 1}, "teacher": {"size": "x"}}}
    records = [changed(r, settings=own[r.method]) for r in records]
    assert row_of(summary(records, load_items), method="kd")["gain"] == 0.375


def with_a_diverged_seed(metric="accuracy"):
    """Gains 0.5 and, at seed 1 where kd diverged, -0.25 (sft has 1 of 4)."""
    (records, load_items), found = by_hand(), []
    for record in records:
        scores = [{**score, "metric": metric} for score in record.plain()["scores"]]
        if (record.method, record.seed) == ("kd", 1):
            lost = {"status": "failed", "failure_class": "diverged", "reason": "loss is NaN", "scores": [], "items": {}}
            found.append(changed(record, **lost))
        else:
            found.append(changed(record, scores=scores))
    return found, load_items


def test_a_diverged_seed_counts_as_nothing_right_with_the_survivors_beside_it():
    row = row_of(summary(*with_a_diverged_seed()), method="kd")
    assert (row["score"], row["gain"], row["paired_seeds"], row["diverged"]) == (0.375, 0.125, 2, 1)
    assert (row["score_survivors"], row["gain_survivors"]) == (0.75, 0.5)
    assert row["gain_covers"] == "seeds and items"
    assert row["note"] == "seed 1 diverged, counted as 0; without: score 0.750, gain +0.500"


def test_a_diverged_sft_seed_is_not_dropped_from_the_pair():
    records, load_items = with_a_diverged_seed()
    swapped = {"kd": ("sft", None), "sft": ("kd", "weak")}
    records = [changed(r, **dict(zip(("method", "teacher"), swapped[r.method], strict=True))) for r in records]
    row = row_of(summary(records, load_items), method="kd")
    assert (row["gain"], row["gain_survivors"], row["diverged"]) == (-0.125, -0.5, 0)
    assert row["note"].startswith("SFT seed 1 diverged, counted as 0")


def test_a_loss_has_no_floor_so_the_arm_is_marked():
    row = row_of(summary(*with_a_diverged_seed("nll")), method="kd")
    assert (row["seeds"], row["diverged"]) == (1, 1)
    assert row["note"] == "seed 1 diverged, left out, because a loss has no floor"


def test_a_grid_in_which_all_cells_diverged_has_no_score():
    broken = [cell("kd", 0.1, 0, status="failed", failure_class="diverged", reason="loss is NaN")]
    assert pd.isna(row_of(summary(broken), method="kd")["score"])


def test_mean_cost_is_that_of_finished_cells():
    records, load_items = by_hand()
    cost = {"total": {"tokens": 1.0, "flops": 1.0, "seconds": 1.0}}
    records.append(cell("kd", 0.1, 2, status="failed", reason="x", cost=cost))
    assert row_of(summary(records, load_items), method="kd")["total_seconds"] == 10.0


def test_items_that_do_not_average_to_the_score_are_left_out_and_that_is_said():
    records, load_items = by_hand()
    records[0] = changed(records[0], scores=[{**records[0].plain()["scores"][0], "score": 0.3}])
    row = row_of(summary(records, load_items), method="kd")
    assert row["gain_covers"] == "seeds only (items of 1 of 4 cells do not average to their score)"


def test_a_repeated_item_is_an_item_of_its_own():
    frame = items([1, 0, 1, 1]).assign(id="i0", source="add", prompt_hash="p")
    values = item_values(frame, Metric("verified", "accuracy"))
    assert values["value"].tolist() == [1, 0, 1, 1] and values.index.is_unique


def test_training_seeds_of_one_data_seed_are_averaged_before_they_are_replicates():
    gains = {(0, 0): [1, 1, 0, 0], (0, 1): [1, 0, 0, 0], (1, 0): [1, 1, 1, 0], (1, 1): [1, 1, 1, 1]}
    records = []
    for (data, train), scores in gains.items():
        seeds = {"data_seed": data, "train_seed": train, "items": {}}
        records += [cell("sft", 0.1, 0, [0, 0, 0, 0], **seeds), cell("kd", 0.1, 0, scores, **seeds)]
    row = row_of(summary(records), method="kd")
    low, high = reference.ttest_1samp([0.375, 0.875], 0).confidence_interval()
    assert (row["gain"], row["gain_low"], row["gain_high"]) == pytest.approx((0.625, low, high))
    assert row["paired_seeds"] == 2
    assert row["gain_covers"] == "data seeds (training seeds averaged within each) only"


def test_a_setting_that_no_name_shows_splits_the_arm_and_still_pairs():
    records, load_items = by_hand()
    slow = [changed(r, cell=r.cell + "x", settings={"budget": {"learning_rate": 1e-4}}) for r in records]
    fast = [changed(r, settings={"budget": {"learning_rate": 1e-3}}) for r in records]
    frame = summary(fast + slow, load_items)
    assert set(frame["variant"]) == {"budget.learning_rate=0.001", "budget.learning_rate=0.0001"}
    assert (frame.loc[frame["method"] == "kd", "paired_seeds"] == 2).all()


def test_two_cells_that_nothing_tells_apart_are_refused():
    records, _ = by_hand()
    with pytest.raises(SettingsError, match="two cells of one seed"):
        by_arm([*records, changed(records[0], cell="again")])


def test_the_same_cell_of_two_grids_counts_once():
    records, load_items = by_hand()
    assert row_of(summary(records + records, load_items), method="kd")["seeds"] == 2


def test_items_of_a_loss_per_token_average_to_the_ratio_of_sums():
    frame = items([0, 0, 0]).assign(eval="heldout", nll=[1.0, 4.0, 1.0], nll_tokens=[1, 2, 1])
    values = item_values(frame, Metric("heldout", "nll"))
    assert values["value"].mean() == pytest.approx(6 / 4)
    # (nll - 1.5 tokens) / (4/3) + 1.5: -0.5, 1, -0.5 over 4/3
    assert values.sort_values("id")["value"].tolist() == pytest.approx([1.125, 2.25, 1.125])


def test_facts_nobody_was_taught_stay_out_of_the_mean():
    values = item_values(items([1, 0, 1, 0], ("add", "canary")), Metric("verified", "accuracy"))
    assert values["value"].tolist() == [1, 1]


def test_several_worlds_get_a_row_each_and_one_with_the_worlds_as_replicates():
    records, load_items = grid({"kd": {0.1: 0.1, 1.0: 0.0}}, seeds=2, worlds=(0, 1, 2))
    frame = summary(records, load_items)
    kd = frame[(frame["method"] == "kd") & (frame["data_frac"] == 0.1)]
    each, pooled = kd[~kd["pooled"]], kd[kd["headline"]]
    assert (len(each), len(pooled), pooled["draws"].iloc[0]) == (3, 1, 3)
    assert pooled["gain"].iloc[0] == pytest.approx(each["gain"].mean())
    assert pooled["gain_covers"].iloc[0] == "seeds and items within replicates, for these 3 replicates only"
    # three fixed draws: the interval is narrower than any one's, not the t = 4.3 of three replicates
    widths = each["gain_high"] - each["gain_low"]
    assert (pooled["gain_high"] - pooled["gain_low"]).iloc[0] < widths.min()


def test_worlds_with_the_same_item_ids_do_not_share_items():
    alike = {"kd": {0.1: 0.1}}
    records, load_items = grid(alike, seeds=1, worlds=(0, 1))
    kd = summary(records, load_items).query("method == 'kd'")
    each, pooled = kd[~kd["pooled"]], kd[kd["pooled"]].iloc[0]
    own = (((each["gain_high"] - each["gain_low"]) / 2 / reference.t.ppf(0.975, 240 - 12)) ** 2).sum() / 4
    half = reference.t.ppf(0.975, 2 * (240 - 12)) * own**0.5
    assert pooled["gain_high"] - pooled["gain"] == pytest.approx(half, rel=0.01)


def test_five_worlds_are_replicates_of_their_own():
    records, load_items = grid({"kd": {0.1: 0.1}}, seeds=2, size=60, worlds=tuple(range(5)))
    kd = summary(records, load_items).query("method == 'kd'")
    low, high = reference.ttest_1samp(kd.loc[~kd["pooled"], "gain"], 0).confidence_interval()
    pooled = kd[kd["pooled"]].iloc[0]
    assert (pooled["gain_low"], pooled["gain_high"]) == pytest.approx((low, high))
    assert pooled["gain_covers"] == "5 replicates"


def test_a_world_whose_gain_is_lost_leaves_one_draw_and_not_two():
    records, load_items = grid({"kd": {0.1: 0.1}}, seeds=2, worlds=(0, 1))
    records = [r for r in records if (r.method, r.world_seed) != ("sft", 1)]
    row = row_of(summary(records, load_items), method="kd", headline=True)
    assert row["draws"] == 1
    assert row["gain_covers"] == "seeds and items, for one replicate"
    assert row["note"] == "no gain: no SFT cell to pair with in 1 of 2 replicates"


def test_teachers_drawn_in_one_world_are_told_apart_and_never_pooled():
    records, load_items = grid({"kd": {0.1: 0.1}}, seeds=2)
    again = [changed(r, cell=r.cell + "t", teacher_seed=1) for r in records if r.teacher == "weak"]
    frame = summary(records + again, load_items)
    assert set(frame.loc[frame["method"] == "kd", "teacher"]) == {"weak[seed=0]", "weak[seed=1]"}
    assert {"weak[seed=0]", "weak[seed=1]"} <= set(frame.loc[frame["role"] == "teacher", "teacher"])
    assert not frame["pooled"].any() and (frame.loc[frame["method"] == "kd", "draws"] == 1).all()


def test_teachers_trained_on_different_rows_keep_their_scores_apart():
    full = cell("teacher", None, 0, [1, 1], role="teacher", settings={"teacher": {"data_frac": 1.0}})
    match = changed(full, cell="match", settings={"teacher": {"data_frac": "match"}})
    assert {arm.teacher for arm in by_arm([full, match])} == {"weak[data_frac=1.0]", "weak[data_frac=match]"}
    few, all_rows = (changed(match, cell=f"match {f}", data_frac=f) for f in (0.1, 1.0))
    assert {(arm.teacher, arm.data_frac) for arm in by_arm([few, all_rows])} == {("weak", 0.1), ("weak", 1.0)}
    with pytest.raises(SettingsError, match="two cells of one seed"):
        by_arm([full, changed(full, cell="again")])


def test_crossovers_turn_losses_round_and_have_an_entry_for_every_teacher():
    records, load_items = grid({"kd": {0.01: 0.1, 1.0: 0}, ("kd", "strong"): {0.01: 0.2, 1.0: 0.1}}, seeds=2)
    found = crossovers(records, Metric("verified", "accuracy"), load_items)
    assert {arm.teacher for arm in found} == {"weak", "strong"}
    assert all(isinstance(arm, Arm) and x.status == "too few fractions" for arm, x in found.items())


def test_files_hold_every_row_and_are_written_again_without_leftovers(tmp_path):
    records, load_items = by_hand()
    records.append(cell("kd", 1.0, 0, status="missing"))
    frame = summary(records, load_items)
    for _ in range(2):
        write(tmp_path, records, frame)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"results.parquet", "results.csv", "summary.parquet", "summary.csv"}
    assert len(pd.read_parquet(tmp_path / "results.parquet")) == len(pd.read_csv(tmp_path / "results.csv")) == 5


@pytest.mark.parametrize("records", [[], [cell("sft", 0.1, 0, status="failed", reason="lost node")]])
def test_a_grid_without_scores_still_has_tables(records, tmp_path):
    frame = summary(records)
    write(tmp_path, records, frame)
    assert render(frame).row_count == len(records)
    assert not len(frame) or headline(frame) is None


def test_reading_imports_neither_torch_nor_transformers_nor_matplotlib():
    heavy = "{'torch', 'transformers', 'matplotlib'}"
    code = f"import sys, harness.results.table, harness.results.verdict; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_one_world_without_items_leaves_items_out_of_the_interval_over_both():
    records, load_items = grid({"kd": {0.1: 0.1}}, seeds=2, worlds=(0, 1))
    records = [changed(r, items={}) if r.world_seed else r for r in records]
    row = row_of(summary(records, load_items), method="kd", headline=True)
    assert row["gain_covers"] == "seeds only within replicates, for these 2 replicates only"


def test_the_gap_closed_is_the_students_way_from_base_to_teacher_and_blank_where_they_are_alike():
    shelf = {}

    def record(method, scores, **changes):
        one = cell(method, changes.pop("data_frac", None), changes.pop("seed", 0), scores, **changes)
        shelf[one.items["verified"]] = items(scores)
        return one

    half, full = [1.0, 0.0] * 200, [1.0] * 390 + [0.0] * 10
    base = record("base", [0.0] * 400, role="base", teacher=None)
    students = [record("kd", half, data_frac=0.1, seed=seed) for seed in (0, 1)]
    for scores, closed in ((full, 0.5 / 0.975), ([1.0] + [0.0] * 399, math.nan)):
        records = [base, *students, record("teacher", scores, role="teacher")]
        row = row_of(summary(records, shelf.get), method="kd")
        assert row["gap_closed"] == pytest.approx(closed, nan_ok=True)
        if not math.isnan(closed):
            assert row["gap_closed_low"] < closed < row["gap_closed_high"] < closed + 0.1
