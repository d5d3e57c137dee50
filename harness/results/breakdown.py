"""Breakdown: scores and gains by class of held-out item, such as whether the student's training rows ask it.

`table.py` has one row per arm; here there is one per arm and class, with the same pairing by seed and item and the same
intervals (`paired_gains.py`). An item's class may differ from seed to seed, as the rows do; a gain is over the items
that are of the class in the method's own cell, and SFT is scored on the same items. Several classes are several
comparisons: use the adjusted p, and call a comparison that was not declared beforehand exploratory.

    breakdown(records, ["exposure"], Exposures(store, frozen_plan))
    items(records, Exposures(store, frozen_plan))      # every item of every cell, with its exposure
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, reduce
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from harness.config.checks import check_choice
from harness.evals import ALL
from harness.plan.metrics import MACRO_AVERAGE
from harness.results.arms import Arm, Metric, by_arm, metrics_of, name_diverged, seeds_of, why_unpaired
from harness.results.conclusion import HINT, conclusion
from harness.results.exposure import EXPOSURES, SEEN_BY, Exposures
from harness.results.items import ItemMask, ItemValues, LoadItems, cell_score, read_items, values_of
from harness.results.paired_gains import estimate, gain, scores
from harness.results.records import Record
from harness.results.stats.intervals import holm
from harness.results.suite import suite_of
from harness.results.table import CELL_COLUMNS, interval_text, percent, reported_metric

if TYPE_CHECKING:
    from rich.table import Table

BY = ("exposure", "source", *SEEN_BY)
"""Names by which items can be classed."""
FEW = 10
"""Fewest items of a class for which an interval is reliable; below it the row has a note."""
SHOWN = {"True": "yes", "False": "no"}


def breakdown(
    records: Sequence[Record],
    by: Sequence[str],
    exposures: Exposures,
    load_items: LoadItems = read_items,
    primary: Metric | None = None,
) -> pd.DataFrame:
    """One row per arm, but SFT's own, and class of item; `by` (of BY) may name several, which are crossed.

    `primary` is the grid's primary metric (null: `table.headline`). A class may lack a whole benchmark, so a
    macro-average has none of its own: its benchmarks are broken down one by one.

    Columns: names of the arm, `eval` and `metric`, the columns of `by`, `items`
    (of the class, mean over seeds), `seeds`, `draws`; `score`, `sft` (SFT on the same items) and `gain` with
    `_low`, `_high` (95 %), `gain_p` and `gain_p_holm` over the whole table, `gain_conclusion` (`conclusion.py`),
    `gain_covers` and a `note`. Of arms
    with several replicates the one row is over them, as in `table.summary`. Canary items are left out.
    Raises SettingsError for an unknown name in `by`, where exposure cannot be read, and as `by_arm` does; OSError
    where items cannot be read.
    """
    for name in by:
        check_choice("by", name, BY)
    values = cache(values_of(load_items))
    found = pd.DataFrame(metrics_of(records), columns=["eval", "metric", "source"])
    chosen = reported_metric(found, primary, records)
    metrics = [] if chosen is None else [chosen]
    if chosen is not None and chosen.eval == MACRO_AVERAGE:
        suite = {name for record in records for name in suite_of(record.settings)}
        metrics = sorted(metric for metric in metrics_of(records) if metric.source == ALL and metric.eval in suite)
    rows: list[dict[str, Any]] = []
    for metric in metrics:
        labels = _Labels(by, exposures, metric.eval)
        for whole, draws in _by_line(by_arm(records)):
            rows += _rows(whole, draws, metric, labels, values)
    frame = pd.DataFrame(rows)
    if len(frame):
        # every class of every arm is a comparison of its own, so the family is the whole table
        frame["gain_p_holm"] = holm(frame["gain_p"])
        higher = {metric.eval: metric.higher_is_better for metric in metrics}
        told = frame.to_dict("records")
        named = [row | {"paired_seeds": row["seeds"], "higher_is_better": higher[row["eval"]]} for row in told]
        frame["gain_conclusion"] = [conclusion(row) for row in named]
        hints = frame["gain_conclusion"].where(frame["gain_conclusion"].str.startswith(HINT), "")
        frame["note"] = ["; ".join(filter(None, both)) for both in zip(hints, frame["note"], strict=True)]
    return frame


def items(records: Iterable[Record], exposures: Exposures, load_items: LoadItems = read_items) -> pd.DataFrame:
    """One row per finished cell and item: who and with which seeds, the item as scored, `exposure` and SEEN_BY.

    Reference models have no exposure (null): it is of a student's rows and teacher. Raises SettingsError as
    `Exposures.of` does, OSError where items cannot be read.
    """
    # every row here was scored, so status and reason would say nothing
    columns = [name for name in CELL_COLUMNS if name not in ("status", "reason", "failure_class")]
    frames = []
    for record in {(r.cell, r.role): r for r in records if r.items}.values():
        for name, path in record.items.items():
            frame = load_items(path)
            if record.role == "student":
                frame = frame.join(exposures.of_items(record, name, frame))
            who = pd.DataFrame({n: getattr(record, n) for n in columns}, index=frame.index)
            frames.append(pd.concat([who, frame], axis=1))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*columns, "exposure", *SEEN_BY])


def render(frame: pd.DataFrame, by: Sequence[str]) -> "Table":
    """A breakdown as a person reads it."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    if frame.empty:
        return Table(title="No finished cell of a method other than SFT has scores of single items")
    several = frame["eval"].nunique() > 1
    metric = Metric(*frame.iloc[0][["eval", "metric"]])
    lower = "" if metric.higher_is_better else " (lower is better)"
    title = f"{'benchmarks' if several else metric.label}{lower} by {' and '.join(by)}"
    table = Table(title=escape(title), box=box.SIMPLE_HEAD, title_justify="left")
    covers = "; ".join(text for text in frame["gain_covers"].unique() if text)
    table.caption, table.caption_justify = escape(f"Intervals of gains cover: {covers}."), "left"
    names = [name for name in ("eval", "student", "corpus", "budget", "variant") if frame[name].nunique() > 1]
    for name in ("data", "method", "teacher", *names, *by):
        table.add_column(name, justify="right" if name == "data" else "left")
    for name in ("items", "seeds", "SFT", "score [95 %]", "gain over SFT [95 %]", "p (Holm)"):
        table.add_column(name, justify="right")
    table.add_column("note")
    previous = None
    for row in frame.to_dict("records"):
        if previous not in (None, row["data_frac"]):
            table.add_section()
        previous = row["data_frac"]
        table.add_row(
            percent(row["data_frac"]),
            *("" if pd.isna(row[name]) else escape(row[name]) for name in ("method", "teacher", *names, *by)),
            f"{row['items']:.0f}",
            f"{row['seeds']:g}",
            "" if math.isnan(row["sft"]) else f"{row['sft']:.3f}",
            interval_text(row, "score"),
            interval_text(row, "gain"),
            "" if math.isnan(row["gain_p_holm"]) else f"{row['gain_p_holm']:.3f}",
            escape(row["note"]),
        )
    return table


class _Pairs(NamedTuple):
    """The cells of one arm in one replicate and the SFT cells they are compared with."""

    cells: list[Record]
    sft: list[Record]
    why_unpaired: str
    """The note where no pair has a score."""

    def of_method(self, part: ItemMask) -> ItemMask:
        """The same part for SFT cells: of the method's cell of the same seeds."""
        by_seed = {seeds_of(cell): cell for cell in self.cells}
        # an SFT cell whose seeds the method lacks has no class; `paired_sft` leaves it out
        return lambda cell, frame: part(by_seed[seeds_of(cell)], frame)

    @property
    def paired_sft(self) -> list[Record]:
        """The SFT cells that have a partner."""
        seeds = set(map(seeds_of, self.cells))
        return [cell for cell in self.sft if seeds_of(cell) in seeds]


class _Labels:
    """The class of each item of a cell, as text; several names are joined by newlines."""

    def __init__(self, by: Sequence[str], exposures: Exposures, evaluation: str) -> None:
        self.by, self.exposures, self.evaluation = by, exposures, evaluation
        self._known: dict[tuple[str, int], tuple[pd.DataFrame, pd.Series]] = {}

    def __call__(self, record: Record, frame: pd.DataFrame) -> pd.Series:
        """Labels of the rows of `frame`: item values of the record's cell, or of its SFT partner's."""
        key = (record.cell, id(frame))
        if key not in self._known:
            self._known[key] = frame, self._labels(record, frame)  # the frame is kept, so that its id stays its own
        return self._known[key][1]

    def _labels(self, record: Record, frame: pd.DataFrame) -> pd.Series:
        # sources stand among the items' own columns; only exposure needs the rows in the store
        seen = frame if set(self.by) == {"source"} else self.exposures.of_items(record, self.evaluation, frame)
        columns = [(frame if name == "source" else seen)[name].astype("string").fillna("unknown") for name in self.by]
        return pd.Series(reduce(lambda one, other: one + "\n" + other, map(np.asarray, columns)), frame.index)


def _place(label: str) -> list[tuple[int, str]]:
    """What to sort labels by: exposures as they are listed, else by text."""
    return [(EXPOSURES.index(text), "") if text in EXPOSURES else (0, text) for text in label.split("\n")]


def _by_line(arms: Mapping[Arm, list[Record]]) -> list[tuple[Arm, dict[Arm, _Pairs]]]:
    """Every trained arm but SFT's with the arms of its replicates, in order of fraction, method and teacher."""
    found: dict[Arm, dict[Arm, _Pairs]] = {}
    for arm, cells in arms.items():
        if arm.role == "student" and arm != arm.partner:
            sft = arms.get(arm.partner, [])
            whole = arm._replace(world_seed=None, teacher_seed=None)
            found.setdefault(whole, {})[arm] = _Pairs(cells, sft, why_unpaired(arm, arms))
    names = ("student", "corpus", "budget", "variant", "data_frac", "method", "teacher")
    return sorted(found.items(), key=lambda line: [getattr(line[0], name) or "" for name in names])


def _rows(
    whole: Arm, draws: Mapping[Arm, _Pairs], metric: Metric, labels: _Labels, values: ItemValues
) -> list[dict[str, Any]]:
    """A row per class of one arm, over its replicates."""
    # classes that the method's cells have; SFT is scored on the same items, so it adds none
    present: set[str] = set()
    cells = [cell for pairs in draws.values() for cell in pairs.cells]
    for cell in cells:
        if (found := cell_score(cell, metric, values)) and found.items is not None:
            present |= set(labels(cell, found.items).unique())
    rows = []
    for label in sorted(present, key=_place):

        def part(cell: Record, frame: pd.DataFrame, label: str = label) -> pd.Series:
            return labels(cell, frame) == label

        own = {arm: scores(pairs.cells, metric, values, part) for arm, pairs in draws.items()}
        sft = {arm: scores(pairs.paired_sft, metric, values, pairs.of_method(part)) for arm, pairs in draws.items()}
        gains = {arm: gain(pairs.cells, pairs.sft, metric, values, part) for arm, pairs in draws.items()}
        # sizes and seeds of the gains, which the row is about; of the scores where nothing could be paired
        known = [found for found in gains.values() if found] or [found for found in own.values() if found]
        size = float(np.mean([size for found in known for size in found.sizes]))
        row: dict[str, Any] = whole._asdict() | {"eval": metric.eval, "metric": metric.metric}
        row |= dict(zip(labels.by, (SHOWN.get(text, text) for text in label.split("\n")), strict=True))
        row |= {"items": size, "seeds": min(found.count for found in known), "draws": len(known)}
        row |= estimate("score", own) | estimate("gain", gains) | {"sft": estimate("sft", sft)["sft"]}
        notes = [draws[arm].why_unpaired for arm in draws if own[arm] and not gains[arm]][:1]
        notes += [name_diverged(cells, metric)]
        few = "too few items" if size < FEW else ""
        rows.append(row | {"note": "; ".join(filter(None, [*notes, few]))})
    return rows
