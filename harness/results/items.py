"""Items: the scores of single held-out items of one cell, as values whose mean is a metric.

`paired_gains.py` combines the cells of an arm and pairs them; this file has the items of one cell.

    item_values(read_items(record.items["verified"]), Metric("verified", "accuracy"))     # columns value, source
"""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from harness.evals import ALL, CANARY
from harness.plan.metrics import MACRO_AVERAGE, RAW
from harness.results.arms import Metric, diverged, score_of
from harness.results.records import Record, damaged
from harness.results.stats.intervals import WITHIN, Array
from harness.results.suite import floor_of, suite_of


class PartItems(NamedTuple):
    """Where the items of one benchmark of a macro-average are, and the metric they are read under."""

    metric: Metric
    path: str


ItemsOf = str | tuple[PartItems, ...]
"""Where the items of a metric are: a path, or for a macro-average one for each benchmark."""
LoadItems = Callable[[str], pd.DataFrame]
ItemValues = Callable[[ItemsOf, Metric], pd.DataFrame | None]
"""From where a cell's items are and a metric to `item_values`, or `macro_values`."""
ItemMask = Callable[[Record, pd.DataFrame], pd.Series]
"""From a cell and its item values to a mask of the items that count; `breakdown.py` makes some."""


ITEM = "item"
"""Name of an index that `named` made."""


def read_items(path: str) -> pd.DataFrame:
    """The scores of single items that an evaluation left on disk.

    Raises OSError, which names the file, where it cannot be read, SettingsError where it is damaged.
    """
    try:
        return pd.read_parquet(Path(path))
    except OSError as error:
        raise type(error)(error.errno, error.strerror or str(error), path) from error
    except ValueError as error:  # pyarrow's errors of a file that is no parquet
        raise damaged(path, error) from None


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

    def values(where: ItemsOf, metric: Metric) -> pd.DataFrame | None:
        if isinstance(where, str):
            return item_values(load_items(where), metric)
        parts = {part.metric.eval: item_values(load_items(part.path), part.metric) for part in where}
        return macro_values(parts, rescale=metric.metric != RAW)

    return values


def items_of(record: Record, metric: Metric) -> ItemsOf | None:
    """Where the items behind a record's metric are; null where those of the metric, or of one benchmark, are not."""
    if metric.eval != MACRO_AVERAGE:
        return record.items.get(metric.eval)
    names = suite_of(record.settings) if metric.source == ALL else (metric.source,)
    scored = {score.eval: score.metric for score in record.scores if score.source == ALL}
    if not names or not all(name in scored and name in record.items for name in names):
        return None
    return tuple(PartItems(Metric(name, scored[name]), record.items[name]) for name in names)


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
    where = items_of(record, metric)
    items = values(where, metric) if where else None
    known = items is not None and abs(items["value"].mean() - score) <= 1e-4 * max(1.0, abs(score))
    assert mask is None or metric.eval != MACRO_AVERAGE, "a part of the items may lack a whole benchmark"
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


def parts_of(sources: Array) -> Array | None:
    """The part (benchmark) of each item, (N,), from strata named as WITHIN does; null where there are no parts."""
    if not len(sources) or WITHIN not in str(sources[0]):
        return None
    return np.array([str(source).partition(WITHIN)[0] for source in sources])


def number_of_parts(items: pd.DataFrame) -> int:
    """How many benchmarks item values are of; 1 for any metric but a macro-average."""
    parts = parts_of(items["source"].to_numpy())
    return 1 if parts is None else len(np.unique(parts))


def enough(sources: Array, parts: int = 1) -> bool:
    """Whether items (their sources, (N,)) have a variance: two or more, of `parts` benchmarks in each."""
    found = parts_of(sources)
    if found is None:
        return len(sources) > 1 and parts == 1
    counts = np.unique(found, return_counts=True)[1]
    return bool((counts > 1).all()) and len(counts) >= parts


def means_of(total: Array, count: Array, sources: Array) -> Array:
    """Values (N,) whose mean is sum(total) / sum(count); of several parts, the mean of that over the parts."""
    parts = parts_of(sources)
    if parts is None:
        return linearised(total, count)
    values, names = np.empty(len(total)), np.unique(parts)
    for name in names:
        own = parts == name
        # each benchmark counts the same, whatever the number of its items
        values[own] = linearised(total[own], count[own]) * (len(total) / (len(names) * own.sum()))
    return values


def macro_values(parts: Mapping[str, pd.DataFrame | None], rescale: bool) -> pd.DataFrame | None:
    """Values per item whose mean is the mean over benchmarks, from `item_values` of each.

    Null where a benchmark has no two items: its mean has no variance then. Columns as in `item_values`; `source` is the
    benchmark, WITHIN and the source. `rescale`: a benchmark's floor is 0.
    """
    frames, known = [], {name: frame for name, frame in sorted(parts.items()) if frame is not None and len(frame) > 1}
    if len(known) < len(parts):
        return None
    items = sum(map(len, known.values()))
    for name, frame in known.items():
        floor = floor_of(name) if rescale else 0.0
        total = (frame["total"].to_numpy(float) - floor * frame["count"].to_numpy(float)) / (1 - floor)
        # each benchmark counts the same, whatever the number of its items
        value = linearised(total, frame["count"].to_numpy(float)) * (items / (len(known) * len(frame)))
        # a space comes before all letters of a name, so that the names stay in order
        index = pd.Index(f"{name} " + frame.index.to_numpy(object), dtype=object, name=ITEM)
        source = f"{name}{WITHIN}" + frame["source"].to_numpy(object)
        frames.append(frame.assign(total=total, value=value, source=source).set_axis(index))
    return pd.concat(frames)


def values_on(items: pd.DataFrame, ids: pd.Index) -> pd.DataFrame:
    """Item values at these ids; those of several benchmarks are weighted anew, since a weight is by their number."""
    if items.index.equals(ids):
        return items
    some = items[~items.index.duplicated()].reindex(ids)  # NaN where it lacks one
    return some if parts_of(items["source"].to_numpy()) is None else some.assign(value=_values(some))


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
    total, count = (items[name].to_numpy(float) for name in ("total", "count"))
    return pd.Series(means_of(total, count, items["source"].to_numpy()), items.index)
