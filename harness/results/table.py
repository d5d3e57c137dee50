"""Tables of a grid: one row per score of a cell, one row per arm, and what a terminal prints.

Reads records only. `paired_gains.py` pairs cells, `stats/` computes intervals; here they become columns. A failed or
missing cell is a row with its reason; no cell is dropped.

    frame = summary(records)
    console.print(render(frame))
    write(folder, records, frame)      # results.parquet, results.csv, summary.parquet, summary.csv
"""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness.plan.metrics import MACRO_AVERAGE, RESCALED, VERIFIED
from harness.results.arms import (
    Arm,
    Metric,
    by_arm,
    diverged,
    metrics_of,
    name_diverged,
    name_tuned,
    score_of,
    why_unpaired,
)
from harness.results.conclusion import BETTER, HINT, WORSE, conclusion
from harness.results.items import ItemValues, LoadItems, named_once, read_items, values_of
from harness.results.paired_gains import ArmValues, estimate, gain, gap_closed, scores
from harness.results.records import Record
from harness.results.spreadsheet import csv_text
from harness.results.stats.intervals import holm
from harness.store.store import replacing

if TYPE_CHECKING:
    from rich.table import Table

CELL_COLUMNS = tuple(
    "grid cell status reason failure_class role method data_frac student teacher corpus budget "
    "seed data_seed train_seed world_seed teacher_seed".split()
)
SCORE_COLUMNS = ("eval", "metric", "source", "score", "standard_error", "items")
PURPOSES = ("train", "teacher", "total", "with_teacher_training", "amortised")
COSTS = tuple(f"{purpose}_{unit}" for purpose in PURPOSES for unit in ("seconds", "flops", "tokens"))
HINTS = "A hint rests on one seed and excludes the variance between seeds: it shows nothing about another seed."
FORMS = (("score", ".3f"), ("gain", "+.3f"))
TEXT_COLUMNS = tuple(
    "grid cell status reason failure_class role method student teacher corpus budget variant eval metric source "
    "warnings score_covers gain_covers gain_conclusion note".split()
)


def tidy(records: Iterable[Record]) -> pd.DataFrame:
    """One row per cell x evaluation x metric x source; a cell without scores is one row with its reason.

    Columns: identity and status (CELL_COLUMNS), SCORE_COLUMNS, costs `<purpose>_<unit>` in seconds, FLOPs and
    tokens, and `warnings` (joined by newlines). Absent values are null.
    """
    rows = []
    for record in records:
        cell = {name: getattr(record, name) for name in CELL_COLUMNS} | _costs([record])
        cell["warnings"] = "\n".join(record.warnings)
        # one row with nulls for a cell without scores, so that it is not lost
        for score in record.scores or (None,):
            rows.append(cell | {name: getattr(score, name, None) for name in SCORE_COLUMNS})
    columns = [*CELL_COLUMNS, *SCORE_COLUMNS, *COSTS, "warnings"]
    return _typed(pd.DataFrame(rows, columns=columns))


def summary(
    records: Sequence[Record],
    load_items: LoadItems = read_items,
    sources: Sequence[str] | None = ("all",),
    metrics: Sequence[Metric] | None = None,
    primary: Metric | None = None,
) -> pd.DataFrame:
    """One row per arm x evaluation x metric x source, brought together over seeds.

    score and gain with 95 % intervals (`score_low`, `score_high`, ...; see `intervals.seeds_and_items`), what the
    intervals cover (`score_covers`, `gain_covers`: `seeds and items`, `items only`), `gain_p` and, within one
    evaluation, metric and source, `gain_p_holm`; `gain_conclusion`, what the gain shows (`conclusion.py`), on headline
    rows; `seeds`, `paired_seeds`, `items`; mean cost per cell;
    counts `done`, `failed`, `missing`, `running` and the first `reason`. Gain is method minus SFT in the
    metric's own direction (`higher_is_better`). `sources=None` keeps every source. `primary` has rows even where no
    cell has its score, unless no cell has any.

    An arm with several replicates (own corpus and teacher each) has a row for each and a `pooled` one (world and
    teacher seed null). The pooled interval is over replicates from five on, and within them below that (`for these 2
    replicates only`). `draws` counts the replicates with a gain (without any, with a score); `gap_closed` with `_low`,
    `_high` is `paired_gains.gap_closed`. `headline` marks the rows that figures show: the pooled one, else the only
    one. `diverged` cells count as 0 in accuracy; `score_survivors` and `gain_survivors` leave them out. `note` gives
    the reason where a gain is absent or a cell diverged. Raises SettingsError as `by_arm` does, OSError where items
    cannot be read.
    """
    load, arms = named_once(load_items), by_arm(records)
    wanted = list(metrics or metrics_of(records))
    # without any score, arms still have rows, which give the reason
    wanted = [m for m in wanted if sources is None or m.source in sources]
    wanted += [primary] if wanted and primary is not None and primary not in wanted else []
    wanted = wanted or [Metric("", "", "all")]
    rows = [row for metric in wanted for row in _rows(arms, metric, functools.cache(values_of(load)))]
    frame = pd.DataFrame(rows)
    if frame.empty:
        return frame
    # headline rows only: an arm with several replicates is one comparison, not one for each and one over them
    family = frame["headline"] & (frame["role"] == "student")
    frame["gain_p_holm"] = math.nan
    for _, part in frame[family].groupby(["eval", "metric", "source"]):
        frame.loc[part.index, "gain_p_holm"] = holm(part["gain_p"])
    shown = [conclusion(row) if row["headline"] else "" for row in frame.to_dict("records")]
    frame["gain_conclusion"] = shown
    # nulls first: models that are the same at every fraction stand above the fractions
    order = "eval metric source student corpus budget variant data_frac method teacher".split()
    return _typed(frame.sort_values(order, na_position="first", kind="stable").reset_index(drop=True))


def headline(frame: pd.DataFrame) -> Metric | None:
    """The metric that figures and the verdict report where a grid names no primary metric (`plan/metrics.py`).

    Verified answers where there are any, else the macro-average, else the first: records of earlier versions have no
    macro-average, and are reported as they were.
    """
    found = [Metric(*key) for key in frame[["eval", "metric", "source"]].drop_duplicates().itertuples(index=False)]
    found = [metric for metric in found if metric.eval]
    preferred = [VERIFIED, f"{MACRO_AVERAGE}.{RESCALED}"]

    def rank(metric: Metric) -> tuple[bool, bool, int]:
        place = preferred.index(metric.name) if metric.name in preferred else len(preferred)
        # whole evaluations before sources, accuracies before losses; ties to the table's order
        return metric.source != "all", not metric.higher_is_better, place

    return min(found, key=rank, default=None)


def reported_metric(frame: pd.DataFrame, primary: Metric | None, records: Iterable[Record]) -> Metric | None:
    """The metric of figures, verdict, decision and claims, from the metrics of a frame; null without any score.

    The primary metric, or `headline` of a plan that names none. Where a corpus does not state whether its rows have a
    known truth, verified answers are planned; if there are none, it is `headline` of the other metrics.
    """
    if frame.empty or (frame["eval"] == "").all():
        return None
    if primary is None:
        return headline(frame)
    records = list(records)
    planned = primary.name == VERIFIED and any(record.status == "done" for record in records)
    if planned and not any(primary == (one.eval, one.metric, one.source) for r in records for one in r.scores):
        return headline(frame[frame["eval"] != primary.eval])
    return primary


def select(frame: pd.DataFrame, metric: Metric | None = None) -> pd.DataFrame:
    """The headline rows of one metric (default: `headline`), and rows of arms that have no score at all."""
    metric = metric or headline(frame)
    wanted = (
        (frame["eval"] == "") if metric is None else (frame[["eval", "metric", "source"]] == list(metric)).all(axis=1)
    )
    return frame[wanted & frame["headline"]]


def write(folder: Path, records: Sequence[Record], frame: pd.DataFrame) -> list[Path]:
    """Write `results` (tidy) and `summary` as .parquet and .csv into `folder`; returns the paths.

    Each file is replaced whole, so a reader never sees half of one. Raises OSError where `folder` cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, table in (("results", tidy(records)), ("summary", frame)):
        for ending in ("parquet", "csv"):
            path = folder / f"{name}.{ending}"
            with replacing(path) as unfinished:
                if ending == "parquet":
                    table.to_parquet(unfinished, index=False)
                else:
                    unfinished.write_text(csv_text(table))
            paths.append(path)
    return paths


def render(frame: pd.DataFrame, metric: Metric | None = None) -> "Table":
    """A table for the terminal: one row per arm; what all arms share stands once, in the title."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    metric = metric or (headline(frame) if len(frame) else None)
    rows = select(frame, metric) if len(frame) else frame
    if len(rows):  # base first, teachers last
        rows = rows.sort_values(
            "role", key=lambda role: role.map({"base": 0, "student": 1, "teacher": 2}), kind="stable"
        )
    students = rows[rows["role"] == "student"] if len(rows) else rows
    names = [n for n in ("student", "corpus", "budget", "variant") if len(students) and students[n].nunique() > 1]
    shared = [str(students[n].iloc[0]) for n in ("student", "corpus", "budget") if len(students) and n not in names]
    covers = [text for text in students["gain_covers"].unique() if text] if len(students) else []
    lower = " (lower is better)" if metric and not metric.higher_is_better else ""
    what = f"{metric.eval} {metric.metric}{lower}" if metric else "no scores"
    table = Table(title=escape(" · ".join([what, *filter(None, shared)])), box=box.SIMPLE_HEAD, title_justify="left")
    if covers:
        table.caption = escape(
            f"Bold: the gain differs from zero after Holm. Intervals of gains cover: {'; '.join(covers)}."
            + (f" {HINTS}" if students["gain_conclusion"].str.startswith(HINT).any() else "")
        )
        table.caption_justify = "left"
    for name in ("data", "method", "teacher", *names):
        table.add_column(name, justify="right" if name == "data" else "left")
    for name in ("seeds", "score [95 %]", "gain over SFT [95 %]", "p (Holm)", "seconds", "teacher's share"):
        table.add_column(name, justify="right")
    table.add_column("note")
    previous = None
    for row in rows.to_dict("records"):
        place = (row["role"], percent(row["data_frac"]))
        if previous not in (None, place):
            table.add_section()
        previous = place
        teaching = row["teacher_seconds"] / row["total_seconds"] if row["total_seconds"] else math.nan
        clear = row["gain_conclusion"] in (BETTER, WORSE)
        table.add_row(
            percent(row["data_frac"]),
            escape(row["method"]),
            escape(_text(row["teacher"])),
            *(escape(_text(row[n])) for n in names),
            f"{row['seeds']:g}",
            interval_text(row, "score"),
            Text(interval_text(row, "gain"), style="bold" if clear else ""),
            _number(row["gain_p_holm"], ".3f"),
            _number(row["total_seconds"], ".0f"),
            _number(teaching, ".0%"),
            Text(_note(row, covers), style="red" if row["failed"] else ""),
        )
    return table


def percent(fraction: float | None) -> str:
    """A fraction of the data as a person reads it, e.g. `0.1 %`."""
    return "" if fraction is None or pd.isna(fraction) else f"{fraction * 100:.3g} %"


def _rows(arms: Mapping[Arm, list[Record]], metric: Metric, values: ItemValues) -> list[dict[str, Any]]:
    """Rows of every arm for one metric: one for each replicate, then the one over them."""
    rows = []
    scores_of = functools.cache(lambda arm: scores(arms[arm], metric, values))
    replicates: dict[Arm, list[Arm]] = {}
    for arm in arms:
        replicates.setdefault(arm._replace(world_seed=None, teacher_seed=None), []).append(arm)
    for whole, parts in replicates.items():
        # references and SFT itself have no partner
        compared = whole.role == "student" and whole != whole.partner
        sft = {arm: arms.get(arm.partner, []) if compared else [] for arm in parts}
        own = {arm: scores_of(arm) for arm in parts}
        gains = {arm: gain(arms[arm], sft[arm], metric, values) for arm in parts}
        # one replicate alone is its own headline row; several have a row each and one over them
        for name, group in [(arm, [arm]) for arm in parts] + [(whole, parts)] * (len(parts) > 1):
            cells, partners = ([cell for arm in group for cell in side[arm]] for side in (arms, sft))
            row = _row(name, cells, metric, {arm: own[arm] for arm in group}, {arm: gains[arm] for arm in group})
            lost = [why_unpaired(arm, arms) for arm in group if compared and own[arm] and not gains[arm]]
            some = f" in {len(lost)} of {len(group)} replicates" if 0 < len(lost) < len(group) else ""
            notes = [f"{why}{some}" for why in lost[:1]] + [name_tuned(cells)]
            notes += [name_diverged(cells, metric), f"SFT {text}" if (text := name_diverged(partners, metric)) else ""]
            left = [f"{n} {row[key]:{form}}" for n, form in FORMS if not math.isnan(row[key := f"{n}_survivors"])]
            notes += [f"without: {', '.join(left)}"] * bool(left)
            row |= gap_closed(arms, group, metric, scores_of)
            row |= {"pooled": len(group) > 1, "headline": len(group) == len(parts)}
            rows.append(row | {"note": "; ".join(filter(None, notes))})
    return rows


def _row(
    arm: Arm,
    cells: list[Record],
    metric: Metric,
    own: Mapping[Arm, ArmValues | None],
    gains: Mapping[Arm, ArmValues | None],
) -> dict[str, Any]:
    """One row: names, score and gain with intervals, counts, cost."""
    counts = {status: sum(c.status == status for c in cells) for status in ("done", "failed", "running")}
    counts["missing"] = len(cells) - sum(counts.values())
    reason = next((c.reason for c in cells if c.status != "done" and c.reason), None)
    scored, paired = ([part for part in parts.values() if part] for parts in (own, gains))
    row: dict[str, Any] = arm._asdict() | metric._asdict() | {"higher_is_better": metric.higher_is_better}
    row |= {"draws": len(paired or scored), "items": max((len(part.ids) for part in scored), default=0)}
    row |= {
        "seeds": min((p.count for p in scored), default=0),
        "paired_seeds": min((p.count for p in paired), default=0),
    }
    row |= estimate("score", own) | estimate("gain", gains)
    row |= counts | {"diverged": sum(map(diverged, cells)), "reason": reason}
    # records of earlier versions do not have it, and their tables stay as they were
    if realised := [cell.realised_frac for cell in cells if cell.realised_frac is not None]:
        row["realised_frac"] = sum(realised) / len(realised)
    row |= {"scored_cells": sum(score_of(cell, metric) is not None for cell in cells)}
    # costs are of finished cells: one that failed or still runs has spent only a part of its own
    warnings = dict.fromkeys(w for cell in cells for w in cell.warnings)
    return row | {"warnings": "\n".join(warnings)} | _costs(cell for cell in cells if cell.status == "done")


def _costs(cells: Iterable[Record]) -> dict[str, float]:
    """Mean cost per cell, of the cells that have one."""
    costs = [cell.cost for cell in cells]
    means = {}
    for column in COSTS:
        purpose, unit = column.rsplit("_", 1)
        values = [float(getattr(cost[purpose], unit)) for cost in costs if purpose in cost]
        means[column] = sum(values) / len(values) if values else math.nan
    return means


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """The same frame with one type per column, so that a column of nulls can be written and read."""
    for column in frame.columns:
        if column in TEXT_COLUMNS:
            frame[column] = frame[column].astype("string")
        elif column.endswith("seed"):
            frame[column] = frame[column].astype("Int64")  # which has nulls; int64 with nulls would become float
        elif frame[column].isna().all():
            frame[column] = frame[column].astype("float64")
    return frame


def _text(value: Any) -> str:
    return "" if value is None or pd.isna(value) else str(value)


def _number(value: Any, form: str) -> str:
    return "" if pd.isna(value) else format(value, form)


def interval_text(row: Mapping[Any, Any], name: str) -> str:
    """A score or gain with its interval as a person reads it; empty where there is none."""
    form = dict(FORMS)[name]
    if pd.isna(row[name]):
        return ""
    if pd.isna(row[f"{name}_low"]):
        return f"{row[name]:{form}} [no interval]"
    return f"{row[name]:{form}} [{row[f'{name}_low']:{form}}, {row[f'{name}_high']:{form}}]"


def _note(row: Mapping[Any, Any], covers: Sequence[str]) -> str:
    """What failed, and what the row's interval covers where not all rows cover the same."""
    lost = [f"{row[status]:g} {status}" for status in ("failed", "missing", "running") if row[status]]
    text = ", ".join(lost) + (f": {_text(row['reason'])}" if _text(row["reason"]) else "")
    limits = f"interval: {row['gain_covers']}" if len(covers) > 1 and row["gain_covers"] else ""
    hint = row["gain_conclusion"] if row["gain_conclusion"].startswith(HINT) else ""
    return "; ".join(part for part in (hint, text, row["note"], limits) if part)
