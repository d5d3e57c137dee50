"""Names in a corpus of files: a row's source and id, by rules that keep figures, tables and file names readable.

A source is one line: white space is squeezed, control characters are left out, and a name of more than 100 characters
is cut and ends in a hash of the whole. Sources that differ by case or white space alone are one, spelt as the first.
`all` and `canary` are rows of every table of scores, so no source has these names. An id is text or a number; any
other is replaced by the row's number. All of it is counted and said.

    reading = Reading("rows")
    reading.source(" Web\\n pages ")     # ("Web pages", "")
    reading.id(float("nan"), "Web-3")    # ("Web-3", "")
"""

import hashlib
import math
import unicodedata
from collections import Counter
from typing import Any

from harness.data.corpora._rows import encodable

RESERVED = ("all", "canary")
"""Rows of every table of scores: the total, and facts that are in no training data."""
LONGEST_NAME = 100
LISTED = 5


class Reading:
    """What was read from a file otherwise than it stands there, counted."""

    def __init__(self, name: str) -> None:
        """`name`: the source of rows without one."""
        self.name = name
        self.spelt: dict[str, str] = {}
        """The first spelling of each source, by its key."""
        self.respelt: Counter[str] = Counter()
        """Rows whose source was spelt otherwise, by that spelling."""
        self.ids: Counter[str] = Counter()
        """Ids that were replaced by row numbers, by reason."""
        self.rows = 0
        self.left_out: Counter[str] = Counter()
        """Rows by each field of their messages that is not read."""
        self.unread: Counter[str] = Counter()
        """Rows by each field of theirs that is not read, and may have been meant to be."""
        self._known: dict[str, tuple[str, str]] = {}

    def source(self, value: Any) -> tuple[str, str]:
        """A row's source, and the problem of one that is no name."""
        if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
            value = self.name
        if isinstance(value, list | dict):
            return "", "the source is a list or an object, not a name"
        given = str(value)
        if given not in self._known:
            self._known[given] = self._source(given)
        source, problem = self._known[given]
        self.respelt[given] += source != given
        return source, problem

    def id(self, value: Any, instead: str) -> tuple[str, str]:
        """A row's id, and the problem of one that is no text; `instead` of a value that is no id."""
        self.rows += 1
        reason = _no_id(value)
        if reason:
            self.ids[reason] += 1
            return instead, ""
        text = str(value)
        return (text, "") if encodable(text) else ("", "the id is not UTF-8")

    def warnings(self) -> list[str]:
        """What a reader of the record should know."""
        found = []
        # a file without ids is numbered, which needs no word
        if self.ids and self.ids != Counter({"missing": self.rows}):
            reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(self.ids.items()))
            found.append(f"ids replaced by row numbers: {self.ids.total()} ({reasons})")
        if respelt := sorted(name for name, count in self.respelt.items() if count):
            listed = ", ".join(_short(name) for name in respelt[:LISTED])
            more = f" and {len(respelt) - LISTED} more" if len(respelt) > LISTED else ""
            found.append(
                f"sources spelt otherwise than in the data: {self.respelt.total()} rows of {listed}{more}; sources are "
                f"one line of at most {LONGEST_NAME} characters, and those that differ by case or white space are one"
            )
        if self.left_out:
            listed = ", ".join(f"{name} ({count} rows)" for name, count in sorted(self.left_out.items()))
            found.append(f"fields of messages that are not read: {listed}")
        if self.unread:
            listed = ", ".join(f"{name} ({count} rows)" for name, count in sorted(self.unread.items()))
            found.append(f"columns that are not read: {listed}; put them into the prompt where they belong to it")
        return found

    def _source(self, given: str) -> tuple[str, str]:
        if not encodable(given):
            return "", "the source is not UTF-8"
        name = _one_line(given) or self.name
        if name.casefold() in RESERVED:
            return "", f"the source is called {name!r}, which is a row of every table of scores"
        return self.spelt.setdefault(source_key(given) or source_key(self.name), name), ""


def source_key(name: str) -> str:
    """Equal for two spellings of one source."""
    return _one_line(name).casefold()


def _one_line(name: str) -> str:
    plain = name
    if not (name.isascii() and name.isprintable()):
        # control characters move the cursor or are not seen
        spaced = (" " if one.isspace() else one for one in name)
        plain = "".join(one for one in spaced if unicodedata.category(one)[0] != "C")
    plain = " ".join(plain.split())
    if len(plain) <= LONGEST_NAME:
        return plain
    end = hashlib.sha256(plain.encode(errors="replace")).hexdigest()[:8]
    return f"{plain[: LONGEST_NAME - len(end) - 1]}~{end}"


def _no_id(value: Any) -> str:
    """Why a value is no id; "" for one."""
    if value is None or value == "":
        return "missing"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN"
    return "" if isinstance(value, str | int | float) and not isinstance(value, bool) else "no text or number"


def _short(name: str) -> str:
    shown = repr(name)
    return shown if len(shown) <= 60 else shown[:59] + "…"
