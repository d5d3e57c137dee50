"""Scaling: score against the logarithm of the data, a fit per method with bands for the mean and a new replicate.

scaling_figure(scalings(outcome.records, metric), metric, Path("results/scaling"))
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.report.figures.labels import colour_of, name_ends
from harness.report.figures.panels import dress, panel_figure
from harness.report.figures.plots import names_of, save
from harness.results.arms import Arm, Metric
from harness.results.scaling import Scaling
from harness.results.table import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 80


def scaling(fits: Mapping[Arm, Scaling], ax: "Axes") -> "Axes":
    """Each arm's fit over the fractions: a band for the mean, dotted lines for one more replicate or seed."""
    names = names_of(dict.fromkeys((arm.method, arm.teacher or "") for arm in fits))
    ends, ticks = [], sorted({float(f) for fit in fits.values() for f in fit.fractions})
    for arm, fit in fits.items():
        # within the range that was run: a fit refuses to extrapolate
        x = np.geomspace(fit.fractions[0], fit.fractions[-1], POINTS)
        band, colour = fit.at(x), colour_of(arm.method)
        ax.fill_between(x, band.low, band.high, color=colour, alpha=0.16, lw=0)
        # NaN where one seed gives no spread; then matplotlib draws nothing
        for edge in (band.new_low, band.new_high):
            ax.plot(x, edge, color=colour, lw=0.8, alpha=0.7, linestyle=(0, (1, 2)))
        ax.plot(x, band.mean, color=colour, lw=1.6)
        ax.plot(fit.fractions, fit.measured.mean, "o", color=colour, markersize=5)
        ends.append((x[-1], band.mean[-1], names[arm.method, arm.teacher or ""], colour))
    ax.set_xscale("log")
    ax.set_xticks(ticks, [percent(tick) for tick in ticks])
    # ticks at fractions that were run, and nowhere else
    ax.minorticks_off()
    name_ends(ax, ends)
    return ax


def scaling_figure(fits: Mapping[Arm, Scaling], metric: Metric, path: Path) -> list[Path]:
    """Write `path`.png and `path`.svg for the student, corpus and budget with most fits; nothing without one.

    Raises OSError where files cannot be written.
    """
    panels: dict[tuple[str, ...], dict[Arm, Scaling]] = {}
    for arm, fit in fits.items():
        panels.setdefault((arm.student, arm.corpus, arm.budget), {})[arm] = fit
    if not panels:
        return []
    names, shown = max(panels.items(), key=lambda panel: len(panel[1]))
    note = (
        "Band: 95 % interval of the mean. Dotted: 95 % prediction interval for one more replicate (own corpus and "
        "teacher), or for one more seed where there is one replicate. Fitted per replicate: a parabola from five "
        "fractions on, else a line."
    )
    longest = max(len(arm.method) + len(arm.teacher or "") for arm in shown)
    told = f"student {names[0]}  ·  {names[1]}  ·  {names[2]}"
    figure, (ax,) = panel_figure(1, "How the score grows with the data", told, note, (6.4, 4.6), 0.5 + 0.075 * longest)
    scaling(shown, ax)
    dress(ax, "", "share of the training data (log scale)", f"{metric.eval} {metric.metric}")
    return save(figure, path)
