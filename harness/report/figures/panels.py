"""Panels: a figure of panels side by side under a title, with a note that says what its bars and bands are.

The look that all figures of the study share; `plots.py` and `forest.py` lay out their own.

    figure, axes = panel_figure(2, "Cost and quality", "student mini", "95 % intervals")
"""

import textwrap
from typing import TYPE_CHECKING

import pandas as pd

from harness.report.figures.labels import GREY, wrapped
from harness.report.figures.plots import PANEL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAST_PANEL = 1.2
"""Inches that a panel has at least between its axes, however long the names beside it are."""
LETTER = 0.062
"""Inches a letter of the note takes."""


BEFORE = 0.72
"""Inches left of a panel, for its scale."""


def panel_figure(
    panels: int,
    title: str,
    subtitle: str,
    note: str,
    size: tuple[float, float] = (4.7, 4.2),
    aside: float = 0.25,
    before: float = BEFORE,
) -> "tuple[Figure, list[Axes]]":
    """A figure and its axes; `size` of a panel, `aside`, the room right of it for names, and `before`, the room left of
    the first for the names of its rows, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # long names take room of their own, not the panel's
    size = (max(size[0], BEFORE + aside + LEAST_PANEL), size[1])
    more = max(0.0, before - BEFORE)
    width, height = more + panels * size[0], size[1]
    figure = Figure(figsize=(width, height), facecolor="white")
    # without pyplot, which keeps every figure in a global and picks a backend by the display
    FigureCanvasAgg(figure)
    # heights follow from the wrapped lines, so that no note runs into an axis and no head takes a panel's room
    lines = textwrap.wrap(note, int((width - 0.3) / LETTER))
    heads = wrapped(subtitle, width - 0.3, 8.5, 1.15 * LETTER)
    under, above = 0.66 + 0.14 * len(lines), 0.85 + 0.15 * len(heads)
    axes = [
        figure.add_axes(
            (
                (more + number * size[0] + BEFORE) / width,
                under / height,
                (size[0] - BEFORE - aside) / width,
                (height - under - above) / height,
            )
        )
        for number in range(panels)
    ]
    figure.text(0.12 / width, 1 - 0.28 / height, title, fontsize=12, weight="bold", va="center")
    figure.text(0.12 / width, 1 - 0.46 / height, "\n".join(heads), fontsize=8.5, color=GREY, va="top")
    figure.text(0.12 / width, 0.07 / height, "\n".join(lines), fontsize=7.5, color=GREY, va="bottom")
    return figure, axes


def dress(ax: "Axes", heading: str, across: str, up: str) -> None:
    """Headings, thin spines, a light grid."""
    ax.set_title(heading, loc="left", fontsize=9.5)
    ax.set_xlabel(across, fontsize=8.5, color=GREY)
    ax.set_ylabel(up, fontsize=8.5, color=GREY)
    ax.tick_params(labelsize=8, length=3, color=GREY)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#A6A6A6")
    ax.grid(axis="y", color="#EBEBEB", linewidth=0.7)
    ax.set_axisbelow(True)


def largest_panel(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the student, corpus and budget that has most of them; figures of one panel show that."""
    sizes = rows.groupby(PANEL, dropna=False, sort=False)["score"].transform("size")
    # of panels of one size, the first in the table
    first = rows[sizes == sizes.max()].iloc[0]
    return rows[(rows[PANEL] == first[PANEL]).all(axis=1)]
