"""Intervals over seeds and test items, equivalence, several comparisons, and replicates.

Pure functions on arrays; they know nothing of cells. Shapes: S seeds, F data fractions, N test items.
`values[s, i]` is the score (or the paired gain) of seed s on item i; the model is
`values = mean + seed + item + rest`, so the variance of the grand mean is

    var(seed means)/S + var(item means)/N - var(rest)/(S N)         df: Satterthwaite (1946)

The last term is subtracted because `rest` sits in both of the others. A t interval over seeds alone forgets
that all seeds share the items; a bootstrap over three seeds covers 74 % instead of 95 %, so there is none.
Items are stratified by source (sources are fixed). Where a mean is over several parts of equal weight (the
benchmarks of a macro-average), a stratum is named `part`, WITHIN, `source`, and each part has its own degrees of
freedom. `crossover.py` uses the same variance for whole curves.
A replicate has its own corpus and teacher: the unit over which a statement about other corpora needs its variance. With
D replicates that is `between / D`, but at least `within / D`, the variance of one replicate's mean that its seeds and
items alone make: the means of five replicates may lie close together by chance.
Where no value differs from another, no variance can be estimated. The interval is then Clopper and Pearson's (1934): of
N items none deviates, so at 95 % at most 1 - 0.025^(1/N) of all items do, each by no more than `limits` allow.

    seeds_and_items(kd - sft, strata=sources).low > 0     # kd beats SFT at 95 %
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit  # t distribution; scipy.stats costs two seconds to import

from harness.config.checks import refuse

Array = NDArray[np.float64]
ROUNDING = 1e-12
"""A standard error below this share of the estimate (or of 1) is rounding; there is no variance."""
LEAST_REPLICATES = 5
"""Fewer replicates are treated as fixed: no interval over replicates is made from them."""
WITHIN = "\x1f"
"""Joins the names of a part and of a source in it to the name of a stratum."""


@dataclass(frozen=True)
class Interval:
    """An estimate with a two-sided t interval; `low` and `high` are NaN where no variance is known."""

    estimate: float
    low: float
    high: float
    df: float
    standard_error: float
    p: float
    """Two-sided p value of `estimate = 0`; NaN where neither a standard error nor `alike` is known."""
    excludes_seed_variance: bool
    """One seed: the interval excludes the variance between seeds."""
    excludes_item_variance: bool
    """No item scores: unless replicates contain it, the interval excludes the variance of other test items."""
    alike: "Alike | None" = None
    """Set where no value differs from another; then there is no standard error."""

    def p_of(self, value: float) -> float:
        """Two-sided p value of `estimate = value`; NaN where neither a standard error nor `alike` is known."""
        if self.standard_error > 0:
            return float(2 * stdtr(self.df, -abs(self.estimate - value) / self.standard_error))
        if self.alike is None:
            return 1.0 if self.standard_error == 0 and self.estimate == value else math.nan
        return min(1.0, 2 * self.alike.tail(self.estimate, value))

    def p_beyond(self, value: float, above: bool) -> float:
        """One-sided p value against `estimate > value` (`above`), or against `estimate < value`; NaN as in `p_of`."""
        if self.standard_error > 0:
            distance = self.estimate - value
            return float(stdtr(self.df, (-distance if above else distance) / self.standard_error))
        if self.alike is None:
            return math.nan
        beyond = self.estimate > value if above else self.estimate < value
        return self.alike.tail(self.estimate, value) if beyond else 1.0


@dataclass(frozen=True)
class Alike:
    """N values of which none differs from another, each with the limits `low` and `high` it could have had."""

    count: int
    low: float
    high: float

    def interval(self, estimate: float, level: float) -> tuple[float, float]:
        """Clopper and Pearson's interval for 0 of N, times how far a value could deviate."""
        most = 1 - ((1 - level) / 2) ** (1 / self.count)  # the largest share of deviating values that fits
        return estimate - most * (estimate - self.low), estimate + most * (self.high - estimate)

    def tail(self, estimate: float, value: float) -> float:
        """Chance that none of N values deviates where the mean is `value`: what `interval` inverts."""
        room = self.low - estimate if value < estimate else self.high - estimate
        # the smallest share of deviating values with this mean; more than all of them cannot deviate
        share = 0.0 if value == estimate else 1.0 if not room else min(1.0, (value - estimate) / room)
        return float((1 - share) ** self.count)


@dataclass(frozen=True)
class Curve:
    """Mean over seeds and items at F fractions and the parts of its covariance (each F x F)."""

    mean: Array
    seed: Array
    item: Array
    overlap: Array
    seeds: int
    seed_df: float
    item_df: float
    count: int = 0
    """Values behind each point: items, or seeds where items are not known."""
    limits: tuple[float, float] | None = None
    """The smallest and largest value that one item may have; null where it has none, as a loss."""
    within: "Curve | None" = None
    """Of replicates: the same mean with what their seeds and items alone make of its variance, a lower bound."""

    def at(self, order: NDArray[np.int64]) -> "Curve":
        """The same curve at these of its fractions."""
        square = np.ix_(order, order)
        seed, item, overlap = (part[square] for part in (self.seed, self.item, self.overlap))
        within = self.within and self.within.at(order)
        return replace(self, mean=self.mean[order], seed=seed, item=item, overlap=overlap, within=within)

    def intervals(self, weights: Array, level: float = 0.95) -> list[Interval]:
        """Intervals of `weights @ mean`; weights (X, F), one interval for each of the X rows."""
        estimate, error, df = self.errors(weights)
        # an error of 0, or unknown (NaN), gives no t interval; rounding leaves a trace of variance where there is none
        spread = error > ROUNDING * np.maximum(1.0, np.abs(estimate))
        with np.errstate(invalid="ignore", divide="ignore"):
            half = np.where(spread, error * stdtrit(df, (1 + level) / 2), math.nan)
            p = np.where(spread, 2 * stdtr(df, -np.abs(estimate) / error), math.nan)
        error = np.where(spread | np.isnan(error), error, 0.0)
        flags = self.seeds < 2, not self.item_df
        columns = (map(float, column) for column in (estimate, estimate - half, estimate + half, df, error, p))
        found = [Interval(e, low, high, d, s, q, *flags) for e, low, high, d, s, q in zip(*columns, strict=True)]
        for number in np.flatnonzero(error == 0):
            one = replace(found[number], alike=self._alike(weights[number], found[number].estimate))
            low, high = one.alike.interval(one.estimate, level) if one.alike else (math.nan, math.nan)
            found[number] = replace(one, low=low, high=high, p=one.p_of(0.0))
        return found

    def _alike(self, weights: Array, estimate: float) -> Alike | None:
        """The values behind a contrast without variance; null where they have no limits, or lie outside of them."""
        if self.limits is None or self.count < 2:
            return None
        # a negative weight turns a value's limits round
        up, down = weights.clip(0).sum(), weights.clip(None, 0).sum()
        low, high = (float(up * one + down * other) for one, other in (self.limits, self.limits[::-1]))
        estimate_fits = low - ROUNDING <= estimate <= high + ROUNDING
        return Alike(self.count, min(low, estimate), max(high, estimate)) if estimate_fits else None

    def errors(self, weights: Array) -> tuple[Array, Array, Array]:
        """Estimates, standard errors and Satterthwaite degrees of freedom of `weights @ mean`, each (X,)."""
        seed, item, overlap = self._parts(weights)
        variance = _bounded(seed, item, overlap)
        seed_df = max(self.seed_df, 1)
        item_df = max(self.item_df, 1)
        # Satterthwaite: each part has its own df, and the overlap that of the residual of a two-way layout
        spread = seed**2 / seed_df + item**2 / item_df + overlap**2 / (seed_df * item_df)
        with np.errstate(invalid="ignore", divide="ignore"):
            df = np.where(spread > 0, variance**2 / spread, math.inf)
        # a sum of parts has at least the smallest of their df; the overlap, which is subtracted, can take the formula
        # below that bound
        known_df = [seed_df] * (self.seeds > 1) + [item_df] * (self.item_df > 0)
        least = min(known_df, default=1)
        error = np.sqrt(variance) if self.seeds > 1 or self.item_df else np.full(len(weights), math.nan)
        df = np.maximum(df, least)
        if self.within is not None:
            # what is not known of a replicate of one seed is left out: the bound is only lower then
            lower = np.sqrt(_bounded(*self.within._parts(weights)))
            # the degrees of freedom stay those of the replicates: with those of the seeds, which are more, the grids
            # whose replicates lie close together by chance are covered less often
            df = np.where(lower > error, seed_df, df)
            error = np.maximum(error, lower)
        return weights @ self.mean, error, df

    def _parts(self, weights: Array) -> tuple[Array, Array, Array]:
        """What seeds, items and their overlap add to the variance of `weights @ mean`, each (X,)."""
        # quadratic forms of covariances: below 0 by rounding only
        seed, item, overlap = (
            np.clip(np.einsum("xf,fg,xg->x", weights, part, weights), 0, None)
            for part in (self.seed, self.item, self.overlap)
        )
        return seed, item, overlap


def _bounded(seed: Array, item: Array, overlap: Array) -> Array:
    """The variance of a mean from its parts, (X,)."""
    # each part alone is a lower bound of the variance: with few seeds the estimated seed part can be far too small
    return np.maximum(seed + item - overlap, np.maximum(seed, item))


def curve(values: ArrayLike, strata: Sequence[Any] | None = None, limits: tuple[float, float] | None = None) -> Curve:
    """Mean and covariance parts of `values` (S, F, N); strata (N,) names the source of each item, `limits` the smallest
    and largest value an item may have.

    N = 1 means that `values` are scores without items: the seed part alone is known. Raises SettingsError for values
    that are not finite or not of this shape, and for strata of another length.
    """
    array = np.asarray(values, dtype=float)
    if array.ndim != 3 or 0 in array.shape or not np.isfinite(array).all():
        raise refuse("values", array.shape, "statistics need finite numbers of shape (seeds, fractions, items)")
    seeds, fractions, items = array.shape
    zero = np.zeros((fractions, fractions))
    seed = _covariance(array.mean(2)) / seeds if seeds > 1 else zero  # (F, F), of the mean over seeds
    overlap, by_part, dfs = zero.copy(), [], []
    parts = _strata(strata, items)
    for groups in parts:
        item, item_df = zero.copy(), 0
        for members in groups:
            block, size = array[:, :, members], len(members)
            # scores without items: `_strata` leaves a single item alone only where its part has no other
            if size < 2:
                continue
            share = (size / items) ** 2 / size  # a stratum's weight squared, over its size: stratified sampling
            item += share * _covariance(block.mean(0).T)
            item_df += size - 1
            if seeds > 1:
                # what is left without seed and item effects is in both other parts, and is subtracted once
                rest = block - block.mean(0) - block.mean(2, keepdims=True) + block.mean((0, 2))[:, None]  # (S, F, n)
                flat = rest.transpose(0, 2, 1).reshape(-1, fractions)  # (S n, F)
                overlap += share / seeds * (flat.T @ flat) / ((seeds - 1) * (size - 1))
        by_part.append(item)
        dfs.append(item_df)
    # a part of ten items beside one of thousands may have most of the variance, and then has nine degrees of freedom
    df = dfs[0] if len(dfs) == 1 else _sum_df(by_part, dfs)
    # parts have one weight each, so the smallest says least of what was not seen
    count = min(sum(map(len, groups)) for groups in parts) if df else seeds
    mean = array.mean((0, 2))
    return Curve(mean, seed, np.sum(by_part, axis=0), overlap, seeds, seeds - 1, df, count, limits)


def curve_over_replicates(
    values: Sequence[Array],
    strata: Sequence[Sequence[Any] | None],
    same_items: bool = False,
    limits: tuple[float, float] | None = None,
) -> Curve:
    """Mean over replicates, and its covariance; values[r] (S_r, F, N_r), strata[r] (N_r,) or null.

    From LEAST_REPLICATES replicates on, the unit is the mean of a replicate, and its variance is at least that within
    replicates. Fewer are too few for that (t = 12.7 at two): they are treated as fixed, the variance is that of seeds
    and items within them, and the interval does not cover another replicate. `same_items`: all replicates have the same
    items in the same order, so their items are not independent. Raises SettingsError as `curve` does.
    """
    # seeds of different replicates are not pooled as independent units: two replicates of five seeds, taken as ten
    # units, would cover 58 % in place of 95 %
    if len(values) == 1:
        return curve(values[0], strata[0], limits)
    fixed = _fixed_replicates(values, strata, same_items, limits)
    if len(values) < LEAST_REPLICATES:
        return fixed
    # replicates stand where `curve` has seeds; where each has items of its own, the spread between replicates
    # contains theirs, and they are averaged away
    means = np.stack([one.mean(0) if same_items else one.mean((0, 2))[:, None] for one in values])  # (R, F, N or 1)
    return replace(curve(means, strata[0] if same_items else None, limits), within=fixed, count=fixed.count)


def _fixed_replicates(
    values: Sequence[Array],
    strata: Sequence[Sequence[Any] | None],
    same_items: bool,
    limits: tuple[float, float] | None,
) -> Curve:
    """Mean over these replicates and no others: the variance is that of seeds and items within them."""
    parts = [curve(*one, limits) for one in zip(values, strata, strict=True)]
    # variances of R independent replicates add, and their mean has the sum over R squared
    seed, item, overlap = (
        np.sum([getattr(part, name) for part in parts], axis=0) / len(parts) ** 2
        for name in ("seed", "item", "overlap")
    )
    seed_df = _sum_df([part.seed for part in parts], [part.seed_df for part in parts])
    item_df = _sum_df([part.item for part in parts], [part.item_df for part in parts])
    count = sum(part.count for part in parts)
    if same_items:
        # one set of items serves all replicates: its variance does not shrink with their number
        whole = curve(np.mean([one.mean(0) for one in values], axis=0)[None], strata[0])
        item, item_df, count = whole.item, whole.item_df, parts[0].count
    mean = np.mean([part.mean for part in parts], axis=0)
    seeds = min(part.seeds for part in parts)
    return Curve(mean, seed, item, overlap, seeds, seed_df, item_df, count, limits)


def seeds_and_items(
    scores: ArrayLike,
    strata: Sequence[Any] | None = None,
    level: float = 0.95,
    limits: tuple[float, float] | None = None,
) -> Interval:
    """Interval of the mean of `scores` (S, N), or (S,) without items, over new seeds and new items.

    The paired version is the same function on `method - sft`. One seed: item variance only, and flagged.
    Raises SettingsError as `curve` does.
    """
    array = np.asarray(scores, dtype=float)
    array = array[:, None] if array.ndim == 1 else array
    return curve(array[:, None, :], strata, limits).intervals(np.ones((1, 1)), level)[0]


def equivalence_p(found: Interval, margin: float) -> float:
    """p value of two one-sided t tests (TOST, Schuirmann 1987) that an estimate lies within `margin` of 0.

    NaN where neither a standard error nor `alike` is known. Raises SettingsError where the margin is not above 0.
    """
    if not margin > 0:
        raise refuse("margin", margin, "equivalence needs a margin above 0", "declare it before the run")
    # both one-sided hypotheses, "below -margin" and "above margin", have to be rejected: the larger p decides, and
    # a p value of "no difference" that is not small shows nothing of the kind
    return max(found.p_beyond(-margin, above=True), found.p_beyond(margin, above=False))


def ratio(parts: Curve, level: float = 0.95) -> tuple[float, float, float]:
    """The ratio of the first of a curve's two means to the second, with its Fieller (1954) interval.

    All NaN unless the second is clearly above 0: near 0 the ratio is unbounded, and the set of ratios that fit is not
    an interval.
    """
    _, errors, _ = parts.errors(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]]))
    above, below = parts.mean
    _, bottom = parts.intervals(np.eye(2), level)
    if not bottom.low > 0:
        return math.nan, math.nan, math.nan
    # Fieller: a ratio r fits where a t test does not reject that above - r * below is 0; its df is taken at the
    # estimate
    found = above / below
    df = parts.errors(np.array([[1.0, -found]]))[2]
    t = stdtrit(df[0], (1 + level) / 2)
    v_above, v_below, v_difference = errors**2
    # covariance of the two means, from var(a - b) = var(a) + var(b) - 2 cov(a, b)
    shared = (v_above + v_below - v_difference) / 2
    a, b, c = below**2 - t**2 * v_below, above * below - t**2 * shared, above**2 - t**2 * v_above
    if a <= 0:  # its df differs from the denominator's own, so the set may still be no interval
        return math.nan, math.nan, math.nan
    half = math.sqrt(max(b**2 - a * c, 0.0))  # roots of a r^2 - 2 b r + c, the ratios r that are not rejected
    return found, (b - half) / a, (b + half) / a


def holm(p_values: ArrayLike) -> Array:
    """Holm's (1979) adjusted p values of one family (M,), in the order given; NaN stays, uncounted."""
    p = np.asarray(p_values, dtype=float)
    adjusted = np.full(p.shape, math.nan)
    order = np.argsort(p)[: np.isfinite(p).sum()]  # NaN sorts last
    # step-down: the k-th smallest p is multiplied by the number of hypotheses not yet rejected, and no adjusted p
    # may be below the one before it
    steps = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * steps), 1)
    return adjusted


def _sum_df(parts: Sequence[Array], dfs: Sequence[float]) -> float:
    """Satterthwaite degrees of freedom of a sum of independent (F, F) parts; 0 where one part is not known."""
    if not all(dfs):
        return 0
    sizes = [float(np.trace(part)) for part in parts]
    if not any(sizes):
        return sum(dfs)
    return sum(sizes) ** 2 / sum(size**2 / df for size, df in zip(sizes, dfs, strict=True))


def _covariance(rows: Array) -> Array:
    """Covariance (F, F) of `rows` (n, F) with n - 1 in the denominator."""
    centred = rows - rows.mean(0)
    return centred.T @ centred / (len(rows) - 1)


def _strata(strata: Sequence[Any] | None, items: int) -> list[list[NDArray[np.int64]]]:
    """Item numbers per stratum, by part; without WITHIN in their names, all strata are in one part."""
    if strata is None:
        return [[np.arange(items)]]
    names = np.asarray(strata).astype(str)
    if len(names) != items:
        raise refuse("strata", len(names), f"each of the {items} items needs one")
    parts: dict[str, list[NDArray[np.int64]]] = {}
    for name in np.unique(names):
        part, _, source = str(name).partition(WITHIN)
        parts.setdefault(part if source else "", []).append(np.flatnonzero(names == name))
    return [_with_single_items_together(groups) for groups in parts.values()]


def _with_single_items_together(groups: list[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """The strata of one part; those of one item have no variance of their own and are put together."""
    alone = [group for group in groups if len(group) == 1]
    rest = [group for group in groups if len(group) > 1]
    if len(alone) == 1 and rest:
        rest[0] = np.concatenate([rest[0], alone[0]])
    elif alone:
        rest.append(np.concatenate(alone))
    return rest
