"""Score against cost: what each arm cost, with the teacher's share, beside what it scored.

A point per arm; the line is the Pareto front: no arm on it is beaten by one that is cheaper. Left, what the cell itself
took (its training and what the teacher did for it); right, with the teacher's own training charged whole to it.

    pareto_figure(summary(records), Path("results/cost"))
"""

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from harness.report.figures.labels import GREY, colour_of, name_ends, subtitle
from harness.report.figures.panels import dress, largest_panel, panel_figure
from harness.report.figures.plots import names_of, save
from harness.results.arms import Metric
from harness.results.table import headline, percent, select

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COSTS = {
    "total": "the cell, with the teacher's share",
    "with_teacher_training": "the same with teacher training",
}
UNITS = {"flops": "FLOPs", "seconds": "seconds on its machine"}


def pareto(rows: pd.DataFrame, ax: "Axes", cost: str = "total", unit: str = "flops") -> "Axes":
    """Score against cost of students at one data fraction (rows of `table.select`); log cost, front as a line."""
    column, higher = f"{cost}_{unit}", bool(rows["higher_is_better"].iloc[0])
    rows = rows[rows[column].notna() & rows["score"].notna()].sort_values(column, kind="stable")
    names = names_of(dict.fromkeys(zip(rows["method"], rows["teacher"].fillna(""), strict=True)))
    ends: list[tuple[float, float, str, str]] = []
    front: list[tuple[float, float]] = []
    for row in rows.to_dict("records"):
        colour = colour_of(row["method"])
        x, y = row[column], row["score"]
        ax.plot([x, x], [row["score_low"], row["score_high"]], color=colour, lw=1.1, alpha=0.85)
        ax.plot(x, y, "o", color=colour, markersize=5.5)
        ends.append((x, y, names[row["method"], row["teacher"] if isinstance(row["teacher"], str) else ""], colour))
        # rows come from cheap to dear: a point is on the front if it beats the best of the cheaper ones
        if not front or (y > front[-1][1] if higher else y < front[-1][1]):
            front.append((x, y))
    # a step: at a cost between two points of the front, the cheaper one has the best score there is
    ax.step(*zip(*front, strict=True), where="post", color=GREY, lw=0.9, ls=(0, (2, 2)), zorder=1)
    ax.set_xscale("log")
    ax.tick_params(which="minor", labelsize=8)
    ax.margins(x=0.12, y=0.14)
    dress(ax, COSTS[cost], f"{UNITS[unit]}, log scale", f"{rows['eval'].iloc[0]} {rows['metric'].iloc[0]}")
    name_ends(ax, ends)
    return ax


def pareto_figure(frame: pd.DataFrame, path: Path, metric: Metric | None = None, unit: str = "flops") -> list[Path]:
    """Write `path`.png and `path`.svg at the smallest fraction with three arms or more; nothing where there is none.

    Raises OSError where files cannot be written.
    """
    metric = metric or (headline(frame) if len(frame) else None)
    if metric is None:
        return []
    rows = select(frame, metric)
    rows = rows[(rows["role"] == "student") & rows["score"].notna() & rows[f"total_{unit}"].notna()]
    if rows.empty:
        return []
    rows = largest_panel(rows)
    # scores differ with the amount of data, so arms are compared at one fraction; two of them make no front
    counts = rows.groupby("data_frac").size()
    fractions = counts[counts > 2].index.tolist()
    if not fractions:
        return []
    fraction = fractions[0]
    shown = rows[rows["data_frac"] == fraction]
    longest = max(len(name) for name in names_of(dict.fromkeys(_keys(shown))).values())
    note = "Bars: 95 % intervals. Dashed line: the Pareto front; no cheaper arm has a better score."
    # a panel that leaves out arms of unknown cost would show a front that is none
    known = [cost for cost in COSTS if shown[f"{cost}_{unit}"].notna().all()]
    figure, axes = panel_figure(
        len(known),
        "Score against cost",
        f"{subtitle(shown)}  ·  {percent(fraction)} of the data",
        note,
        aside=0.4 + 0.075 * longest,
    )
    for ax, cost in zip(axes, known, strict=True):
        pareto(shown, ax, cost, unit)
    return save(figure, path)


def _keys(rows: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(rows["method"], rows["teacher"].fillna(""), strict=True))
