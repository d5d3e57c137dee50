"""Crossover: the data fractions at which the gain over SFT may be zero, or a declared delta.

`intervals.py` has intervals at one fraction; here the gain is a curve g over log10(data fraction). A parabola
is fitted per seed (all seeds share the fractions, so a fitted value is one linear contrast of the gains), and the
confidence set for the crossover is {x : |g(x) - delta| <= t se(g(x))} with the variance of `intervals.Curve`; for a
straight line it would be Fieller's (1954) set. It is always a parabola: choosing the line when curvature is not
significant covers as little as 87 %, and the parabola's sets are at most 4 % wider where the line is true. The set may
be empty, have several pieces, or reach the end of the range; the status says so in place of a number. Beside it stands
the interval by sign change, which assumes no curve: Bonferroni intervals per fraction. With fewer than five fractions
no curve can be checked, and the interval by sign change is the only answer.

    crossover([.01, .03, .1, .3, 1], gains).pieces        # ((0.21, 0.48),)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from harness.config.checks import refuse
from harness.results.stats.intervals import Array, Curve, curve

LEAST_FRACTIONS = 5
GRID = 1201  # points in log fraction: over three decades a piece's end is off by at most 0.6 %
DEGREE = 2
LACK_OF_FIT = 0.05


@dataclass(frozen=True)
class SignChange:
    """The interval by sign change: fractions that simultaneous (Bonferroni) intervals separate; null where none."""

    last_above: float | None
    """The last fraction whose interval lies above delta."""
    first_equivalent: float | None
    """The first fraction after it whose interval lies within the margin around delta."""
    first_below: float | None
    """The first fraction after it whose interval lies below delta."""


@dataclass(frozen=True)
class Crossover:
    """Where the gain may equal delta, within the fractions that were run."""

    status: str
    """`crosses` (one piece, opposite signs beside it), `never` (no piece), `unbounded` (one piece that runs
    out of the range: the crossing may lie outside or not exist), `several` (more than one piece, or one that
    is touched but not crossed), `too few fractions` (interval by sign change only)."""
    pieces: tuple[tuple[float, float], ...]
    """The set, as intervals of data fractions; empty for `never` and `too few fractions`."""
    roots: tuple[float, ...]
    """Where the fitted curve itself equals delta; not to be reported without the pieces."""
    sign_change: SignChange
    sign: int
    """Of the gain minus delta when `never`: 1 above everywhere, -1 below everywhere; else 0."""
    lack_of_fit_p: float
    """p value of a cubic coefficient; small: rely on the interval by sign change. NaN where it cannot be tested."""
    delta: float
    margin: float | None
    """Of equivalence; null where none was declared: then no gain is called equal to delta."""
    seeds: int
    excludes_seed_variance: bool

    @property
    def fits(self) -> bool:
        """Whether a parabola fits; where a cubic term is needed, only the interval by sign change is reported."""
        return not self.lack_of_fit_p < LACK_OF_FIT


def crossover(
    fractions: Sequence[float],
    gains: ArrayLike | Curve,
    strata: Sequence[Any] | None = None,
    delta: float = 0.0,
    margin: float | None = 0.02,
    level: float = 0.95,
) -> Crossover:
    """Confidence set for the crossover of `gains` (S, F) or (S, F, N) at F fractions; strata (N,) are items' sources.

    Or of a curve in the order of `fractions`. Above 0 is better than SFT; `delta` and the equivalence `margin`
    are declared before the run, in the metric's unit. Raises SettingsError for gains of another shape or that are not
    finite, for fractions that are not distinct or not in (0, 1], and for a margin that is not above 0.
    """
    if not isinstance(gains, Curve):
        values = np.asarray(gains, dtype=float)
        values = values[:, :, None] if values.ndim == 2 else values
        if values.ndim != 3 or values.shape[1] != len(fractions):
            raise refuse("gains", values.shape, f"a crossover needs (seeds, {len(fractions)} fractions[, items])")
        gains = curve(values, strata)
    where = np.asarray(fractions, dtype=float)
    if where.ndim != 1 or len(set(where)) != len(where) or not ((where > 0) & (where <= 1)).all():
        raise refuse("fractions", list(fractions), "a crossover needs distinct fractions above 0 and at most 1")
    if margin is not None and not margin > 0:
        raise refuse("margin", margin, "the margin of equivalence must be above 0", "declare it before the run")
    order = np.argsort(where)
    where, measured = where[order], gains.at(order)  # (F,)
    change = _sign_change(where, measured, delta, margin, level)
    common = (change, delta, margin, measured.seeds)
    if len(where) < LEAST_FRACTIONS:
        return _crossover("too few fractions", (), (), *common)

    x = np.log10(where)  # (F,)
    grid = np.linspace(x[0], x[-1], GRID)
    # each fitted value is a linear contrast of the F gains, the same for every seed
    weights = _powers(grid, DEGREE, x) @ np.linalg.pinv(_powers(x, DEGREE, x))  # (GRID, F)
    intervals = measured.intervals(weights, level)
    low, high = (np.array([getattr(i, end) - delta for i in intervals]) for end in ("low", "high"))  # (GRID,)
    inside = ~((low > 0) | (high < 0))  # (GRID,); no interval at all (NaN) excludes nothing
    fitted = weights @ measured.mean - delta  # (GRID,)
    lack_of_fit_p = _next_coefficient_p(x, measured)
    if not inside.any():
        return _crossover("never", (), (), *common, sign=int(np.sign(fitted[0])), lack_of_fit_p=lack_of_fit_p)
    # runs of neighbouring grid points inside the set are its pieces; padding with 0 closes a run at either end
    edges = np.flatnonzero(np.diff(np.concatenate([[0], inside.astype(int), [0]])))
    runs = [(int(a), int(b) - 1) for a, b in edges.reshape(-1, 2)]
    pieces = tuple((float(10 ** grid[a]), float(10 ** grid[b])) for a, b in runs)
    # a root lies between two grid points of opposite sign; their middle is at most half a step from it
    flips = np.flatnonzero(np.signbit(fitted[1:]) != np.signbit(fitted[:-1]))
    roots = tuple(float(10 ** ((grid[i] + grid[i + 1]) / 2)) for i in flips)
    (first, last), ends = runs[0], (0, GRID - 1)
    # a piece that touches an end of the range may go on outside it: the crossing may lie there, or nowhere
    if len(runs) > 1:
        status = "several"
    elif first == ends[0] or last == ends[1]:
        status = "unbounded"
    else:
        # inside the range: equal signs on both sides are a curve that comes near delta and turns back
        status = "crosses" if fitted[first - 1] * fitted[last + 1] < 0 else "several"
    return _crossover(status, pieces, roots, *common, lack_of_fit_p=lack_of_fit_p)


def _crossover(
    status: str,
    pieces: tuple[tuple[float, float], ...],
    roots: tuple[float, ...],
    change: SignChange,
    delta: float,
    margin: float | None,
    seeds: int,
    sign: int = 0,
    lack_of_fit_p: float = float("nan"),
) -> Crossover:
    """A crossover with what was not fitted left at its null."""
    return Crossover(status, pieces, roots, change, sign, lack_of_fit_p, delta, margin, seeds, seeds < 2)


def _powers(x: Array, degree: int, centre: Array) -> Array:
    """Powers 0..degree of x, centred and scaled by the fractions that were run; (len(x), degree + 1)."""
    return np.vander((x - centre.mean()) / np.ptp(centre), degree + 1, increasing=True)


def _next_coefficient_p(x: Array, measured: Curve) -> float:
    """p value of the coefficient of power DEGREE + 1, fitted per seed."""
    contrast = np.asarray(np.linalg.pinv(_powers(x, DEGREE + 1, x))[-1:], dtype=np.float64)
    return measured.intervals(contrast)[0].p


def _sign_change(where: Array, measured: Curve, delta: float, margin: float | None, level: float) -> SignChange:
    """The interval by sign change: Bonferroni over the fractions, so all its statements hold together."""
    intervals = measured.intervals(np.eye(len(where)), 1 - (1 - level) / len(where))
    above = [i for i, interval in enumerate(intervals) if interval.low > delta]
    # a fraction below delta that comes before the last clear gain does not mark where gains end
    after = range(above[-1] + 1 if above else 0, len(where))
    # without a margin no interval lies within it, so no gain is called equal to delta
    near = margin or 0.0
    equivalent = [i for i in after if delta - near < intervals[i].low and intervals[i].high < delta + near]
    below = [i for i in after if intervals[i].high < delta]
    return SignChange(
        *(
            float(where[i]) if i is not None else None
            for i in (
                above[-1] if above else None,
                equivalent[0] if equivalent else None,
                below[0] if below else None,
            )
        )
    )
