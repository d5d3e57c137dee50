"""The decision rule on hand-made summaries, with numbers worked out by hand."""

import math

import pandas as pd
import pytest

from harness.report.tables import decision_sheet
from harness.results.arms import Metric
from harness.results.decision import AHEAD, EQUAL, NOT_SHOWN, WORSE, advice, decisions, frame_of
from harness.results.table import summary
from tests.invented_records import cell, grid

ACCURACY, LOSS = Metric("verified", "accuracy"), Metric("heldout", "nll")
COSTS = {
    "total_flops": 180.0,
    "teacher_flops": 30.0,
    "with_teacher_training_flops": 1000.0,
    "total_seconds": 9.0,
    "teacher_seconds": 2.0,
    "with_teacher_training_seconds": 9.0,
}


def row(method="kd", fraction=0.1, gain=math.nan, low=math.nan, high=math.nan, p=math.nan, **changes):
    """A row of a summary; SFT costs 100 FLOPs and 5 seconds."""
    plain = {"total_flops": 100.0, "total_seconds": 5.0} if method == "sft" else {}
    return {
        **ACCURACY._asdict(),
        "headline": True,
        "role": "student",
        "student": "small",
        "corpus": "mini",
        "budget": "300 steps",
        "variant": "",
        "data_frac": fraction,
        "teacher": None if method.startswith("sft") else "weak",
        "method": method,
        "gain": gain,
        "gain_low": low,
        "gain_high": high,
        "gain_p": p,
        "gain_p_holm": p,
        "gain_covers": "seeds and items" if p == p else "",
        "draws": 1,
        "paired_seeds": 5,
        "note": "",
        "failed": 0,
        "missing": 0,
        "running": 0,
        "reason": None,
        **COSTS,
        **plain,
        **changes,
    }


def decide(*rows, metric=ACCURACY):
    named = metric._asdict() | {"higher_is_better": metric.higher_is_better}
    frame = pd.DataFrame([one | named for one in (row("sft"), *rows)])
    (one,) = decisions(frame, metric)
    return one


def test_a_gain_above_zero_after_holm_says_distil_and_what_a_point_of_it_costs():
    one = decide(row(gain=0.04, low=0.02, high=0.06, p=0.001))
    assert (one.choice, one.method, one.why) == ("distil", "kd", "gain shown")
    assert one.per_point("flops") == pytest.approx((20, 80 / 6, 40))  # 80 more than SFT, over 4, 6 and 2 points
    assert one.per_point("flops", making=True) == pytest.approx((225, 150, 450))
    assert one.per_point("seconds") == one.per_point("seconds", making=True) == pytest.approx((1, 4 / 6, 2))
    told = " ".join(one.would_change())
    assert "a gain above 0.020" in told and "fewer than 11 students" in told  # 820 / 80 = 10.25
    assert "excludes seed variance" not in told and "replicates (own corpus and teacher each): there is one" in told
    assert advice([one]) == [
        "small on mini, 300 steps, teacher weak, by verified accuracy: "
        "distil with kd at 10 % (+0.040 [+0.020, +0.060])."
    ]


def test_of_several_clear_methods_the_largest_gain_is_chosen_and_a_larger_unclear_one_is_not():
    one = decide(
        row("kd", gain=0.04, low=0.02, high=0.06, p=0.001),
        row("logit_kd", gain=0.05, low=0.03, high=0.07, p=0.001),
        row("skd", gain=0.09, low=-0.02, high=0.20, p=0.1),
        row("sft_restart", gain=0.3, low=0.2, high=0.4, p=0.0001),  # a control, not distillation
    )
    assert (one.method, one.compared, one.comparisons) == ("logit_kd", 3, 4)


@pytest.mark.parametrize(
    ("gain", "low", "high", "p", "p_holm", "why", "told"),
    [
        (-0.04, -0.06, -0.02, 0.001, 0.004, WORSE, "0.020 below SFT"),
        (0.002, -0.01, 0.014, 0.7, 1.0, EQUAL, "equality below 0.014 (now 0.02)"),
        (0.01, -0.02, 0.04, 0.4, 1.0, NOT_SHOWN, "seeds"),
        (-0.01, -0.04, 0.02, 0.4, 1.0, NOT_SHOWN, "on the worse side of zero"),
        (0.03, 0.001, 0.059, 0.04, 0.16, AHEAD, "seeds"),
    ],
)
def test_without_a_clear_gain_it_says_fine_tune_and_which_kind(gain, low, high, p, p_holm, why, told):
    one = decide(row(gain=gain, low=low, high=high, p=p, gain_p_holm=p_holm))
    assert (one.choice, one.why) == ("fine-tune", why)
    assert told in " ".join(one.would_change())
    assert all(math.isnan(value) for value in one.per_point("flops"))


def test_the_seeds_that_would_show_a_gain_follow_from_its_p_value():
    p = 0.31731  # z = 1, and 1.96 is asked for: 1.96^2 times as many
    one = decide(row(gain=0.02, low=-0.03, high=0.07, p=p))
    assert one.would_change()[0].startswith("Run about 20 seeds and as many times the test items in place of 5,")
    four = [row(f"kd{n}", gain=0.01, low=-0.05, high=0.07, p=0.9, gain_p_holm=1.0) for n in range(3)]
    one = decide(row(gain=0.02, low=-0.03, high=0.07, p=p, gain_p_holm=1.0), *four)
    assert one.would_change()[0].startswith("Run about 32 seeds")  # z = 2.498 at .05 / 4: 6.24 times as many
    over_draws = {"draws": 6, "gain_covers": "6 replicates"}
    one = decide(row(gain=0.02, low=-0.03, high=0.07, p=p, **over_draws))
    assert one.would_change() == ["Run about 24 replicates in place of 6, if the estimate is true."]
    one = decide(row(gain=0.0001, low=-0.3, high=0.3, p=0.999))
    assert one.would_change()[0].startswith("More than 1000 seeds")


def test_for_losses_a_gain_below_zero_is_the_better_one_and_nothing_is_called_equal():
    better = decide(row(gain=-0.10, low=-0.15, high=-0.05, p=0.01), metric=LOSS)
    assert (better.choice, better.margin) == ("distil", None)
    assert better.per_point("flops") == pytest.approx((8, 80 / 15, 16))
    assert "a gain above 0.050" in better.would_change()[0]
    assert decide(row(gain=0.1, low=0.05, high=0.15, p=0.01), metric=LOSS).why == WORSE
    assert decide(row(gain=0.0, low=-0.01, high=0.01, p=1.0), metric=LOSS).why == NOT_SHOWN


def test_a_place_without_a_gain_stays_and_says_why():
    one = decide(row(gain=math.nan, note="no gain: no seed in common with SFT"))
    assert (one.choice, one.why, one.compared) == ("no answer", "no gain: no seed in common with SFT", 0)
    one = decide(row(failed=2, reason="out of memory"))
    assert one.why == "no score: 2 failed (out of memory)"
    assert advice([one]) == [
        "small on mini, 300 steps, teacher weak, by verified accuracy: "
        "no answer at 10 % (no score: 2 failed (out of memory))."
    ]
    assert decisions(pd.DataFrame(), None) == []


@pytest.mark.parametrize(
    ("gain", "p", "why"),
    [
        (0.04, 0.001, "hint: ahead (one seed)"),
        (-0.04, 0.001, "hint: behind (one seed)"),
        (0.001, 0.9, "hint: not clear (one seed)"),
    ],
)
def test_one_seed_decides_nothing_whatever_its_p_value(gain, p, why):
    one = decide(row(gain=gain, low=gain - 0.002, high=gain + 0.002, p=p, paired_seeds=1))
    assert (one.choice, one.why) == ("undecided", why) and math.isnan(one.per_point("flops")[0])
    (told,) = advice([one])
    assert f"undecided at 10 % ({why}: kd " in told
    assert (
        decision_sheet([one]).rows[0][2].text == f"undecided; kd: {why}" and not decision_sheet([one]).rows[0][2].mark
    )
    # with three replicates of one seed each the interval excludes it too; from five on the replicates contain it
    assert decide(row(gain=gain, low=0.0, high=0.1, p=p, paired_seeds=1, draws=3)).choice == "undecided"
    assert decide(row(gain=gain, low=0.0, high=0.1, p=p, paired_seeds=1, draws=5)).choice != "undecided"


def test_a_hint_neither_chooses_a_method_nor_hides_one_that_is_shown():
    hint = row("seq_kd", gain=0.09, low=0.07, high=0.11, p=0.0001, paired_seeds=1)
    one = decide(row(gain=0.04, low=0.02, high=0.06, p=0.001), hint)
    assert (one.choice, one.method) == ("distil", "kd")
    one = decide(row(gain=0.01, low=-0.02, high=0.04, p=0.4), hint)
    assert (one.choice, one.method, one.why) == ("fine-tune", "kd", NOT_SHOWN)


def test_one_seed_and_one_draw_are_said_to_be_so():
    told = " ".join(decide(row(gain=0.04, low=0.02, high=0.06, p=0.001, paired_seeds=1)).would_change())
    assert "excludes seed variance" in told and "replicates (own corpus and teacher each): there is one" in told


def test_a_gain_that_is_clear_and_within_the_margin_is_said_to_be_small():
    assert "clear but small" in decide(row(gain=0.01, low=0.005, high=0.015, p=0.001)).would_change()[0]


def test_decisions_of_a_grid_follow_its_summary_and_become_a_frame():
    records, load_items = grid({("kd", "weak"): {0.03: 0.15, 1.0: 0.0}, ("kd", "strong"): {1.0: 0.15}}, seeds=4)
    frame = summary(records, load_items)
    found = decisions(frame, ACCURACY)
    assert [(one.teacher, one.data_frac, one.choice) for one in found] == [
        ("strong", 1.0, "distil"),
        ("weak", 0.03, "distil"),
        ("weak", 1.0, "fine-tune"),
    ]
    gains = frame[frame["method"] == "kd"].set_index(["teacher", "data_frac"])["gain"]
    assert [one.gain for one in found] == [gains[one.teacher, one.data_frac] for one in found]
    written = frame_of(found)
    assert written["flops_sft"].tolist() == [2.1e11] * 3 and len(written) == 3
    nothing = [cell("kd", 0.1, 0, status="missing", reason="not made yet", cost=None)]
    (one,) = decisions(summary(nothing, load_items), None)
    assert (one.choice, one.why) == ("no answer", "no score: 1 missing (not made yet)")
