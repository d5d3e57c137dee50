"""Many methods of a grid against SFT at once: which cells are compared, in which blocks, and where they are seen.

The intervals themselves are in `test_study_statistics.py`.
"""

import numpy as np
import pytest

from harness.report.figures.forest import arms_of, forest_figure
from harness.report.tables import simultaneous_sheet
from harness.results.arms import Metric, by_arm
from harness.results.items import values_of
from harness.results.outcome import Outcome
from harness.results.paired_gains import scores
from harness.results.simultaneous import simultaneous_gains, simultaneous_table
from tests.invented_records import grid

ACCURACY = Metric("verified", "accuracy")
GAINS = {name: {0.03: 0.1, 1.0: 0.0} for name in ("kd", "logit_kd", "seq_kd")} | {"skd": {1.0: 0.0}}


def test_the_seeds_of_one_draw_are_blocks_and_the_numbers_are_those_of_rivals():
    records, load_items = grid(GAINS, seeds=3)
    table = simultaneous_table(records, ACCURACY, load_items)
    assert table.groupby("data_frac")["method"].count().to_dict() == {0.03: 3, 1.0: 4}
    assert set(table["blocks"]) == {3} and set(table["covers"]) == {"seeds and items of one replicate"}
    arms = {arm.method: cells for arm, cells in by_arm(records).items() if arm.data_frac == 0.03}
    found = {name: scores(cells, ACCURACY, values_of(load_items)) for name, cells in arms.items()}
    strata = found["sft"].strata
    others = {name: one.values for name, one in found.items() if name != "sft"}
    wanted = simultaneous_gains(found["sft"].values, others, strata)
    rows = table[table["data_frac"] == 0.03].set_index("method")
    for one in wanted:
        assert (one.gain, one.low, one.high, one.p) == tuple(rows.loc[one.name, ["gain", "low", "high", "p"]])


def test_from_five_draws_on_the_draws_are_blocks_and_between_nothing_is_said():
    records, load_items = grid(GAINS, seeds=2, worlds=(0, 1, 2, 3, 4), references=False)
    table = simultaneous_table(records, ACCURACY, load_items)
    assert set(table["blocks"]) == {5} and set(table["covers"]) == {"5 replicates"}
    means = {(r.method, r.world_seed, r.seed): r.scores[0].score for r in records if r.data_frac == 0.03}
    gain = np.mean([means["kd", w, s] - means["sft", w, s] for w in range(5) for s in range(2)])
    row = table[(table["method"] == "kd") & (table["data_frac"] == 0.03)].iloc[0]
    assert row["gain"] == pytest.approx(gain) and row["low"] > 0
    assert simultaneous_table([r for r in records if r.world_seed < 3], ACCURACY, load_items).empty


def test_an_arm_without_all_of_sfts_cells_is_left_out_and_two_methods_are_too_few():
    records, load_items = grid(GAINS, seeds=3)
    fewer = [r for r in records if not (r.method == "kd" and r.seed == 2)]
    table = simultaneous_table(fewer, ACCURACY, load_items)
    assert set(table["data_frac"]) == {1.0} and "kd" not in set(table["method"])
    assert simultaneous_table([r for r in records if r.seed == 0], ACCURACY, load_items).empty


def test_figure_and_page_have_the_intervals_that_hold_together(tmp_path):
    outcome = Outcome("g", *_of(grid(GAINS, seeds=3)))
    alone, together = (arms_of(outcome.summary, outcome.metric, rows) for rows in (None, outcome.simultaneous))
    joined = together.set_index(["data_frac", "method"])
    for row in outcome.simultaneous.to_dict("records"):
        shown = joined.loc[row["data_frac"], row["method"]]
        assert (shown["gain_low"], shown["gain_high"], shown["gain_p_holm"]) == (row["low"], row["high"], row["p"])
    assert len(together) == len(alone) and not np.allclose(together["gain_low"], alone["gain_low"])
    some = outcome.simultaneous[outcome.simultaneous["method"] != "skd"]  # intervals of two kinds are never mixed
    assert arms_of(outcome.summary, outcome.metric, some)["gain_low"].tolist() == alone["gain_low"].tolist()
    first, _ = forest_figure(outcome.summary, tmp_path / "methods", outcome.metric, outcome.simultaneous)
    assert first.is_file()
    assert len(simultaneous_sheet(outcome).rows) == 7
    assert not simultaneous_sheet(Outcome("g", *_of(grid({"kd": {1.0: 0.1}})))).rows


def _of(made):
    records, load_items = made
    return records, None, load_items
