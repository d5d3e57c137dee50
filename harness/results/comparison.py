"""Comparison: one finished model against one other, on the items that both were scored on.

`table.py` combines the seeds of an arm; here a single model is compared, by the same statistics
(`intervals.seeds_and_items` with one seed), so an interval covers test items only.

    compare = Comparison(read_items)
    compare.against(record, sft, Metric("verified", "accuracy"))["gain"]
    compare.losses(record, {"sft": sft, "base": base}, metrics)     # where it is clearly worse than one of them
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.evals import ALL
from harness.results.arms import Metric
from harness.results.breakdown import FEW
from harness.results.conclusion import CLEAR
from harness.results.items import (
    ItemsOf,
    LoadItems,
    cell_score,
    enough,
    items_of,
    means_of,
    named,
    parts_of,
    values_of,
)
from harness.results.paired_gains import estimate, gain
from harness.results.records import Record
from harness.results.stats.intervals import Array, Interval, holm, seeds_and_items

FILES_AT_ONCE = 16
ITEMS_ONLY = "items only"


@dataclass(frozen=True)
class ModelItems:
    """A model's items under one metric, in the order of their ids; a mean is sum(total) / sum(count), for a
    macro-average the mean of that over its benchmarks."""

    ids: NDArray[Any]
    sources: NDArray[Any]
    total: Array
    count: Array

    def at(self, places: NDArray[Any]) -> "ModelItems":
        """These of them."""
        return ModelItems(*(part[places] for part in (self.ids, self.sources, self.total, self.count)))

    @property
    def values(self) -> Array:
        """Values whose mean is the metric."""
        return means_of(self.total, self.count, self.sources)


class ModelScore(NamedTuple):
    """What is known of one model under one metric."""

    score: float
    items: ModelItems | None
    at_floor: bool = False
    """It diverged, and counts as a model whose every answer is wrong."""


class Comparison:
    """Compares finished models; each one's items are read once.

    Its methods raise what `load_items` raises, an OSError where a file of items cannot be read.
    """

    def __init__(self, load_items: LoadItems) -> None:
        # named once a file, from which several metrics are read
        self._values = values_of(lru_cache(FILES_AT_ONCE)(lambda path: named(load_items(path))))
        self._known: dict[tuple[ItemsOf | None, Metric], ModelScore | None] = {}
        self._names: list[tuple[NDArray[Any], NDArray[Any]]] = []  # ids and sources, which most models share

    def score(self, record: Record, metric: Metric) -> dict[str, Any] | None:
        """`score`, `low`, `high`, `covers` and `items` (how many) of one model; null where it has no such score."""
        found = self._scores(record, metric)
        if found is None:
            return None
        if found.items is None:
            return {"score": found.score, "low": None, "high": None, "covers": "nothing", "items": 0}
        values, sources = found.items.values[None, :], list(found.items.sources)
        told = _told("score", seeds_and_items(values, sources, limits=metric.limits))
        return told | {"items": len(found.items.ids)}

    def against(self, record: Record, other: Record, metric: Metric) -> dict[str, Any] | None:
        """The other model's `score`, and the paired `gain` over it with `low`, `high`, `p` and `covers`; null where
        one of them has none."""
        mine, theirs = self._scores(record, metric), self._scores(other, metric)
        if mine is None or theirs is None:
            return None
        told = {"score": theirs.score}
        both = _paired(mine, theirs)
        if both is None:
            return told | {"gain": mine.score - theirs.score, "low": None, "high": None, "p": None, "covers": "nothing"}
        difference = both[0].values - both[1].values
        interval = seeds_and_items(difference[None, :], list(both[0].sources), limits=_room(metric))
        return told | _told("gain", interval) | {"p": _or_null(interval.p)}

    def arms_gain(self, cells: Iterable[Record], sft: Iterable[Record], metric: Metric) -> dict[str, Any] | None:
        """`seeds`, `gain`, `low`, `high`, `p`, `covers` of an arm over SFT (SFT: over its base model), as in the table;
        null where fewer than two seeds have both."""
        found = gain(cells, sft, metric, self._values)
        if found is None or found.count < 2:
            return None
        told = {name.removeprefix("gain_"): value for name, value in estimate("gain", {"": found}).items()}
        names = ("gain", "low", "high", "p")
        return {"seeds": found.count, "covers": told["covers"], **{name: _or_null(told[name]) for name in names}}

    def losses(self, record: Record, others: Mapping[str, Record], metrics: Iterable[Metric]) -> list[dict[str, Any]]:
        """Evaluations and sources on which the model is worse than one of the others, after Holm over all it is
        compared on with that one; `source` is `all` for a whole evaluation. Sources with fewer than FEW items are not
        looked at.

        Each: `against`, `eval`, `metric`, `source`, `items`, `score`, `other`, `gain`, `low`, `high`, `p_holm`.
        """
        found = []
        for role, other in others.items():
            rows = [row for metric in metrics for row in self._by_source(record, other, metric)]
            # the family is everything that was compared with this one model
            for row, adjusted in zip(rows, holm([row.pop("p") for row in rows]), strict=True):
                sign = 1 if Metric(row["eval"], row["metric"]).higher_is_better else -1
                # a p value is two-sided: only differences for the worse are losses
                if adjusted < CLEAR and sign * row["gain"] < 0:
                    found.append({"against": role, **row, "p_holm": float(adjusted)})
        return found

    def _by_source(self, record: Record, other: Record, metric: Metric) -> list[dict[str, Any]]:
        """Both scores and their difference over all items that both have, and over those of each source."""
        mine, theirs = self._scores(record, metric), self._scores(other, metric)
        both = None if mine is None or theirs is None else _paired(mine, theirs)
        if both is None:
            return []
        names = list(np.unique(both[0].sources))
        parts = [(ALL, np.arange(len(both[0].ids)))]
        if len(names) > 1:  # else the only source is all of them
            parts += [(name, np.flatnonzero(both[0].sources == name)) for name in names]
        rows = []
        for name, places in parts:
            if name != ALL and len(places) < FEW:
                continue
            own, their = (side.at(places) for side in both)
            difference = own.values - their.values
            interval = seeds_and_items(difference[None, :], list(own.sources), limits=_room(metric))
            means = {"score": float(own.values.mean()), "other": float(their.values.mean())}
            place = {"eval": metric.eval, "metric": metric.metric, "source": str(name), "items": len(places)}
            rows.append(place | means | _told("gain", interval) | {"p": _p(interval, difference)})
        return rows

    def _scores(self, record: Record, metric: Metric) -> ModelScore | None:
        key = (items_of(record, metric), metric)
        # without items there is no path, and all such records would share one entry
        if key[0] is None:
            return self._read(record, metric)
        if key not in self._known:
            self._known[key] = self._read(record, metric)
        return self._known[key]

    def _read(self, record: Record, metric: Metric) -> ModelScore | None:
        found = cell_score(record, metric, self._values)
        if found is None:
            return None
        if found.items is None:
            return ModelScore(found.score, None, found.at_floor)
        frame = found.items
        columns = (frame.index, frame["source"], frame["total"], frame["count"])
        items = ModelItems(*(column.to_numpy() for column in columns))
        # in the order of ids, two models can be compared row by row
        items = items.at(np.argsort(items.ids, kind="stable"))
        # models that were scored on the same items share one array of ids, which `_paired` recognises without comparing
        # them
        for ids, sources in self._names:
            if np.array_equal(ids, items.ids) and np.array_equal(sources, items.sources):
                return ModelScore(found.score, replace(items, ids=ids, sources=sources))
        self._names.append((items.ids, items.sources))
        return ModelScore(found.score, items)


def _paired(mine: ModelScore, theirs: ModelScore) -> tuple[ModelItems, ModelItems] | None:
    """The items that both have, in one order; a diverged model has every item, and 0 on each. Null without two."""
    if mine.items is None:
        return None
    # every answer of a diverged model counts as wrong, so its items are those of the other, at 0
    if theirs.at_floor:
        return mine.items, replace(mine.items, total=np.zeros_like(mine.items.total))
    if theirs.items is None:
        return None
    one, two = mine.items, theirs.items
    if one.ids is not two.ids:
        _, first, second = np.intersect1d(one.ids, two.ids, assume_unique=True, return_indices=True)
        parts = parts_of(one.sources)
        one, two = one.at(first), two.at(second)
        # items that only one of them has may be a whole benchmark
        if parts is not None and not enough(one.sources, len(np.unique(parts))):
            return None
    return (one, two) if len(one.ids) > 1 else None


def _room(metric: Metric) -> tuple[float, float] | None:
    """The smallest and largest difference of two models on one item."""
    return None if metric.limits is None else (metric.limits[0] - metric.limits[1], metric.limits[1] - metric.limits[0])


def _p(interval: Interval, difference: Array) -> float:
    """The interval's p value, or the sign test's where the spread is zero and all differing items change one way."""
    # without spread there is no t test; where all of n differing items change one way, the two-sided sign test has
    # p = 2 / 2^n
    signs = np.sign(difference[difference != 0])
    if math.isnan(interval.p) and len(signs) and abs(signs.sum()) == len(signs):
        return float(2.0 ** (1 - len(signs)))
    return interval.p


def _told(name: str, interval: Interval) -> dict[str, Any]:
    ends = {"low": _or_null(interval.low), "high": _or_null(interval.high)}
    return {name: interval.estimate, **ends, "covers": ITEMS_ONLY}


def _or_null(value: float) -> float | None:
    """The same as JSON has it, which knows no NaN."""
    return float(value) if math.isfinite(value) else None
