"""Training curves: the likelihood of the rows an arm trains on, step by step.

A thin line is a seed, a thick one their mean.

training_figure(harness.results.records("data_scaling"), Path("results/training"))
"""

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from harness.report.figures.labels import colour_of, name_ends
from harness.report.figures.panels import dress, panel_figure
from harness.report.figures.plots import names_of, save
from harness.results.table import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WINDOW = 15
"""Steps over which a line is averaged."""


def training(rows: pd.DataFrame, ax: "Axes") -> "Axes":
    """NLL per token of given rows against the step, of one student, corpus, budget and fraction."""
    rows = rows.assign(teacher=rows["teacher"].fillna(""))
    names, ends = names_of(dict.fromkeys(zip(rows["method"], rows["teacher"], strict=True))), []
    for (method, teacher), part in rows.groupby(["method", "teacher"], sort=False):
        colour, lines = colour_of(str(method)), []
        for _, one in part.groupby(["world_seed", "seed"]):
            # steps differ by their rows, which the mean evens out; a centred window does not move the curve sideways
            line = one.groupby("step")["nll"].mean().rolling(WINDOW, min_periods=1, center=True).mean()
            ax.plot(line.index, line, color=colour, lw=0.6, alpha=0.35)
            lines.append(line)
        # by step: seeds may have logged different ones
        mean = pd.concat(lines, axis=1).sort_index().mean(axis=1)
        ax.plot(mean.index, mean, color=colour, lw=1.8)
        ends.append((mean.index[-1], mean.iloc[-1], names[str(method), str(teacher)], colour))
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("")
    name_ends(ax, ends)
    return ax


def training_figure(frame: pd.DataFrame, path: Path) -> list[Path]:
    """Write `path`.png and `path`.svg at the first and last fraction of the largest panel; nothing without a log.

    Raises OSError where files cannot be written.
    """
    # the NLL of text that a student generated is not of the data's rows
    rows = frame[frame["sequences"] == "given"] if "sequences" in frame else frame.iloc[:0]
    rows = rows[rows["nll"].notna()]
    if rows.empty:
        return []
    groups = ["student", "corpus", "budget"]
    panel = rows.groupby(groups).size().idxmax()
    rows = rows[(rows[groups] == pd.Series(panel, groups)).all(axis=1)]
    fractions = sorted(rows["data_frac"].unique())
    shown = fractions if len(fractions) < 3 else [fractions[0], fractions[-1]]
    names = names_of(dict.fromkeys(zip(rows["method"], rows["teacher"].fillna(""), strict=True)))
    note = (
        f"NLL of each step's own rows, against the data's labels, mean over {WINDOW} steps; steps on student-generated "
        "sequences are left out. Thin: a seed. Lower is not better where the labels are wrong."
    )
    first = rows.iloc[0]
    told = f"student {first['student']}  ·  {first['corpus']}  ·  {first['budget']}"
    aside = 0.35 + 0.075 * max(map(len, names.values()))
    figure, axes = panel_figure(len(shown), "Training", told, note, (4.9, 4.2), aside)
    for ax, fraction in zip(axes, shown, strict=True):
        training(rows[rows["data_frac"] == fraction], ax)
        dress(ax, f"{percent(fraction)} of the data", "step", "NLL per token, log scale")
    return save(figure, path)
