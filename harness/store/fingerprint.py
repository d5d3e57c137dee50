"""Fingerprints: the hash that identifies a stage, and the names made from it.

A fingerprint is the sha256 of canonical JSON over every setting that can change a number, the stage's
version and its inputs' fingerprints. Values without one stable text form are refused, never stringified.

    fingerprint({"data_frac": 0.01, "seed": 0})
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

SHORT = 32  # hex digits shown in names: 128 bits


def plain(value: Any, where: str = "settings") -> Any:
    """The value as plain JSON types; raises TypeError or ValueError naming the leaf that has none."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value), where)
    # Nothing is converted: 1, 1.0 and true have three texts, so the type of a setting is part of the identity. Text
    # is returned here because a str is a Sequence too, whose items are strs without end.
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}, which JSON cannot hold; an identity takes finite numbers only")
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}; identity takes text keys only")
        return {key: plain(value[key], f"{where}.{key}") for key in sorted(value)}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise TypeError(f"{where} is a {type(value).__name__}, which has no stable text form; use plain values")


def canonical(value: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, ASCII, shortest round-trip floats.

    Raises TypeError or ValueError for a value that has no stable text form (see `plain`).
    """
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def fingerprint(value: Any) -> str:
    """sha256 (hex) of the canonical JSON of `value`; raises as `canonical` does."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def differences(one: Any, other: Any, where: str = "") -> list[tuple[str, Any, Any]]:
    """Leaves at which two plain values differ: (path, value in one, value in other).

    A key that only one of them has reads as None in the other.
    """
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        found = []
        for key in sorted(set(one) | set(other)):
            found += differences(one.get(key), other.get(key), f"{where}.{key}" if where else key)
        return found
    # lists of unequal length are one leaf: after one added item every later item would differ from its neighbour
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [
            leaf
            for index, (a, b) in enumerate(zip(one, other, strict=True))
            for leaf in differences(a, b, f"{where}[{index}]")
        ]
    return [] if one == other else [(where, one, other)]
