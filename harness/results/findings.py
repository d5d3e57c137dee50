"""Findings: the judgement of each claim that was declared and hashed before the grid's first cell.

`plan/claims.py` declares claims; here they are tested. A claim is about the gain over SFT of one arm, or about the
difference of two gains: that it lies above a number, or within a margin of 0. Arms are named by columns of the table.

    claims:
      - {name: scarce, says: "KD beats SFT when data is scarce", gain: {method: kd, data_frac: 0.03}}
      - {name: shrinks, gain: {method: kd, data_frac: 0.03}, less: {method: kd, data_frac: 1.0}, above: 0.0}
      - {name: vanishes, gain: {method: kd, data_frac: 1.0}, within: 0.02}

All claims of a grid are one family (Holm 1979). All other results of its tables are exploratory.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy.special import stdtr

from harness.evals import ALL
from harness.plan.claims import Claim, matches
from harness.plan.metrics import matching
from harness.results.arms import Arm, Metric, by_arm, metrics_of
from harness.results.items import LoadItems, read_items, values_of
from harness.results.paired_gains import ArmValues, covers_of, cube_of, gain, over_replicates
from harness.results.records import Record
from harness.results.stats.intervals import Interval, equivalence_p, holm

ALPHA = 0.05


@dataclass(frozen=True)
class Finding:
    """The judgement of one claim."""

    claim: Claim
    verdict: str
    """`holds`, `does not hold` (the contrary is shown), `open` (neither is) or `no answer` (cells are missing)."""
    estimate: float
    low: float
    high: float
    """The 95 % interval, not adjusted."""
    p: float
    """Two-sided against `above`, or of the equivalence test."""
    p_holm: float
    """Adjusted over the claims of the grid."""
    draws: int
    """Replicates that have all arms of the claim."""
    seeds: int
    """Seeds in each replicate."""
    covers: str
    """Which variance the interval contains."""
    metric: str = ""
    """The metric it was judged on, e.g. `verified accuracy`."""


def judge(
    records: Iterable[Record], claims: Sequence[Claim], metric: Metric, load_items: LoadItems = read_items
) -> list[Finding]:
    """The finding of each claim, in order, on its own metric or else on `metric`; Holm over all of them.

    Raises SettingsError as `by_arm` does, OSError where items cannot be read.
    """
    records = list(records)
    arms = by_arm(records)
    values = cache(values_of(load_items))
    metrics = [metric if claim.metric is None else metric_named(claim.metric, records) for claim in claims]
    pairs = list(zip(claims, metrics, strict=True))
    found = [_finding(claim, _replicates(claim, arms, own, values), own) for claim, own in pairs]
    adjusted = holm([finding.p for finding in found])
    return [_decided(one, float(p), own) for one, p, own in zip(found, adjusted, metrics, strict=True)]


def metric_named(name: str, records: Iterable[Record]) -> Metric:
    """The metric of all items that a claim names, as the records have it; one without a score where none has it."""
    found = matching(name, (metric.name for metric in metrics_of(records) if metric.source == ALL))
    # the name was checked when the claim was declared; without any score of it there is nothing to complete it from
    return Metric.named(found[0] if len(found) == 1 else name)


def _replicates(claim: Claim, arms: Mapping[Arm, list[Record]], metric: Metric, values: Any) -> list[list[ArmValues]]:
    """For each replicate that has them all: the paired gains of the claim's arms."""
    draws: dict[Any, dict[int, ArmValues]] = {}
    for number, side in enumerate(claim.sides):
        for arm, cells in arms.items():
            if arm.role == "student" and matches(arm, side) and arm.partner in arms:
                pairs = gain(cells, arms[arm.partner], metric, values)
                if pairs is not None:
                    draws.setdefault(arm.world_seed, {})[number] = pairs
    # `number` is that of the last side: a replicate that lacks one has no difference
    whole = [[draws[draw][n] for n in range(len(claim.sides))] for draw in sorted(draws) if len(draws[draw]) > number]
    # sides without a common seed cannot be paired
    return [sides for sides in whole if len(cube_of(sides).values)]


def _finding(claim: Claim, draws: list[list[ArmValues]], metric: Metric) -> Finding:
    if not draws:
        nothing = math.nan
        return Finding(claim, "no answer", nothing, nothing, nothing, nothing, nothing, 0, 0, "", metric.label)
    cubes = [cube_of(sides) for sides in draws]
    # both sides share SFT cells and items, so their difference is one contrast with the covariance of both
    weights = np.array([[1.0, -1.0][: len(claim.sides)]])  # (1, sides)
    curve = over_replicates(cubes)
    interval = curve.intervals(weights)[0]
    covers = covers_of([sides[0] for sides in draws], len(draws))
    seeds = min(len(cube.values) for cube in cubes)
    p = _p(claim, interval, 1 if metric.higher_is_better else -1)
    numbers = (interval.estimate, interval.low, interval.high, p, p, len(draws), seeds)
    return Finding(claim, "", *numbers, covers, metric.label)


def _p(claim: Claim, found: Interval, sign: int) -> float:
    """p value of the t test against `above` (two-sided), or of the equivalence test within `within`."""
    if claim.within is not None:
        return equivalence_p(found, claim.within)
    if not found.standard_error > 0:
        return math.nan
    # two-sided, so that a small p value can show the claim or its contrary; `above` counts in the better direction
    return float(2 * stdtr(found.df, -abs(found.estimate - sign * claim.above) / found.standard_error))


def _decided(found: Finding, p_holm: float, metric: Metric) -> Finding:
    """The same with its adjusted p value and the verdict."""
    claim, sign = found.claim, 1 if metric.higher_is_better else -1
    if not found.draws:
        return found
    if claim.within is None:
        better = sign * found.estimate > claim.above
        verdict = ("holds" if better else "does not hold") if p_holm < ALPHA else "open"
    elif p_holm < ALPHA:
        verdict = "holds"
    else:
        # the contrary of equality has no test of its own: the interval, not adjusted, has to lie outside the margin
        verdict = "does not hold" if found.low > claim.within or found.high < -claim.within else "open"
    return Finding(**{**found.__dict__, "verdict": verdict, "p_holm": p_holm})
