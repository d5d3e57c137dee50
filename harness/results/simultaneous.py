"""Simultaneous comparisons with SFT (Dunnett 1955): many methods at one fraction, with intervals that hold together.

All arms of a seed share rows and order, so seeds are blocks: an arm's score is mean + seed + arm + residual, and the
residual, pooled over the arms, has (S - 1)(A - 1) degrees of freedom where a method alone has S - 1. Items that all
arms share add their own variance. The M comparisons share SFT, so their errors are correlated (1/2 where the residuals
have one variance): the critical value is that of the multivariate t. `scipy.stats.dunnett` treats the arms as
independent groups; here they are blocked by seed.

Pooling assumes one residual variance. One arm that scatters far more than the others would raise the family's error
from 5 % to 20 %, so each comparison must also hold in the arm's own paired t test, and those of the k arms that scatter
more than the pooled variance allows (F test, p < WILD) at 1/k of the level. `benchmarks/interval_coverage.py` has the
family's error with equal and unequal scatter.

    simultaneous_gains(sft, {"kd": kd, "seq_kd": seq_kd}, strata)   # scores (S, N) on the same seeds and items
    simultaneous_table(records, metric)                             # a row per method and fraction of a grid
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import ndtr, roots_hermitenorm, roots_legendre
from scipy.stats import chi2, f

from harness.config.checks import refuse
from harness.results.arms import Arm, Metric, by_arm
from harness.results.items import LoadItems, read_items, values_of
from harness.results.paired_gains import ArmValues, cube_of, over_replicates, scores
from harness.results.records import Record
from harness.results.stats.intervals import LEAST_REPLICATES, Array, Curve, curve

FEWEST = 3
"""Fewest methods beside SFT that are compared together; fewer have their own rows in the summary only."""
WILD = 0.25
"""p value of the F test below which an arm's own scatter counts as larger than the pooled one. At 0.1 the family's
error reaches 9 %; at 0.5 equal arms lose a third of their power."""


@dataclass(frozen=True)
class SimultaneousGain:
    """One method's gain over SFT, with an interval and a p value that hold for all methods at once; the wider of the
    pooled interval and the arm's own."""

    name: str
    gain: float
    low: float
    high: float
    p: float
    df: float


def simultaneous_gains(
    sft: Array,
    methods: Mapping[str, Array],
    strata: Sequence[Any] | None = None,
    level: float = 0.95,
    own: Mapping[str, Curve] | None = None,
) -> list[SimultaneousGain]:
    """Simultaneous comparisons with SFT; `sft` and each of `methods` (S, N), the same seeds and items.

    `own`: each method's paired gain as a curve of one point, where the blocks are replicates (`over_replicates`); else
    it is that of the blocks. The pooled interval is too wide for a method that hardly differs from SFT (self_kd).
    Raises SettingsError below two seeds.
    """
    arms = np.stack([sft, *methods.values()])  # (A, S, N)
    if arms.shape[1] < 2:
        raise refuse("seeds", arms.shape[1], "blocks need two seeds or more", "add seeds")
    count, seeds, _ = arms.shape
    means = arms.mean(2)  # (A, S)
    # two-way layout without replication: taking off arm and seed means leaves the residual, and the seed's own
    # effect (easy or hard rows) is in no comparison because every arm has it
    residual = means - means.mean(1, keepdims=True) - means.mean(0) + means.mean()  # (A, S)
    seed_df = (seeds - 1) * (count - 1)
    pooled = 2 * (residual**2).sum() / seed_df / seeds  # variance of a difference of two arms' means
    curves = {name: own[name] if own else curve((one - sft)[:, None, :], strata) for name, one in methods.items()}
    # of an arm that scatters far more than the pooled variance allows, its own test has to pay for all such arms
    ratios = {name: float(one.seed[0, 0]) / pooled if pooled else 0.0 for name, one in curves.items()}
    wild = {name for name, ratio in ratios.items() if f.sf(ratio, seeds - 1, seed_df) < WILD}
    found = []
    for name, parts in curves.items():
        item, overlap = float(parts.item[0, 0]), float(parts.overlap[0, 0])
        # item and overlap as in `intervals.Curve.errors`: the residual contains both, and neither may be undercut
        # where blocks are replicates, the gain's own variance is at least that within them
        seed = float(parts.seed[0, 0])
        own_variance = 0.0 if parts.within is None else float(parts.errors(np.ones((1, 1)))[1][0]) ** 2
        lower = own_variance if own_variance > seed else 0.0
        variance = max(pooled + item - overlap, pooled, item, lower)
        item_df = max(parts.item_df, 1)
        spread = pooled**2 / seed_df + item**2 / item_df + overlap**2 / (seed_df * item_df)
        df = variance**2 / spread if spread else math.inf
        error, gain = math.sqrt(variance), float(parts.mean[0])
        half = critical(len(methods), round(df, 1), level) * error  # df rounded so that critical values are cached
        p = max(1 - _coverage(len(methods), df, abs(gain) / error), 0.0) if error else math.nan
        paid = len(wild) if name in wild else 1
        alone = parts.intervals(np.ones((1, 1)), 1 - (1 - level) / paid)[0]
        low, high = np.fmin(gain - half, alone.low), np.fmax(gain + half, alone.high)
        found.append(SimultaneousGain(name, gain, low, high, np.fmax(p, min(1.0, paid * alone.p)), df))
    return found


def simultaneous_table(records: Iterable[Record], metric: Metric, load_items: LoadItems = read_items) -> pd.DataFrame:
    """One row per method, fraction, student, corpus and budget where `FEWEST` methods or more have all of SFT's cells.

    Blocks are the seeds of one replicate, or the replicates (seeds averaged) where there are LEAST_REPLICATES or more.
    Between one and that number there is no row: the intervals would cover neither new seeds nor new replicates.
    Columns: names, gain, low, high, p, df, blocks, covers. An arm that lacks a cell SFT has is left out; the summary
    has it. Raises SettingsError as `by_arm` does, OSError where items cannot be read.
    """
    values, cells = cache(values_of(load_items)), by_arm(records)
    sides: dict[Arm, dict[Arm, list[Arm]]] = {}
    for arm in cells:
        if arm.role == "student" and arm.data_frac is not None:
            everywhere = arm._replace(world_seed=None, teacher_seed=None)
            sides.setdefault(everywhere.partner, {}).setdefault(everywhere, []).append(arm)
    rows = []
    for sft, arms in sides.items():
        # `arms` has SFT among them
        if sft not in arms or len(arms) <= FEWEST:
            continue
        found = {
            arm: {one.world_seed: part for one in draws if (part := scores(cells[one], metric, values)) is not None}
            for arm, draws in arms.items()
        }
        # the two-way layout has to be complete, so every arm needs SFT's seeds
        others = [arm for arm in arms if arm != sft and _seeds(found[arm]) == _seeds(found[sft])]
        blocks = _blocks([found[arm] for arm in (sft, *others)]) if len(others) >= FEWEST and found[sft] else None
        if blocks is None:
            continue
        table, strata, covers, curves = blocks
        named = dict(zip(map(str, range(len(others))), table[1:], strict=True))
        own = dict(zip(named, curves, strict=True)) if curves else None
        for arm, one in zip(others, simultaneous_gains(table[0], named, strata, own=own), strict=True):
            names = {name: getattr(arm, name) for name in ("student", "corpus", "budget", "variant", "data_frac")}
            numbers = {"gain": one.gain, "low": one.low, "high": one.high, "p": one.p, "df": one.df}
            names |= {"method": arm.method, "teacher": arm.teacher}
            rows.append(names | numbers | {"blocks": table.shape[1], "covers": covers})
    return pd.DataFrame(rows)


def _seeds(draws: Mapping[int | None, ArmValues]) -> dict[int | None, tuple[tuple[int, int], ...]]:
    return {world: found.seeds for world, found in draws.items()}


def _blocks(
    arms: Sequence[Mapping[int | None, ArmValues]],
) -> tuple[Array, Sequence[Any] | None, str, list[Curve]] | None:
    """Scores (A, S, N) with the items' strata, what an interval covers, and where the blocks are replicates the gain of
    each arm but the first; null where there are no two blocks."""
    worlds = list(arms[0])
    cubes = [cube_of([arm[world] for arm in arms]) for world in worlds]
    if len(worlds) >= LEAST_REPLICATES:
        means = np.stack([cube.values.mean((0, 2)) for cube in cubes], axis=1)  # (A, R)
        gains = [
            over_replicates([cube._replace(values=cube.values[:, n : n + 1] - cube.values[:, :1]) for cube in cubes])
            for n in range(1, len(arms))
        ]
        return means[:, :, None], None, f"{len(worlds)} replicates", gains
    if len(worlds) > 1 or len(cubes[0].values) < 2:
        return None
    covers = "seeds and items of one replicate" if cubes[0].ids else "seeds of one replicate"
    return cubes[0].values.transpose(1, 0, 2), cubes[0].strata, covers, []


@cache
def critical(methods: int, df: float, level: float = 0.95) -> float:
    """c with P(max |T_m| <= c) = level, T multivariate t with all correlations 1/2 and `df` degrees of freedom.

    Raises ValueError where c is not between 0.1 and 200.
    """
    return float(brentq(lambda c: _coverage(methods, df, c) - level, 0.1, 200.0))


def _coverage(methods: int, df: float, c: float) -> float:
    """P(max |T_m| <= c): conditional on SFT's error and the pooled scale the comparisons are independent."""
    # two quadratures: Gauss-Hermite over the shared normal error, Gauss-Legendre over quantiles of the scale
    shared, weight = roots_hermitenorm(64)
    weight = weight / weight.sum()
    points, of_scale = roots_legendre(64)
    quantiles = (points + 1) / 2
    scale = np.sqrt(chi2.ppf(quantiles, df) / df) if math.isfinite(df) else np.ones_like(quantiles)
    # T = (Z_m + Z_0) / sqrt(2) / scale, so |T| <= c where Z_m lies within c * scale * sqrt(2) of -Z_0
    reach = c * scale[:, None] * math.sqrt(2)  # (scales, 1)
    inside = ndtr(reach - shared) - ndtr(-reach - shared)
    return float((of_scale / 2) @ (inside**methods @ weight))
