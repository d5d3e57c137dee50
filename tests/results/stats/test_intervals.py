"""Intervals, equivalence, Holm, draws, crossover: by hand, against scipy and statsmodels, by simulation."""

import math

import numpy as np
import pytest
from scipy import stats as reference
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from harness.config.checks import SettingsError
from harness.results.stats.crossover import crossover
from harness.results.stats.intervals import curve, curve_over_replicates, equivalence_p, holm, ratio, seeds_and_items

FRACTIONS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def test_without_items_the_interval_is_the_t_interval_over_seeds():
    gains = [0.02, 0.05, 0.03, 0.07]
    expected = reference.ttest_1samp(gains, 0)
    found = seeds_and_items(gains)
    low, high = expected.confidence_interval()
    assert (found.low, found.high, found.p) == pytest.approx((low, high, expected.pvalue))
    assert found.excludes_item_variance and not found.excludes_seed_variance


def test_one_seed_gives_the_t_interval_over_items_and_says_so():
    scores = np.random.default_rng(0).normal(0.1, 1, 50)
    expected = reference.ttest_1samp(scores, 0)
    found = seeds_and_items(scores[None])
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert found.df == 49 and found.excludes_seed_variance


def test_two_seeds_and_two_items_by_hand():
    # seed means 2 and 4: variance 2; item means 2 and 4: variance 2;
    # scores [[1, 3], [3, 5]] are additive, so rest = 0: variance = 2/2 + 2/2 = 2, df = 2^2 / (1 + 1) = 2
    found = seeds_and_items([[1, 3], [3, 5]])
    assert (found.estimate, found.standard_error, found.df) == pytest.approx((3, math.sqrt(2), 2))
    # [[1, 3], [3, 9]]: mean 4, seed means 2, 6: 8/2 = 4; items the same; rest +-1: (4/1)/(2 * 2) = 1
    found = seeds_and_items([[1, 3], [3, 9]])
    assert (found.estimate, found.standard_error**2) == pytest.approx((4, 4 + 4 - 1))
    assert found.df == pytest.approx(7**2 / (4**2 + 4**2 + 1**2))


def test_strata_take_the_difference_between_sources_out_of_the_item_variance():
    scores = np.array([[0.0, 0.2, 1.0, 1.2]])
    found = seeds_and_items(scores, strata=["a", "a", "b", "b"])
    # within each source the variance is 0.02 over 2 items, weighted (1/2)^2: 2 * 0.25 * 0.01 = 0.005
    assert found.standard_error**2 == pytest.approx(0.005)
    assert seeds_and_items(scores).standard_error > 3 * found.standard_error


@pytest.mark.parametrize("items", [1, 2, 40, 480])
def test_all_wrong_and_all_right_cells_have_clopper_and_pearsons_interval(items):
    for right in (0, items):
        scores = np.full((3, items), float(right > 0))
        found = seeds_and_items(scores, limits=(0, 1))
        count = items if items > 1 else 3  # without items, the seeds are what was seen
        exact = reference.binomtest(count if right else 0, count).proportion_ci(0.95, "exact")
        assert (found.low, found.high) == pytest.approx((exact.low, exact.high))
        assert (found.low, found.high) == pytest.approx(proportion_confint(right and count, count, method="beta"))
        assert found.p_of(0.4) == pytest.approx(min(1, 2 * (0.4 if right else 0.6) ** count))
    assert found.p == 0 and seeds_and_items(np.zeros((3, items)), limits=(0, 1)).p == 1


def test_a_gain_that_is_the_same_on_every_item_has_an_interval_and_the_sign_tests_p_value():
    most = reference.binomtest(0, 12).proportion_ci(0.95, "exact").high
    for gain, low, high in ((0.0, -most, most), (1.0, 1 - 2 * most, 1), (-1.0, -1, 2 * most - 1)):
        found = seeds_and_items(np.full((2, 12), gain), ["a"] * 6 + ["b"] * 6, limits=(-1, 1))
        assert (found.estimate, found.low, found.high) == pytest.approx((gain, low, high))
        assert found.p == pytest.approx(reference.binomtest(12 if gain else 6, 12).pvalue)
    # no p value below 5 % where the interval holds 0, and the other way round
    for items in range(2, 12):
        found = seeds_and_items(np.ones((1, items)), limits=(-1, 1))
        assert (found.p < 0.05) == (found.low > 0)


def test_a_gain_of_nothing_on_every_item_is_equal_to_zero_only_where_the_items_are_many():
    small, large = (seeds_and_items(np.zeros((2, items)), limits=(-1, 1)) for items in (40, 400))
    assert equivalence_p(small, 0.02) == pytest.approx(0.98**40)
    assert equivalence_p(large, 0.02) == pytest.approx(0.98**400) and equivalence_p(large, 0.02) < 0.05
    assert equivalence_p(seeds_and_items(np.ones((2, 40)), limits=(-1, 1)), 0.02) == 1


def test_values_without_limits_that_do_not_differ_have_no_interval():
    found = seeds_and_items(np.full((3, 4), 2.5))  # a loss
    assert found.estimate == 2.5 and math.isnan(found.low) and math.isnan(found.high) and math.isnan(found.p)
    assert seeds_and_items(np.zeros((3, 4))).p == 1  # two models with the same losses
    assert math.isnan(seeds_and_items(np.full((3, 4), 2.5), limits=(0, 1)).low)


def test_a_contrast_of_two_points_has_the_limits_of_both():
    alike = curve(np.zeros((2, 2, 20)), limits=(-1, 1)).intervals(np.array([[1.0, -1.0]]))[0].alike
    assert (alike.low, alike.high) == (-2, 2)


def test_one_score_alone_has_no_interval():
    found = seeds_and_items([0.3])
    assert found.estimate == 0.3 and math.isnan(found.low) and math.isnan(found.high)


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(SettingsError, match="finite"):
        seeds_and_items([0.1, math.nan])


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(("seed_sd", "item_sd", "rest_sd"), [(0.02, 0.3, 0.3), (0.03, 0.3, 0.1), (0.0, 0.4, 0.3)])
def test_intervals_over_seeds_and_items_cover_as_they_say(seeds, seed_sd, item_sd, rest_sd):
    generator, items, repetitions = np.random.default_rng(seeds), 60, 1000
    hits = 0
    for _ in range(repetitions):
        scores = generator.normal(0, seed_sd * 2, (seeds, 1)) + generator.normal(0, item_sd, (1, items))
        found = seeds_and_items(scores + generator.normal(0, rest_sd, (seeds, items)))
        hits += found.low <= 0 <= found.high
    assert 0.925 <= hits / repetitions <= 0.985  # 93 % less half a simulation error


def test_binary_paired_gains_cover_as_they_say():
    generator, repetitions, hits = np.random.default_rng(3), 1000, 0
    for _ in range(repetitions):
        hard = generator.normal(0, 1, (1, 60))
        kd, sft = (hard + generator.normal(0, 0.2, (3, 1)) + generator.normal(0, 0.7, (3, 60)) > 0 for _ in range(2))
        found = seeds_and_items(kd.astype(float) - sft)
        hits += found.low <= 0 <= found.high
    assert 0.925 <= hits / repetitions <= 0.985


def test_equivalence_is_two_one_sided_t_tests():
    gains = [0.004, -0.003, 0.006, 0.001, -0.002]
    above = reference.ttest_1samp(gains, -0.02, alternative="greater").pvalue
    below = reference.ttest_1samp(gains, 0.02, alternative="less").pvalue
    found = equivalence_p(seeds_and_items(gains), 0.02)
    assert found == pytest.approx(max(above, below)) and found < 0.05


def test_a_noisy_gain_near_zero_is_not_called_equivalent():
    assert equivalence_p(seeds_and_items([0.05, -0.05, 0.03, -0.02]), 0.02) > 0.05


def test_holm_agrees_with_statsmodels_and_leaves_out_what_is_not_known():
    p = np.array([0.01, 0.04, 0.03, 0.2, 0.005])
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert holm([0.01, math.nan, 0.02]) == pytest.approx([0.02, math.nan, 0.02], nan_ok=True)


def over_replicates(draws, strata=None, same_items=False):
    cubes = [np.asarray(draw, dtype=float)[:, None, :] for draw in draws]
    return curve_over_replicates(cubes, [strata] * len(cubes), same_items).intervals(np.ones((1, 1)))[0]


def test_two_draws_are_fixed_and_the_interval_is_that_within_them():
    # seed variances 1 and 4 over 3 seeds, no items: (1/3 + 4/3) / 2^2, Welch's degrees of freedom
    draws = [[[1.0], [2.0], [3.0]], [[3.0], [5.0], [7.0]]]
    found = over_replicates(draws)
    assert (found.estimate, found.standard_error**2) == pytest.approx((3.5, 5 / 12))
    assert found.df == pytest.approx(reference.ttest_ind([1, 2, 3], [3, 5, 7], equal_var=False).df)


def test_items_that_two_draws_share_are_not_counted_twice():
    # one seed, 4 items, both draws alike: the mean over draws knows no more of the items than one draw
    draw = np.array([[0.0, 1.0, 2.0, 5.0]])
    one, shared, own = seeds_and_items(draw), over_replicates([draw, draw], None, True), over_replicates([draw, draw])
    assert shared.standard_error == pytest.approx(one.standard_error)
    assert own.standard_error == pytest.approx(one.standard_error / math.sqrt(2))


def test_five_draws_are_the_replicates():
    means = [0.1, 0.02, 0.05, 0.03, 0.07]
    found = over_replicates([[[mean - 0.01], [mean + 0.01]] for mean in means])
    expected = reference.ttest_1samp(means, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx(tuple(expected))


def test_replicates_that_lie_close_together_by_chance_have_the_interval_of_their_seeds():
    # five means of 0.1, two seeds each at +-0.02: within a replicate the variance of its mean is 0.0008 / 2
    found = over_replicates([[[0.08], [0.12]]] * 5)
    assert (found.estimate, found.standard_error**2) == pytest.approx((0.1, 0.0004 / 5))
    assert (found.df, found.high - 0.1) == pytest.approx((4, reference.t.ppf(0.975, 4) * math.sqrt(0.0004 / 5)))
    assert found.p == pytest.approx(2 * reference.t.sf(0.1 / math.sqrt(0.0004 / 5), 4))


def test_a_replicate_of_one_seed_varies_at_least_as_its_own_items_do():
    items = np.array([[0.0, 1.0, 0.0, 1.0]])
    found = over_replicates([items] * 5)
    assert found.standard_error**2 == pytest.approx(items.var(ddof=1) / 4 / 5)
    # items that all replicates share are counted once, not once for each
    shared = over_replicates([items] * 5, same_items=True)
    assert shared.standard_error**2 == pytest.approx(items.var(ddof=1) / 4)


def test_the_lower_bound_holds_for_every_contrast_of_a_curve():
    generator = np.random.default_rng(8)
    draws = [generator.normal(0, 0.02, (2, 1, 1)) + generator.normal(0, 0.02, (2, 3, 1)) for _ in range(6)]
    weights = np.vstack([np.eye(3), [[1, -1, 0], [0.2, 0.3, 0.5]]])
    found = curve_over_replicates(draws, [None] * 6)
    between = curve(np.stack([draw.mean(0) for draw in draws])).errors(weights)[1]
    within = np.sqrt(np.mean([(weights @ np.cov(draw[:, :, 0].T) * weights).sum(1) / 2 for draw in draws], 0) / 6)
    assert found.errors(weights)[1] == pytest.approx(np.maximum(between, within))
    order = np.array([2, 0, 1])
    assert found.at(order).errors(np.eye(3))[1] == pytest.approx(found.errors(np.eye(3))[1][order])


@pytest.mark.parametrize(("tau", "least"), [(0.0, 0.9), (0.01, 0.9)])
def test_grids_whose_replicates_lie_close_together_by_chance_are_covered(tau, least):
    generator, lucky, held, before = np.random.default_rng(9), [], [], []
    for _ in range(1500):
        draws = generator.normal(0, tau, (5, 1)) + generator.normal(0, 0.02, (5, 2))
        found = over_replicates(draws[:, :, None])
        spread = reference.ttest_1samp(draws.mean(1), 0).confidence_interval()
        lucky.append(spread.high - spread.low)
        held.append(found.low <= 0 <= found.high)
        before.append(spread.low <= 0 <= spread.high)
    closest = np.argsort(lucky)[:150]
    assert np.mean(np.array(held)[closest]) > least and np.mean(np.array(before)[closest]) < 0.8
    assert 0.95 <= np.mean(held) <= 0.995


@pytest.mark.parametrize("same_items", [False, True])
def test_intervals_within_two_unlike_draws_cover_as_they_say(same_items):
    generator, repetitions, hits = np.random.default_rng(5), 600, 0
    for _ in range(repetitions):
        shared = generator.normal(0, 0.3, (1, 60))
        draws = [
            (shared if same_items else generator.normal(0, 0.3, (1, 60)))
            + generator.normal(0, sd, (4, 1))
            + generator.normal(0, 0.3, (4, 60))
            for sd in (0.02, 0.06)
        ]
        found = over_replicates(draws, same_items=same_items)
        hits += found.low <= 0 <= found.high
    assert 0.92 <= hits / repetitions <= 0.985


def test_a_gain_that_falls_through_zero_crosses_where_it_was_put():
    x = np.log10(FRACTIONS)
    gains = -0.05 * (x + 1)[None] + np.array([0.004, 0, -0.004])[:, None]  # zero at 10 %, seeds 0.08 decades apart
    found = crossover(FRACTIONS, gains)
    assert found.status == "crosses"
    # the fitted gain at x is -.05 (x + 1) with sd .004, so the half width in x is
    half = reference.t.ppf(0.975, 2) * 0.004 / math.sqrt(3) / 0.05
    assert np.log10(found.pieces[0]) == pytest.approx([-1 - half, -1 + half], abs=0.005)
    assert np.log10(found.roots[0]) == pytest.approx(-1, abs=0.005)


@pytest.mark.parametrize(
    ("shape", "status", "sign"),
    [
        (lambda x: 0.05 + 0 * x, "never", 1),
        (lambda x: -0.05 + 0 * x, "never", -1),
        (lambda x: -0.02 * x, "unbounded", 0),
        (lambda x: 0.04 - 0.06 * (x + 1.25) ** 2, "several", 0),
    ],
)
def test_a_set_may_be_empty_unbounded_or_in_several_pieces(shape, status, sign):
    gains = shape(np.log10(FRACTIONS))[None] + np.array([0.002, 0, -0.002])[:, None]
    found = crossover(FRACTIONS, gains)
    assert (found.status, found.sign) == (status, sign)
    assert (len(found.pieces) > 1) == (status == "several")


def test_a_crossover_with_a_declared_delta_is_that_of_the_gain_less_delta():
    gains = -0.05 * (np.log10(FRACTIONS) + 1)[None] + np.array([0.004, 0, -0.004])[:, None]
    shifted = crossover(FRACTIONS, gains + 0.1, delta=0.1)
    assert shifted.pieces[0] == pytest.approx(crossover(FRACTIONS, gains).pieces[0])


def test_few_fractions_give_the_bracket_and_no_curve():
    gains = np.array([0.1, 0.05, 0.0, -0.05])[None] + np.array([0.001, 0, -0.001])[:, None]
    found = crossover([0.01, 0.1, 0.3, 1.0], gains)
    assert (found.status, found.pieces) == ("too few fractions", ())
    assert (found.sign_change.last_above, found.sign_change.first_equivalent, found.sign_change.first_below) == (
        0.1,
        0.3,
        1.0,
    )


def test_without_a_declared_margin_nothing_is_called_equal():
    gains = np.array([0.1, 0.001, 0.0])[None] + np.array([0.001, 0, -0.001])[:, None]
    assert crossover([0.01, 0.1, 1.0], gains).sign_change.first_equivalent == 0.1
    assert crossover([0.01, 0.1, 1.0], gains, margin=None).sign_change.first_equivalent is None


def test_a_curve_of_fractions_in_any_order_is_the_same_crossover():
    gains = -0.05 * (np.log10(FRACTIONS) + 1)[None] + np.array([0.004, 0, -0.004])[:, None]
    measured = curve_over_replicates([gains[:, ::-1, None]], [None])
    assert crossover(FRACTIONS[::-1], measured).pieces == crossover(FRACTIONS, gains).pieces


def test_one_seed_without_items_excludes_nothing():
    found = crossover(FRACTIONS, np.linspace(0.1, -0.1, 6)[None])
    assert found.status == "unbounded" and found.pieces[0] == pytest.approx((0.003, 1.0))
    assert found.excludes_seed_variance


@pytest.mark.parametrize("curvature", [0.0, 0.03])
def test_the_crossover_set_covers_with_seed_intercepts_shared_items_and_curvature(curvature, monkeypatch):
    monkeypatch.setattr("harness.results.stats.crossover.GRID", 101)
    generator, x, true = np.random.default_rng(11), np.log10(FRACTIONS), -0.9
    curve = -0.06 * (x - true) + curvature * (x - true) * (x + 1.5)
    hits, repetitions = 0, 400
    for _ in range(repetitions):
        gains = curve[None, :, None] + generator.normal(0, 0.02, (3, 1, 1)) + generator.normal(0, 0.015, (3, 6, 1))
        gains = gains + generator.normal(0, 0.15, (1, 6, 40)) + generator.normal(0, 0.1, (1, 1, 40))
        found = crossover(FRACTIONS, gains + generator.normal(0, 0.2, (3, 6, 40)))
        hits += any(np.log10(low) - 0.03 <= true <= np.log10(high) + 0.03 for low, high in found.pieces)
    assert 0.925 <= hits / repetitions <= 0.99


def test_fractions_must_be_distinct_and_gains_must_fit_them():
    with pytest.raises(SettingsError, match="distinct"):
        crossover([0.1, 0.1], [[0.0, 0.0]])
    with pytest.raises(SettingsError, match="2 fractions"):
        crossover([0.1, 0.2], [[0.0, 0.0, 0.0]])


def test_a_ratio_ends_where_the_difference_of_its_terms_stops_being_told_from_zero():
    generator = np.random.default_rng(3)
    values = generator.normal([0.3, 0.6], 0.05, (8, 2))[:, :, None]
    found, *ends = ratio(curve(values))
    assert found == pytest.approx(values[:, 0].mean() / values[:, 1].mean())
    for end in ends:
        assert reference.ttest_1samp(values[:, 0, 0] - end * values[:, 1, 0], 0).pvalue == pytest.approx(0.05, abs=1e-6)


def test_the_interval_of_a_ratio_covers_over_seeds_and_items():
    generator, hits, repetitions = np.random.default_rng(5), 0, 600
    for _ in range(repetitions):
        shared = generator.normal(0, 0.3, (1, 2, 60)) + generator.normal(0, 0.02, (5, 2, 1))
        values = np.array([0.3, 0.6])[None, :, None] + shared + generator.normal(0, 0.3, (5, 2, 60))
        _, low, high = ratio(curve(values))
        hits += low <= 0.5 <= high
    assert 0.925 <= hits / repetitions <= 0.985


def test_a_ratio_to_what_may_be_nothing_is_blank():
    assert all(map(math.isnan, ratio(curve(np.array([[0.3, 0.1], [0.3, -0.1], [0.2, 0.05]])[:, :, None]))))


def test_a_gain_of_another_shape_than_a_parabola_leaves_the_bracket_alone():
    gains = np.array([0.02, 0.06, 0.1, 0.08, 0.02, 0.01])[None] + np.array([0.004, 0.0, -0.004])[:, None]
    wavy = crossover(FRACTIONS, gains + np.random.default_rng(0).normal(0, 0.001, (3, 6)))
    assert not wavy.fits and wavy.lack_of_fit_p < 0.05
    straight = -0.05 * (np.log10(FRACTIONS) + 1)[None] + np.array([0.004, 0, -0.004])[:, None]
    assert crossover(FRACTIONS, straight + np.random.default_rng(1).normal(0, 0.001, (3, 6))).fits
    assert crossover([0.01, 0.1, 1.0], gains[:, :3]).fits  # nothing was fitted
