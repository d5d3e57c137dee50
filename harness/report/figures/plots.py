"""Plots of a summary (`harness.results.table.summary`): a DataFrame and axes go in, the axes come back.

Left, score against the data fraction; right, gain over SFT with its 95 % band and the confidence set for the crossover
as a bar under the zero line. A method keeps its colour in every figure, teachers differ by marker and dash; lines are
named at their ends. One seed has dashed bars, and the note says that they exclude seed variance. Its gain is a hint:
grey, with open markers, and without a set for the crossover.

    crossover_figure(summary(records), Path("results/crossover"), crossovers(records, metric))
"""

import textwrap
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.report.figures.labels import (
    COLOURS,
    GREY,
    HINT,
    SPARE,
    figure_names,
    inches,
    name_ends,
    name_references,
    short_label,
    subtitle,
    teacher_name,
    title,
    wrapped,
)
from harness.results.arms import Arm, Metric
from harness.results.conclusion import one_seed
from harness.results.stats.crossover import Crossover
from harness.results.table import headline, percent, select
from harness.store.store import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES: tuple[Any, ...] = ("solid", (0, (5, 1.8)), (0, (1.2, 1.4)), (0, (6, 1.5, 1.2, 1.5)))
PANEL = ["student", "corpus", "budget", "variant"]
NAMED = 2  # shares at the axis; the others are in the warnings of their records
OFF_BY = 0.1  # a realised share further from the fraction, relative to it, stands at the axis
_SAVING = threading.Lock()  # the SVG salt is a global of matplotlib


def crossover_figure(
    frame: pd.DataFrame,
    path: Path,
    crossovers: Mapping[Arm, Crossover] | None = None,
    metric: Metric | None = None,
    size: tuple[float, float] = (10.0, 4.6),
) -> list[Path]:
    """Write the crossover figure as `path`.png and `path`.svg, with a row per student, corpus and budget on one scale.

    `size` is in inches, of a row; it grows wider where long names need it. Files are the same bytes for the
    same summary. Without any score the figure says so. Raises OSError where files cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metric = metric or (headline(frame) if len(frame) else None)
    rows = select(frame, metric) if len(frame) else frame
    students = rows[(rows["role"] == "student") & rows["score"].notna()] if len(rows) else rows
    panels = list(students.groupby(PANEL, dropna=False).groups) if len(students) else []
    # names stand right of each panel, about 0.072 inch a letter
    curves = list(rows.loc[(rows["role"] == "teacher") & rows["data_frac"].notna(), "teacher"]) if panels else []
    named = [*names_of(_lines(students)).values(), *map(teacher_name, curves)] if panels else []
    aside = 0.35 + max((max(0.072 * len(name), inches(name, 8.5)) for name in named), default=0)
    width, height = max(size[0], 2 * (0.75 + 2.0 + aside)), size[1]
    figure = Figure(figsize=(width, height * max(1, len(panels))), facecolor="white")
    FigureCanvasAgg(figure)
    parts = figure.subfigures(max(1, len(panels)), 1, squeeze=False)[:, 0]
    for part, names in zip(parts, panels, strict=False):
        shown = rows[_of_panel(rows, names)]
        note = textwrap.wrap(footnote(shown, crossovers), int((width - 1) / 0.058))  # inches a letter
        heads = wrapped(subtitle(shown), width - 1, 8.5, 0.0715)
        under, above = 0.62 + 0.14 * (len(note) - 1), 1 + 0.15 * (len(heads) - 1)
        panel = (width / 2 - 0.75 - aside) / width, 1 - (above + under) / height
        left = 0.75 / width
        axes = [part.add_axes((left + half, under / height, *panel)) for half in (0, 0.5)]
        for ax, column in zip(axes, ("score", "gain"), strict=True):
            # one scale for all panels: the limits take in the ends of all rows, shown here or not
            ends = rows[[column, f"{column}_low", f"{column}_high"]].stack()
            ax.update_datalim([(1, y) for y in (ends.min(), ends.max()) if np.isfinite(y)], updatex=False)
        crossover(shown, axes[0], axes[1], crossovers)
        part.text(left, 1 - 0.30 / height, title(metric), fontsize=12, weight="bold", va="center")
        part.text(left, 1 - 0.50 / height, "\n".join(heads), fontsize=8.5, color=GREY, va="top")
        part.text(left, 0.06 / height, "\n".join(note), fontsize=7.5, color=GREY, va="bottom")
    if not panels:
        figure.text(0.5, 0.5, "No cell has a score", ha="center", color=GREY)
    return save(figure, path)


def save(figure: "Figure", path: Path) -> list[Path]:
    """Write `path`.png and `path`.svg, the same bytes for the same figure; each replaces an earlier one whole.

    Raises OSError where it cannot write.
    """
    import matplotlib

    _without_math(figure)
    paths = [path.with_name(f"{path.name}.{ending}") for ending in ("png", "svg")]
    path.parent.mkdir(parents=True, exist_ok=True)
    # for the same bytes: ids in an SVG are random without a salt, and files would hold a date or a version
    with _SAVING, matplotlib.rc_context({"svg.hashsalt": "harness"}):
        # the format is named: the file that is renamed has no ending of its own
        with replacing(paths[0]) as unfinished:
            figure.savefig(unfinished, format="png", dpi=200, metadata={"Software": None})
        with replacing(paths[1]) as unfinished:
            figure.savefig(unfinished, format="svg", metadata={"Date": None, "Creator": None})
    return paths


def _without_math(figure: "Figure") -> None:
    """Have all texts shown as they are: between two `$` matplotlib reads formulas, and names may hold any sign.

    The ticks of a logarithmic axis are formulas of its own.
    """
    from matplotlib.axes import Axes
    from matplotlib.text import Text
    from matplotlib.ticker import LogFormatter

    axes = [axis for ax in figure.findobj(Axes) if isinstance(ax, Axes) for axis in (ax.xaxis, ax.yaxis)]
    own = [axis for axis in axes if isinstance(axis.get_major_formatter(), LogFormatter)]
    powers = {id(label) for axis in own for label in axis.get_ticklabels(which="both")}
    for text in figure.findobj(Text):
        if isinstance(text, Text) and id(text) not in powers:
            text.set_parse_math(False)


def crossover(
    frame: pd.DataFrame, ax_score: "Axes", ax_gain: "Axes", crossovers: Mapping[Arm, Crossover] | None = None
) -> tuple["Axes", "Axes"]:
    """Score and gain of one student, corpus, budget and metric (rows as `table.select` returns them)."""
    return score_curves(frame, ax_score), gain_curves(frame, ax_gain, crossovers)


def score_curves(frame: pd.DataFrame, ax: "Axes") -> "Axes":
    """Score with 95 % interval against data fraction, a line per method and teacher; references as rules."""
    rows = frame[frame["score"].notna()]
    lines = _lines(rows)
    ends = _draw(ax, lines, "score")
    _fractions(ax, lines)
    references = rows[rows["role"] != "student"]
    for score in references["score"]:
        ax.update_datalim([(1, score)], updatex=False)
    ax.autoscale_view(scalex=False)
    ends += name_references(ax, references)
    first = rows.iloc[0]
    lower = "" if first["higher_is_better"] else ", lower is better"
    _dress(ax, "Score", f"{first['eval']} {first['metric']}{lower}")
    name_ends(ax, ends)
    return ax


def gain_curves(frame: pd.DataFrame, ax: "Axes", crossovers: Mapping[Arm, Crossover] | None = None) -> "Axes":
    """Gain over SFT with 95 % band against data fraction; a bar under the zero line is the confidence set
    for the crossover."""
    from matplotlib.transforms import offset_copy

    rows = frame[(frame["role"] == "student") & frame["gain"].notna()]
    lines = _lines(rows)
    higher = bool(frame["higher_is_better"].iloc[0])
    what = f"{short_label(frame)}, method minus SFT"
    alone = [_alone(part, "paired_seeds").all() for part in lines.values()]
    hints = " (hint: one seed)" if alone and all(alone) else ""
    _dress(ax, f"Gain over SFT, same seeds and items{hints}", what + ("" if higher else ", lower is better"))
    if not lines:
        ax.set_axis_off()
        ax.text(
            0.5,
            0.5,
            "No gain: no method and SFT\nshare a seed and a fraction",
            transform=ax.transAxes,
            ha="center",
            color=GREY,
        )
        return ax
    ax.axhline(0, color="#404040", linewidth=1, zorder=1)
    ends = _draw(ax, lines, "gain", band=True)
    _fractions(ax, lines)
    sets = [(who, f.pieces) for who, part in lines.items() for f in _found(crossovers, part) if _shown(f)]
    for number, (who, pieces) in enumerate(sets):
        # in points below zero, so that sets of several methods lie under one another at any scale
        under = offset_copy(ax.transData, ax.get_figure(root=True), y=-4.0 * (number + 1), units="points")
        bar: dict[str, Any] = {"linewidth": 3, "alpha": 0.7, "solid_capstyle": "butt", "zorder": 2}
        for low, high in pieces:
            ax.plot([low, high], [0, 0], color=_styles(lines)[who]["color"], transform=under, **bar)
    ax.margins(y=0.12)
    name_ends(ax, [*ends, (None, 0.0, "SFT", "#404040")])
    return ax


def _draw(ax: "Axes", lines: Mapping[Any, pd.DataFrame], column: str, band: bool = False) -> list[tuple[Any, ...]]:
    """Draw the lines; returns (x, y, name, colour) of their right ends."""
    styles, names, ends = _styles(lines), names_of(lines), []
    fractions = sorted({float(f) for part in lines.values() for f in part["data_frac"]})
    for number, (who, part) in enumerate(lines.items()):
        style = styles[who]
        part = part.sort_values("data_frac")
        # a small sideways step keeps the bars of neighbours apart; the line stays readable at its tick
        step = 0.022 * (number - (len(lines) - 1) / 2) if not band or len(fractions) == 1 else 0.0
        x = part["data_frac"].to_numpy(float) * 10**step
        y, low, high = (part[f"{column}{end}"].to_numpy(float) for end in ("", "_low", "_high"))
        alone = _alone(part, "seeds" if column == "score" else "paired_seeds").to_numpy()
        dashes = style.pop("linestyle")
        if column == "gain" and alone.any():
            style |= {"color": HINT, "markerfacecolor": "white"}
        ax.plot(x, y, linestyle="", markersize=5.5, zorder=4, **style)
        for run in _runs(part["data_frac"].to_numpy(float), fractions):
            ax.plot(x[run], y[run], color=style["color"], linewidth=1.6, linestyle=dashes, zorder=3)
            # one seed: its interval excludes seed variance, and a band would look like that of several
            if band and not alone.any():
                ax.fill_between(x[run], low[run], high[run], color=style["color"], alpha=0.14, linewidth=0, zorder=1)
        for single, dashes in ((False, "solid"), (True, (0, (2, 1.5)))):
            here = (alone == single) & np.isfinite(low)
            ax.vlines(
                x[here],
                low[here],
                high[here],
                color=style["color"],
                linewidth=1.1,
                linestyle=dashes,
                alpha=0.85,
                zorder=2,
            )
        ends.append((x[-1], y[-1], names[who], style["color"]))
    return ends


def _runs(own: NDArray[np.float64], fractions: Sequence[float]) -> list[NDArray[np.int64]]:
    """Positions that a line may join: where it was not run and others were, nothing is drawn."""
    places = np.array([fractions.index(fraction) for fraction in own])
    return [run for run in np.split(np.arange(len(own)), np.flatnonzero(np.diff(places) > 1) + 1) if len(run) > 1]


def _lines(rows: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    """Rows per (method, teacher), SFT first."""
    students = rows[(rows["role"] == "student") & rows["data_frac"].notna()]
    teachers = students["teacher"].fillna("")
    keys = sorted(set(zip(students["method"], teachers, strict=True)), key=lambda key: (key[0] != "sft", key))
    return {key: students[(students["method"] == key[0]) & (teachers == key[1])] for key in keys}


def _styles(lines: Mapping[tuple[str, str], pd.DataFrame]) -> dict[tuple[str, str], dict[str, Any]]:
    """Colour of the method; marker and dash of the teacher: the one with most points first, the second's open."""
    # in order of name, so that panels with the same methods give them the same colours
    unknown = sorted({method for method, _ in lines} - COLOURS.keys())
    colours = COLOURS | {method: SPARE[number % len(SPARE)] for number, method in enumerate(unknown)}
    points: Counter[str] = Counter()
    for (_, teacher), part in lines.items():
        points[teacher] += len(part)
    teachers = sorted(filter(None, points), key=lambda teacher: (-points[teacher], teacher))
    styles = {}
    for method, teacher in lines:
        place = teachers.index(teacher) if teacher else 0
        face = "white" if place % 2 else colours[method]
        styles[method, teacher] = {
            "color": colours[method],
            "linestyle": DASHES[place % len(DASHES)],
            "marker": MARKERS[place % len(MARKERS)],
            "markerfacecolor": face,
            "markeredgewidth": 1.4,
        }
    return styles


def names_of(lines: Mapping[tuple[str, str], Any]) -> dict[tuple[str, str], str]:
    """What a line is called; the teacher only where there are several."""
    several = len({teacher for _, teacher in lines if teacher}) > 1
    whole = {
        (method, teacher): "SFT" if method == "sft" else f"{method} · {teacher}" if several and teacher else method
        for method, teacher in lines
    }
    called = figure_names(whole.values())
    return {line: called[name] for line, name in whole.items()}


def _alone(rows: pd.DataFrame, seeds: str) -> pd.Series:
    """Rows whose interval excludes seed variance; an interval over enough replicates contains it."""
    return pd.Series([one_seed(*pair) for pair in zip(rows[seeds], rows["draws"], strict=True)], rows.index, dtype=bool)


def _shown(found: Crossover) -> bool:
    """Whether a crossover has a set to draw: one of single seeds excludes their variance."""
    return bool(found.pieces) and found.fits and not found.excludes_seed_variance


def _fractions(ax: "Axes", lines: Mapping[Any, pd.DataFrame]) -> None:
    """A log axis with ticks at the fractions that were run and nowhere else, and the shares that were really taken."""
    from matplotlib.ticker import NullLocator

    fractions = sorted({float(f) for part in lines.values() for f in part["data_frac"]})
    ax.set_xscale("log")
    if not fractions:
        return
    # labels of more than eight ticks would run together: every second one, the last among them
    shown = [f for n, f in enumerate(fractions) if len(fractions) <= 8 or n % 2 == (len(fractions) - 1) % 2]
    ax.set_xticks(shown, [percent(f) for f in shown])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(fractions[0] / 1.35, fractions[-1] * 1.35)
    ax.set_xlabel("share of the training data (log scale)" + _taken(fractions, lines), fontsize=8.5, color=GREY)


def _taken(fractions: Sequence[float], lines: Mapping[Any, pd.DataFrame]) -> str:
    """The shares of the rows that fractions took, where these are off by more than a tenth."""
    rows = pd.concat(lines.values())
    if "realised_frac" not in rows:
        return ""
    taken = {fraction: rows.loc[rows["data_frac"] == fraction, "realised_frac"].mean() for fraction in fractions}
    off = [f"{percent(f)} is {percent(share)}" for f, share in taken.items() if abs(share - f) > OFF_BY * f]
    more = f" and {len(off) - NAMED} more" if len(off) > NAMED else ""
    return f"; of the rows, {', '.join(off[:NAMED])}{more}" if off else ""


def _dress(ax: "Axes", title: str, label: str) -> None:
    """The look that all panels share."""
    ax.set_title(title, loc="left", fontsize=9.5)
    ax.set_ylabel(label, fontsize=8.5, color=GREY)
    ax.tick_params(labelsize=8, length=3, color=GREY)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#A6A6A6")
    ax.grid(axis="y", color="#EBEBEB", linewidth=0.7)
    ax.set_axisbelow(True)


def _of_panel(rows: pd.DataFrame, names: Any) -> pd.Series:
    """Students of one panel, its base, and the teachers that its students had."""
    student = (rows["role"] == "student") & (rows[PANEL] == list(names)).all(axis=1)
    base = (rows["role"] == "base") & (rows["student"] == names[0])
    taught = rows.loc[student, "teacher"].dropna().unique()
    teacher = (rows["role"] == "teacher") & rows["teacher"].isin(taught)
    own = teacher & (rows["corpus"] == names[1])  # a teacher of the same name on other data is another
    teacher = own if own.any() else teacher
    # where evaluations differ, a reference model has them as its variant
    alike = rows["variant"].map(lambda variant: set(filter(None, variant.split(", "))) <= set(names[3].split(", ")))
    return student | ((base | teacher) & alike)


def _found(crossovers: Mapping[Arm, Crossover] | None, part: pd.DataFrame) -> list[Crossover]:
    """The crossover of one line, if it is the only one of its names."""
    first = part.iloc[0]
    names = {n: None if pd.isna(first[n]) else first[n] for n in [*PANEL, "method", "teacher"]}
    found = [c for arm, c in (crossovers or {}).items() if all(getattr(arm, n) == v for n, v in names.items())]
    return found if len(found) == 1 else []


def footnote(rows: pd.DataFrame, crossovers: Mapping[Arm, Crossover] | None) -> str:
    """What bars and bands cover, and what they exclude."""
    students = rows[(rows["role"] == "student") & rows["score"].notna()]
    alone = _alone(students, "seeds")
    kinds = sorted(set(students.loc[~alone, "score_covers"]))
    text = f"Bars and bands: 95 % intervals over {', '.join(kinds)}." if kinds else "Bars: 95 % intervals."
    if alone.any():
        text += " Dashed: one seed, test items only; excludes seed variance."
    if _alone(students[students["gain"].notna()], "paired_seeds").any():
        text += " Grey: hints (one seed)."
    if any(_shown(found) for part in _lines(students).values() for found in _found(crossovers, part)):
        text += " Thick bar under zero: 95 % confidence set for the crossover."
    if students["diverged"].any() and students["higher_is_better"].all():
        text += " Diverged cells count as 0."
    lost = int(rows.loc[rows["role"] == "student", ["failed", "missing"]].to_numpy().sum())
    return text + (f" {lost} cell{'s' if lost > 1 else ''} failed or missing." if lost else "")
