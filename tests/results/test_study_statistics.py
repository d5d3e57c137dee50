"""Scaling fits, simultaneous gains within seeds, the teacher gap, power: by hand, against scipy, by simulation."""

import math

import numpy as np
import pytest
from scipy import stats as reference

from harness.config.checks import SettingsError
from harness.results.arms import Metric
from harness.results.power import detectable, difference_power, equivalence_power
from harness.results.scaling import scaling
from harness.results.simultaneous import critical, simultaneous_gains
from harness.results.stats.intervals import curve
from harness.results.teacher_gap import gap_lines, halves_of, slope
from tests.invented_records import cell, grid, items

FRACTIONS = (0.01, 0.03, 0.1, 0.3, 1.0)


def test_power_of_equivalence_is_what_simulation_gives_and_what_is_published_for_this_design():
    generator, seeds, sd, margin = np.random.default_rng(0), 5, 0.02, 0.02
    gains = generator.normal(0, sd, (20_000, seeds))
    error = gains.std(1, ddof=1) / math.sqrt(seeds)
    shown = np.abs(gains.mean(1)) + reference.t.ppf(0.95, seeds - 1) * error < margin
    assert equivalence_power(margin, sd, seeds) == pytest.approx(shown.mean(), abs=0.012)
    for count, power in ((3, 0.13), (5, 0.29), (10, 0.79), (15, 0.96)):
        assert equivalence_power(margin, sd, count) == pytest.approx(power, abs=0.02)


def test_the_detectable_gain_has_the_power_that_was_asked_for():
    from statsmodels.stats.power import TTestPower

    assert difference_power(0.03, 0.02, 5) == pytest.approx(TTestPower().power(1.5, 5, 0.05), abs=1e-6)
    assert difference_power(detectable(0.02, 5), 0.02, 5) == pytest.approx(0.8)
    for df in (2, 4, 9):
        t = reference.t.ppf(0.975, df)
        shift = 0.7 * math.sqrt(df + 1)
        exact = reference.nct.sf(t, df, shift) + reference.nct.cdf(-t, df, shift)
        assert difference_power(0.014, 0.02, df + 1) == pytest.approx(exact, abs=1e-9)
    with pytest.raises(SettingsError, match="replicates=1"):
        detectable(0.02, 1)


def test_two_seeds_have_a_detectable_gain():
    """scipy's noncentral t is NaN there; the power is checked by simulation."""
    found = detectable(0.02, 2)
    generator = np.random.default_rng(0)
    gains = generator.normal(found, 0.02, (40_000, 2))
    assert (reference.ttest_1samp(gains, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("power", [0.05, 0.01, 0.0, -1, 1.0, 1.5, math.nan])
def test_a_power_that_no_gain_or_every_gain_has_is_refused(power):
    with pytest.raises(SettingsError, match="power="):
        detectable(0.02, 5, power)


def test_a_straight_line_is_found_with_its_slope_and_covered_by_its_band():
    x = np.log10(FRACTIONS)
    scores = (0.5 + 0.1 * x)[None] + np.array([[0.01], [0.0], [-0.01]])
    fit = scaling(FRACTIONS[::-1], curve(scores[:, ::-1, None]))
    assert (fit.degree, fit.slope[0]) == (2, pytest.approx(0.1))
    band = fit.at([0.02, 0.5])
    assert band.mean == pytest.approx(0.5 + 0.1 * np.log10([0.02, 0.5]))
    half = reference.t.ppf(0.975, 2) * 0.01 / math.sqrt(3)
    assert band.high - band.mean == pytest.approx(half)
    assert band.new_high - band.mean == pytest.approx(half * 2)  # variance of a new one: 1 + 1/3 of a replicate's
    assert scaling(FRACTIONS[:3], curve(scores[:, :3, None])).degree == 1


def test_a_fit_is_no_oracle_beyond_its_range_and_needs_three_fractions():
    fit = scaling(FRACTIONS, curve(np.ones((2, 5, 1)) * np.log10(FRACTIONS)[None, :, None]))
    with pytest.raises(SettingsError, match=r"holds from 0.01 to 1 only"):
        fit.at([0.001])
    with pytest.raises(SettingsError, match="three"):
        scaling(FRACTIONS[:2], curve(np.ones((2, 2, 1))))


@pytest.mark.parametrize("curvature", [0.0, -0.03])
def test_bands_of_a_scaling_fit_cover_the_mean_and_a_new_replicate(curvature):
    generator, x, at = np.random.default_rng(1), np.log10(FRACTIONS), 1
    truth = 0.5 + 0.1 * x + curvature * x**2
    mean_hits = new_hits = 0
    for _ in range(500):
        draws = truth + generator.normal(0, 0.02, (6, 1)) + generator.normal(0, 0.01, (6, 5))
        band = scaling(FRACTIONS, curve(draws[:5, :, None])).at([FRACTIONS[at]])
        mean_hits += band.low[0] <= truth[at] <= band.high[0]
        new_hits += band.new_low[0] <= draws[5, at] <= band.new_high[0]
    assert 0.925 <= mean_hits / 500 <= 0.985 and 0.925 <= new_hits / 500 <= 0.985


def test_critical_values_are_dunnetts():
    for methods, df, published in (
        (1, 10, 2.228),
        (2, 10, 2.57),
        (5, 20, 2.73),
        (9, 60, 2.75),
    ):  # Dunnett 1964, table II
        assert critical(methods, df) == pytest.approx(published, abs=0.02)
    assert critical(1, 7) == pytest.approx(reference.t.ppf(0.975, 7), abs=1e-3)


def arms(generator, methods, seeds=3, items=60, spread=0.02):
    """SFT and methods without a gain: seeds and items are shared, the rest is not."""
    common = generator.normal(0, 0.03, (seeds, 1)) + generator.normal(0.5, 0.3, (1, items))
    own = lambda: generator.normal(0, spread, (seeds, 1)) + generator.normal(0, 0.1, (seeds, items))  # noqa: E731
    return common + own(), {f"m{n}": common + own() for n in range(methods)}


def test_all_intervals_of_a_family_hold_together():
    generator = np.random.default_rng(2)
    alarms = sum(any(one.p < 0.05 for one in simultaneous_gains(*arms(generator, 8))) for _ in range(300))
    assert 0.02 <= alarms / 300 <= 0.085


@pytest.mark.parametrize("seeds", [3, 5])
def test_one_arm_of_wild_scatter_raises_no_alarm_in_its_family(seeds):
    generator, alarms, pooled = np.random.default_rng(7), 0, 0
    scatter = np.array([0.008] * 8 + [0.06])
    for _ in range(400):
        scores = generator.normal(0, 1, (9, seeds)) * scatter[:, None]
        found = simultaneous_gains(scores[0][:, None], {str(n): scores[n][:, None] for n in range(1, 9)})
        alarms += any(one.p < 0.05 for one in found)
        rest = scores - scores.mean(1, keepdims=True) - scores.mean(0) + scores.mean()
        df = (seeds - 1) * 8
        error = math.sqrt(2 * (rest**2).sum() / df / seeds)
        pooled += (np.abs(scores[1:].mean(1) - scores[0].mean()) / error).max() > critical(8, float(df))
        assert all((one.p < 0.05) == (one.low > 0 or one.high < 0) for one in found)
    assert alarms / 400 <= 0.075 and pooled / 400 > 0.12


def test_pooling_over_methods_finds_what_a_method_alone_cannot_at_three_seeds():
    generator, found = np.random.default_rng(3), {"together": 0, "holm": 0}
    for _ in range(100):
        sft, others = arms(generator, 8)
        others = {name: scores + 0.08 for name, scores in others.items()}
        found["together"] += sum(one.low > 0 for one in simultaneous_gains(sft, others))
        alone = [reference.ttest_1samp((scores - sft).mean(1), 0).pvalue for scores in others.values()]
        found["holm"] += sum(np.sort(alone) < 0.05 / np.arange(8, 0, -1))
    assert found["together"] > 3 * found["holm"]


def test_an_interval_and_its_p_value_agree_and_one_seed_is_refused():
    sft, others = arms(np.random.default_rng(4), 4)
    others["m0"] = others["m0"] + 0.06
    for one in simultaneous_gains(sft, others):
        assert (one.p < 0.05) == (one.low > 0 or one.high < 0)
    with pytest.raises(SettingsError, match="two seeds"):
        simultaneous_gains(sft[:1], {name: scores[:1] for name, scores in others.items()})


def test_the_slope_over_teachers_is_found_and_is_zero_where_gains_do_not_follow():
    generator, sources = np.random.default_rng(5), np.repeat(list("abc"), 100)
    lead = np.array([-0.1, 0.0, 0.1, 0.2, 0.3])
    for truth in (0.3, 0.0):
        hits = 0
        for _ in range(300):
            difficulty = generator.normal(0.5, 0.3, 300)
            teachers = difficulty + lead[:, None] + generator.normal(0, 0.3, (5, 300))
            sft = difficulty + generator.normal(0, 0.03, (4, 1)) + generator.normal(0, 0.3, (4, 300))
            own = (
                truth * lead[:, None, None]
                + generator.normal(0, 0.02, (5, 4, 1))
                + generator.normal(0, 0.2, (5, 4, 300))
            )
            found = slope(difficulty + own - sft, teachers, sources)
            hits += found.low <= truth <= found.high
        assert 0.92 <= hits / 300 <= 0.99


def test_cross_fitting_removes_the_slope_that_shared_items_make():
    """Teachers who differ by luck on the items alone, and students who share that luck: no real lead, no real slope."""
    generator, plain, crossed = np.random.default_rng(6), [], []
    for _ in range(200):
        luck = generator.normal(0, 0.3, (4, 100))
        gains = np.repeat(0.5 * luck[:, None, :], 2, axis=1) + generator.normal(0, 0.05, (4, 2, 100))
        lead = luck.mean(1) - luck.mean()
        plain.append(lead @ gains.mean((1, 2)) / (lead**2).sum())
        found = slope(gains, luck)
        crossed.append(found.low <= 0 <= found.high)
    assert np.mean(plain) == pytest.approx(0.5, abs=0.05)  # what a plain regression would report
    assert np.mean(crossed) > 0.85


def test_three_teachers_that_tie_on_one_half_of_the_items_have_points_and_no_slope():
    records, load_items = grid({("kd", name): {0.1: 0.05} for name in ("a", "b", "c")}, seeds=2, references=False)
    ids = [f"i{n}" for n in range(240)]
    order = np.argsort([f"{'abcdefghijkl'[n % 12]} {i}" for n, i in enumerate(ids)], kind="stable")
    teachers, shelf = [], {}
    for number, name in enumerate("abc"):
        scores = np.zeros(240)
        # within a source, items alternate between the halves in the order of their names
        for source in range(12):
            mine = [n for n in order if n % 12 == source]
            scores[mine[1::2][: 3 * number]] = 1
        told = cell("teacher", None, 0, scores.tolist(), role="teacher", teacher=name, teacher_seed=0, student="t")
        teachers.append(told)
        shelf[told.items["verified"]] = items(scores.tolist(), tuple("abcdefghijkl"))
    load = lambda path: shelf[path] if path in shelf else load_items(path)  # noqa: E731
    (line,) = gap_lines([*records, *teachers], Metric("verified", "accuracy"), load)
    assert line.slope is None and len(line.gains) == 3


def test_halves_hold_as_many_items_of_each_source():
    halves = halves_of(7, list("aabbbba"))
    assert halves.tolist() == [0, 1, 0, 1, 0, 1, 0]
    with pytest.raises(SettingsError, match="three or more"):
        slope(np.zeros((2, 2, 4)), np.ones((2, 4)))
    with pytest.raises(SettingsError, match="all the same"):
        slope(np.zeros((3, 2, 4)), np.ones((3, 4)))
