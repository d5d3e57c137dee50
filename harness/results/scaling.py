"""Scaling fits: score against the logarithm of the data, per method, with bands for the mean and for a new replicate.

A polynomial in log10(data fraction) is fitted to each replicate (own corpus and teacher) alone, or to each seed where
there is one replicate: the scores of one replicate share rows, teacher and items, so a pooled fit would underestimate
the variance.

    fit = scaling([.01, .03, .1, .3, 1], curve(scores))
    fit.at([0.05]).mean, fit.at([0.05]).low, fit.at([0.05]).new_low
    scalings(records, metric)      # the fit of every arm of a grid
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from harness.config.checks import refuse
from harness.results.arms import Arm, Metric, by_arm
from harness.results.items import LoadItems, read_items, values_of
from harness.results.paired_gains import ArmValues, cube_of, over_replicates, scores
from harness.results.records import Record
from harness.results.stats.intervals import Array, Curve

LEAST_FOR_CURVATURE = 5
"""Fewest fractions for a parabola; with fewer a line is fitted, so that degrees of freedom are left to test the fit."""


@dataclass(frozen=True)
class Band:
    """The fit at some fractions, each (X,): its mean with an interval, and where a new replicate's score would lie."""

    mean: Array
    low: Array
    high: Array
    new_low: Array
    new_high: Array


@dataclass(frozen=True)
class Scaling:
    """A polynomial in log10(fraction), fitted per replicate."""

    fractions: Array
    measured: Curve
    degree: int
    lack_of_fit_p: float
    """p value of the next power's coefficient; small: the curve has another shape. NaN where it cannot be tested."""

    @property
    def slope(self) -> tuple[float, float, float]:
        """Points of score per tenfold data at the middle of the range, with its 95 % interval."""
        x = np.log10(self.fractions)
        # a central difference over 0.02 decades; of a line or a parabola it is the derivative itself
        step = np.array([(x[0] + x[-1]) / 2]) + np.array([[-0.01], [0.01]])
        weights = (self._weights(step[1]) - self._weights(step[0])) / 0.02
        found = self.measured.intervals(weights)[0]
        return found.estimate, found.low, found.high

    def at(self, fractions: ArrayLike, level: float = 0.95) -> Band:
        """The fit and its bands at fractions inside the range that was run.

        The fit does not extrapolate: raises SettingsError for a fraction outside the range.
        """
        wanted = np.asarray(fractions, dtype=float)
        if ((wanted < self.fractions[0] * 0.999) | (wanted > self.fractions[-1] * 1.001)).any():
            raise refuse(
                "fractions", wanted.tolist(), f"the fit holds from {self.fractions[0]:g} to {self.fractions[-1]:g} only"
            )
        weights = self._weights(np.log10(wanted))  # (X, F)
        mean, error, df = self.measured.errors(weights)
        half = error * stdtrit(df, (1 + level) / 2)
        return Band(mean, mean - half, mean + half, *self._new(weights, mean, error, level))

    def _new(self, weights: Array, mean: Array, error: Array, level: float) -> tuple[Array, Array]:
        """Where one more replicate's score would lie: error of the mean, spread of the fits, scatter about a fit."""
        count = self.measured.seeds
        if count < 2:
            nothing = np.full(len(mean), np.nan)
            return nothing, nothing
        # covariance between replicates, not of their mean; `rest` projects on what the polynomial leaves
        between = count * self.measured.seed  # (F, F)
        spread = np.einsum("xf,fg,xg->x", weights, between, weights)
        rest = np.eye(len(self.fractions)) - self._weights(np.log10(self.fractions))
        # F scores less the coefficients that were fitted; without any left there is no scatter to see
        free = len(self.fractions) - self.degree - 1
        scatter = np.trace(rest @ between @ rest.T) / free if free else 0.0
        half = np.sqrt(error**2 + spread + scatter) * stdtrit(max(self.measured.seed_df, 1), (1 + level) / 2)
        return mean - half, mean + half

    def _weights(self, x: Array) -> Array:
        """Each fitted value as a contrast of the F scores, (X, F)."""
        own = np.log10(self.fractions)
        return _powers(x, self.degree, own) @ np.linalg.pinv(_powers(own, self.degree, own))


def scaling(fractions: Sequence[float], measured: Curve) -> Scaling:
    """Fit `measured` (scores at F fractions, `intervals.curve` or `curve_over_replicates`) per replicate.

    A parabola from LEAST_FOR_CURVATURE fractions on, else a line. Raises SettingsError for fewer than three fractions.
    """
    where = np.asarray(fractions, dtype=float)
    if len(where) < 3 or len(set(where)) < len(where):
        raise refuse("fractions", list(fractions), "a scaling fit needs at least three different fractions")
    order = np.argsort(where)
    where, measured = where[order], measured.at(order)
    degree = 2 if len(where) >= LEAST_FOR_CURVATURE else 1
    x = np.log10(where)
    # the coefficient of the next power as a contrast of the F scores: where it is clear, the degree is too low
    contrast = np.asarray(np.linalg.pinv(_powers(x, degree + 1, x))[-1:], dtype=np.float64)
    return Scaling(where, measured, degree, measured.intervals(contrast)[0].p)


def scalings(records: Iterable[Record], metric: Metric, load_items: LoadItems = read_items) -> dict[Arm, Scaling]:
    """The fit of every student's arm with three fractions or more, over its replicates; its `data_frac` is null.

    Raises SettingsError as `by_arm` does, OSError where items cannot be read.
    """
    values = cache(values_of(load_items))
    lines: dict[Arm, dict[tuple[int | None, int | None], dict[float, ArmValues]]] = {}
    for arm, cells in by_arm(records).items():
        found = scores(cells, metric, values) if arm.role == "student" and arm.data_frac is not None else None
        if found is not None and arm.data_frac is not None:
            line = arm._replace(data_frac=None, world_seed=None, teacher_seed=None)
            replicate = (arm.world_seed, arm.teacher_seed)
            lines.setdefault(line, {}).setdefault(replicate, {})[arm.data_frac] = found
    fits = {}
    for line, draws in lines.items():
        # one fit over replicates needs the same fractions in each
        fractions = sorted(set.intersection(*(set(points) for points in draws.values())))
        cubes = [cube_of([points[f] for f in fractions]) for points in draws.values()] if len(fractions) > 2 else []
        cubes = [cube for cube in cubes if len(cube.values)]
        if cubes:
            fits[line] = scaling(fractions, over_replicates(cubes))
    return fits


def _powers(x: Array, degree: int, own: Array) -> Array:
    return np.vander((x - own.mean()) / np.ptp(own), degree + 1, increasing=True)
