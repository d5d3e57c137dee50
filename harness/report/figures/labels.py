"""Labels: above panels, at the ends of lines and on rules, moved apart where they would overlap.

Used by `plots.py`; heights are in points (1/72 inch) on the page.

    spread([10, 11, 40], gap=12, low=0, high=100)     # [4.5, 16.5, 40]
"""

import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from harness.evals import ALL
from harness.results.arms import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREY = "#737373"


MOST_LETTERS, LINE_INCHES = 64, 2.6
"""A name in a figure has at most so many letters, and a line of it so many inches."""
RULE_LETTERS = 32
"""A teacher's name on the rule of its score, within a panel, has at most so many letters."""


def figure_names(names: Iterable[str], most: int = MOST_LETTERS) -> dict[str, str]:
    """What each name is called in a figure: on one line, at most `most` letters, and no two alike.

    A longer name keeps its beginning and its end, with three dots between them; line breaks and other signs without a
    width become spaces.
    """
    called: dict[str, str] = {}
    for name in names:
        text = " ".join("".join(sign if sign.isprintable() else " " for sign in name).split()) or "(no name)"
        head = most * 2 // 3
        if len(text) > most:
            text = f"{text[:head]}...{text[head + 3 - most :]}"
        number, taken = 2, set(called.values())
        while name not in called and text in taken:
            text = f"{text[: most - 5]} ({number})" if number == 2 else f"{text.rpartition(' (')[0]} ({number})"
            number += 1
        called.setdefault(name, text)
    return called


def in_lines(name: str, size: float) -> str:
    """A name on as many lines as it needs in letters of `size` points, broken where its words end."""
    lines = [""]
    for word in re.findall(r"[^/_\s-]*[/_\s-]?", name):
        # a word that is longer than a line is cut
        for part in [word] if inches(word, size) <= LINE_INCHES else word:
            if inches(lines[-1] + part.rstrip(), size) > LINE_INCHES:
                lines.append("")
            lines[-1] += part
    return "\n".join(line.strip() for line in lines)


def wrapped(text: str, width: float, size: float, letter: float) -> list[str]:
    """Lines of a text in letters of `size` points, none wider than `width` inches; `letter`: inches a letter takes as a
    rule."""
    count = int(width / letter)
    while count > 10 and any(inches(line, size) > width for line in textwrap.wrap(text, count)):
        count -= 1 + count // 20  # wide letters, such as capitals
    return textwrap.wrap(text, count)


def inches(text: str, size: float) -> float:
    """How wide a line of text is in letters of `size` points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    return text_to_path.get_text_width_height_descent(text, FontProperties(size=size), False)[0] / 72


def title(metric: Metric | None, by: str = "by size of the data") -> str:
    """The figure's title; with the source where it is one of several."""
    of = f" ({figure_names([metric.source])[metric.source]})" if metric and metric.source != ALL else ""
    return f"Distillation against fine-tuning, {by}{of}"


def short_label(rows: pd.DataFrame) -> str:
    """The metric of some rows, without the version and hash of a benchmark, where an axis has no room for them."""
    evaluation, metric = rows[["eval", "metric"]].iloc[0]
    return f"{evaluation} {metric.partition('@')[0]}"


def subtitle(rows: pd.DataFrame) -> str:
    """Student, teachers, corpus, budget and seeds of the panels below."""
    students = rows[rows["role"] == "student"]
    first = students.iloc[0]
    teachers = sorted(students["teacher"].dropna().unique())
    seeds = sorted(students.loc[students["seeds"] > 0, "seeds"].unique())
    count = f"{seeds[0]} seed{'s' if seeds[-1] > 1 else ''}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    draws = int(students["draws"].max())
    named = (
        f"teacher{'s' if len(teachers) > 1 else ''} {', '.join(figure_names(teachers).values())}" if teachers else ""
    )
    drawn = f"{draws} replicates" if draws > 1 else ""
    parts = [
        f"student {figure_names([first['student']])[first['student']]}",
        named,
        first["corpus"],
        first["budget"],
        first["variant"],
        count,
        drawn,
    ]
    return "  ·  ".join(part for part in parts if part)


def name_ends(ax: "Axes", ends: Sequence[tuple[Any, ...]], gap: float = 11.5) -> None:
    """Names at the right ends, moved apart to `gap` points, with a hairline where one had to move."""
    # names are moved apart on the page: equal steps of the scale are not equal room for letters
    bottom, top = _points(ax, ax.get_ylim())
    wanted = _points(ax, [y for _, y, _, _ in ends])
    right = ax.get_xlim()[1]
    for place, (x, y, name, colour) in zip(spread(wanted, gap, bottom, top), ends, strict=True):
        ax.annotate(
            name,
            (right if x is None else x, y),
            xytext=(1.03, (place - bottom) / (top - bottom)),
            textcoords="axes fraction",
            fontsize=8.5,
            color=colour,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.6,
                "alpha": 0.6,
                "shrinkA": 1,
                "shrinkB": 4,
                "relpos": (0, 0.5),
            },
        )


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions at least `gap` apart, in the order wanted and near it, from `low` to `high` if they fit."""
    order = np.argsort(wanted, kind="stable")
    offsets = gap * np.arange(len(order))
    blocks: list[list[float]] = []  # [mean of wanted minus offset, number]: pool adjacent violators
    # less its offset, `gap` apart means no smaller than the one before: a monotone least-squares fit
    for target in np.asarray(wanted, dtype=float)[order] - offsets:
        blocks.append([float(target), 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, n), (b, m) = blocks[-2], blocks.pop()
            blocks[-1] = [(a * n + b * m) / (n + m), n + m]
    fitted = np.concatenate([[value] * int(number) for value, number in blocks]) if blocks else np.array([])
    # clipped before the offsets are added, so that the gaps between names stay
    fitted = np.clip(fitted, low, max(low, high - gap * (len(order) - 1))) + offsets
    places = np.empty(len(order))
    places[order] = fitted
    return places.tolist()


def teacher_name(teacher: str) -> str:
    """What a teacher's own score is called."""
    return f"{figure_names([teacher], RULE_LETTERS)[teacher]} teacher"


def name_references(ax: "Axes", rows: pd.DataFrame) -> list[tuple[Any, ...]]:
    """Scores of the base model and the teachers as labelled rules; one trained at each fraction is a curve.

    Returns (x, y, name, colour) of the curves' right ends, for `name_ends`.
    """
    style: dict[str, Any] = {"color": GREY, "linewidth": 0.9, "linestyle": (0, (1, 2)), "zorder": 1}
    models = [part.sort_values("data_frac") for _, part in rows.groupby(["role", "teacher"], dropna=False, sort=False)]
    # a model that is the same at every fraction has no place on the axis: a rule over its whole width
    rules = [part.iloc[0] for part in models if part["data_frac"].isna().all()]
    heights = _points(ax, [row["score"] for row in rules])
    for row, height, place in zip(rules, heights, spread(heights, 9.5, -1e9, 1e9), strict=True):
        name = "base model" if row["role"] == "base" else teacher_name(row["teacher"])
        ax.axhline(row["score"], **style)
        ax.annotate(
            f"{name} {row['score']:.2f}",
            (0, row["score"]),
            xycoords=("axes fraction", "data"),
            xytext=(4, 2 + place - height),
            textcoords="offset points",
            fontsize=7.5,
            color=GREY,
            va="bottom",
        )
    ends = []
    for part in (part for part in models if part["data_frac"].notna().any()):
        ax.plot(part["data_frac"], part["score"], **style)
        last = part.dropna(subset="data_frac").iloc[-1]
        ends.append((last["data_frac"], last["score"], teacher_name(last["teacher"]), GREY))
    return ends


def _points(ax: "Axes", heights: Sequence[float]) -> list[float]:
    """Heights of data values on the page, in points."""
    ax.get_ylim()  # settles the automatic limits, which the transform alone does not
    return [ax.transData.transform((1, y))[1] * 72 / ax.figure.dpi for y in heights]


# Okabe and Ito's colours, told apart under the common kinds of colour blindness
COLOURS = {
    "sft": "#404040",
    "sft_restart": "#8C8C8C",
    "kd": "#0072B2",
    "on_policy": "#D55E00",
    "logit_kd": "#009E73",
    "seq_kd": "#CC79A7",
    "two_stage": "#E69F00",
    "skd": "#56B4E9",
    "distillm": "#8C510A",
    "self_kd": "#6A51A3",
}
OTHERS = "#404040"
HINT = "#8C8C8C"
"""A gain of one seed has no colour: it shows nothing about another seed."""
SPARE = ("#332288", "#44AA99", "#AA4499", "#999933", "#882255", "#117733", "#88CCEE", "#DDCC77")


def colour_of(method: str) -> str:
    """The colour that a method, or a variant of it, has in every figure."""
    return COLOURS.get(method.partition("[")[0], OTHERS)
