"""Gain by source: where in the data a method is better than SFT, a row per source and a column per fraction.

source_figure(gains_by_source(outcome.records, outcome.load_items, metric), Path("results/sources"))
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness.evals import ALL
from harness.plan.metrics import MACRO_AVERAGE
from harness.report.figures.labels import (
    GREY,
    HINT,
    colour_of,
    figure_names,
    in_lines,
    inches,
    short_label,
    subtitle,
)
from harness.report.figures.panels import dress, largest_panel, panel_figure
from harness.report.figures.plots import names_of, save
from harness.results.arms import Metric, metrics_of
from harness.results.conclusion import is_hint
from harness.results.items import LoadItems
from harness.results.paired_gains import MARGIN
from harness.results.records import Record
from harness.results.table import percent, summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LETTERS = 8
"""Points of the letters that name a source."""
MOST = 3
"""Most arms in a panel; more would overlap."""


def gains_by_source(records: Sequence[Record], load_items: LoadItems, metric: Metric) -> pd.DataFrame:
    """The rows of `table.summary` for every source of one evaluation and metric, with a gain; the sources of a
    macro-average are its benchmarks.

    Raises as `summary` does.
    """
    # canary facts are in no training data, so a gain on them does not come from the data
    wanted = [one for one in metrics_of(records) if one[:2] == metric[:2] and one.source not in (ALL, "canary")]
    frame = summary(records, load_items, None, wanted)
    return frame[frame["headline"] & frame["gain"].notna()] if len(frame) and "gain" in frame else frame.iloc[:0]


def sources(rows: pd.DataFrame, ax: "Axes", order: Sequence[str], labels: Sequence[str]) -> "Axes":
    """Gains with 95 % intervals of up to three arms at one fraction, a row per source; `labels` name the rows."""
    arms = list(dict.fromkeys(zip(rows["method"], rows["teacher"].fillna(""), strict=True)))[:MOST]
    names = names_of(dict.fromkeys(arms))
    ax.axvspan(-MARGIN, MARGIN, color=GREY, alpha=0.12, lw=0)
    ax.axvline(0, color=GREY, lw=0.8)
    for number, (method, teacher) in enumerate(arms):
        part = rows[(rows["method"] == method) & (rows["teacher"].fillna("") == teacher)].set_index("source")
        # arms of one source stand above one another, centred on its row
        place = [order.index(source) + 0.22 * (number - (len(arms) - 1) / 2) for source in part.index]
        hint = part.apply(is_hint, axis=1).any()
        style: dict[str, Any] = {"color": HINT if hint else colour_of(method)}
        ax.hlines(place, part["gain_low"], part["gain_high"], lw=1.3, **style)
        face = "white" if number % 2 or hint else style["color"]
        ax.plot(
            part["gain"],
            place,
            "o^s"[number],
            markersize=4.8,
            markerfacecolor=face,
            label=names[method, teacher],
            **style,
        )
    ax.set_yticks(range(len(order)), list(labels), fontsize=LETTERS)
    ax.set_ylim(-0.6, len(order) - 0.4)
    dress(ax, "", f"{short_label(rows)}, method minus SFT", "")
    ax.grid(axis="x", visible=False)
    return ax


def source_figure(rows: pd.DataFrame, path: Path) -> list[Path]:
    """Write `path`.png and `path`.svg of `gains_by_source` at the first and last fraction; nothing where there are not
    two sources. Raises OSError where files cannot be written."""
    if rows.empty or rows["source"].nunique() < 2:
        return []
    rows = largest_panel(rows)
    taught = rows[rows["teacher"].notna()]
    rows = taught if len(taught) else rows  # controls without a teacher are in the other figures
    # the arms with the largest mean gain, since a panel has room for three
    strength = rows.groupby(["method", rows["teacher"].fillna("")])["gain"].mean().sort_values(ascending=False)
    kept = list(strength.index[:MOST])
    rows = rows[[key in kept for key in zip(rows["method"], rows["teacher"].fillna(""), strict=True)]]
    fractions = sorted(rows["data_frac"].dropna().unique())
    shown = fractions if len(fractions) < 3 else [fractions[0], fractions[-1]]
    # one order for all panels, so that a source is on the same line in each
    order = rows.groupby("source")["gain"].mean().sort_values().index.tolist()
    note = "Bars: 95 % intervals, not adjusted for the number of sources, so exploratory. "
    note += f"Band: margin of equality, {MARGIN:g}."
    note += " Grey: hints (one seed)." if rows.apply(is_hint, axis=1).any() else ""
    labels = [in_lines(name, LETTERS) for name in figure_names(order).values()]
    lines = max(label.count("\n") + 1 for label in labels)
    widest = max(inches(line, LETTERS) for label in labels for line in label.split("\n"))
    height = 2.1 + (0.3 if lines == 1 else 0.15 * lines + 0.06) * len(order)
    heading = f"Gain over SFT by {'benchmark' if (rows['eval'] == MACRO_AVERAGE).all() else 'source'}"
    # sources are named left of the first panel alone
    size, before = (3.6, height), 0.3 + widest
    figure, axes = panel_figure(len(shown), heading, subtitle(rows), note, size, 0.15, before)
    for ax, fraction in zip(axes, shown, strict=True):
        sources(rows[rows["data_frac"] == fraction], ax, order, labels if ax is axes[0] else [""] * len(order))
        ax.set_title(f"{percent(fraction)} of the data", loc="left", fontsize=9.5)
    # an arm may lack a fraction; the panel with most arms explains them all
    fullest = max(axes, key=lambda ax: len(ax.get_legend_handles_labels()[1]))
    fullest.legend(fontsize=7.5, frameon=False, loc="lower right", handletextpad=0.3)
    # one scale, so that lengths can be compared between panels
    low, high = min(ax.get_xlim()[0] for ax in axes), max(ax.get_xlim()[1] for ax in axes)
    for ax in axes:
        ax.set_xlim(low, high)
    return save(figure, path)
