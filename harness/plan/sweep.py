"""Sweep: from the values that a command line or a file sweeps to the points of a grid.

points_of(overrides, {"product": {"method": ["sft", "kd"]}, "exclude": [...]})     # [{"method": "sft"}, ...]
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from harness.config.checks import check_at_least, refuse


def points_of(swept: Sequence[Override], sweep: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every point of the grid: command line sweeps over the file's product and zips, then exclude, include.

    A key swept on the command line takes the place of the same key in the file. Raises SettingsError for an unknown
    part of the sweep, zipped settings of different lengths, an excluded key that is not swept, and a sweep that is no
    list, range or glob.
    """
    unknown = set(sweep) - {"product", "zip", "include", "exclude"}
    if unknown:
        raise refuse("sweep", sorted(unknown)[0], "allowed are product, zip, include, exclude")
    given = {override.key_or_group: _values(override) for override in swept}
    points = _product({**(sweep.get("product") or {}), **given})
    for zipped in sweep.get("zip") or []:
        # a key of the command line is in the product already, so it leaves its zip
        columns = {key: _listed(values) for key, values in zipped.items() if key not in given}
        if len({len(values) for values in columns.values()}) > 1:
            raise refuse("sweep.zip", list(zipped), "zipped settings need equally many values")
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        points = [{**point, **row} for point in points for row in rows] if rows else points
    swept_keys = {key for point in points for key in point}
    for pattern in sweep.get("exclude") or []:
        # a misspelt key would match no point, and the cells would run
        if unknown := set(pattern) - swept_keys:
            raise refuse(
                "sweep.exclude", sorted(unknown)[0], f"the grid sweeps {', '.join(sorted(swept_keys)) or 'nothing'}"
            )
    points = [point for point in points if not any(_matches(point, pattern) for pattern in sweep.get("exclude") or [])]
    # included points come last, so that `exclude` cannot remove them
    return points + [point for entry in sweep.get("include") or [] for point in _product(entry)]


def in_replicates(points: list[dict[str, Any]], draws: int | None) -> list[dict[str, Any]]:
    """Every point in each replicate (own corpus and teacher); a point that sets one of their seeds stays as it is.

    Raises SettingsError for fewer than one replicate.
    """
    if draws is None:
        return points
    check_at_least("draws", draws, 1)
    # a replicate sets both seeds and would overwrite a value that was swept
    alone = [point for point in points if {"world_seed", "teacher_seed"} & set(point)]
    rest = [point for point in points if point not in alone]
    return [{**point, "world_seed": draw, "teacher_seed": draw} for draw in range(draws) for point in rest] + alone


def _product(axes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every choice of one value per setting; a list is values to choose from."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*map(_listed, axes.values()))]


def _matches(point: Mapping[str, Any], pattern: Mapping[str, Any]) -> bool:
    return all(
        key in point and any(_same(point[key], value) for value in _listed(wanted)) for key, wanted in pattern.items()
    )


def _same(one: Any, other: Any) -> bool:
    """Whether two swept values mean the same; 1 and 1.0 do, as words on a command line and in a file do."""
    return one == other or str(one) == str(other)


def _listed(values: Any) -> list[Any]:
    return list(values) if isinstance(values, list | tuple) else [values]


def _values(override: Override) -> list[Any]:
    """The values of a swept override as plain objects."""
    if override.is_discrete_sweep():
        return [_plain(value) for value in override.sweep_iterator()]
    raise refuse(override.key_or_group, override.input_line, "only lists, ranges and globs can be swept here")


def _plain(value: Any) -> Any:
    """The object behind one element of a sweep; quoting and casts resolved."""
    if isinstance(value, str):
        parsed = OverridesParser.create().parse_override(f"x={value}").value()
        return parsed
    return value


def first_value(override: Override) -> Any:
    return _values(override)[0]
