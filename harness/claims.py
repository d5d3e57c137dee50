"""Claims: what a grid is to show, written down and hashed before its first cell, and what became of each.

An experiment's file names them. A claim is about the gain over SFT of one arm, or about the difference of two gains:
that it lies above a number, or within a margin of 0. Arms are named by the columns of the table.

    claims:
      - {name: scarce, says: "KD beats SFT when data is scarce", gain: {method: kd, data_frac: 0.03}}
      - {name: shrinks, gain: {method: kd, data_frac: 0.03}, less: {method: kd, data_frac: 1.0}, above: 0.0}
      - {name: vanishes, gain: {method: kd, data_frac: 1.0}, within: 0.02}

All claims of a grid are one family (Holm 1979). Everything else that its tables say is exploratory.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any

import numpy as np
from scipy.special import stdtr

from harness.arms import Arm, Metric, Record, by_arm
from harness.config.checks import check_known, check_positive, refuse
from harness.gains import Replicates, covers_of, cube_of, gain, over_draws
from harness.items import LoadItems, read_items, values_of
from harness.power import detectable, equivalence_power
from harness.stats import LEAST_DRAWS, Interval, holm
from harness.store.store import Store, write_json

COLUMNS = ("method", "teacher", "student", "corpus", "budget", "data_frac")
ALPHA = 0.05


@dataclass(frozen=True)
class Claim:
    """One sentence and the contrast of gains that it stands for."""

    name: str
    """A word or two, for tables."""
    gain: Mapping[str, Any]
    """The arm whose gain over SFT it is about: values of `COLUMNS`, as many as tell it apart."""
    says: str = ""
    """The sentence."""
    less: Mapping[str, Any] | None = None
    """An arm whose gain is taken off: the claim is then about the difference of two arms."""
    above: float = 0.0
    """It holds where the gain lies above this; for losses, where it lies below."""
    within: float | None = None
    """It holds where the gain lies within this of 0 (two one-sided tests); `above` is not read then."""

    sd: float = 0.02
    """Standard deviation of such a gain between replicates, as an earlier grid had it; for `foresee` alone."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Claim":
        """From a file; refuses unknown words."""
        check_known("claims", given, cls)
        for word in ("name", "gain"):
            if not given.get(word):
                raise refuse("claims", dict(given), f"a claim needs `{word}`")
        for side in ("gain", "less"):
            for column in given.get(side) or {}:
                if column not in COLUMNS:
                    raise refuse(f"claims.{given['name']}.{side}", column, f"allowed are {', '.join(COLUMNS)}")
        if given.get("within") is not None:
            check_positive(f"claims.{given['name']}.within", given["within"])
        return cls(**given)

    @property
    def sides(self) -> tuple[Mapping[str, Any], ...]:
        """The arms it names."""
        return (self.gain,) if self.less is None else (self.gain, self.less)


@dataclass(frozen=True)
class Finding:
    """What became of a claim."""

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
    seeds: int
    """In each draw."""
    covers: str
    """Which variance the interval contains."""


def declare(store: Store, frozen: Mapping[str, Any], given: Sequence[Mapping[str, Any]]) -> None:
    """Keep a grid's claims with their hash, and how many of the cells they are about were finished then.

    A claim is about that of its arms of which least is known: cells shared with an earlier grid may be SFT's, or one
    side of a difference. Refuses a claim that names no arm of the grid or several, before anything is computed. Claims
    that were changed are kept beside those they replace.
    """
    if not given:
        return
    claims = [Claim.of(one) for one in given]
    cells = frozen["cells"]
    arms = [[[n for n, cell in enumerate(cells) if _fits(cell, side)] for side in claim.sides] for claim in claims]
    for claim, sides in zip(claims, arms, strict=True):
        for side, places in zip(claim.sides, sides, strict=True):
            found = {tuple(cells[n][column] for column in COLUMNS) for n in places}
            if len(found) != 1:
                known = sorted({f"{cell['method']} ({cell['teacher'] or 'no teacher'})" for cell in cells})
                what = f"names {len(found)} arms of the grid, not one" if found else "names no arm of the grid"
                raise refuse(f"claims.{claim.name}", dict(side), f"it {what}, which has {', '.join(known)}")
    path = store.grid_folder(frozen["grid"]) / "claims.json"
    kept = json.loads(path.read_text()) if path.is_file() else []
    said = [asdict(claim) for claim in claims]
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    if kept and kept[-1]["sha256"] == digest:
        return
    finished = [all(map(store.done, cell["evaluations"].values())) for cell in cells]
    least_known = [min(sides, key=lambda arm: sum(finished[n] for n in arm) / len(arm)) for sides in arms]
    about = {n for arm in least_known for n in arm}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    counts = {"cells": len(about), "cells_finished": sum(finished[n] for n in about)}
    entry = {"sha256": digest, "declared": now, **counts, "claims": said}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, [*kept, entry])


def when_declared(kept: Mapping[str, Any]) -> str:
    """How much was known when the claims were made, in words."""
    cells, finished = kept["cells"], kept["cells_finished"]
    if finished:
        return f"after {finished} of the cells they are about ({cells}) were finished"
    return f"before any of the cells they are about ({cells}) was finished"


def foresee(given: Sequence[Mapping[str, Any]], frozen: Mapping[str, Any]) -> list[str]:
    """What the grid can show of each claim, in words, before it is run: replicates are its draws, or its seeds."""
    told = []
    for claim in map(Claim.of, given):
        sides = [[cell for cell in frozen["cells"] if _fits(cell, side)] for side in claim.sides]
        draws, seeds = (min(len({cell[name] for cell in side}) for side in sides) for name in ("world_seed", "seed"))
        count, kind = (draws, "draws") if draws >= LEAST_DRAWS else (seeds, "seeds")
        if count < 2:
            text = "one replicate: nothing is said of another"
        elif claim.within is None:
            text = f"from {detectable(claim.sd, count):.3f} on it is shown in four grids of five"
        else:
            chance = equivalence_power(claim.within, claim.sd, count)
            text = f"where the truth is 0 it is shown within {claim.within:g} in {chance:.0%} of grids"
        told.append(f"{claim.name}: {count} {kind}, sd {claim.sd:g}: {text}")
    return told


def declared(store: Store, grid: str) -> dict[str, Any] | None:
    """The claims in force of a grid as they were kept: `sha256`, `declared`, `cells`, `cells_finished`, `claims`."""
    path = store.grid_folder(grid) / "claims.json"
    return json.loads(path.read_text())[-1] if path.is_file() else None


def judge(
    records: Iterable[Record], claims: Sequence[Claim], metric: Metric, load_items: LoadItems = read_items
) -> list[Finding]:
    """What the records say of each claim, in order; Holm over all of them."""
    arms = by_arm(records)
    values = cache(values_of(load_items))
    found = [_finding(claim, _replicates(claim, arms, metric, values), metric) for claim in claims]
    adjusted = holm([finding.p for finding in found])
    return [_decided(finding, float(p), metric) for finding, p in zip(found, adjusted, strict=True)]


def _replicates(claim: Claim, arms: Mapping[Arm, list[Record]], metric: Metric, values: Any) -> list[list[Replicates]]:
    """For each draw that has them all: the paired gains of the claim's arms."""
    draws: dict[Any, dict[int, Replicates]] = {}
    for number, side in enumerate(claim.sides):
        for arm, cells in arms.items():
            if arm.role == "student" and _fits(arm._asdict(), side) and arm.partner in arms:
                pairs = gain(cells, arms[arm.partner], metric, values)
                if pairs is not None:
                    draws.setdefault(arm.world_seed, {})[number] = pairs
    whole = [[draws[draw][n] for n in range(len(claim.sides))] for draw in sorted(draws) if len(draws[draw]) > number]
    return [sides for sides in whole if len(cube_of(sides).values)]


def _finding(claim: Claim, draws: list[list[Replicates]], metric: Metric) -> Finding:
    if not draws:
        nothing = math.nan
        return Finding(claim, "no answer", nothing, nothing, nothing, nothing, nothing, 0, 0, "")
    cubes = [cube_of(sides) for sides in draws]
    weights = np.array([[1.0, -1.0][: len(claim.sides)]])
    curve = over_draws(cubes)
    interval = curve.intervals(weights)[0]
    covers = covers_of([sides[0] for sides in draws], len(draws))
    seeds = min(len(cube.values) for cube in cubes)
    p = _p(claim, interval, 1 if metric.higher_is_better else -1)
    return Finding(claim, "", interval.estimate, interval.low, interval.high, p, p, len(draws), seeds, covers)


def _p(claim: Claim, found: Interval, sign: int) -> float:
    """Two-sided against `above`; of both one-sided tests the larger against `within`."""
    if not found.standard_error > 0:
        return math.nan
    if claim.within is None:
        return float(2 * stdtr(found.df, -abs(found.estimate - sign * claim.above) / found.standard_error))
    tests = [-(found.estimate + claim.within), found.estimate - claim.within]
    return float(max(stdtr(found.df, distance / found.standard_error) for distance in tests))


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
        verdict = "does not hold" if found.low > claim.within or found.high < -claim.within else "open"
    return Finding(**{**found.__dict__, "verdict": verdict, "p_holm": p_holm})


def _fits(names: Mapping[str, Any], side: Mapping[str, Any]) -> bool:
    return all(names[column] == value for column, value in side.items())
