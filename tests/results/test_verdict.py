"""Verdict: what it says, and what it does not claim."""

import io
from dataclasses import replace

from rich.console import Console

from harness.results.paired_gains import crossovers
from harness.results.table import headline, render, summary
from harness.results.verdict import verdict
from tests.invented_records import cell, changed, grid

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
    assert "does not differ clearly from SFT at 100 %" in text
    assert "5 seeds, 95 % intervals over seeds and test items, Holm over 2 comparisons" in text


def test_no_gain_is_not_called_equal():
    records, load_items = grid({"kd": {0.1: 0.0}}, seeds=3)
    text = spoken(records, load_items)
    assert "does not differ clearly from SFT" in text and "equal" not in text and "beats" not in text


def test_a_loss_is_said():
    records, load_items = grid({"kd": {0.1: -0.25}}, seeds=5)
    assert "kd (weak) loses to SFT at 10 % (-0." in spoken(records, load_items)


def test_one_seed_is_said_to_say_nothing_about_seed_variance():
    records, load_items = grid({"kd": {0.01: 0.2, 1.0: 0.0}}, seeds=1)
    text = spoken(records, load_items)
    assert "one seed gives no seed variance, so it shows a hint only" in text
    assert "hint: kd (weak) is ahead of SFT at 1 % (+0." in text and "(one seed). Certainty: 1 seed" in text
    assert "beats" not in text and "crossover" not in text


def test_a_line_of_hints_comes_after_what_is_shown_and_has_its_own_words():
    records, load_items = grid({"kd": {0.01: 0.15, 1.0: 0.15}}, seeds=4)
    mixed = [one for one in records if one.data_frac != 1.0 or one.seed == 0]
    text = spoken(mixed, load_items)
    assert "kd (weak) beats SFT at 1 % (" in text and "; hint: kd (weak) is ahead of SFT at 100 % (" in text
    assert "shows a hint only, where there is only one" in text


def test_a_summary_has_the_conclusion_of_each_gain():
    records, load_items = grid({"kd": {0.01: 0.2, 1.0: 0.0}, "skd": {0.01: -0.15}}, seeds=5)
    frame = summary(records, load_items).query("role == 'student'").set_index(["method", "data_frac"])
    shown = frame["gain_conclusion"].to_dict()
    assert shown["kd", 0.01] == "better" and shown["skd", 0.01] == "worse" and shown["sft", 0.01] == ""
    assert shown["kd", 1.0] == "not clear"
    alone = summary([one for one in records if one.seed == 0], load_items).query("method == 'kd'")
    assert set(alone["gain_conclusion"]) == {"hint: ahead (one seed)", "hint: not clear (one seed)"}
    table = Console(width=250, file=io.StringIO(), force_terminal=True)
    table.print(render(summary([one for one in records if one.seed == 0], load_items)))
    text = table.file.getvalue()
    assert "hint: ahead (one seed)" in text and "A hint rests on one seed" in text
    bold = [line for line in text.splitlines() if "\x1b[1m+" in line]
    assert not bold


def test_a_crossover_is_a_range_and_an_open_one_is_not_a_number():
    falling = dict(zip(FRACTIONS, (0.2, 0.12, 0.02, -0.08, -0.2), strict=True))
    assert "the 95 % confidence set for the crossover at zero is" in spoken(*grid({"kd": falling}, seeds=5))
    flat = dict.fromkeys(FRACTIONS, 0.01)
    assert "no crossover is established" in spoken(*grid({"kd": flat}, seeds=3))


def test_failed_and_missing_cells_are_counted_with_the_reason():
    records, load_items = grid({"kd": {0.01: 0.2}}, seeds=3)
    records[1] = changed(records[1], status="failed", reason="CUDA out of memory", scores=[])
    records.append(cell("kd", 1.0, 0, status="missing"))
    assert spoken(records, load_items).endswith("Of 7 cells, 1 failed and 1 missing (CUDA out of memory).")


def test_grids_that_allow_no_comparison_get_no_verdict():
    records, load_items = grid({"kd": {0.01: 0.2}}, seeds=2)
    assert "no SFT cell has a score" in spoken([r for r in records if r.method != "sft"], load_items)
    assert "only SFT has a score" in spoken([r for r in records if r.method != "kd"], load_items)
    apart = [changed(r, train_seed=9) if r.method == "kd" and r.seed == 0 else r for r in records if r.seed == 0]
    assert "no SFT cell has the same settings and seed" in spoken(apart, load_items)
    broken = [cell("kd", 0.1, 0, status="failed", reason="disk full")]
    assert verdict(summary(broken)) == "No verdict: no cell has a score. Of 1 cells, 1 failed (disk full)."
    assert verdict(summary([])) == "No verdict: the grid has no cells."


def as_loss(records, load_items):
    """The same grid with its accuracies read as losses, so what was a gain is a loss to SFT."""
    scores = [[{**score, "metric": "nll"} for score in record.plain()["scores"]] for record in records]
    records = [changed(record, scores=read) for record, read in zip(records, scores, strict=True)]
    return records, lambda path: load_items(path).drop(columns=["nll", "nll_tokens"])


def test_a_loss_that_falls_is_better_and_never_above_zero():
    better = as_loss(*grid({"kd": dict.fromkeys(FRACTIONS, -0.15)}, seeds=5))
    text = spoken(*better)
    assert (
        "lower is better), kd (weak) beats SFT" in text
        and "it is better than SFT at all fractions that were run" in text
    )
    assert "above zero" not in text
    worse = spoken(*as_loss(*grid({"kd": dict.fromkeys(FRACTIONS, 0.3)}, seeds=5)))
    assert "loses to SFT" in worse and "it is worse than SFT at all fractions that were run" in worse


def test_a_loss_is_called_equal_only_within_a_declared_margin():
    records, load_items = as_loss(*grid({"kd": {0.01: -0.2, 0.1: 0.0, 1.0: 0.0}}, seeds=5, size=2400, noise=0.0))
    metric = headline(summary(records, load_items))
    assert all(x.margin is None for x in crossovers(records, metric, load_items).values())
    assert all(x.margin == 0.5 for x in crossovers(records, metric, load_items, margin=0.5).values())
    assert "within" not in spoken(records, load_items)


def test_a_gain_that_is_clear_to_the_last_of_few_fractions_gets_no_word_on_where_it_ends():
    text = spoken(*grid({"kd": {0.03: 0.2, 1.0: 0.2}}, seeds=5))
    assert "beats SFT at 3 %" in text and "too few fractions" not in text


def test_two_worlds_are_spoken_of_as_these_two():
    text = spoken(*grid({"kd": {0.01: 0.2, 1.0: 0.0}}, seeds=3, worlds=(0, 1)))
    assert (
        "3 seeds in each replicate" in text
        and "seeds and test items within replicates, for these 2 replicates only" in text
    )


def test_a_lost_draw_is_spoken_of_as_one():
    records, load_items = grid({"kd": {0.01: 0.2}}, seeds=3, worlds=(0, 1))
    text = spoken([r for r in records if (r.method, r.world_seed) != ("sft", 1)], load_items)
    assert "for one replicate" in text and "2 replicates" not in text


def test_diverged_cells_are_said_to_count_as_nothing_right():
    records, load_items = grid({"kd": {0.01: 0.2}}, seeds=3)
    lost = {"status": "failed", "failure_class": "diverged", "reason": "loss is NaN", "scores": []}
    records[1] = changed(records[1], **lost)
    assert "1 diverged cell is counted as 0" in spoken(records, load_items)


def test_where_no_parabola_fits_only_the_bracket_is_spoken_of():
    curve = dict(zip((0.01, 0.03, 0.1, 0.3, 1.0), (0.0, 0.14, 0.16, 0.02, 0.0), strict=True))
    records, load_items = grid({"kd": curve}, seeds=2, size=160, noise=0.001, worlds=(0, 1, 2, 3, 4))
    frame, found = summary(records, load_items), crossovers(records, headline(summary(records, load_items)), load_items)
    (one,) = found.values()
    assert not one.fits
    text = verdict(frame, found)
    assert "confidence set" not in text
    wide = {
        arm: replace(one, sign_change=replace(one.sign_change, first_equivalent=None)) for arm, one in found.items()
    }
    assert "no crossover is established: the last fraction at which it is better than SFT is" in verdict(frame, wide)
