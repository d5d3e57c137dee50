"""Claims: what a grid is expected to show, declared and hashed before its first cell.

`results/findings.py` tests them.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.config.checks import check_known, check_positive, refuse
from harness.plan.frozen import FrozenPlan
from harness.plan.metrics import earlier_default, full_name
from harness.store.store import DamagedError, Store, write_json

COLUMNS = ("method", "teacher", "student", "corpus", "budget", "data_frac")

KEPT = "claims.json"


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
    """The claim holds where the gain lies above this; for losses, where it lies below."""
    within: float | None = None
    """The claim holds where the gain lies within this of 0 (two one-sided tests); `above` is then ignored."""

    sd: float = 0.02
    """Standard deviation of such a gain between replicates, taken from an earlier grid; used by `foresee` only."""
    metric: str | None = None
    """The metric it is about, as in `primary_metric`; null: the grid's primary metric."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Claim":
        """From a file. Raises SettingsError for an unknown or missing key or column, and for a margin of 0 or less."""
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

    def plain(self) -> dict[str, Any]:
        """The same as plain JSON, which is hashed; without `metric` where it is null, as claims were kept before."""
        found = asdict(self)
        return found if self.metric is not None else {name: value for name, value in found.items() if name != "metric"}


def check_claims(given: Sequence[Mapping[str, Any]], known: Sequence[str]) -> list[Claim]:
    """The claims of a file, each about a metric of `known` (`metrics.grid_metrics`) or about the primary metric.

    Raises SettingsError as `Claim.of` does, and for a metric that the grid will not have.
    """
    claims = [Claim.of(one) for one in given]
    for claim in claims:
        if claim.metric is not None:
            full_name(f"claims.{claim.name}.metric", claim.metric, known)
    return claims


def declare(
    store: Store, frozen: FrozenPlan, given: Sequence[Mapping[str, Any]], known: Sequence[str] | None = None
) -> None:
    """Keep a grid's claims with their hash, and how many of the cells they are about were finished then.

    `known` are the metrics that the grid will have (`metrics.grid_metrics`); null: not known, and not looked at.
    The hash covers the primary metric too, unless it is the one that claims rested on before a grid named any.

    Of a difference, the arm with the fewer finished cells counts: cells shared with an earlier grid may be SFT's, or
    one side of the difference. Changed claims are kept beside those they replace. Raises SettingsError for a claim that
    names no arm of the grid or several, or an unknown metric, before anything is computed, and as `declared`; OSError
    where the file cannot be written.
    """
    if not given:
        return
    claims = [Claim.of(one) for one in given] if known is None else check_claims(given, known)
    cells = frozen.cells
    # by claim and side, the places of the cells that it names
    arms = [[[n for n, cell in enumerate(cells) if matches(cell, side)] for side in claim.sides] for claim in claims]
    for claim, sides in zip(claims, arms, strict=True):
        for side, places in zip(claim.sides, sides, strict=True):
            found = {tuple(getattr(cells[n], column) for column in COLUMNS) for n in places}
            if len(found) != 1:
                known = sorted({f"{cell.method} ({cell.teacher or 'no teacher'})" for cell in cells})
                what = f"names {len(found)} arms of the grid, not one" if found else "names no arm of the grid"
                raise refuse(f"claims.{claim.name}", dict(side), f"it {what}, which has {', '.join(known)}")
    path = store.grid_folder(frozen.grid) / KEPT
    kept = _entries(path)
    said, primary = [claim.plain() for claim in claims], frozen.primary_metric
    # a primary metric that was changed after results were seen is another declaration; the one of earlier versions
    # stays out, so that the hashes of claims that were kept by them stay
    bound = said if known is None or primary in (None, earlier_default(known)) else {"claims": said, "metric": primary}
    digest = hashlib.sha256(json.dumps(bound, sort_keys=True).encode()).hexdigest()
    # a grid that continues declares the same claims again; the first date and count are those that matter
    if kept and kept[-1]["sha256"] == digest:
        return
    finished = [all(map(store.done, cell.evaluations.values())) for cell in cells]
    # as a share, because arms may have different numbers of cells
    least_known = [min(sides, key=lambda arm: sum(finished[n] for n in arm) / len(arm)) for sides in arms]
    about = {n for arm in least_known for n in arm}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    counts = {"cells": len(about), "cells_finished": sum(finished[n] for n in about)}
    entry = {"sha256": digest, "declared": now, **counts, "claims": said}
    entry |= {} if primary is None else {"primary_metric": primary}
    path.parent.mkdir(parents=True, exist_ok=True)
    # added, never replaced: a claim that was changed after results were seen stays visible
    write_json(path, [*kept, entry])


def when_declared(kept: Mapping[str, Any]) -> str:
    """How many cells were finished when the claims were declared, in words."""
    cells, finished = kept["cells"], kept["cells_finished"]
    if finished:
        return f"after {finished} of the cells they are about ({cells}) were finished"
    return f"before any of the cells they are about ({cells}) was finished"


def declared(store: Store, grid: str) -> dict[str, Any] | None:
    """The claims in force of a grid as they were kept: `sha256`, `declared`, `cells`, `cells_finished`, `claims`, and
    `primary_metric` where it was recorded.

    None where none were declared. Raises DamagedError where the file is not what was written, OSError where it cannot
    be read.
    """
    kept = _entries(store.grid_folder(grid) / KEPT)
    return kept[-1] if kept else None


def _entries(path: Path) -> list[dict[str, Any]]:
    """What was declared, oldest first; nothing where there is no file. Raises as `declared`."""
    try:
        kept = json.loads(path.read_text(errors="replace"))
        if all(isinstance(one["claims"], list) for one in kept):
            return list(kept)
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError):
        pass
    way_out = (
        "put a copy of it back, or set it aside with `python -m harness.grid fsck --repair` and declare them again"
    )
    raise DamagedError(
        f"{path} cannot be read: it is cut off or was changed, and only it says when the claims were "
        f"declared; {way_out}."
    )


def matches(named: object, side: Mapping[str, Any]) -> bool:
    """Whether a cell, or an arm, has the names by which a side of a claim picks its arm (a subset of COLUMNS).

    A teacher's name is also that of each of its seeds (`weak` of `weak[seed=1]`), which tables tell apart where one
    replicate has several.
    """
    return all(_same(named, column, value) for column, value in side.items())


def _same(named: object, column: str, value: Any) -> bool:
    own = getattr(named, column)
    if column != "teacher" or own is None or own == value:
        return bool(own == value)
    name = own.partition("[")[0]
    return value in (name, f"{name}[seed={getattr(named, 'teacher_seed', None)}]")
