"""Findings: the judgement of each claim that was declared and hashed before the grid's first cell.

`plan/claims.py` declares claims; here they are tested. A claim is about the gain over SFT of one arm, or about the
difference of two gains: that it lies above a number, or within a margin of 0. Arms are named by columns of the table.

    claims:
      - {name: scarce, says: "KD beats SFT when data is scarce", gain: {method: kd, data_frac: 0.03}}
      - {name: shrinks, gain: {method: kd, data_frac: 0.03}, less: {method: kd, data_frac: 1.0}, above: 0.0}
      - {name: vanishes, gain: {method: kd, data_frac: 1.0}, within: 0.02}

All claims of a grid are one family (Holm 1979); one seed decides none of them. All other results of its tables are
exploratory.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from harness.evals import ALL
from harness.plan.claims import Claim, matches
from harness.plan.metrics import matching
from harness.results.arms import Arm, Metric, by_arm, metrics_of
from harness.results.conclusion import CLEAR, one_seed
from harness.results.items import LoadItems, read_items, values_of
from harness.results.paired_gains import ArmValues, covers_of, cube_of, gain, mean_of, over_replicates
from harness.results.records import Record
from harness.results.stats.intervals import Interval, equivalence_p, holm

ALPHA = CLEAR


@dataclass(frozen=True)
class Finding:
    """The judgement of one claim."""

    claim: Claim
    verdict: str
    """`holds`, `does not hold` (the contrary is shown), `open` (neither is), `undecided` (one seed is a hint only), or
    `no answer` (cells are missing, or `note` says why)."""
    estimate: float
    low: float
    high: float
    """The 95 % interval, not adjusted."""
    p: float
    """Two-sided against `above`; or of the equivalence test, or of its contrary where that is smaller."""
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
    note: str = ""
    """Why it has no answer, where cells are not missing."""


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
    pairs = zip(claims, metrics, strict=True)
    found = [_finding(one, _replicates(one, arms, own, values), own, _several(one, arms)) for one, own in pairs]
    adjusted = holm([finding.p for finding in found])
    return [_decided(one, float(p)) for one, p in zip(found, adjusted, strict=True)]


def metric_named(name: str, records: Iterable[Record]) -> Metric:
    """The metric of all items that a claim names, as the records have it; one without a score where none has it."""
    found = matching(name, (metric.name for metric in metrics_of(records) if metric.source == ALL))
    # the name was checked when the claim was declared; without any score of it there is nothing to complete it from
    return Metric.named(found[0] if len(found) == 1 else name)


def _replicates(claim: Claim, arms: Mapping[Arm, list[Record]], metric: Metric, values: Any) -> list[list[ArmValues]]:
    """For each replicate that has them all: the paired gains of the claim's arms."""
    draws: dict[Any, dict[int, list[ArmValues]]] = {}
    for number, side in enumerate(claim.sides):
        for arm, cells in arms.items():
            if arm.role == "student" and matches(arm, side) and arm.partner in arms:
                pairs = gain(cells, arms[arm.partner], metric, values)
                if pairs is not None:
                    draws.setdefault(arm.world_seed, {}).setdefault(number, []).append(pairs)
    # several teachers of one replicate share its SFT cells and rows: their mean is one gain of that replicate
    whole = [
        [mean_of(draws[draw][n]) for n in range(len(claim.sides))]
        for draw in sorted(draws)
        if len(draws[draw]) == len(claim.sides)
    ]
    # sides without a common seed cannot be paired
    known = [[side for side in sides if side is not None] for sides in whole]
    return [sides for sides in known if len(sides) == len(claim.sides) and len(cube_of(sides).values)]


def _several(claim: Claim, arms: Iterable[Arm]) -> str:
    """Which arms a side of a claim fits, where a setting that it does not name tells them apart; else empty."""
    for side in claim.sides:
        fit = [arm for arm in arms if arm.role == "student" and matches(arm, side)]
        told = dict.fromkeys(
            ", ".join(filter(None, [re.sub(r"\[seed=\d+(, )?", "[", arm.teacher or "").replace("[]", ""), arm.variant]))
            for arm in fit
        )
        if len(told) > 1:
            return f"it names several arms of the results: {'; '.join(one or 'without' for one in told)}"
    return ""


def _finding(claim: Claim, draws: list[list[ArmValues]], metric: Metric, note: str) -> Finding:
    if not draws or note:
        nothing = math.nan
        return Finding(claim, "no answer", nothing, nothing, nothing, nothing, nothing, 0, 0, "", metric.label, note)
    cubes = [cube_of(sides) for sides in draws]
    # both sides share SFT cells and items, so their difference is one contrast with the covariance of both
    weights = np.array([[1.0, -1.0][: len(claim.sides)]])  # (1, sides)
    interval = over_replicates(cubes).intervals(weights)[0]
    covers = covers_of([sides[0] for sides in draws], len(draws))
    seeds = min(len(cube.values) for cube in cubes)
    better, verdict = _tested(claim, interval, 1 if metric.higher_is_better else -1)
    numbers = (interval.estimate, interval.low, interval.high, better, better, len(draws), seeds)
    return Finding(claim, verdict, *numbers, covers, metric.label)


def _tested(claim: Claim, found: Interval, sign: int) -> tuple[float, str]:
    """The p value of a claim or of its contrary, and which of them it is of; not yet adjusted."""
    if claim.within is None:
        # two-sided, so that a small p value can show the claim or its contrary; `above` counts in the better direction
        return found.p_of(sign * claim.above), "holds" if sign * found.estimate > claim.above else "does not hold"
    # only one of "equal" and "not equal" is true, so that neither p value is paid for by the other
    equal = equivalence_p(found, claim.within)
    apart = min(found.p_beyond(claim.within, above=True), found.p_beyond(-claim.within, above=False))
    apart = min(1.0, 2 * apart)  # of two sides
    return (apart, "does not hold") if apart < equal else (equal, "holds")


def _decided(found: Finding, p_holm: float) -> Finding:
    """The same with its adjusted p value and the verdict."""
    if not found.draws:
        return found
    verdict = found.verdict if p_holm < CLEAR else "open"
    verdict = "undecided" if one_seed(found.seeds, found.draws) else verdict
    return replace(found, verdict=verdict, p_holm=p_holm)
