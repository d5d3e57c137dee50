"""A setting's curve: the score against one numeric setting of a method (ratio, temperature, share), at each fraction.

setting_figure(summary(records), Path("results/ratio"))     # finds the setting that varies most
"""

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from harness.methods import load_method
from harness.report.figures.labels import GREY, HINT, SPARE, name_ends, short_label, subtitle
from harness.report.figures.panels import dress, largest_panel, panel_figure
from harness.report.figures.plots import PANEL, save
from harness.results.arms import Metric
from harness.results.conclusion import is_hint
from harness.results.table import headline, percent, select

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEAST = 3
"""Values of a setting below which there is no curve."""


def settings_of(method: str) -> dict[str, str]:
    """What a method's label says in brackets: `logit_kd[divergence_temperature=4.0]`."""
    return dict(pair.split("=", 1) for pair in re.findall(r"[\w.]+=[^,\]]+", method.partition("[")[2]))


def along(rows: pd.DataFrame) -> tuple[str, str, pd.DataFrame] | None:
    """The method and setting with most numeric values among labels that vary in it alone, and its rows with `x`.

    Raises SettingsError for a method that this version does not have.
    """
    found: Counter[tuple[str, str]] = Counter()
    for label in rows["method"].unique():
        told = settings_of(label)
        # where two settings vary at once, a curve along one would mix in the other
        if len(told) == 1:
            (name, value), method = next(iter(told.items())), label.partition("[")[0]
            found[method, name] += _number(value) is not None
    if not found:
        return None
    (method, name), _ = found.most_common(1)[0]
    # a label without brackets is the method with its default, which is a point of the curve too
    default = _number(str(getattr(load_method(method)(), name, None)))
    x = [
        default
        if label == method
        else _number(settings_of(label).get(name, ""))
        if label.startswith(f"{method}[")
        else None
        for label in rows["method"]
    ]
    chosen = rows.assign(x=pd.Series(x, rows.index, dtype=float)).dropna(subset=["x"])
    return (method, name, chosen) if chosen["x"].nunique() >= LEAST else None


def setting(rows: pd.DataFrame, ax: "Axes", column: str = "score") -> "Axes":
    """Score or gain with 95 % intervals against `x`, a line per data fraction."""
    ends = []
    for number, (fraction, part) in enumerate(rows.groupby("data_frac")):
        part, colour = part.sort_values("x"), SPARE[number % len(SPARE)]
        # a gain of one seed is a hint, and has no colour
        hint = column == "gain" and part.apply(is_hint, axis=1).any()
        colour = HINT if hint else colour
        face = "white" if hint else colour
        ax.plot(part["x"], part[column], "o-", color=colour, markersize=5, lw=1.5, markerfacecolor=face)
        ax.vlines(part["x"], part[f"{column}_low"], part[f"{column}_high"], color=colour, lw=1.1)
        ends.append((part["x"].iloc[-1], part[column].iloc[-1], percent(float(str(fraction))), colour))
    # a value of 0, such as no share at all, has no place on a log axis
    if rows["x"].min() > 0:
        ax.set_xscale("log")
    values = sorted(rows["x"].unique())
    ax.set_xticks(values, [f"{value:g}" for value in values])
    ax.minorticks_off()
    ax.margins(x=0.08, y=0.14)
    if rows["data_frac"].nunique() > 1:
        name_ends(ax, ends)
    return ax


def setting_figure(frame: pd.DataFrame, path: Path, metric: Metric | None = None) -> list[Path]:
    """Write `path`.png and `path`.svg with score and gain; nothing where no setting has three values.

    Raises SettingsError as `along` does, OSError where files cannot be written.
    """
    metric = metric or (headline(frame) if len(frame) else None)
    if metric is None:
        return []
    rows = select(frame, metric)
    rows = rows[(rows["role"] == "student") & rows["score"].notna()]
    found = along(rows) if len(rows) else None
    if found is None:
        return []
    method, name, chosen = found
    chosen = largest_panel(chosen)
    # SFT of the same panel, for the rules
    rows = rows[(rows[PANEL] == chosen[PANEL].iloc[0]).all(axis=1)]
    note = "Bars: 95 % intervals. Dotted: fine-tuning on the same rows."
    figure, axes = panel_figure(2, f"{method} by {name.replace('_', ' ')}", subtitle(chosen), note, aside=0.75)
    across = name.replace("_", " ")
    setting(chosen, axes[0])
    for _, part in rows[rows["method"] == "sft"].groupby("data_frac"):
        axes[0].axhline(part["score"].iloc[0], color=GREY, lw=0.9, linestyle=(0, (1, 2)))
    dress(axes[0], "Score", across, f"{metric.eval} {metric.metric}")
    setting(chosen[chosen["gain"].notna()], axes[1], "gain")
    axes[1].axhline(0, color="#404040", lw=1)
    gained = chosen[chosen["gain"].notna()]
    hints = " (hint: one seed)" if len(gained) and gained.apply(is_hint, axis=1).all() else ""
    dress(axes[1], f"Gain over SFT{hints}", across, f"{short_label(rows)}, method minus SFT")
    return save(figure, path)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
