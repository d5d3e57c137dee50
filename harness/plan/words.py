"""Words: `name=value` as a person types it, read and checked before a config is composed from it.

The grammar is Hydra's (quotes, lists, commas, `range`, `choice`, `glob` for presets); its errors are said in one
sentence here. What holds for a value of a sweep holds in a file and in `harness.api` too: `axis` checks all of them.

    words = read_words(["method=sft,kd", "seed=range(3)", "budget.amount=10"])
    words.fixed, words.swept      # ("budget.amount=10",), {"method": ["sft", "kd"], "seed": [0, 1, 2]}
"""

import functools
import math
import os
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString, RangeSweep
from hydra.core.override_parser.types import Quote as QuoteMark
from hydra.errors import HydraException

from harness.config.cell import Cell, Settings
from harness.config.checks import SettingsError, refuse

CELL_FIELDS = tuple(field.name for field in fields(Cell))
RUN_FIELDS = tuple(field.name for field in fields(Settings) if field.name not in CELL_FIELDS)
"""Settings of the run: one value for the whole grid."""
EMPTY_GROUPS = ("experiments", "slurm")
"""Groups in which nothing has to be chosen."""
KEY = re.compile(r"[A-Za-z_]\w*([./][\w:-]+)*")
DIGITS = 12
"""A number that a few units in the last place keep from one of at most so many digits is that number."""


@dataclass(frozen=True)
class Words:
    """The words of one command line."""

    fixed: Mapping[str, str]
    """What is set to one value, by name: the override, as Hydra takes it."""
    values: Mapping[str, Any]
    """The value of each of them."""
    swept: Mapping[str, list[Any]]
    """What takes several values, by name."""
    notes: tuple[str, ...]
    """What a person should know of how the words were read."""
    first_sweep: str = ""
    """The first word that sweeps, as it was typed."""


def read_words(arguments: Iterable[str], most: int | None = None) -> Words:
    """The words of a command line, with Hydra initialised.

    `most`: the longest range that is listed. Raises SettingsError for a word that cannot be read, a setting that is
    swept and given twice, a value no preset has, and what `axis` refuses.
    """
    fixed: dict[str, str] = {}
    values: dict[str, Any] = {}
    swept: dict[str, list[Any]] = {}
    notes: list[str] = []
    given: set[str] = set()
    first_sweep = ""
    for word in arguments:
        override = _parsed(word)
        key = override.key_or_group
        if key in given:
            if key in swept and override.is_sweep_override():
                raise refuse(key, _typed(word), "it is swept twice", f"give it once, e.g. {key}=a,b with every value")
            # without the values: an address that is refused later may hold a token
            notes.append(f"{key} is given twice: the last one counts")
            for before in (fixed, values, swept):
                before.pop(key, None)
        given.add(key)
        if override.is_sweep_override():
            first_sweep = first_sweep or word
            check_swept(key, _typed(word))
            swept[key] = axis(key, _values(override, most), notes)
        else:
            fixed[key], values[key] = _fixed(override, notes), exact(override.value())
    return Words(fixed, values, swept, tuple(notes), first_sweep)


def check_swept(key: str, values: Any) -> None:
    """Raise SettingsError for a setting of which a run has one."""
    first = re.split(r"[./]", key)[0]
    if key == "primary_metric":
        raise refuse(key, values, "a grid has one primary metric", "give one, and let a claim name its own `metric`")
    if first in RUN_FIELDS:
        raise refuse(key, values, "a run has one, so it cannot be swept", "run the command once for each value")


def axis(key: str, values: Sequence[Any], notes: list[str]) -> list[Any]:
    """The values of one swept setting: each once, a number as the number it is meant to be.

    Adds to `notes` what was left out. Raises SettingsError for no value, a preset that does not exist, and a plain
    value of a setting that takes a list.
    """
    if not values:
        raise refuse(key, [], "the sweep has no value", f"give at least one, e.g. {key}=a,b")
    if is_group(key):
        for value in values:
            check_option(key, value)
    if len(values) > 1 and takes_list(key) and not all(isinstance(value, list | tuple) for value in values):
        inside = ",".join(map(str, values))
        raise refuse(key, ",".join(map(str, values)), "it takes a list", f"write {key}=[{inside}]")
    found: dict[str, Any] = {}
    for value in values:
        value = exact(value)
        if takes_list(key) and not isinstance(value, list | tuple):
            value = [value]
        _note_repeats(key, value, notes)
        found.setdefault(_meaning(value), value)
    if repeats := len(values) - len(found):
        what = "a value" if repeats == 1 else f"{repeats} values"
        notes.append(f"{key} repeats {what} in its sweep; each counts once")
    return list(found.values())


def exact(value: Any) -> Any:
    """A number without the rounding error of a sum: 0.30000000000000004 is 0.3. Other values stay as they are."""
    if not isinstance(value, float) or not math.isfinite(value):
        return value
    meant = float(f"{value:.{DIGITS}g}")
    return meant if abs(value - meant) <= 4 * math.ulp(value) else value


def is_group(key: str) -> bool:
    """Whether presets are chosen by this name."""
    return key in _groups()


def check_option(group: str, value: Any) -> None:
    """Raise SettingsError unless a group of presets has this one; nothing is chosen with null where that is allowed."""
    if value is None and group in EMPTY_GROUPS:
        return
    options = _options(group)
    if isinstance(value, list | tuple | Mapping):
        listed = isinstance(value, list | tuple)
        way_out = f"to run several, sweep: {group}={','.join(map(str, value))} with -m" if listed else ""
        raise refuse(group, value, "it takes the name of one preset", way_out)
    if value not in options:
        folder = isinstance(value, str) and ("/" in value or value.startswith("~")) and "hf" in options
        way_out = f"a model's folder or hub id is {group}=hf {group}.path={value}" if folder else ""
        if value is None and "none" in options:
            way_out = f"write {group}=none"
        raise refuse(group, value, f"allowed are {', '.join(options)}", way_out)


@functools.cache
def is_free(key: str) -> bool:
    """Whether a name is, or stands inside, a setting that takes any names: `tune`, `evals.revisions.gsm8k`."""
    around = (key, key.rpartition(".")[0])
    return key.startswith("slurm.") or any((_hint(one) or (None,))[0] is dict for one in around)


@functools.cache
def takes_list(key: str) -> bool:
    """Whether the setting takes a list of names."""
    return _hint(key) == (list, list[str])


def _parsed(word: str) -> Override:
    """One word, read by Hydra's grammar; quoted first where it is plain text that the grammar cannot read."""
    if not isinstance(word, str) or not word.strip():
        raise SettingsError("an empty word cannot be run: settings are written name=value, e.g. method=kd.")
    if control := next((one for one in word if ord(one) < 32 or ord(one) == 127), None):
        raise refuse(_name_of(word), _typed(word), f"it has the control character {control!r}", "leave it out")
    plus = re.match(r"\+{0,2}", word)
    assert plus is not None
    # `+` adds what a config lacks, which a misspelt name is too; the schema decides instead (`is_free`)
    bare = word[plus.end() :]
    if bare.startswith("~"):
        name = bare[1:].partition("=")[0]
        why = "a setting cannot be taken away"
        raise SettingsError(f"{word} cannot be run: {why}; leave the word out, or set {name or 'it'} to another value.")
    name, equals, value = bare.partition("=")
    if not equals:
        raise SettingsError(f"{word} cannot be run: settings are written name=value; try {word}=VALUE.")
    if name.startswith(("hydra.", "hydra/")):
        why = "it is a setting of Hydra, which does not run the grid"
        raise SettingsError(f"{word} cannot be run: {why}; leave it out.")
    if not KEY.fullmatch(name):
        raise SettingsError(f"{name!r} is not a setting; names are like method, data_frac or budget.amount.")
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    try:
        override = parser.parse_overrides([f"{name}={value}"])[0]
    except HydraException as error:
        # nothing of the grammar is in it but a character that it has no rule for: a letter of another script, = or ~
        if re.search(r"[\[\]{}()'\",$\\]", value):
            raise _unreadable(name, value, error) from None
        text = os.path.expanduser(value) if value.startswith("~/") else value
        override = parser.parse_overrides([f"{name}={_quoted(text)}"])[0]
    return override


def _unreadable(name: str, value: str, error: HydraException) -> SettingsError:
    told = str(error.__cause__ or error)
    if "empty choice" in told or value.replace(" ", "") == "choice()":
        return refuse(name, value, "the sweep has no value", f"give at least one, e.g. {name}=a,b")
    pairs = [("[", "]"), ("{", "}"), ("(", ")")]
    open_ones = [left + right for left, right in pairs if value.count(left) != value.count(right)]
    if open_ones:
        why = f"the brackets {' and '.join(open_ones)} do not match"
    elif value.count("'") % 2 or value.count('"') % 2:
        why = "a quote is not closed"
    elif re.search(r",\s*(,|$)|^\s*,", value):
        why = "a comma has no value beside it"
    elif call := re.match(r"\s*(\w+)\(", value):
        why = f"{call[1]}() cannot be read here"
    else:
        why = "it cannot be read"
    return refuse(name, value, why, f"text with marks of the grammar goes in quotes: '{name}=\"text\"'")


def _fixed(override: Override, notes: list[str]) -> str:
    """The override of one value as Hydra takes it, after the checks that hold for every value."""
    key, value = override.key_or_group, override.value()
    text = override.get_value_string()
    if is_group(key):
        check_option(key, value)
        return f"{key}={'null' if value is None else value}"
    if takes_list(key) and value is not None and not isinstance(value, list):
        text = f"[{text}]"
    elif exact(value) != value and isinstance(value, float) and math.isfinite(value):
        text = repr(exact(value))
    _note_repeats(key, value, notes)
    return f"{'++' if is_free(key) else ''}{key}={text}"


def _values(override: Override, most: int | None) -> list[Any]:
    """The values of a swept word as plain objects."""
    key, sweep = override.key_or_group, override._value
    typed = _typed(override.input_line or "")
    if override.is_interval_sweep():
        raise refuse(key, typed, "an interval has no list of values", f"use {key}=range(start,stop,step), or commas")
    if "glob(" in typed:
        if not is_group(key):
            raise refuse(key, typed, "only presets have names to match", f"list the values, e.g. {key}=a,b")
        values = list(override.sweep_iterator())
        if not values:
            raise refuse(key, typed, f"it matches none of {', '.join(_options(key))}", "change the pattern")
        return values
    if isinstance(sweep, RangeSweep):
        count = _range_length(key, typed, sweep)
        if most is not None and count > most:
            way_out = f"take a larger step, or raise most_cells={most}"
            raise refuse(key, typed, f"the range has {count:,} values, more than a grid's {most:,} cells", way_out)
    return [_plain(value) for value in override.sweep_iterator()]


def _range_length(key: str, typed: str, sweep: RangeSweep) -> int:
    start, stop, step = (sweep.start or 0, sweep.stop or 0, sweep.step)
    if not step or not all(map(math.isfinite, (start, stop, step))):
        raise refuse(key, typed, "a range needs a start, a stop and a step other than 0", "try range(0,10,1)")
    return max(0, math.ceil((stop - start) / step - 1e-9))


def _plain(value: Any) -> Any:
    """The object behind one element of a sweep, quotes resolved."""
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {str(_plain(key)): _plain(one) for key, one in value.items()}
    return value


def _note_repeats(key: str, value: Any, notes: list[str]) -> None:
    if takes_list(key) and isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
        for one in sorted({one for one in value if list(value).count(one) > 1}):
            notes.append(f"{key} names {one} more than once; it counts once")


def _meaning(value: Any) -> str:
    """A text that two values share where they mean the same: 1 and 1.0 do, 1 and true do not."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return repr(float(value)) if abs(value) < 2**53 else repr(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_meaning, value))}]"
    return repr(value)


def _quoted(text: str) -> str:
    return QuotedString(text, QuoteMark.single).with_quotes()


def _name_of(word: str) -> str:
    return "".join(one for one in word.partition("=")[0] if one.isprintable())


def _typed(word: str) -> str:
    return word.partition("=")[2]


def _hint(key: str) -> tuple[Any, Any] | None:
    """The container and the type hint of a setting: (list, hint), (dict, hint), (None, hint); None for no setting, or
    one inside a method, a corpus or a cluster, whose kind decides."""
    hint: Any = Settings
    for part in key.split(".") if key else ():
        origin = typing.get_origin(hint)
        if origin is list and part.isdigit():
            hint = typing.get_args(hint)[0]
        elif origin is dict:
            hint = typing.get_args(hint)[1]
            if hint is Any:  # whatever stands inside it is free too
                return dict, hint
        elif is_dataclass(hint) and isinstance(hint, type):
            hints = typing.get_type_hints(hint)
            if part not in hints:
                return None
            hint = hints[part]
        else:
            return None
    origin = typing.get_origin(hint)
    return (origin if origin in (list, dict) else None), hint


@functools.cache
def _groups() -> frozenset[str]:
    """Config groups: what has options to choose from; presets do not change while a program runs."""
    return frozenset(GlobalHydra.instance().config_loader().list_groups(""))


@functools.cache
def _options(group: str) -> tuple[str, ...]:
    loader = GlobalHydra.instance().config_loader()
    return tuple(sorted(loader.get_group_options(group, results_filter=ObjectType.CONFIG)))
