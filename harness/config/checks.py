"""Checks of settings, and the sentence that refuses one.

A dataclass of settings checks its fields and raises `SettingsError`, which the command line prints before it exits with
code 2.

    raise refuse("data_frac", 1.5, "a fraction is a number above 0 and at most 1", "try data_frac=0.01")
"""

import math
from collections.abc import Mapping
from dataclasses import fields
from datetime import date
from typing import Any

from harness.config.secrets import holds_secret, masked


class SettingsError(ValueError):
    """A setting that cannot be run, explained in one sentence; the command line exits with code 2.

    Secrets in the sentence are masked, whoever wrote it.
    """

    def __init__(self, sentence: object = "") -> None:
        super().__init__(masked(str(sentence)))


def refuse(name: str, value: object, allowed: str, way_out: str = "") -> SettingsError:
    """The error for a setting, in one sentence: field, value, what is allowed, what to do."""
    return SettingsError(f"{name}={value!r} cannot be run: {allowed}{'; ' + way_out if way_out else ''}.")


def check_no_secret(name: str, value: str | None, way_out: str) -> None:
    """Raise SettingsError, without the value, where it holds what looks like a key, token or password."""
    if value is not None and holds_secret(value):
        raise SettingsError(
            f"{name} (not shown) cannot be run: it holds what looks like a key, token or password, which plans and "
            f"records would keep; {way_out}."
        )


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise SettingsError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise refuse(name, value, f"allowed are {', '.join(allowed)}")


def check_positive(name: str, value: float) -> None:
    """Raise SettingsError unless `value` is a finite number above zero."""
    # the type is checked first: a string or null has no order, and comparing it would raise TypeError in place of the
    # refusal
    if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
        raise refuse(name, value, "it must be a number above 0")


def check_at_least(name: str, value: Any, least: float) -> None:
    """Raise SettingsError unless `value` is a finite number of at least `least`; null passes, it means a default."""
    if value is not None and not (isinstance(value, int | float) and math.isfinite(value) and value >= least):
        raise refuse(name, value, f"it must be a number of at least {least:g}")


def check_known(name: str, settings: Mapping[str, Any], kind: type[Any]) -> None:
    """Raise SettingsError unless every one of `settings` is a field of the dataclass `kind`."""
    known = [one.name for one in fields(kind)]
    if unknown := sorted(set(settings) - set(known)):
        raise refuse(
            f"{name}.{unknown[0]}",
            settings[unknown[0]],
            f"there is no such setting; allowed are {', '.join(known)}",
        )


def check_fraction(name: str, value: Any) -> None:
    """Raise SettingsError unless `value` is a number in (0, 1]."""
    if not (isinstance(value, int | float) and math.isfinite(value) and 0 < value <= 1):
        raise refuse(name, value, "a fraction is a number above 0 and at most 1", f"try {name}=0.01")


def check_date(name: str, value: Any) -> None:
    """Raise SettingsError unless `value` is a day written YYYY-MM-DD."""
    try:
        valid = isinstance(value, str) and date.fromisoformat(value).isoformat() == value
    except ValueError:
        valid = False
    if not valid:
        raise refuse(name, value, "it must be a day written YYYY-MM-DD", f"try {name}=2024-07-26")
