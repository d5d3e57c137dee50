"""Verdict: what it says, and what it does not claim."""

from harness.gains import crossovers
from harness.table import headline, summary
from harness.verdict import verdict
from tests.invented_records import cell, grid

FRACTIONS = (0.01, 0.03, 0.1, 0.3, 1.0)


def spoken(records, load_items):
    frame = summary(records, load_items)
    return verdict(frame, crossovers(records, headline(frame), load_items))


def test_a_clear_gain_is_named_with_interval_student_teacher_budget_and_seeds():
    records, load_items = grid({"kd": {0.01: 0.2, 1.0: 0.0}}, seeds=5)
    text = spoken(records, load_items)
    assert text.startswith(
        "For small on mini at 300 steps x 32 rows (verified accuracy), kd (weak) beats SFT at 1 % (+0."
    )
    assert "cannot be told from SFT at 100 %" in text
    assert "5 seeds, 95 % intervals over seeds and test items, Holm over 2 comparisons" in text


def test_no_gain_is_not_called_equal():
    records, load_items = grid({"kd": {0.1: 0.0}}, seeds=3)
    text = spoken(records, load_items)
    assert "cannot be told from SFT" in text and "equal" not in text and "beats" not in text


def test_a_loss_is_said():
    records, load_items = grid({"kd": {0.1: -0.25}}, seeds=5)
    assert "kd (weak) loses to SFT at 10 % (-0." in spoken(records, load_items)


def test_one_seed_is_said_to_say_nothing_about_seed_variance():
    records, load_items = grid({"kd": {0.01: 0.2, 1.0: 0.0}}, seeds=1)
    assert "one seed says nothing about seed variance" in spoken(records, load_items)


def test_a_crossover_is_a_range_and_an_open_one_is_not_a_number():
    falling = dict(zip(FRACTIONS, (0.2, 0.12, 0.02, -0.08, -0.2), strict=True))
    assert "the gain crosses zero somewhere in" in spoken(*grid({"kd": falling}, seeds=5))
    flat = dict.fromkeys(FRACTIONS, 0.01)
    assert "no crossover is established" in spoken(*grid({"kd": flat}, seeds=3))


def test_failed_and_missing_cells_are_counted_with_the_reason():
    records, load_items = grid({"kd": {0.01: 0.2}}, seeds=3)
    records[1] |= {"status": "failed", "reason": "CUDA out of memory", "scores": []}
    records.append(cell("kd", 1.0, 0, status="missing"))
    assert spoken(records, load_items).endswith("Of 7 cells, 1 failed and 1 missing (CUDA out of memory).")


def test_grids_that_allow_no_comparison_get_no_verdict():
    records, load_items = grid({"kd": {0.01: 0.2}}, seeds=2)
    assert "no SFT cell has a score" in spoken([r for r in records if r["method"] != "sft"], load_items)
    assert "only SFT has a score" in spoken([r for r in records if r["method"] != "kd"], load_items)
    apart = [r | {"train_seed": 9} if r["method"] == "kd" and r["seed"] == 0 else r for r in records if r["seed"] == 0]
    assert "no SFT cell shares their settings and seed" in spoken(apart, load_items)
    broken = [cell("kd", 0.1, 0, status="failed", reason="disk full")]
    assert verdict(summary(broken)) == "No verdict: no cell has a score. Of 1 cells, 1 failed (disk full)."
    assert verdict(summary([])) == "No verdict: the grid has no cells."
