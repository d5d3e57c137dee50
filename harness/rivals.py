"""Rivals: many methods against SFT at one fraction, compared within seeds, with intervals that hold together.

All arms of a seed share rows and order, so seeds are blocks: an arm's score is mean + seed + arm + rest, and the rest,
pooled over the arms, has (S - 1)(A - 1) degrees of freedom where a method alone has S - 1. Items that all arms share
add their own variance. The M comparisons share SFT, so their errors are correlated (1/2 where the rest is alike):
the critical value is that of the multivariate t (Dunnett 1955, within blocks). `scipy.stats.dunnett` takes the arms
for independent groups, which they are not.

    rivals(sft, {"kd": kd, "seq_kd": seq_kd}, strata)       # scores (S, N) on the same seeds and items
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, roots_hermitenorm, roots_legendre
from scipy.stats import chi2

from harness.checks import refuse
from harness.stats import Array, curve


@dataclass(frozen=True)
class Rival:
    """One method's gain over SFT, with an interval and a p value that hold for all methods at once."""

    name: str
    gain: float
    low: float
    high: float
    p: float
    df: float


def rivals(
    sft: Array, methods: Mapping[str, Array], strata: Sequence[Any] | None = None, level: float = 0.95
) -> list[Rival]:
    """Simultaneous comparisons with SFT; `sft` and each of `methods` (S, N), the same seeds and items.

    Pooling takes the rest to be alike in all arms: a method that hardly differs from SFT (self_kd) gets an interval
    that is too wide, one that scatters more than the others too narrow. Raises SettingsError below two seeds.
    """
    arms = np.stack([sft, *methods.values()])
    if arms.shape[1] < 2:
        raise refuse("seeds", arms.shape[1], "blocks need two seeds or more", "add seeds")
    count, seeds, _ = arms.shape
    means = arms.mean(2)
    rest = means - means.mean(1, keepdims=True) - means.mean(0) + means.mean()
    seed_df = (seeds - 1) * (count - 1)
    pooled = 2 * (rest**2).sum() / seed_df / seeds  # variance of a difference of two arms' means
    found = []
    for name, scores in methods.items():
        parts = curve((scores - sft)[:, None, :], strata)
        item, overlap = float(parts.item[0, 0]), float(parts.overlap[0, 0])
        variance = max(pooled + item - overlap, pooled, item)
        item_df = max(parts.item_df, 1)
        spread = pooled**2 / seed_df + item**2 / item_df + overlap**2 / (seed_df * item_df)
        df = variance**2 / spread if spread else math.inf
        error, gain = math.sqrt(variance), float(parts.mean[0])
        half = critical(len(methods), round(df, 1), level) * error
        p = 1 - _coverage(len(methods), df, abs(gain) / error) if error else math.nan
        found.append(Rival(name, gain, gain - half, gain + half, max(p, 0.0), df))
    return found


@cache
def critical(methods: int, df: float, level: float = 0.95) -> float:
    """c with P(max |T_m| <= c) = level, T multivariate t with all correlations 1/2 and `df` degrees of freedom."""
    return float(brentq(lambda c: _coverage(methods, df, c) - level, 0.1, 200.0))


def _coverage(methods: int, df: float, c: float) -> float:
    """P(max |T_m| <= c): given what all share (SFT's error) and the pooled scale, the comparisons are independent."""
    shared, weight = roots_hermitenorm(64)
    weight = weight / weight.sum()
    points, of_scale = roots_legendre(64)
    quantiles = (points + 1) / 2
    scale = np.sqrt(chi2.ppf(quantiles, df) / df) if math.isfinite(df) else np.ones_like(quantiles)
    # T = (Z_m + Z_0) / sqrt(2) / scale, so |T| <= c where Z_m lies within c * scale * sqrt(2) of -Z_0
    reach = c * scale[:, None] * math.sqrt(2)
    inside = ndtr(reach - shared) - ndtr(-reach - shared)
    return float((of_scale / 2) @ (inside**methods @ weight))
