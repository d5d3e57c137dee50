"""Checks of settings, and the sentence that refuses one.

A dataclass of settings checks its fields and raises `SettingsError`, which the command line prints before it exits with
code 2.

    raise refuse("data_frac", 1.5, "a fraction is a number above 0 and at most 1", "try data_frac=0.01")
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import date
from types import UnionType
from typing import Any, get_args, get_type_hints

from harness.config.secrets import holds_secret, masked

LONGEST_SHOWN = 300
"""Characters of a refused value that a message repeats."""
LARGEST_SEED = 2**63 - 1
NAME = re.compile(r"(?![.-])[\w.-]{1,100}")


class SettingsError(ValueError):
    """A setting that cannot be run, explained in one sentence; the command line exits with code 2.

    Secrets in the sentence are masked, whoever wrote it.
    """

    def __init__(self, sentence: object = "") -> None:
        super().__init__(masked(str(sentence)))


def refuse(name: str, value: object, allowed: str, way_out: str = "") -> SettingsError:
    """The error for a setting, in one sentence: field, value, what is allowed, what to do."""
    shown = repr(value)
    if len(shown) > LONGEST_SHOWN:
        shown = f"{shown[:LONGEST_SHOWN]}..."
    return SettingsError(f"{name}={shown} cannot be run: {allowed}{'; ' + way_out if way_out else ''}.")


def is_number(value: object) -> bool:
    """Whether `value` is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


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
    if not (is_number(value) and value > 0):
        raise refuse(name, value, "it must be a number above 0")


def check_at_least(name: str, value: Any, least: float) -> None:
    """Raise SettingsError unless `value` is a finite number of at least `least`; null passes, it means a default."""
    if value is not None and not (is_number(value) and value >= least):
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
    if not (is_number(value) and 0 < value <= 1):
        raise refuse(name, value, "a fraction is a number above 0 and at most 1", f"try {name}=0.01")


def check_seed(name: str, value: Any) -> None:
    """Raise SettingsError unless `value` is a seed, a whole number from 0 to 2^63 - 1; null passes."""
    if value is not None and not (is_number(value) and isinstance(value, int) and 0 <= value <= LARGEST_SEED):
        raise refuse(name, value, f"a seed is a whole number from 0 to {LARGEST_SEED}", f"try {name}=0")


def check_name(name: str, value: Any) -> None:
    """Raise SettingsError unless `value` is one safe component of a path; null passes."""
    if value is not None and not (isinstance(value, str) and NAME.fullmatch(value)):
        allowed = "a name has 1 to 100 letters, digits, dots, dashes and underscores, and begins with no dot or dash"
        raise refuse(name, value, allowed, f"try {name}=my_{'model' if '.' in name else name}")


def check_folder_name(name: str, value: Any) -> None:
    """Raise SettingsError unless `value` can be a folder's path: not empty, without control characters."""
    text = str(value)
    if not text.strip() or any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise refuse(name, value, "it must be the path of a folder", f"try {name}=outputs")


def check_date(name: str, value: Any) -> None:
    """Raise SettingsError unless `value` is a day written YYYY-MM-DD."""
    try:
        valid = isinstance(value, str) and date.fromisoformat(value).isoformat() == value
    except ValueError:
        valid = False
    if not valid:
        raise refuse(name, value, "it must be a day written YYYY-MM-DD", f"try {name}=2024-07-26")


def _texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)


KINDS_OF_VALUE = {
    int: ("a whole number", lambda value: is_number(value) and isinstance(value, int)),
    float: ("a number", is_number),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    str: ("text", lambda value: isinstance(value, str)),
    Sequence[str]: ("a list of text", lambda value: _texts(value)),
    Mapping[str, Any]: ("names with values", lambda value: isinstance(value, Mapping)),
}
"""By type of a setting: how it is called, and whether a value is one."""
EMPTY = (Sequence[str], Mapping[str, Any])


def check_types(where: str, settings: Mapping[str, Any], kind: type[Any]) -> None:
    """Raise SettingsError unless every plain value of `settings` is what the field of the dataclass `kind` takes."""
    hints = get_type_hints(kind)
    for name, value in settings.items():
        kinds = get_args(hints[name]) if isinstance(hints[name], UnionType) else (hints[name],)
        plain = next((one for one in KINDS_OF_VALUE if one in kinds), None)
        # null stands for no list and no names too
        if plain is None or (value is None and ({type(None)} & set(kinds) or plain in EMPTY)):
            continue
        called, fits = KINDS_OF_VALUE[plain]
        if not fits(value):
            way_out = f"write {name}: [{value}]" if plain == Sequence[str] and isinstance(value, str) else ""
            raise refuse(f"{where}.{name}", value, f"it must be {called}", way_out)
