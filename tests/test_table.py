"""Tables: pairing, aggregation over seeds and draws, failed cells, files; values worked out by hand."""

import io
import subprocess
import sys

import pandas as pd
import pytest
from rich.console import Console
from scipy import stats as reference

from harness.arms import Arm, Metric, by_arm
from harness.config import SettingsError
from harness.gains import crossovers, item_values
from harness.table import headline, render, summary, tidy, write
from tests.invented_records import cell, grid, items


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
        shelf[record["items"]] = items(scores)
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
    records = [record | {"items": None} for record in records]
    row = row_of(summary(records), method="kd")
    low, high = reference.ttest_1samp([0.5, 0.25], 0).confidence_interval()
    assert (row["gain_low"], row["gain_high"]) == pytest.approx((low, high))
    assert row["gain_covers"] == "seeds only"


def test_a_seed_without_its_sft_partner_counts_for_the_score_and_not_for_the_gain():
    records, load_items = by_hand()
    records = [r for r in records if (r["method"], r["seed"]) != ("sft", 1)]
    row = row_of(summary(records, load_items), method="kd")
    assert (row["seeds"], row["paired_seeds"], row["gain"]) == (2, 1, 0.5)
    assert row["gain_covers"] == "items only"


def test_one_sft_cell_is_the_partner_of_every_teacher():
    records, load_items = by_hand()
    records += [r | {"teacher": "strong", "cell": r["cell"] + "s"} for r in records if r["method"] == "kd"]
    frame = summary(records, load_items)
    assert set(frame.loc[frame["gain"] == 0.375, "teacher"]) == {"weak", "strong"}


def test_cells_of_another_world_are_never_paired():
    records, load_items = by_hand()
    records = [r | {"world_seed": 1} if r["method"] == "kd" else r for r in records]
    assert row_of(summary(records, load_items), method="kd")[["gain"]].isna().all()


def test_a_failed_cell_is_a_row_with_its_reason_in_both_tables():
    records, load_items = by_hand()
    records.append(cell("kd", 1.0, 0, status="failed", reason="loss is NaN", failure_class="diverged"))
    assert row_of(tidy(records), data_frac=1.0)["reason"] == "loss is NaN"
    row = row_of(summary(records, load_items), data_frac=1.0)
    assert (row["failed"], row["seeds"], row["reason"]) == (1, 0, "loss is NaN")
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(render(summary(records, load_items)))
    assert "1 failed: loss is NaN" in console.export_text()


def test_a_setting_that_no_name_shows_splits_the_arm_and_still_pairs():
    records, load_items = by_hand()
    slow = [r | {"cell": r["cell"] + "x", "settings": {"budget": {"learning_rate": 1e-4}}} for r in records]
    fast = [r | {"settings": {"budget": {"learning_rate": 1e-3}}} for r in records]
    frame = summary(fast + slow, load_items)
    assert set(frame["variant"]) == {"budget.learning_rate=0.001", "budget.learning_rate=0.0001"}
    assert (frame.loc[frame["method"] == "kd", "paired_seeds"] == 2).all()


def test_two_cells_that_nothing_tells_apart_are_refused():
    records, _ = by_hand()
    with pytest.raises(SettingsError, match="two cells of one seed"):
        by_arm([*records, records[0] | {"cell": "again"}])


def test_the_same_cell_of_two_grids_counts_once():
    records, load_items = by_hand()
    assert row_of(summary(records + records, load_items), method="kd")["seeds"] == 2


def test_items_of_a_loss_per_token_average_to_the_ratio_of_sums():
    frame = items([0, 0, 0]).assign(eval="heldout", nll=[1.0, 4.0, 1.0], nll_tokens=[1, 2, 1])
    values = item_values(frame, Metric("heldout", "nll"))
    assert values["value"].mean() == pytest.approx(6 / 4)
    # (nll - 1.5 tokens) / (4/3) + 1.5: -0.5, 1, -0.5 over 4/3
    assert values["value"].tolist() == pytest.approx([1.125, 2.25, 1.125])


def test_facts_nobody_was_taught_stay_out_of_the_mean():
    values = item_values(items([1, 0, 1, 0], ("add", "canary")), Metric("verified", "accuracy"))
    assert values["value"].tolist() == [1, 1]


def test_several_worlds_get_a_row_each_and_one_with_the_worlds_as_replicates():
    records, load_items = grid({"kd": {0.1: 0.1, 1.0: 0.0}}, seeds=2, worlds=(0, 1, 2))
    frame = summary(records, load_items)
    kd = frame[(frame["method"] == "kd") & (frame["data_frac"] == 0.1)]
    each, across = kd[kd["draws"] == 1], kd[kd["headline"]]
    assert (len(each), len(across)) == (3, 1)
    assert across["gain"].iloc[0] == pytest.approx(each["gain"].mean())
    assert "for these draws only" in across["gain_covers"].iloc[0]


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
    code = f"import sys, harness.table, harness.verdict; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
