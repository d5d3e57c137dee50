"""Teacher gap: the gain of a student against how far its teacher is ahead of fine-tuning.

gap_figure(gap_lines(records, metric), metric, Path("results/gap"))
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from analysis.colours import colour_of
from analysis.labels import GREY
from analysis.plots import save
from analysis.sheet import dress, sheet
from harness.arms import Metric
from harness.table import percent
from harness.teacher_gap import GapLine

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def gap(line: GapLine, ax: "Axes") -> "Axes":
    """Gain with interval against the teacher's score less SFT's; a thin line where a slope could be fitted."""
    lead = line.scores - line.sft
    colour = colour_of(line.names["method"])
    ax.axhline(0, color="#404040", lw=1)
    ax.axvline(0, color=GREY, lw=0.8, linestyle=(0, (1, 2)))
    for x, found, name in zip(lead, line.gains, line.teachers, strict=True):
        ax.plot([x, x], [found.low, found.high], color=colour, lw=1.2)
        ax.plot(x, found.estimate, "o", color=colour, markersize=5.5)
        ax.annotate(
            name, (x, found.high), xytext=(0, 3), textcoords="offset points", fontsize=7.5, color=GREY, ha="center"
        )
    heading = f"{line.names['method']}, {percent(line.names['data_frac'])} of the data"
    if line.slope is not None:
        middle = np.mean([one.estimate for one in line.gains])
        ends = np.array([lead.min(), lead.max()])
        ax.plot(ends, middle + line.slope.estimate * (ends - lead.mean()), color=colour, lw=0.9, alpha=0.6)
        told = f"{line.slope.estimate:+.2f} [{line.slope.low:+.2f}, {line.slope.high:+.2f}] per point of lead"
        ax.text(0.02, 0.02, told, transform=ax.transAxes, fontsize=8, color=colour, va="bottom")
    ax.margins(x=0.12, y=0.16)
    dress(ax, heading, "teacher's score minus SFT's", "gain over SFT")
    return ax


def gap_figure(lines: Sequence[GapLine], metric: Metric, path: Path) -> list[Path]:
    """Write `path`.png and `path`.svg, a panel per line of three teachers or more; nothing where there is none."""
    shown = [line for line in lines if line.slope is not None][:4]
    if not shown:
        return []
    first = shown[0].names
    told = f"student {first['student']}  ·  {first['corpus']}  ·  {first['budget']}  ·  {metric.eval} {metric.metric}"
    note = (
        "Bars: 95 % intervals over seeds and items, for these teachers. Slopes are fitted on one half of the items "
        "against the teachers' scores on the other, so that the noise they share makes none."
    )
    figure, axes = sheet(len(shown), "Does the gain follow the teacher's lead?", told, note)
    low = high = 0.0
    for ax, line in zip(axes, shown, strict=True):
        gap(line, ax)
        low, high = min(low, ax.get_ylim()[0]), max(high, ax.get_ylim()[1])
    for ax in axes:
        ax.set_ylim(low, high)
    return save(figure, path)
