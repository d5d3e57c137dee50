"""Teacher gap: the gain of a student against how far its teacher is ahead of fine-tuning.

gap_figure(gap_lines(records, metric), metric, Path("results/gap"))
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.report.figures.labels import GREY, HINT, colour_of
from harness.report.figures.panels import dress, panel_figure
from harness.report.figures.plots import save
from harness.results.arms import Metric
from harness.results.table import percent
from harness.results.teacher_gap import GapLine

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = 7.5
"""Points, of a teacher's name."""
LETTER, HEIGHT = 4.5, 9.0
"""Points that a letter of it takes, and a line."""


def gap(line: GapLine, ax: "Axes") -> "Axes":
    """Gain with interval against the teacher's score less SFT's; a thin line where a slope could be fitted."""
    lead = line.scores - line.sft
    hint = all(found.excludes_seed_variance for found in line.gains)
    colour = HINT if hint else colour_of(line.names["method"])
    ax.axhline(0, color="#404040", lw=1)
    ax.axvline(0, color=GREY, lw=0.8, linestyle=(0, (1, 2)))
    for x, found in zip(lead, line.gains, strict=True):
        ax.plot([x, x], [found.low, found.high], color=colour, lw=1.2)
        ax.plot(x, found.estimate, "o", color=colour, markersize=5.5)
    heading = f"{line.names['method']}, {percent(line.names['data_frac'])} of the data"
    if line.slope is not None:
        # the line goes through the mean of the points, as a least-squares fit does
        middle = np.mean([one.estimate for one in line.gains])
        ends = np.array([lead.min(), lead.max()])
        ax.plot(ends, middle + line.slope.estimate * (ends - lead.mean()), color=colour, lw=0.9, alpha=0.6)
        told = f"{line.slope.estimate:+.2f} [{line.slope.low:+.2f}, {line.slope.high:+.2f}] per point of lead"
        told = f"hint: {told} (one seed)" if hint else told
        ax.text(0.02, 0.02, told, transform=ax.transAxes, fontsize=8, color=colour, va="bottom")
    ax.margins(x=0.12, y=0.16)
    dress(ax, heading, "teacher's score minus SFT's", "gain over SFT")
    return ax


def name_teachers(line: GapLine, ax: "Axes") -> None:
    """Each teacher's name above its bar, aside or higher where neighbours are; limits of the axes are settled."""
    lead, tops = line.scores - line.sft, [one.high for one in line.gains]
    # in points on the page, (T, 2), because letters have their size there
    bars = ax.transData.transform(np.column_stack([lead, tops])) * 72 / ax.figure.dpi
    widths = LETTER * np.array([len(name) for name in line.teachers])
    apart = bars[:, 0] - bars[:, :1]  # (T, T): how far right of a bar the others are
    # whether another bar stands where the name would reach, on either side
    right, left = (((way > 0) & (way < widths[:, None])).any(1) for way in (apart, -apart))
    shares = 0.5 + 0.5 * (right.astype(float) - left)  # of a name that lies left of its bar
    taken: list[tuple[float, float, float]] = []
    # names that have to lie aside are placed first; those in the middle find room around them
    for number in np.argsort(shares == 0.5, kind="stable"):
        (across, top), width, share = bars[number], widths[number], shares[number]
        start, end = across - share * width, across + (1 - share) * width
        # above every bar that the name spans, then a line higher for each name that is in its way
        place = bars[(start - 2 < bars[:, 0]) & (bars[:, 0] < end + 2), 1].max() + 3
        while any(start < other and one < end and abs(place - height) < HEIGHT for one, other, height in taken):
            place += HEIGHT
        taken.append((start, end, place))
        moved = {"arrowstyle": "-", "color": GREY, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 1, "relpos": (share, 0)}
        ax.annotate(
            line.teachers[number],
            (lead[number], tops[number]),
            xytext=(0, place - top),
            textcoords="offset points",
            fontsize=SIZE,
            color=GREY,
            ha=("left", "center", "right")[int(2 * share)],
            arrowprops=moved if place > top + 4 else None,
        )


def gap_figure(lines: Sequence[GapLine], metric: Metric, path: Path) -> list[Path]:
    """Write `path`.png and `path`.svg, a panel per line of three teachers or more; nothing where there is none.

    Raises OSError where files cannot be written.
    """
    shown = [line for line in lines if line.slope is not None][:4]
    if not shown:
        return []
    first = shown[0].names
    told = f"student {first['student']}  ·  {first['corpus']}  ·  {first['budget']}  ·  {metric.eval} {metric.metric}"
    note = (
        "Bars: 95 % intervals over seeds and items, for these teachers. Each slope relates gains on one half of the "
        "items to the teachers' scores on the other half, so that their shared noise makes no slope."
    )
    figure, axes = panel_figure(len(shown), "Does the gain follow the teacher's lead?", told, note)
    # one scale for all panels; names are placed when it is settled, since it moves the bars
    low = high = 0.0
    for ax, line in zip(axes, shown, strict=True):
        gap(line, ax)
        low, high = min(low, ax.get_ylim()[0]), max(high, ax.get_ylim()[1])
    for ax, line in zip(axes, shown, strict=True):
        ax.set_ylim(low, high)
        name_teachers(line, ax)
    return save(figure, path)
