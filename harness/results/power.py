"""Power: what a grid can show with its number of replicates or seeds, computed before it is run.

The units are replicates (each with its own corpus and teacher) where there are enough of them, else seeds; `sd` is the
standard deviation of one paired gain between units, taken from an earlier grid (0.02 in the miniature).

    equivalence_power(0.02, 0.02, 5)         # 0.29: five seeds often cannot say that a gain vanishes
    detectable(0.02, 5)                      # 0.034: the gain that five find in four grids of five
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import ndtr, stdtrit
from scipy.stats import chi2

from harness.config.checks import check_at_least, check_positive, refuse
from harness.plan.claims import Claim, matches
from harness.plan.frozen import FrozenPlan
from harness.results.stats.intervals import LEAST_REPLICATES

POINTS = 2001


def equivalence_power(margin: float, sd: float, replicates: int, alpha: float = 0.05, truth: float = 0.0) -> float:
    """Chance that two one-sided tests (Schuirmann 1987) show a mean within `margin`, where it is `truth`.

    Mean and variance of a normal sample are independent: the chance is averaged over the distribution of the variance.
    Raises SettingsError for an `sd` that is not above 0 and for fewer than two units.
    """
    _check(sd, replicates)
    df = replicates - 1
    quantiles = (np.arange(POINTS) + 0.5) / POINTS  # (POINTS,) midpoints of equal slices of probability
    error = sd * np.sqrt(chi2.ppf(quantiles, df) / df / replicates)  # (POINTS,)
    # both tests reject where the mean lies within `room` of 0; a variance that leaves no room shows nothing
    room = margin - stdtrit(df, 1 - alpha) * error
    scale = sd / math.sqrt(replicates)
    chance = ndtr((room - truth) / scale) - ndtr((-room - truth) / scale)
    return float(np.where(room > 0, chance, 0.0).mean())


def difference_power(gain: float, sd: float, replicates: int, alpha: float = 0.05) -> float:
    """Chance that a two-sided paired t test finds a mean of `gain` different from 0. Raises as `equivalence_power`."""
    _check(sd, replicates)
    df, shift = replicates - 1, gain * math.sqrt(replicates) / sd
    t = float(stdtrit(df, 1 - alpha / 2))

    def chance(quantile: float) -> float:
        scale = t * math.sqrt(chi2.ppf(quantile, df) / df)
        return float(ndtr(shift - scale) + ndtr(-shift - scale))

    # given the estimated variance a normal probability, averaged over the variance's distribution; scipy's noncentral t
    # is NaN for one degree of freedom
    return float(quad(chance, 0, 1, limit=200)[0])


def detectable(sd: float, replicates: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest gain that is found different from 0 with this power.

    Raises as `equivalence_power`, and SettingsError for a power that is not between `alpha`, which a gain of 0 already
    has, and 1.
    """
    _check(sd, replicates)
    if not alpha < power < 1:
        raise refuse("power", power, f"it must lie above alpha, {alpha:g}, and below 1", "0.8 is usual")
    high = sd
    # power grows with the gain, so doubling finds an upper end for the root
    while difference_power(high, sd, replicates, alpha) < power:
        high *= 2
    return float(brentq(lambda gain: difference_power(gain, sd, replicates, alpha) - power, 0.0, high))


def _check(sd: float, replicates: int) -> None:
    check_positive("sd", sd)
    check_at_least("replicates", replicates, 2)


def foresee(given: Sequence[Mapping[str, Any]], frozen: FrozenPlan) -> list[str]:
    """What the grid can show of each claim before it is run, a sentence each.

    Raises SettingsError as `Claim.of` does.
    """
    found = []
    for claim in map(Claim.of, given):
        # a difference has as many units as the side with fewer
        sides = [[cell for cell in frozen.cells if matches(cell, side)] for side in claim.sides]
        draws, seeds = (
            min(len({getattr(cell, name) for cell in side}) for side in sides) for name in ("world_seed", "seed")
        )
        count, kind = (draws, "replicates") if draws >= LEAST_REPLICATES else (seeds, "seeds")
        if count < 2:
            text = "one unit shows nothing about another; add seeds or replicates"
        elif claim.within is None:
            text = f"a gain of {detectable(claim.sd, count):.3f} or more is shown in four of five grids"
        else:
            chance = equivalence_power(claim.within, claim.sd, count)
            text = f"if the true gain is 0, it is shown to lie within {claim.within:g} in {chance:.0%} of grids"
        found.append(f"{claim.name}: {count} {kind}, sd {claim.sd:g}: {text}")
    return found
