"""Items: the scores of single held-out items of one cell, as values whose mean is a metric.

`paired_gains.py` combines the cells of an arm and pairs them; this file has the items of one cell.

    item_values(read_items(record.items["verified"]), Metric("verified", "accuracy"))     # columns value, source
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from harness.evals import ALL, CANARY
from harness.results.arms import Metric, diverged, score_of
from harness.results.records import Record
from harness.results.stats.intervals import Array

LoadItems = Callable[[str], pd.DataFrame]
ItemValues = Callable[[str, Metric], pd.DataFrame | None]
"""From the path of a cell's items and a metric to `item_values`."""
ItemMask = Callable[[Record, pd.DataFrame], pd.Series]
"""From a cell and its item values to a mask of the items that count; `breakdown.py` makes some."""


ITEM = "item"
"""Name of an index that `named` made."""


def read_items(path: str) -> pd.DataFrame:
    """The scores of single items that an evaluation left on disk. Raises OSError where the file cannot be read."""
    return pd.read_parquet(Path(path))


def named(items: pd.DataFrame) -> pd.DataFrame:
    """Items under a sorted index of source, id and prompt: ids count from 0 in every replicate, and prompts differ.

    Done once for a frame from which many metrics are read; a frame that has the index is returned unchanged."""
    if items.index.name == ITEM:
        return items
    texts = {name: items[name].astype(str).astype(object) for name in ("eval", "source", "id", "prompt_hash")}
    names = texts["source"] + " " + texts["id"] + " " + texts["prompt_hash"]
    again = (
        (texts["eval"] + " " + names).groupby(texts["eval"] + " " + names).cumcount()
    )  # a repeated row is an item too
    index = pd.Index(names + " " + again.astype(str), dtype=object, name=ITEM)
    return items.assign(**texts).set_axis(index).sort_index()


def named_once(load_items: LoadItems) -> LoadItems:
    """The same function, with each file read and its items named once."""
    return cache(lambda path: named(load_items(path)))


def values_of(load_items: LoadItems) -> ItemValues:
    """Item values by path and metric, read anew each time; wrap either function in a cache."""
    return lambda path, metric: item_values(load_items(path), metric)


class CellScore(NamedTuple):
    """A cell's score and the items behind it."""

    score: float
    items: pd.DataFrame | None = None  # as item_values returns them
    at_floor: bool = False
    mismatch: bool = False


def cell_score(
    record: Record, metric: Metric, values: ItemValues, mask: Callable[[pd.DataFrame], pd.Series] | None = None
) -> CellScore | None:
    """The score and items of one record; items that do not average to the score are not used.

    With `mask`, of that part of its items, null where it has none. A diverged cell has the score of a model
    whose every answer is wrong, 0; a loss has no such floor. Raises what `values` raises.
    """
    # the metric without a name stands for arms that have no score, and none is made up for it
    if diverged(record) and metric.eval and metric.higher_is_better:
        return CellScore(0.0, at_floor=True)
    score = score_of(record, metric)
    if score is None:
        return None
    path = record.items.get(metric.eval)
    items = values(path, metric) if path else None
    known = items is not None and abs(items["value"].mean() - score) <= 1e-4 * max(1.0, abs(score))
    if mask is not None:
        # linearised again, because the ratio of a part is not that of all items
        some = items[mask(items)] if items is not None and known else pd.DataFrame()
        return None if some.empty else CellScore(float(_values(some).mean()), some.assign(value=_values(some)))
    # one item has no spread from which a variance could follow
    if items is None or len(items) < 2:
        return CellScore(score)
    return CellScore(score, items) if known else CellScore(score, mismatch=True)


def linearised(total: Array, count: Array) -> Array:
    """Values whose mean is sum(total) / sum(count), each (N,); the totals themselves where every count is 1."""
    if (count == 1).all():
        return total
    # the first-order expansion of a ratio of sums, so the variance over items is the ratio's (delta method)
    ratio = total.sum() / count.sum()
    return (total - ratio * count) / count.mean() + ratio


def item_values(items: pd.DataFrame, metric: Metric) -> pd.DataFrame | None:
    """Values per item whose mean is the metric, beside source, id, prompt_hash, total, count; null if none.

    A loss per token is a ratio of sums, r = sum(nll) / sum(tokens): its items are
    (nll - r tokens) / mean(tokens) + r, whose mean is r and whose spread is that of the ratio.
    """
    items = named(items)
    sources = items["source"].to_numpy()
    # canary facts are in no training row; they are scored separately and never enter `all` (harness/evals)
    wanted = sources != CANARY if metric.source == ALL else sources == metric.source
    rows = items[wanted & (items["eval"].to_numpy() == metric.eval)]
    column, tokens = (metric.metric if metric.metric in rows else "score"), f"{metric.metric}_tokens"
    rows = rows[rows[column].notna()]
    if tokens in rows:
        # an item without a scored token is no part of the ratio, and would count as one of the N items
        rows = rows[rows[tokens] > 0]
    if rows.empty:
        return None
    total = rows[column].astype(float)
    count = rows[tokens].astype(float) if tokens in rows else 1.0
    frame = rows[["source", "id", "prompt_hash"]].assign(total=total, count=count)
    return frame.assign(value=_values(frame))


def _values(items: pd.DataFrame) -> pd.Series:
    return pd.Series(linearised(items["total"].to_numpy(float), items["count"].to_numpy(float)), items.index)
