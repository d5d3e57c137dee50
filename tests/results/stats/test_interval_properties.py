"""Properties of the pure statistics, for whatever numbers: what must hold of every interval and every family."""

import itertools
import math

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from harness.results.simultaneous import simultaneous_gains
from harness.results.stats.intervals import curve, curve_over_replicates, equivalence_p, holm, ratio, seeds_and_items

numbers = st.floats(-1, 1, allow_nan=False, width=32)
scores = st.tuples(st.integers(1, 4), st.integers(1, 8)).flatmap(lambda shape: arrays(float, shape, elements=numbers))
answers = st.tuples(st.integers(1, 4), st.integers(1, 12)).flatmap(
    lambda shape: arrays(float, shape, elements=st.sampled_from([0.0, 1.0]))
)
replicates = st.integers(2, 7).flatmap(
    lambda count: st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 6)).flatmap(lambda s: arrays(float, s, elements=numbers)),
        min_size=count,
        max_size=count,
    )
)
p_values = st.lists(st.floats(0, 1), min_size=1, max_size=12)
FEW = settings(max_examples=60, deadline=None)


def same(one, other):
    for name in ("estimate", "low", "high", "standard_error", "p"):
        assert math.isclose(getattr(one, name), getattr(other, name), rel_tol=1e-6, abs_tol=1e-7) or (
            math.isnan(getattr(one, name)) and math.isnan(getattr(other, name))
        ), name


@FEW
@given(scores)
def test_an_interval_holds_its_estimate_and_grows_with_its_level(values):
    found = [seeds_and_items(values, level=level, limits=(-1, 1)) for level in (0.5, 0.9, 0.95, 0.999)]
    assert math.isclose(found[0].estimate, values.mean(), abs_tol=1e-9)
    assume(not math.isnan(found[0].low))
    ends = [(one.low, one.high) for one in found]
    assert all(low <= found[0].estimate <= high for low, high in ends)
    assert all(b[0] <= a[0] + 1e-12 and a[1] <= b[1] + 1e-12 for a, b in itertools.pairwise(ends))


@FEW
@given(answers)
def test_the_interval_of_right_and_wrong_answers_has_a_width_and_agrees_with_its_p_value(values):
    found = seeds_and_items(values, limits=(0, 1))
    if values.size == 1:
        assert math.isnan(found.low)
        return
    if not math.isnan(found.low):
        assert found.high > found.low
        for value in (0.05, 0.3, 0.5, 0.95):
            assert (found.p_of(value) < 0.05) == (not found.low <= value <= found.high)


@FEW
@given(scores, st.randoms(use_true_random=False))
def test_the_order_of_seeds_and_items_does_not_matter(values, random):
    seeds, items = (random.sample(range(size), size) for size in values.shape)
    strata = [random.choice("ab") for _ in range(values.shape[1])]
    shuffled = values[seeds][:, items]
    same(seeds_and_items(values, strata), seeds_and_items(shuffled, [strata[item] for item in items]))


@FEW
@given(scores, st.floats(-3, 3), st.floats(0.1, 10))
def test_a_shift_moves_an_interval_and_a_scale_stretches_it(values, shift, scale):
    assume(not math.isnan(seeds_and_items(values).low))
    one, moved, wide = (seeds_and_items(given) for given in (values, values + shift, values * scale))
    assert math.isclose(moved.high - moved.low, one.high - one.low, rel_tol=1e-4, abs_tol=1e-6)
    assert math.isclose(moved.estimate, one.estimate + shift, abs_tol=1e-6)
    assert math.isclose(wide.high - wide.low, scale * (one.high - one.low), rel_tol=1e-4, abs_tol=1e-6)


@FEW
@given(replicates, st.randoms(use_true_random=False))
def test_an_interval_over_replicates_is_no_narrower_than_their_seeds_and_items_make_it(draws, random):
    cubes = [draw[:, None, :] for draw in draws]
    found = curve_over_replicates(cubes, [None] * len(cubes))
    error = found.errors(np.ones((1, 1)))[1][0]
    parts = [curve(cube) for cube in cubes]
    seed = math.sqrt(sum(part.seed[0, 0] for part in parts)) / len(parts)
    if not math.isnan(error):
        assert error >= seed - 1e-9
    order = random.sample(range(len(cubes)), len(cubes))
    again = curve_over_replicates([cubes[n] for n in order], [None] * len(cubes))
    same(*(one.intervals(np.ones((1, 1)))[0] for one in (found, again)))


@FEW
@given(p_values, st.integers(0, 11), st.floats(0, 1))
def test_holm_keeps_the_order_is_no_smaller_than_p_and_grows_with_every_p(p, place, larger):
    found = holm(p)
    assert ((found >= np.array(p)) & (found <= 1)).all()
    order = np.argsort(p, kind="stable")
    assert (np.diff(found[order]) >= 0).all()
    raised = list(p)
    raised[place % len(p)] = max(raised[place % len(p)], larger)
    assert (holm(raised) >= found - 1e-12).all()
    assert (holm([*p, 1.0])[: len(p)] >= found - 1e-12).all()  # one more claim makes none of the others easier
    assert np.array_equal(holm(p[::-1])[::-1], found)


@FEW
@given(scores, st.floats(0.01, 2), st.floats(0.01, 2))
def test_equivalence_is_easier_to_show_within_a_wider_margin(values, one, other):
    found = seeds_and_items(values, limits=(-1, 1))
    narrow, wide = (equivalence_p(found, margin) for margin in sorted((one, other)))
    assert math.isnan(narrow) == math.isnan(wide)
    assert math.isnan(narrow) or wide <= narrow + 1e-12


@FEW
@given(arrays(float, (4, 2, 5), elements=numbers))
def test_a_ratio_lies_in_its_interval_or_has_none(values):
    found, low, high = ratio(curve(values))
    assert math.isnan(found) or low - 1e-9 <= found <= high + 1e-9


@settings(max_examples=25, deadline=None)
@given(arrays(float, (4, 3, 4), elements=numbers))
def test_simultaneous_intervals_hold_their_gains_and_are_no_narrower_than_single_ones(values):
    sft, *arms = values
    for name, one in zip("abc", simultaneous_gains(sft, dict(zip("abc", arms, strict=True))), strict=True):
        alone = seeds_and_items(arms["abc".index(name)] - sft)
        assert math.isnan(one.low) or one.low <= one.gain <= one.high
        if not math.isnan(alone.low):
            assert one.low <= alone.low + 1e-9 and alone.high <= one.high + 1e-9
