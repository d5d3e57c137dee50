"""Intervals over seeds and test items, equivalence, several comparisons, and draws of the world.

Pure functions on arrays; nothing here knows a cell. Shapes: S seeds, F data fractions, N test items.
`values[s, i]` is the score (or the paired gain) of seed s on item i; the model is
`values = mean + seed + item + rest`, so the variance of the grand mean is

    var(seed means)/S + var(item means)/N - var(rest)/(S N)         df: Satterthwaite (1946)

The last term is subtracted because `rest` sits in both of the others. A t interval over seeds alone forgets
that all seeds share the items; a bootstrap over three seeds covers 74 % instead of 95 %, so there is none.
Items are stratified by source (sources are fixed). `crossover.py` uses the same variance for whole curves.

    seeds_and_items(kd - sft, strata=sources).low > 0     # kd beats SFT at 95 %
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit  # t distribution; scipy.stats costs two seconds to import

from harness.config import refuse

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate with a two-sided t interval; `low` and `high` are NaN where nothing can be said."""

    estimate: float
    low: float
    high: float
    df: float
    standard_error: float
    p: float
    """Two-sided p value of `estimate = 0`; NaN without a standard error."""
    excludes_seed_variance: bool
    """One seed: the interval says nothing about another seed."""
    excludes_item_variance: bool
    """No item scores: the interval says nothing about other test items."""


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests (Schuirmann 1987): is the mean within `margin` of 0?"""

    equivalent: bool
    p: float
    margin: float
    interval: Interval
    """The interval of level 1 - 2 alpha; `equivalent` says that it lies within the margin."""


@dataclass(frozen=True)
class Draws:
    """Gains over several draws of the world or the teacher."""

    per_draw: dict[Any, Interval]
    across: Interval
    """Draws as the replicates; of one draw, that draw's interval."""
    scope: str
    """What may be claimed: `for this draw only`, `for these draws only` or `over draws`."""


@dataclass(frozen=True)
class Curve:
    """Mean over seeds and items at F fractions and the parts of its covariance (each F x F)."""

    mean: Array
    seed: Array
    item: Array
    overlap: Array
    seeds: int
    item_df: int

    def intervals(self, weights: Array, level: float = 0.95) -> list[Interval]:
        """Intervals of `weights @ mean`; weights (X, F), one interval for each of the X rows."""
        estimate, error, df = self.errors(weights)
        nothing_known = self.seeds < 2 and not self.item_df
        with np.errstate(invalid="ignore", divide="ignore"):
            half = np.where(error > 0, error * stdtrit(df, (1 + level) / 2), error)
            p = np.where(error > 0, 2 * stdtr(df, -np.abs(estimate) / error), math.nan)
        return [
            Interval(
                float(e),
                float(e - h),
                float(e + h),
                float(d),
                float(s),
                float(q),
                self.seeds < 2,
                not self.item_df,
            )
            for e, h, d, s, q in zip(estimate, np.where(nothing_known, math.nan, half), df, error, p, strict=True)
        ]

    def errors(self, weights: Array) -> tuple[Array, Array, Array]:
        """Estimates, standard errors and Satterthwaite degrees of freedom of `weights @ mean`, each (X,)."""
        seed, item, overlap = (
            np.clip(np.einsum("xf,fg,xg->x", weights, part, weights), 0, None)
            for part in (self.seed, self.item, self.overlap)
        )
        # each part alone is a lower bound of the variance, so a lucky small seed part cannot undercut it
        variance = np.maximum(seed + item - overlap, np.maximum(seed, item))
        seed_df = max(self.seeds - 1, 1)
        item_df = max(self.item_df, 1)
        spread = seed**2 / seed_df + item**2 / item_df + overlap**2 / (seed_df * item_df)
        with np.errstate(invalid="ignore", divide="ignore"):
            df = np.where(spread > 0, variance**2 / spread, math.inf)
        known_df = [seed_df] * (self.seeds > 1) + [item_df] * (self.item_df > 0)
        least = min(known_df, default=1)
        error = np.sqrt(variance) if self.seeds > 1 or self.item_df else np.full(len(weights), math.nan)
        return weights @ self.mean, error, np.maximum(df, least)


def curve(values: ArrayLike, strata: Sequence[Any] | None = None) -> Curve:
    """Mean and covariance parts of `values` (S, F, N); strata (N,) names the source of each item.

    N = 1 means that `values` are scores without items: the seed part alone is known.
    """
    array = np.asarray(values, dtype=float)
    if array.ndim != 3 or 0 in array.shape or not np.isfinite(array).all():
        raise refuse("values", array.shape, "statistics need finite numbers of shape (seeds, fractions, items)")
    seeds, fractions, items = array.shape
    zero = np.zeros((fractions, fractions))
    seed = _covariance(array.mean(2)) / seeds if seeds > 1 else zero
    item, overlap, item_df = zero.copy(), zero.copy(), 0
    for members in _strata(strata, items):
        block, size = array[:, :, members], len(members)
        if size < 2:
            continue
        share = (size / items) ** 2 / size
        item += share * _covariance(block.mean(0).T)
        item_df += size - 1
        if seeds > 1:
            rest = block - block.mean(0) - block.mean(2, keepdims=True) + block.mean((0, 2))[:, None]
            flat = rest.transpose(0, 2, 1).reshape(-1, fractions)
            overlap += share / seeds * (flat.T @ flat) / ((seeds - 1) * (size - 1))
    return Curve(array.mean((0, 2)), seed, item, overlap, seeds, item_df)


def seeds_and_items(scores: ArrayLike, strata: Sequence[Any] | None = None, level: float = 0.95) -> Interval:
    """Interval of the mean of `scores` (S, N), or (S,) without items, over new seeds and new items.

    The paired version is the same function on `method - sft`. One seed: item variance only, and flagged.
    """
    array = np.asarray(scores, dtype=float)
    array = array[:, None] if array.ndim == 1 else array
    return curve(array[:, None, :], strata).intervals(np.ones((1, 1)), level)[0]


def equivalence(
    gains: ArrayLike, margin: float, strata: Sequence[Any] | None = None, alpha: float = 0.05
) -> Equivalence:
    """Test that the mean of gains (S, N) or (S,) is within `margin` of 0; not different is not enough."""
    if not margin > 0:
        raise refuse("margin", margin, "equivalence needs a margin above 0", "declare it before the run")
    interval = seeds_and_items(gains, strata, level=1 - 2 * alpha)
    if not interval.standard_error > 0:
        return Equivalence(False, math.nan, margin, interval)
    above = stdtr(interval.df, -(interval.estimate + margin) / interval.standard_error)
    below = stdtr(interval.df, (interval.estimate - margin) / interval.standard_error)
    p = float(max(above, below))
    return Equivalence(p < alpha, p, margin, interval)


def holm(p_values: ArrayLike) -> Array:
    """Holm's (1979) adjusted p values of one family (M,), in the order given; NaN stays, uncounted."""
    p = np.asarray(p_values, dtype=float)
    adjusted = np.full(p.shape, math.nan)
    order = np.argsort(p)[: np.isfinite(p).sum()]  # NaN sorts last
    steps = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * steps), 1)
    return adjusted


def draws_of(
    gains: Mapping[Any, ArrayLike], strata: Mapping[Any, Sequence[Any]] | None = None, level: float = 0.95
) -> Draws:
    """Gains per draw, {draw: (S, N) or (S,)}; draws of one world share their bases, teachers and items.

    Seeds of different draws are never pooled as if they were replicates (2 draws x 5 seeds would cover 58 %):
    across draws the draw's mean is the replicate, with items as the second source where all draws have the
    same number in the same order of strata. Under five draws the scope is `for these draws only`.
    """
    if not gains:
        raise refuse("gains", {}, "there must be at least one draw")
    strata = strata or {}
    per_draw = {draw: seeds_and_items(values, strata.get(draw), level) for draw, values in gains.items()}
    first = next(iter(gains))
    if len(gains) == 1:
        return Draws(per_draw, per_draw[first], "for this draw only")
    means = [np.asarray(values, dtype=float).mean(0) for values in gains.values()]
    orders = [list(strata.get(draw, ())) for draw in gains]
    if means[0].ndim and all(m.shape == means[0].shape for m in means) and all(o == orders[0] for o in orders):
        across = seeds_and_items(np.stack(means), strata.get(first), level)
    else:
        across = replace(
            seeds_and_items([float(m.mean()) for m in means], None, level),
            excludes_item_variance=means[0].ndim == 0,
        )
    return Draws(per_draw, across, "over draws" if len(gains) >= 5 else "for these draws only")


def _covariance(rows: Array) -> Array:
    """Covariance (F, F) of `rows` (n, F) with n - 1 in the denominator."""
    centred = rows - rows.mean(0)
    return centred.T @ centred / (len(rows) - 1)


def _strata(strata: Sequence[Any] | None, items: int) -> list[NDArray[np.int64]]:
    """Item numbers per stratum; strata of one item have no variance of their own and are put together."""
    if strata is None:
        return [np.arange(items)]
    names = np.asarray(strata).astype(str)
    if len(names) != items:
        raise refuse("strata", len(names), f"each of the {items} items needs one")
    groups = [np.flatnonzero(names == name) for name in np.unique(names)]
    alone = [group for group in groups if len(group) == 1]
    rest = [group for group in groups if len(group) > 1]
    if len(alone) == 1 and rest:
        rest[0] = np.concatenate([rest[0], alone[0]])
    elif alone:
        rest.append(np.concatenate(alone))
    return rest
