"""Teacher gap: does the gain over SFT follow the teacher's lead over SFT?

SFT's score is in both, so its noise alone would make a slope. At one data fraction all teachers are compared with the
same SFT cells, whose seeds shift both by the same amount. The noise of items remains, and cross-fitting removes it: the
gaps that weight one half of the items are measured on the other half, and the reverse.

    slope(gains, teachers, strata)      # gains (T, S, N) of T teachers' students, teachers' scores (T, N)
    gap_lines(records, metric)          # every line of a grid with its teachers, gains and slope
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from harness.config.checks import refuse
from harness.results.arms import Arm, Metric, by_arm
from harness.results.items import ItemValues, LoadItems, read_items, values_of
from harness.results.paired_gains import ArmValues, gain, scores
from harness.results.records import Record
from harness.results.stats.intervals import Array, Interval, seeds_and_items

NAMES = ("method", "student", "corpus", "budget", "variant", "data_frac", "world_seed")


def slope(gains: Array, teachers: Array, strata: Sequence[Any] | None = None, level: float = 0.95) -> Interval:
    """Points of gain per point of the teacher's score, over new seeds and items, for these teachers only.

    A gap is the teacher's score minus SFT's, and SFT's is the same for all teachers: the slope over gaps is that over
    the teachers' scores. Raises SettingsError for fewer than three teachers, and where their scores do not differ.
    """
    count, _, items = gains.shape
    if count < 3:
        raise refuse("teachers", count, "a slope over teachers needs three or more")
    halves = halves_of(items, strata)
    weighted = np.zeros(gains.shape[1:])  # (S, N)
    for half in (0, 1):
        here, there = halves == half, halves != half
        lead = teachers[:, there].mean(1) - teachers[:, there].mean()  # (T,)
        if not (lead**2).sum() > 0:
            raise refuse("teachers", teachers.mean(1).tolist(), "their scores are all the same, so there is no slope")
        # least squares: the slope is a weighted mean of the gains, with weights from the other half of the items
        weighted[:, here] = np.einsum("t,tsn->sn", lead / (lead**2).sum(), gains[:, :, here])
    return seeds_and_items(weighted, strata, level)


def halves_of(items: int, strata: Sequence[Any] | None = None) -> np.ndarray:
    """0 or 1 for each item, alternating within each source, so that both halves hold as many of every one."""
    names = np.zeros(items) if strata is None else np.unique(np.asarray(strata), return_inverse=True)[1]
    halves = np.empty(items, dtype=int)
    for name in np.unique(names):
        members = np.flatnonzero(names == name)
        halves[members] = np.arange(len(members)) % 2
    return halves


@dataclass(frozen=True)
class GapLine:
    """One method at one data fraction under several teachers, in one replicate."""

    names: Mapping[str, Any]
    """method, student, corpus, budget, variant, data_frac, world_seed."""
    teachers: tuple[str, ...]
    """In the order of their scores."""
    scores: Array
    """The teachers' own, (T,)."""
    sft: float
    gains: tuple[Interval, ...]
    slope: Interval | None
    """Points of gain per point of the teacher's score; null below three teachers, and where all have one score on a
    half of the items."""


def gap_lines(records: Iterable[Record], metric: Metric, load_items: LoadItems = read_items) -> list[GapLine]:
    """Every line of a grid that was run under two teachers or more, where items are known; higher must be better.

    Raises SettingsError as `by_arm` does.
    """
    values = cache(values_of(load_items))
    arms = by_arm(records)
    lines: dict[Arm, dict[Arm, ArmValues]] = {}
    for arm, cells in arms.items():
        if arm.role == "student" and arm.teacher is not None and arm.partner in arms:
            pairs = gain(cells, arms[arm.partner], metric, values)
            if pairs is not None and pairs.ids:
                lines.setdefault(arm._replace(teacher=None, teacher_seed=None), {})[arm] = pairs
    found = [_line(whole, students, arms, metric, values) for whole, students in lines.items() if len(students) > 1]
    return [line for line in found if line is not None]


def _line(
    whole: Arm,
    students: Mapping[Arm, ArmValues],
    arms: Mapping[Arm, Sequence[Record]],
    metric: Metric,
    values: ItemValues,
) -> GapLine | None:
    points = []
    for arm, pairs in students.items():
        own = [
            one
            for one in arms
            if one.role == "teacher"
            and (one.teacher, one.corpus, one.world_seed, one.teacher_seed)
            == (arm.teacher, arm.corpus, arm.world_seed, arm.teacher_seed)
            and one.data_frac in (None, arm.data_frac)
        ]
        # of two teachers that fit the names none is taken: the lead would be another model's
        scored = scores(arms[own[0]], metric, values) if len(own) == 1 else None
        # cross-fitting splits the items, so teacher and student need the same ones in the same order
        if scored is not None and scored.ids == pairs.ids:
            points.append((float(scored.values.mean()), str(arm.teacher), scored.values.mean(0), pairs))
    if len(points) < 2:
        return None
    points.sort(key=lambda point: point[0])
    seeds = [seed for seed in points[0][3].seeds if all(seed in point[3].seeds for point in points)]
    gains = np.stack([pairs.values[[pairs.seeds.index(seed) for seed in seeds]] for *_, pairs in points])  # (T, S, N)
    strata = points[0][3].strata
    told = np.stack([items for _, _, items, _ in points])  # (T, N)
    halves = halves_of(told.shape[1], strata)
    # a half on which all teachers have one score has no lead to weight the gains by
    apart = all(np.ptp(told[:, halves == half].mean(1)) > 0 for half in (0, 1)) if told.shape[1] > 1 else False
    differ = len(points) > 2 and apart and len(seeds) > 0
    partner = scores(arms[whole.partner], metric, values)
    return GapLine(
        {name: getattr(whole, name) for name in NAMES},
        tuple(name for _, name, _, _ in points),
        np.array([score for score, *_ in points]),
        float(partner.values.mean()) if partner is not None else float("nan"),
        tuple(seeds_and_items(pairs.values, pairs.strata, limits=pairs.limits) for *_, pairs in points),
        slope(gains, told, strata) if differ else None,
    )
