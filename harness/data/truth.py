"""Truths: the right final answers of a corpus, as text that keeps what kind of value each was.

A file may state a truth as text, as a number or as a list of which any is right. One rule of writing and one of
comparing keep the kinds apart:

- a number is written without a fraction where it has none (18.0 is "18"), and a list as its members behind one
  another;
- two texts that are numbers (18, -3, 1,234.50, 2e3; no leading zeros, no unit, no sentence) are compared as numbers,
  so 18.0 and 18.00 are 18. Other texts are equal after Unicode (NFKC) and white space are normalised; case counts.

    truth_text(18.0)                       # "18"
    alternatives(truth_text(["a", "b"]))   # ("a", "b")
    same("18.00", "18")                    # True
"""

import math
import re
import unicodedata
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

SEPARATOR = "\x1f"
"""Between the members of a list; a control character that separates units, which texts do not have."""
NUMBER = re.compile(r"-?(?:0|[1-9]\d*|[1-9]\d{0,2}(?:,\d{3})+)(?:\.\d+)?(?:[eE][+-]?\d{1,3})?", re.ASCII)


class NoTruth(ValueError):
    """A value that is no truth; the message says what it is, in a few words."""


def truth_text(value: Any) -> str | None:
    """A truth of a file as text; None where none is stated (null, NaN, an empty text or list). Raises NoTruth."""
    if isinstance(value, list | tuple):
        members = [text for member in value if (text := truth_text(member)) is not None]
        return SEPARATOR.join(dict.fromkeys(members)) or None
    if isinstance(value, bool):
        # as Python and as JSON write it
        return SEPARATOR.join((str(value), str(value).lower()))
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    if isinstance(value, Mapping):
        raise NoTruth("the truth is an object, not text, a number or a list")
    text = str(value).replace(SEPARATOR, " ") if value is not None else ""
    return text if text.strip() else None


def alternatives(truth: str) -> tuple[str, ...]:
    """The answers of which any is right; one where the truth was no list."""
    return tuple(truth.split(SEPARATOR))


def shown(truth: str) -> str:
    """A truth for people to read: `a | b` for a list."""
    return " | ".join(alternatives(truth))


def same(answer: str, truth: str) -> bool:
    """Whether an answer equals a single truth, as numbers where both are numbers and as texts elsewhere."""
    answer, truth = normalise(answer), normalise(truth)
    if answer == truth:
        return True
    numbers = [NUMBER.fullmatch(text) for text in (answer, truth)]
    return all(numbers) and _number(answer) == _number(truth)


def normalise(text: str) -> str:
    """The text after NFKC, with single spaces for white space; case and punctuation stay."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _number(text: str) -> Decimal:
    return Decimal(text.replace(",", ""))
