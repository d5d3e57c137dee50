"""Figures of a report: every function of `FIGURES` takes an outcome and draws what it can of it.

A picture is an SVG with a title and, for those who cannot see it, what it shows in words. To add one, write a function
`(Outcome, folder) -> Picture | None` and put its name into `FIGURES`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.forest import MANY, arms_of, forest_figure
from analysis.plots import PANEL, crossover_figure, names_of
from harness.outcome import Outcome
from harness.table import interval_text, percent, select

LINE = ["method", "teacher"]


@dataclass(frozen=True)
class Picture:
    """One figure."""

    title: str
    alt: str
    path: Path
    """The SVG; a PNG of the same name lies beside it."""


def pictures(outcome: Outcome, folder: Path) -> list[Picture]:
    """Every figure that the outcome's records allow, drawn into `folder`; the same bytes for the same records."""
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
        f"{alt}Right: {_gains(outcome)}",
        folder / "crossover.svg",
    )


def methods(outcome: Outcome, folder: Path) -> Picture | None:
    """Many methods side by side, where lines would be too many."""
    rows = arms_of(outcome.summary, outcome.metric) if len(outcome.summary) else None
    if rows is None or rows["name"].nunique() <= MANY:
        return None
    forest_figure(outcome.summary, folder / "methods", outcome.metric)
    alt = f"A row per method, a column per share of the data, dots with 95 % intervals: {_gains(outcome)}"
    return Picture("Gain over SFT of every method", alt, folder / "methods.svg")


FIGURES: tuple[Callable[[Outcome, Path], Picture | None], ...] = (crossover, methods)


def _scores(students: pd.DataFrame) -> str:
    """Each line's first and last score in words."""
    told = []
    names = names_of(dict.fromkeys(zip(students["method"], students["teacher"].fillna(""), strict=True)))
    for key, part in students.fillna({"teacher": ""}).groupby([*_apart(students), *LINE], sort=False):
        *place, method, teacher = map(str, key)
        part = part.sort_values("data_frac")
        first, last = part.iloc[0], part.iloc[-1]
        text = f"{' '.join([*place, names[method, teacher]])} {first['score']:.3f} at {percent(first['data_frac'])}"
        told.append(text if len(part) == 1 else f"{text} to {last['score']:.3f} at {percent(last['data_frac'])}")
    return "; ".join(told)


def _gains(outcome: Outcome) -> str:
    """Every gain of the figure in words."""
    rows = arms_of(outcome.summary, outcome.metric)
    if rows.empty:
        return "no gain over SFT, as no method and SFT share a seed and a fraction."
    told, apart = [], _apart(rows)
    for row in rows.sort_values([*apart, "name", "data_frac"]).to_dict("records"):
        line = " ".join([*(str(row[name]) for name in apart), row["name"]])
        told.append(f"{line} {interval_text(row, 'gain')} at {percent(row['data_frac'])}")
    return f"gain over SFT with 95 % intervals of {'; '.join(told)}."


def _apart(rows: pd.DataFrame) -> list[str]:
    """Names by which a figure has several panels."""
    return [name for name in PANEL if rows[name].nunique() > 1]
