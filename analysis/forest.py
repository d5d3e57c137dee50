"""The forest plot: many methods side by side, which lines through a few fractions cannot show.

A column per data fraction, a row per arm in the order of its mean gain. A dot is the gain over SFT on the same seeds
and items with its 95 % interval, filled where it is other than zero after Holm; the band is what counts as equal.

    forest_figure(summary(records), Path("results/methods"))
"""

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from analysis.colours import colour_of
from analysis.labels import GREY, subtitle, title
from analysis.plots import PANEL, names_of, save
from harness.arms import Metric
from harness.gains import MARGIN
from harness.table import headline, percent, select

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MANY = 8
"""With more arms than this, a figure of lines is not readable."""
ALPHA = 0.05


def arms_of(frame: pd.DataFrame, metric: Metric | None) -> pd.DataFrame:
    """Rows with a gain, one per arm and fraction, with the arm's `name`: the teacher where there are several."""
    if metric is None:
        return frame.iloc[:0].assign(name="")
    rows = select(frame, metric)
    rows = rows[(rows["role"] == "student") & rows["gain"].notna() & rows["data_frac"].notna()].copy()
    arms = list(zip(rows["method"], rows["teacher"].fillna(""), strict=True))
    names = names_of(dict.fromkeys(arms))
    rows["name"] = [names[arm] for arm in arms]
    return rows


def forest(rows: pd.DataFrame, axes: "list[Axes]") -> "list[Axes]":
    """Draw one student, corpus and budget (rows as `arms_of` gives them), an axis per fraction, smallest first."""
    order = rows.groupby("name")["gain"].mean().sort_values().index.tolist()
    low, high = min(0.0, rows["gain_low"].min()), max(0.0, rows["gain_high"].max())
    room = 0.04 * (high - low)
    for ax, (fraction, part) in zip(axes, rows.groupby("data_frac"), strict=True):
        ax.axvspan(-MARGIN, MARGIN, color=GREY, alpha=0.12, lw=0)
        ax.axvline(0, color=GREY, lw=0.8)
        for row in part.to_dict("records"):
            place, colour = order.index(row["name"]), colour_of(row["method"])
            ax.plot([row["gain_low"], row["gain_high"]], [place, place], color=colour, lw=1.6, solid_capstyle="butt")
            face = colour if row["gain_p_holm"] < ALPHA else "white"
            ax.plot(row["gain"], place, "o", color=colour, markerfacecolor=face, markersize=5.5, markeredgewidth=1.4)
        ax.set_xlim(low - room, high + room)
        ax.set_ylim(-0.7, len(order) - 0.3)
        ax.set_yticks(range(len(order)), order if ax is axes[0] else [""] * len(order), fontsize=8)
        ax.tick_params(axis="y", length=0)
        ax.tick_params(axis="x", labelsize=8)
        ax.grid(axis="y", color=GREY, alpha=0.15, lw=0.6)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.set_title(percent(float(str(fraction))), loc="left", fontsize=9)
        ax.set_xlabel("method minus SFT", fontsize=8, color=GREY)
    return axes


def forest_figure(frame: pd.DataFrame, path: Path, metric: Metric | None = None) -> list[Path]:
    """Write `path`.png and `path`.svg, a row of columns per student, corpus and budget; nothing where there is no gain.

    Files are the same bytes for the same summary.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metric = metric or (headline(frame) if len(frame) else None)
    rows = arms_of(frame, metric)
    if not len(rows):
        return []
    panels = [part for _, part in rows.groupby(PANEL[:3], dropna=False)]
    aside = 0.3 + 0.068 * rows["name"].str.len().max()  # names stand left of the first column, inches a letter
    columns = max(part["data_frac"].nunique() for part in panels)
    heights = [1.5 + 0.24 * part["name"].nunique() for part in panels]
    width = aside + 2.3 * columns + 0.3
    figure = Figure(figsize=(width, sum(heights)), facecolor="white")
    FigureCanvasAgg(figure)
    parts = figure.subfigures(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, shown, height in zip(parts, panels, heights, strict=True):
        count = shown["data_frac"].nunique()
        boxes = [(aside + 2.3 * number, 2.05) for number in range(count)]
        axes = [part.add_axes((left / width, 0.62 / height, wide / width, 1 - 1.5 / height)) for left, wide in boxes]
        forest(shown, axes)
        part.text(0.12 / width, 1 - 0.28 / height, title(metric), fontsize=12, weight="bold", va="center")
        part.text(0.12 / width, 1 - 0.55 / height, subtitle(shown), fontsize=8.5, color=GREY, va="center")
        covers = shown["gain_covers"].iloc[0]
        note = f"95 % intervals over {covers}; filled: not zero after Holm; band: within {MARGIN:g}"
        part.text(0.12 / width, 0.10 / height, note, fontsize=7.5, color=GREY, va="bottom")
    return save(figure, path)
