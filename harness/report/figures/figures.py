"""Figures of a report: each function of `FIGURES` takes an outcome and draws one figure, or none.

A picture is an SVG with a title and a description in words for readers who cannot see it. To add one, write a function
`(Outcome, folder) -> Picture | None` and put its name into `FIGURES`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from harness.plan.metrics import MACRO_AVERAGE
from harness.report.figures.by_source import gains_by_source, source_figure
from harness.report.figures.costs import pareto_figure
from harness.report.figures.forest import MANY, arms_of, forest_figure
from harness.report.figures.gap import gap_figure
from harness.report.figures.plots import PANEL, crossover_figure, names_of
from harness.report.figures.scaling import scaling_figure
from harness.report.figures.settings import along, setting_figure
from harness.report.figures.training import training_figure
from harness.results.conclusion import ONE_SEED, is_hint
from harness.results.outcome import Outcome
from harness.results.scaling import scalings
from harness.results.table import interval_text, percent, select
from harness.results.teacher_gap import gap_lines

LINE = ["method", "teacher"]


@dataclass(frozen=True)
class Picture:
    """One figure."""

    title: str
    alt: str
    path: Path
    """The SVG; a PNG of the same name lies beside it."""


def pictures(outcome: Outcome, folder: Path) -> list[Picture]:
    """Every figure that the outcome's records allow, drawn into `folder`; the same bytes for the same records.

    Raises OSError where items cannot be read or files not be written, SettingsError as `summary` and `gap_lines` do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return [found for draw in FIGURES if (found := draw(outcome, folder)) is not None]


def crossover(outcome: Outcome, folder: Path) -> Picture | None:
    """Score and gain against the data fraction."""
    if outcome.metric is None:
        return None
    rows = select(outcome.summary, outcome.metric)
    students = rows[(rows["role"] == "student") & rows["score"].notna() & rows["data_frac"].notna()]
    if students.empty:
        return None
    crossover_figure(outcome.summary, folder / "crossover", outcome.crossovers, outcome.metric)
    what = f"{outcome.metric.eval} {outcome.metric.metric}"
    alt = f"Two panels over the share of the training data. Left: {what} of {_scores(students)}. "
    return Picture(
        "Score and gain over SFT against the share of the data",
        # each arm's own interval, as the lines have it; no simultaneous ones
        f"{alt}Right: {_gains(arms_of(outcome.summary, outcome.metric))}",
        folder / "crossover.svg",
    )


def methods(outcome: Outcome, folder: Path) -> Picture | None:
    """Many methods side by side, where lines would be too many."""
    rows = arms_of(outcome.summary, outcome.metric, outcome.simultaneous) if len(outcome.summary) else None
    # up to MANY arms the lines of the crossover figure can be told apart
    if rows is None or rows["name"].nunique() <= MANY:
        return None
    forest_figure(outcome.summary, folder / "methods", outcome.metric, outcome.simultaneous)
    # the same intervals as the dots'
    alt = f"A row per method, a column per share of the data, dots: {_gains(rows)}"
    return Picture("Gain over SFT of every method", alt, folder / "methods.svg")


def growth(outcome: Outcome, folder: Path) -> Picture | None:
    """Score against the logarithm of the data, fitted per replicate."""
    if outcome.metric is None:
        return None
    fits = scalings(outcome.records, outcome.metric, outcome.load_items)
    found = scaling_figure(fits, outcome.metric, folder / "scaling")
    told = [
        f"{arm.method}{f' ({arm.teacher})' if arm.teacher else ''} {fit.slope[0]:+.3f} [{fit.slope[1]:+.3f}, "
        f"{fit.slope[2]:+.3f}] per tenfold data in the middle of the range"
        for arm, fit in fits.items()
    ]
    return _picture(
        "How the score grows with the data", f"A fitted curve with bands per method: {'; '.join(told)}.", found
    )


def where(outcome: Outcome, folder: Path) -> Picture | None:
    """Gain by source."""
    if outcome.metric is None:
        return None
    rows = gains_by_source(outcome.records, outcome.load_items, outcome.metric)
    found = source_figure(rows, folder / "sources")
    if not found:
        return None
    told = [
        f"{row['source']}, {row['method']} at {percent(row['data_frac'])} {interval_text(row, 'gain')}{_hint(row)}"
        for row in rows.sort_values("gain", ascending=False).head(12).to_dict("records")
    ]
    what = "benchmark" if outcome.metric.eval == MACRO_AVERAGE else "source"
    alt = f"A row per {what} with the gain over SFT of up to three methods; the largest: {'; '.join(told)}."
    return _picture(f"Gain over SFT by {what}", alt, found)


def cost(outcome: Outcome, folder: Path) -> Picture | None:
    """Score against FLOPs, the teacher's share counted."""
    found = pareto_figure(outcome.summary, folder / "cost", outcome.metric) if len(outcome.summary) else []
    if not found:
        return None
    rows = select(outcome.summary, outcome.metric)
    rows = rows[(rows["role"] == "student") & rows["score"].notna()]
    told = [
        f"{row['method']} at {percent(row['data_frac'])} {row['score']:.3f} for {row['total_flops']:.2g} FLOPs"
        for row in rows.head(16).to_dict("records")
    ]
    return _picture("Score against cost", f"Score against cost on a log axis: {'; '.join(told)}.", found)


def lead(outcome: Outcome, folder: Path) -> Picture | None:
    """Gain against the teacher's lead."""
    # a teacher's lead is a higher score; `gap_lines` does not turn losses round
    if outcome.metric is None or not outcome.metric.higher_is_better:
        return None
    lines = gap_lines(outcome.records, outcome.metric, outcome.load_items)
    told = [
        f"{line.names['method']} at {percent(line.names['data_frac'])}: {line.slope.estimate:+.2f} "
        f"[{line.slope.low:+.2f}, {line.slope.high:+.2f}] per point of lead, teachers {', '.join(line.teachers)}"
        + (f" {ONE_SEED}" if line.slope.excludes_seed_variance else "")
        for line in lines
        if line.slope is not None
    ]
    alt = f"Gain over SFT against the teacher's score minus SFT's. {'; '.join(told)}."
    return _picture("Does the gain follow the teacher's lead?", alt, gap_figure(lines, outcome.metric, folder / "gap"))


def setting(outcome: Outcome, folder: Path) -> Picture | None:
    """Score and gain along a numeric setting of a method."""
    found = setting_figure(outcome.summary, folder / "setting", outcome.metric) if len(outcome.summary) else []
    # the figure chose its setting by the same function, so the words are of the same rows
    chosen = along(select(outcome.summary, outcome.metric)) if found else None
    if chosen is None:
        return None
    method, name, rows = chosen
    told = [
        f"{row['x']:g} at {percent(row['data_frac'])} {interval_text(row, 'score')}"
        for row in rows.sort_values(["data_frac", "x"]).to_dict("records")
    ]
    name = name.replace("_", " ")
    return _picture(f"{method} by {name}", f"Score and gain over SFT along {name}: {'; '.join(told)}.", found)


def progress(outcome: Outcome, folder: Path) -> Picture | None:
    """Training curves."""
    if outcome.load_curves is None:
        return None
    alt = "The likelihood of the rows that each method trains on, step by step, a thin line for each seed."
    return _picture("Training curves", alt, training_figure(outcome.load_curves(), folder / "training"))


# in the order of the page
FIGURES: tuple[Callable[[Outcome, Path], Picture | None], ...] = (
    crossover,
    methods,
    setting,
    lead,
    where,
    cost,
    growth,
    progress,
)


def _picture(title: str, alt: str, files: list[Path]) -> Picture | None:
    return Picture(title, alt, next(path for path in files if path.suffix == ".svg")) if files else None


def _scores(students: pd.DataFrame) -> str:
    """Each line's first and last score in words."""
    told = []
    names = names_of(dict.fromkeys(zip(students["method"], students["teacher"].fillna(""), strict=True)))
    # `groupby` drops null keys, and with them SFT, which has no teacher
    for key, part in students.fillna({"teacher": ""}).groupby([*_apart(students), *LINE], sort=False):
        *place, method, teacher = map(str, key)
        part = part.sort_values("data_frac")
        first, last = part.iloc[0], part.iloc[-1]
        # the ends of a line, since a description is read in one go
        text = f"{' '.join([*place, names[method, teacher]])} {first['score']:.3f} at {percent(first['data_frac'])}"
        told.append(text if len(part) == 1 else f"{text} to {last['score']:.3f} at {percent(last['data_frac'])}")
    return "; ".join(told)


def _gains(rows: pd.DataFrame) -> str:
    """Every gain of a figure in words; rows as `arms_of` returns them."""
    if rows.empty:
        return "no gain over SFT, because no method and SFT share a seed and a fraction."
    told, apart = [], _apart(rows)
    for row in rows.sort_values([*apart, "name", "data_frac"]).to_dict("records"):
        line = " ".join([*(str(row[name]) for name in apart), row["name"]])
        told.append(f"{line} {interval_text(row, 'gain')} at {percent(row['data_frac'])}{_hint(row)}")
    kind = "simultaneous 95 % intervals" if rows["at_once"].all() else "95 % intervals"
    return f"gain over SFT with {kind} of {'; '.join(told)}."


def _hint(row: Mapping[Any, Any]) -> str:
    """A gain of one seed is told as a hint."""
    return f", a hint {ONE_SEED}" if is_hint(row) else ""


def _apart(rows: pd.DataFrame) -> list[str]:
    """Names by which a figure has several panels."""
    return [name for name in PANEL if rows[name].nunique() > 1]
