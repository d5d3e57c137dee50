"""Sweep: from the values that a command line or a file sweeps to the points of a grid.

points_of({"seed": [0, 1]}, {"product": {"method": ["sft", "kd"]}, "exclude": [...]}, 100)     # [{"method": "sft", ...
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from harness.config.checks import check_at_least, refuse
from harness.plan.words import axis, check_swept, exact


def points_of(
    given: Mapping[str, Sequence[Any]], sweep: Mapping[str, Any], most: int, notes: list[str] | None = None
) -> list[dict[str, Any]]:
    """Every point of the grid: command line sweeps over the file's product and zips, then exclude, include.

    A key swept on the command line takes the place of the same key in the file; `notes` receives what was left out.
    Raises SettingsError for an unknown part of the sweep, what `axis` refuses, a setting of the run, zipped settings of
    different lengths, an excluded key that is not swept, and more than `most` points.
    """
    _check_parts(sweep)
    notes = [] if notes is None else notes
    listed = sweep.get("product") or {}
    product = {key: given[key] if key in given else _axis(key, listed[key], notes, most) for key in listed} | dict(
        given
    )
    zips = []
    for zipped in sweep.get("zip") or []:
        # a key of the command line is in the product already, so it leaves its zip
        columns = {key: _column(key, values) for key, values in zipped.items() if key not in given}
        if len({len(values) for values in columns.values()}) > 1:
            raise refuse("sweep.zip", list(zipped), "zipped settings need equally many values")
        if columns:
            zips.append([dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)])
    # counted before they are made: a million points take seconds, a million cells minutes
    count = math.prod(map(len, product.values())) * math.prod(map(len, zips))
    if count > most:
        sizes = " x ".join(f"{len(values):,} of {key}" for key, values in product.items() if len(values) > 1)
        way_out = f"sweep fewer values, or set most_cells={count}"
        raise refuse("most_cells", most, f"the grid has {count:,} cells ({sizes or 'zipped'})", way_out)
    points = _product(product)
    for rows in zips:
        points = [{**point, **row} for point in points for row in rows]
    swept_keys = {key for point in points for key in point}
    for pattern in sweep.get("exclude") or []:
        # a misspelt key would match no point, and the cells would run
        if unknown := set(pattern) - swept_keys:
            raise refuse(
                "sweep.exclude", sorted(unknown)[0], f"the grid sweeps {', '.join(sorted(swept_keys)) or 'nothing'}"
            )
    points = [point for point in points if not any(_matches(point, pattern) for pattern in sweep.get("exclude") or [])]
    # included points come last, so that `exclude` cannot remove them
    entries = sweep.get("include") or []
    if kept := sorted({key for entry in entries for key in entry} & given.keys()):
        notes.append(f"the cells of sweep.include keep their own {', '.join(kept)}; the command line sets all others")
    for entry in entries:
        points += _product({key: _axis(key, values, notes, most) for key, values in entry.items()})
    return points


def swept_keys(sweep: Mapping[str, Any]) -> set[str]:
    """The settings that a sweep's product and zips give values. Raises SettingsError as `points_of`."""
    _check_parts(sweep)
    return {key for part in (sweep.get("product") or {}, *(sweep.get("zip") or [])) for key in part}


def in_replicates(points: list[dict[str, Any]], draws: int | None, first: int = 0) -> list[dict[str, Any]]:
    """Every point in each replicate (own corpus and teacher), from seed `first` on; a point with its own stays.

    Raises SettingsError for fewer than one replicate, a negative `first`, and one without `draws`.
    """
    check_at_least("first_draw", first, 0)
    if draws is None:
        if first:
            raise refuse("first_draw", first, "it is the first of several replicates", "set draws too: draws=5")
        return points
    check_at_least("draws", draws, 1)
    # a replicate sets both seeds and would overwrite a value that was swept
    alone = [point for point in points if {"world_seed", "teacher_seed"} & set(point)]
    rest = [point for point in points if point not in alone]
    seeds = range(first, first + draws)
    return [{**point, "world_seed": draw, "teacher_seed": draw} for draw in seeds for point in rest] + alone


def _check_parts(sweep: Mapping[str, Any]) -> None:
    """Raise SettingsError unless the parts of a sweep have their forms: names with values, and lists of such."""
    for name, part in sweep.items():
        if name not in ("product", "zip", "include", "exclude"):
            raise refuse("sweep", name, "allowed are product, zip, include, exclude")
        entries = [part] if name == "product" else part
        if part is None:
            continue
        if not (isinstance(entries, list | tuple) and all(isinstance(one, Mapping) for one in entries)):
            form = "names with lists of values" if name == "product" else "a list of entries, each names with values"
            raise refuse(f"sweep.{name}", part, f"it is {form}", "see experiments/data_scaling.yaml")


def _axis(key: str, values: Any, notes: list[str], most: int) -> list[Any]:
    values = _listed(values)
    if len(values) > most:
        way_out = f"sweep fewer values, or set most_cells={len(values)}"
        raise refuse("most_cells", most, f"the grid has {len(values):,} cells ({key})", way_out)
    if len(values) > 1:
        check_swept(key, values)
    return axis(key, values, notes)


def _column(key: str, values: Any) -> list[Any]:
    """A column of a zip: its repeats stay, since the place of a value counts."""
    values = _listed(values)
    if len(values) > 1:
        check_swept(key, values)
    return [axis(key, [value], [])[0] for value in values]


def _product(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every choice of one value per setting."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _matches(point: Mapping[str, Any], pattern: Mapping[str, Any]) -> bool:
    return all(
        key in point and any(_same(point[key], value) for value in _listed(wanted)) for key, wanted in pattern.items()
    )


def _same(one: Any, other: Any) -> bool:
    """Whether two swept values mean the same; 1 and 1.0 do, as words on a command line and in a file do."""
    return one == exact(other) or str(one) == str(other)


def _listed(values: Any) -> list[Any]:
    return list(values) if isinstance(values, list | tuple) else [values]
