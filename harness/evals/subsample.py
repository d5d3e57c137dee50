"""Subsampling: a seeded sample of an evaluation's items, each kind in proportion to its size.

in_proportion([("add", "7"), ("sort", "7"), ...], limit=100, seed=0)
"""

import hashlib
from collections.abc import Sequence


def in_proportion(names: Sequence[tuple[str, str]], limit: int | None, seed: int) -> list[int]:
    """Indices of at most `limit` of the (kind, id) in `names`, in order; all of them where `limit` is None.

    The sample depends on `names`, `limit` and `seed` alone, so every model is scored on the same items. A smaller
    `limit` gives a subset of a larger one.
    """
    if limit is None or limit >= len(names):
        return list(range(len(names)))
    by_kind: dict[str, list[int]] = {}
    for index, (kind, _) in enumerate(names):
        by_kind.setdefault(kind, []).append(index)
    place: dict[int, float] = {}
    for mine in by_kind.values():
        mine.sort(key=lambda index: _draw(seed, *names[index]))
        # the middle of each item's share of its kind: sorted by it, kinds alternate in proportion to their sizes
        place |= {index: (rank + 0.5) / len(mine) for rank, index in enumerate(mine)}
    return sorted(sorted(place, key=lambda index: (place[index], names[index][0]))[:limit])


def _draw(seed: int, kind: str, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\x1f{kind}\x1f{name}".encode()).digest()
