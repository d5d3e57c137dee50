"""Decision: distil or fine-tune, for each student, budget, data fraction and teacher, by one rule.

Reads a summary (`table.summary`). Distil where the gain over SFT is better than zero after Holm over all comparisons of
the table; of several such methods, the one with the largest gain. Otherwise fine-tune, which is simpler, with the
reason: shown to be worse, equal (the whole 95 % interval within the margin), ahead or behind but not after Holm, or no
difference shown. Where every gain rests on one seed, the choice is undecided. Arms without a teacher (controls such as
`sft_restart`) are not distillation and never chosen.

    decisions(summary(records), metric)[0].choice       # "distil"
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import pandas as pd

from harness.results import conclusion as shows
from harness.results.arms import Metric
from harness.results.conclusion import conclusion, is_hint, one_seed
from harness.results.findings import ALPHA
from harness.results.paired_gains import MARGIN
from harness.results.stats.intervals import LEAST_REPLICATES
from harness.results.table import percent, select

POINT = 0.01
"""Costs are given per gain of this size: one point of accuracy."""
LINE = ("student", "corpus", "budget", "variant")
PLACE = (*LINE, "teacher", "data_frac")
DISTIL, FINE_TUNE, UNDECIDED, OPEN = "distil", "fine-tune", "undecided", "no answer"
SHOWN, EQUAL, WORSE, NOT_SHOWN = "gain shown", "equal within the margin", "shown to be worse", "no difference shown"
AHEAD, BEHIND = "ahead before Holm, but not after it", "behind before Holm, but not after it"
UNITS = ("seconds", "flops")
MOST_UNITS = 1000
"""Numbers of seeds or replicates above this are not proposed."""


@dataclass(frozen=True)
class Price:
    """What a student costs in one unit, a mean over the finished cells of its arm; NaN where it is not known."""

    sft: float
    """Plain fine-tuning on the same rows and budget."""
    distil: float
    """Training and the teacher's share: the marginal cost."""
    teacher: float
    """The teacher's share of it."""
    with_making: float
    """The marginal cost and the training of the teacher."""

    @property
    def extra(self) -> float:
        """What distillation costs more than SFT."""
        return self.distil - self.sft

    @property
    def making(self) -> float:
        """Training the teacher."""
        return self.with_making - self.distil


@dataclass(frozen=True)
class Decision:
    """What to do at one place of the grid, on which evidence, and at what cost."""

    student: str
    corpus: str
    budget: str
    variant: str
    data_frac: float
    teacher: str
    choice: str
    """`distil`, `fine-tune`, `undecided` (one seed shows a hint only) or `no answer`."""
    why: str
    """One of the words above, the hint, or why there is no gain."""
    method: str
    """The method that is chosen, else the one with the largest gain."""
    compared: int
    """Methods with this teacher that had a gain here."""
    gain: float
    low: float
    high: float
    """The 95 % interval, not adjusted."""
    p: float
    p_holm: float
    covers: str
    """Which variance the interval contains."""
    draws: int
    """Replicates (own corpus and teacher each)."""
    seeds: int
    """Seeds in each replicate."""
    comparisons: int
    """Of the whole table: Holm's family."""
    higher_is_better: bool
    margin: float | None
    """Of equality; null for a loss, which has none."""
    seconds: Price
    flops: Price
    metric: str = ""
    """The metric of the gain, e.g. `verified accuracy`; empty without any score."""

    def per_point(self, unit: str, making: bool = False) -> tuple[float, float, float]:
        """Extra cost per POINT gained, with its ends at the interval's ends; NaN where no gain is shown.

        `making`: with the training of the teacher, charged whole to this student.
        """
        price: Price = getattr(self, unit)
        extra = price.extra + (price.making if making else 0.0)
        if self.choice != DISTIL:
            return math.nan, math.nan, math.nan
        # the interval of a gain that is shown has one sign, so neither end is 0; the larger gain makes a point cheaper
        ends = sorted(abs(end) for end in (self.low, self.high))
        return extra / abs(self.gain) * POINT, extra / ends[1] * POINT, extra / ends[0] * POINT

    def would_change(self) -> list[str]:
        """What would change the verdict, in sentences."""
        return [*_evidence(self), *_money(self)]


def decisions(frame: pd.DataFrame, metric: Metric | None, margin: float | None = MARGIN) -> list[Decision]:
    """One decision per student x corpus x budget x variant x teacher x fraction of a summary, in this order.

    `margin` of equality is in accuracy's unit, so a loss has none. A place whose cells have no score is there too.
    """
    if frame.empty:
        return []
    rows = select(frame, metric)
    students = rows[rows["role"] == "student"]
    taught = students[students["teacher"].notna()]
    # Holm's family in the summary: every student with a gain, controls without a teacher among them
    comparisons = int(students["gain_p_holm"].notna().sum())
    margin = margin if metric is not None and metric.higher_is_better else None
    found = []
    for _, part in taught.groupby(list(PLACE), dropna=False, sort=True):
        first = part.iloc[0]
        # SFT has no teacher, so its one row serves the place of every teacher
        alike = students[[*LINE, "data_frac"]] == first[[*LINE, "data_frac"]]
        plain = students[(students["method"] == "sft") & alike.all(axis=1)]
        sft = plain.iloc[0].to_dict() if len(plain) else {}
        found.append(_decide(part.to_dict("records"), sft, metric, comparisons, margin))
    return found


def advice(found: Sequence[Decision]) -> list[str]:
    """The rule's answers in words, a sentence per student, corpus, budget and teacher."""
    groups: dict[tuple[Any, ...], list[Decision]] = {}
    for one in found:
        groups.setdefault((one.student, one.corpus, one.budget, one.variant, one.teacher), []).append(one)
    return [_sentence(group) for group in groups.values()]


def place_of(one: Decision) -> str:
    """Student, data, budget and teacher in words."""
    variant = f" ({one.variant})" if one.variant else ""
    return f"{one.student} on {one.corpus}, {one.budget}{variant}, teacher {one.teacher}"


def frame_of(found: Sequence[Decision]) -> pd.DataFrame:
    """One row per decision with every number, prices flattened to `<unit>_<part>`, for files."""
    rows = []
    for one in found:
        row = {name: value for name, value in asdict(one).items() if name not in UNITS}
        for unit in UNITS:
            price: Price = getattr(one, unit)
            row |= {f"{unit}_{part}": value for part, value in asdict(price).items()}
            for name, making in (("per_point", False), ("per_point_with_making", True)):
                row |= dict(zip(_ends(f"{unit}_{name}"), one.per_point(unit, making), strict=True))
        rows.append(row | {"would_change": " ".join(one.would_change())})
    return pd.DataFrame(rows)


def _decide(
    rows: list[dict[Any, Any]], sft: Mapping[Any, Any], metric: Metric | None, comparisons: int, margin: float | None
) -> Decision:
    """The rule at one place, from the rows of all methods with one teacher."""
    sign = 1 if metric is None or metric.higher_is_better else -1
    known = [row for row in rows if not pd.isna(row["gain"])]
    shown = [row for row in known if conclusion(row) == shows.BETTER]
    # a hint is told only where there is nothing firmer
    firm = [row for row in known if not is_hint(row)]
    told = max(shown or firm or known, key=lambda row: sign * row["gain"], default=rows[0])
    if shown:
        choice, why = DISTIL, SHOWN
    elif not known:
        choice, why = OPEN, _nothing(rows)
    elif not firm:
        choice, why = UNDECIDED, conclusion(told)
    # asked before equality, since a small loss may be both
    elif conclusion(told) == shows.WORSE:
        choice, why = FINE_TUNE, WORSE
    elif margin is not None and -margin < told["gain_low"] and told["gain_high"] < margin:
        choice, why = FINE_TUNE, EQUAL
    elif told["gain_p"] < ALPHA:
        choice, why = FINE_TUNE, AHEAD if sign * told["gain"] > 0 else BEHIND
    else:
        choice, why = FINE_TUNE, NOT_SHOWN
    return Decision(
        **{name: told[name] for name in PLACE},
        choice=choice,
        why=why,
        method=told["method"],
        compared=len(known),
        gain=told["gain"],
        low=told["gain_low"],
        high=told["gain_high"],
        p=told["gain_p"],
        p_holm=told["gain_p_holm"],
        covers=told["gain_covers"],
        draws=int(told["draws"]),
        seeds=int(told["paired_seeds"]),
        comparisons=comparisons,
        higher_is_better=sign > 0,
        margin=margin,
        seconds=_price(told, sft, "seconds"),
        flops=_price(told, sft, "flops"),
        metric="" if metric is None else metric.label,
    )


def _price(row: Mapping[Any, Any], sft: Mapping[Any, Any], unit: str) -> Price:
    parts = (row[f"{purpose}_{unit}"] for purpose in ("total", "teacher", "with_teacher_training"))
    total, teacher, making = map(float, parts)
    return Price(float(sft.get(f"total_{unit}", math.nan)), total, teacher, making)


def _nothing(rows: Sequence[Mapping[Any, Any]]) -> str:
    """Why a place has no gain."""
    for row in rows:
        if row["note"]:
            return str(row["note"])
    lost = {status: int(sum(row[status] for row in rows)) for status in ("failed", "missing", "running")}
    counts = ", ".join(f"{count} {status}" for status, count in lost.items() if count)
    reason = next((str(row["reason"]) for row in rows if not pd.isna(row["reason"])), "")
    return f"no score: {counts or 'not this one'}" + (f" ({reason})" if reason else "")


def _evidence(one: Decision) -> list[str]:
    """What other numbers would have turned the choice."""
    if one.choice == OPEN:
        return ["Score this method and SFT on the same rows and seeds."]
    alone = ["Run a second seed: this interval excludes seed variance."] * one_seed(one.seeds, one.draws)
    if one.draws < LEAST_REPLICATES:
        only = "there is one" if one.draws == 1 else f"the interval covers these {one.draws} only"
        alone += [f"Run more replicates (own corpus and teacher each): {only}."]
    if one.choice == UNDECIDED:
        return alone
    near, far = sorted((abs(one.low), abs(one.high)))  # ends of the interval by their distance from 0
    if one.why == SHOWN:
        text = f"Require a gain above {near:.3f}: no more than that is shown."
        if one.margin is not None and far < one.margin:
            text += f" The gain is clear but small: it lies within the margin of equality ({one.margin:g})."
        return [text, *alone]
    if one.why == WORSE:
        return [f"Change the method's settings: its interval ends {near:.3f} below SFT.", *alone]
    if one.why == EQUAL:
        return [
            f"Set a margin of equality below {far:.3f} (now {one.margin:g}): then no difference is shown.",
            *alone,
        ]
    return [_replicates_needed(one), *alone]


def _replicates_needed(one: Decision) -> str:
    """How many seeds or replicates would show the gain if the estimate is true; from p values, so on the high side."""
    sign = 1 if one.higher_is_better else -1
    if not sign * one.gain > 0:
        return "More data will not help while the estimate is on the worse side of zero."
    if math.isnan(one.p):
        return "Run several seeds, or keep scores of single items: there is no interval."
    # Holm's factor for this p value, or more where a smaller p sets it; an adjusted p of 1 was cut off, so the whole
    # family stands in
    family = one.p_holm / one.p if one.p_holm < 1 else one.comparisons
    normal = NormalDist()
    reached, asked = (-normal.inv_cdf(p / 2) for p in (one.p, ALPHA / family))
    by_draws = one.draws >= LEAST_REPLICATES
    now, unit = (one.draws, "replicates") if by_draws else (one.seeds, "seeds" + " in each replicate" * (one.draws > 1))
    # a standard error shrinks with the root of the units, so their number grows with the square of the deviate
    needed = math.inf if reached <= 0 else math.ceil(now * (asked / reached) ** 2)
    if needed > MOST_UNITS:
        return f"More than {MOST_UNITS} {unit} would be needed if the estimate is true."
    items = " and as many times the test items" if "items" in one.covers else ""
    return f"Run about {needed} {unit}{items} in place of {now}, if the estimate is true."


def _money(one: Decision) -> list[str]:
    """How many students must share the teacher for its training to cost less than distillation adds."""
    price = one.flops
    if one.choice != DISTIL or not price.making > 0 or not price.extra > 0:
        return []
    # divided among this many students, the teacher's training costs each no more than distillation adds
    share = math.ceil(price.making / price.extra)
    if share < 2:
        return []
    return [f"If fewer than {share} students share the teacher, training it costs more FLOPs than distillation adds."]


def _sentence(group: Sequence[Decision]) -> str:
    parts: dict[str, list[str]] = {}
    for one in group:
        interval = "" if math.isnan(one.gain) else f"{one.gain:+.3f} {_interval(one)}"
        if one.choice == DISTIL:
            parts.setdefault(f"{one.choice} with {one.method}", []).append(f"{percent(one.data_frac)} ({interval})")
        else:
            shown = f": {one.method} {interval}" if interval else ""
            parts.setdefault(one.choice, []).append(f"{percent(one.data_frac)} ({one.why}{shown})")
    told = "; ".join(f"{word} at {', '.join(places)}" for word, places in parts.items())
    by = f", by {group[0].metric}" if group[0].metric else ""
    return f"{place_of(group[0])}{by}: {told}."


def _interval(one: Decision) -> str:
    return "[no interval]" if math.isnan(one.low) else f"[{one.low:+.3f}, {one.high:+.3f}]"


def _ends(name: str) -> tuple[str, str, str]:
    return name, f"{name}_low", f"{name}_high"
