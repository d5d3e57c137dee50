"""The forest plot: many methods side by side, which lines through a few fractions cannot show.

A column per data fraction, a row per arm in the order of its mean gain. A dot is the gain over SFT on the same seeds
and items with its 95 % interval, filled where it differs from zero; the band is the margin of equality. With
`simultaneous` (`results/simultaneous.py`, Dunnett) the intervals hold for all methods of a column together; without it
each holds for its own arm, and a dot is filled where the gain differs from zero after Holm. A gain of one seed is grey
and open.

    forest_figure(outcome.summary, Path("results/methods"), simultaneous=outcome.simultaneous)
"""

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from harness.report.figures.labels import GREY, HINT, colour_of, inches, short_label, subtitle, title, wrapped
from harness.report.figures.plots import PANEL, names_of, save
from harness.results.arms import Metric
from harness.results.conclusion import BETTER, WORSE, conclusion, is_hint
from harness.results.paired_gains import MARGIN
from harness.results.table import headline, percent, select

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEAST_WIDTH = 7.2
"""Inches that title and note need."""
MANY = 8
"""With more arms than this, a figure of lines is not readable."""
HINTS = "grey: a hint (one seed), which excludes the variance between seeds"
KEYS = [*PANEL, "data_frac", "method", "teacher"]


def arms_of(frame: pd.DataFrame, metric: Metric | None, simultaneous: pd.DataFrame | None = None) -> pd.DataFrame:
    """Rows with a gain, one per arm and fraction, with the arm's `name`: the teacher where there are several.

    With the intervals and p values of `simultaneous` where it has every one of them (`at_once`).
    """
    if metric is None:
        return frame.iloc[:0].assign(name="")
    rows = select(frame, metric)
    rows = rows[(rows["role"] == "student") & rows["gain"].notna() & rows["data_frac"].notna()].copy()
    at_once = False
    if simultaneous is not None and len(simultaneous):
        theirs = simultaneous.assign(covers=simultaneous["covers"] + ", pooled over methods")
        found = {"low": "gain_low", "high": "gain_high", "p": "gain_p_holm", "covers": "gain_covers"}
        theirs = theirs[[*KEYS, *found]].rename(columns=found).astype({"teacher": rows["teacher"].dtype})
        joined = rows.drop(columns=found.values()).merge(theirs, on=KEYS)
        # all or none: simultaneous and single intervals side by side would not be told apart
        at_once = len(joined) == len(rows)
        rows = joined if at_once else rows
    rows["at_once"] = at_once
    arms = list(zip(rows["method"], rows["teacher"].fillna(""), strict=True))
    names = names_of(dict.fromkeys(arms))
    rows["name"] = [names[arm] for arm in arms]
    return rows


def forest(rows: pd.DataFrame, axes: "list[Axes]") -> "list[Axes]":
    """Draw one student, corpus and budget (rows as `arms_of` gives them), an axis per fraction, smallest first."""
    # one order for all columns: an arm is on the same row at each fraction
    order = rows.groupby("name")["gain"].mean().sort_values().index.tolist()
    # zero is always in view, so that every dot stands on its side of it
    low, high = min(0.0, rows["gain_low"].min()), max(0.0, rows["gain_high"].max())
    room = 0.04 * (high - low)
    for ax, (fraction, part) in zip(axes, rows.groupby("data_frac"), strict=True):
        ax.axvspan(-MARGIN, MARGIN, color=GREY, alpha=0.12, lw=0)
        ax.axvline(0, color=GREY, lw=0.8)
        for row in part.to_dict("records"):
            place, colour = order.index(row["name"]), HINT if is_hint(row) else colour_of(row["method"])
            ax.plot([row["gain_low"], row["gain_high"]], [place, place], color=colour, lw=1.6, solid_capstyle="butt")
            face = colour if conclusion(row) in (BETTER, WORSE) else "white"
            ax.plot(row["gain"], place, "o", color=colour, markerfacecolor=face, markersize=5.5, markeredgewidth=1.4)
        ax.set_xlim(low - room, high + room)
        ax.set_ylim(-0.7, len(order) - 0.3)
        ax.set_yticks(range(len(order)), order if ax is axes[0] else [""] * len(order), fontsize=8)
        ax.tick_params(axis="y", length=0)
        ax.tick_params(axis="x", labelsize=8)
        ax.grid(axis="y", color=GREY, alpha=0.15, lw=0.6)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.set_title(percent(float(str(fraction))), loc="left", fontsize=9)
        ax.set_xlabel(f"gain in {short_label(rows)} over SFT", fontsize=8, color=GREY)
    return axes


def forest_figure(
    frame: pd.DataFrame, path: Path, metric: Metric | None = None, simultaneous: pd.DataFrame | None = None
) -> list[Path]:
    """Write `path`.png and `path`.svg, a row of columns per student, corpus and budget; nothing where there is no gain.

    Files are the same bytes for the same summary. Raises OSError where files cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metric = metric or (headline(frame) if len(frame) else None)
    rows = arms_of(frame, metric, simultaneous)
    if not len(rows):
        return []
    panels = [part for _, part in rows.groupby(PANEL[:3], dropna=False)]
    # names stand left of the first column, inches a letter
    aside = 0.3 + max(max(0.068 * len(name), inches(name, 8)) for name in rows["name"].unique())
    columns = max(part["data_frac"].nunique() for part in panels)
    # few columns grow wider, until title and note have room
    wide = max(2.3, (LEAST_WIDTH - aside - 0.3) / columns)
    width = aside + wide * columns + 0.3
    heads = [wrapped(subtitle(part), width - 0.3, 8.5, 0.0715) for part in panels]
    above = [0.88 + 0.15 * (len(lines) - 1) for lines in heads]
    # inches: room for title and note, and a row for each arm
    heights = [0.62 + room + 0.24 * part["name"].nunique() for room, part in zip(above, panels, strict=True)]
    figure = Figure(figsize=(width, sum(heights)), facecolor="white")
    FigureCanvasAgg(figure)
    parts = figure.subfigures(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, shown, height, lines, room in zip(parts, panels, heights, heads, above, strict=True):
        count = shown["data_frac"].nunique()
        box = (wide - 0.25) / width, 1 - (0.62 + room) / height
        axes = [part.add_axes(((aside + wide * number) / width, 0.62 / height, *box)) for number in range(count)]
        forest(shown, axes)
        part.text(0.12 / width, 1 - 0.28 / height, title(metric, "by method"), fontsize=12, weight="bold", va="center")
        part.text(0.12 / width, 1 - 0.46 / height, "\n".join(lines), fontsize=8.5, color=GREY, va="top")
        covers = shown["gain_covers"].iloc[0]
        # simultaneous p values hold for all arms already, so Holm is not named with them
        kind = ("simultaneous 95 % intervals", "") if shown["at_once"].all() else ("95 % intervals", " after Holm")
        note = f"{kind[0]} over {covers}; filled: differs from zero{kind[1]}; band: margin of equality, {MARGIN:g}"
        note += f"; {HINTS}" if shown.apply(is_hint, axis=1).any() else ""
        part.text(0.12 / width, 0.10 / height, note, fontsize=7.5, color=GREY, va="bottom")
    return save(figure, path)
