"""Sampling: which of many things are taken where only some are wanted, each kind in proportion.

in_proportion([("add", "7"), ("sort", "7"), ...], limit=100, seed=0)
"""

import hashlib
from collections.abc import Sequence


def in_proportion(names: Sequence[tuple[str, str]], limit: int | None, seed: int) -> list[int]:
    """Places of at most `limit` of (kind, id), in order; the same for everybody, and nested in `limit`."""
    if limit is None or limit >= len(names):
        return list(range(len(names)))
    by_kind: dict[str, list[int]] = {}
    for index, (kind, _) in enumerate(names):
        by_kind.setdefault(kind, []).append(index)
    place: dict[int, float] = {}
    for mine in by_kind.values():
        mine.sort(key=lambda index: _draw(seed, *names[index]))
        place |= {index: (rank + 0.5) / len(mine) for rank, index in enumerate(mine)}
    return sorted(sorted(place, key=lambda index: (place[index], names[index][0]))[:limit])


def _draw(seed: int, kind: str, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\x1f{kind}\x1f{name}".encode()).digest()
