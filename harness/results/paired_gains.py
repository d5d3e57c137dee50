"""Paired gains: the cells of an arm by seed and test item, and paired with SFT.

`arms.py` sorts cells into arms, `stats/` does the arithmetic, `table.py` makes rows of the results. The gain of a cell
is its score minus that of the SFT cell with the same student, corpus, fraction, budget, replicate and seeds, item by
item; SFT has no teacher, so one SFT cell is the partner of every teacher's cells. A replicate has its own corpus and
teacher (`world_seed`, `teacher_seed`). A diverged cell counts as 0 in accuracy, and no pair is dropped for it.

    arms = by_arm(records)
    gain(arms[arm], arms[arm.partner], Metric("verified", "accuracy"), values_of(read_items)).values    # (S, N)
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial, reduce
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from harness.results.arms import Arm, Metric, by_arm, seeds_of
from harness.results.items import (
    CellScore,
    ItemMask,
    ItemValues,
    LoadItems,
    cell_score,
    enough,
    number_of_parts,
    read_items,
    values_of,
    values_on,
)
from harness.results.records import Record
from harness.results.stats.crossover import Crossover, crossover
from harness.results.stats.intervals import LEAST_REPLICATES, Array, Curve, curve_over_replicates, ratio

MARGIN = 0.02
"""Margin of equality: gains in accuracy whose interval lies within it are called equal to SFT."""


class Cube(NamedTuple):
    """Values of independent seeds at several fractions: (S, F, N), or (S, F, 1) without items."""

    values: Array
    ids: tuple[str, ...]
    strata: tuple[str, ...] | None
    limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class ArmValues:
    """Scores, or paired gains, of one arm: `values` (S, N), or (S, 1) where the items are not known."""

    seeds: tuple[tuple[int, int], ...]
    """(data_seed, train_seed) of each row."""
    values: Array
    ids: tuple[str, ...]
    """Item keys (source, id and prompt), empty where the items are not known."""
    strata: tuple[str, ...] | None
    """Each item's source; null where the items are not known."""
    at_floor: tuple[bool, ...]
    """Rows in which a diverged cell counts as its floor."""
    doubt: str = ""
    """Why items that exist are not used."""
    sizes: tuple[int, ...] = ()
    """Items behind each row; fewer than N where a part of the items differs from seed to seed."""
    limits: tuple[float, float] | None = None
    """The smallest and largest value that an item may have; null where it has none."""

    @property
    def count(self) -> int:
        """Independent seeds: cells of one data seed share their rows, and are averaged first."""
        return len(_independent(self.seeds))

    @property
    def survivors(self) -> float:
        """The mean without diverged cells."""
        left = [n for n, floor in enumerate(self.at_floor) if not floor]
        groups = _independent([self.seeds[n] for n in left]).values()
        return float(np.mean([self.values[[left[n] for n in group]].mean() for group in groups])) if left else math.nan

    @property
    def covers(self) -> str:
        """Which variance an interval of these values contains, in words."""
        seeds = "seeds"
        if len({data for data, _ in self.seeds}) == 1:
            seeds = "training seeds (one subset of rows)"
        elif self.count < len(self.seeds):
            seeds = "data seeds (training seeds averaged within each)"
        doubt = f" ({self.doubt})" if self.doubt else ""
        if self.count > 1:
            return f"{seeds} and items" if self.ids else f"{seeds} only{doubt}"
        return "items only" if self.ids else f"nothing{doubt}"


def scores(
    cells: Iterable[Record], metric: Metric, values: ItemValues, part: ItemMask | None = None
) -> ArmValues | None:
    """Scores of an arm's finished cells on the items that all of them have; null without any.

    With `part`, each cell's mean is over its own part of the items, which may differ from seed to seed. Raises what
    `values` raises, an OSError where items cannot be read.
    """
    found = {seeds_of(c): s for c in cells if (s := cell_score(c, metric, values, part and partial(part, c)))}
    own = _stack({seed: (found[seed], None) for seed in sorted(found)}, part is not None)
    return own and replace(own, limits=metric.limits)


def gain(
    cells: Iterable[Record], sft: Iterable[Record], metric: Metric, values: ItemValues, part: ItemMask | None = None
) -> ArmValues | None:
    """Paired gains on the seeds and items that both arms have; null without a common seed.

    With `part`, on that part of the items of the method's cell, also where SFT is scored. Raises as `scores` does.
    """
    by_seed = {seeds_of(cell): cell for cell in cells}
    masks = {seed: part and partial(part, cell) for seed, cell in by_seed.items()}
    own, other = (
        {seed: s for c in side if (seed := seeds_of(c)) in masks and (s := cell_score(c, metric, values, masks[seed]))}
        for side in (by_seed.values(), sft)
    )
    pairs = {seed: (own[seed], other[seed]) for seed in sorted(own.keys() & other.keys())}
    found, limits = _stack(pairs, part is not None), metric.limits
    room = limits[1] - limits[0] if limits else 0.0
    return found and replace(found, limits=(-room, room) if limits else None)


def estimate(name: str, parts: Mapping[Any, ArmValues | None]) -> dict[str, Any]:
    """Columns `name`, `_low`, `_high`, `_p`, `_covers` and `_survivors` of one arm, over its replicates.

    `_survivors` is the mean without diverged cells, null where there are none.
    """
    known = [part for part in parts.values() if part is not None]
    columns: dict[str, Any] = {f"{name}_covers": ""}
    columns |= {f"{name}{end}": math.nan for end in ("", "_low", "_high", "_p", "_survivors")}
    if not known:
        return columns
    # a curve of one point, (S, 1, N) for each replicate
    interval = over_replicates([cube_of([part]) for part in known]).intervals(np.ones((1, 1)))[0]
    for end, field in (("", "estimate"), ("_low", "low"), ("_high", "high"), ("_p", "p")):
        columns[f"{name}{end}"] = getattr(interval, field)
    if any(floor for part in known for floor in part.at_floor):
        means = [mean for part in known if not math.isnan(mean := part.survivors)]
        columns[f"{name}_survivors"] = float(np.mean(means)) if means else math.nan
    covers = covers_of(known, len(parts))
    return columns | {f"{name}_covers": covers}


def covers_of(known: Sequence[ArmValues], replicates: int) -> str:
    """Which variance an interval over the known ones of an arm's `replicates` contains, in words."""
    if len(known) >= LEAST_REPLICATES:
        return f"{len(known)} replicates"
    least = [part for part in known if not part.ids] or known  # a replicate without items leaves items out of all
    covers = " or ".join(dict.fromkeys(part.covers for part in least))
    if replicates == 1:
        return covers
    scope = f"these {len(known)} replicates only" if len(known) > 1 else "one replicate"
    return f"{covers}{' within replicates' if len(known) > 1 else ''}, for {scope}"


def gap_closed(
    arms: Collection[Arm], draws: Iterable[Arm], metric: Metric, scores_of: Callable[[Arm], ArmValues | None]
) -> dict[str, float]:
    """Columns `gap_closed`, `_low`, `_high`: (student - base) / (teacher - base) over an arm's replicates.

    `arms` are all there are. With the interval of a ratio (`intervals.ratio`); blank where the teacher is not clearly
    better than the base, where an arm has none or several, and where items are not known.
    """
    cubes = [_gap(arms, arm, metric, scores_of) for arm in draws]
    found = (math.nan, math.nan, math.nan)
    if cubes and all(cube is not None for cube in cubes):
        found = ratio(over_replicates([cube for cube in cubes if cube is not None]))
    return dict(zip(("gap_closed", "gap_closed_low", "gap_closed_high"), found, strict=True))


def _gap(arms: Collection[Arm], arm: Arm, metric: Metric, scores_of: Callable[[Arm], ArmValues | None]) -> Cube | None:
    """Student - base and teacher - base of one replicate (S, 2, N), the better one above 0."""
    near = [one for one in arms if (one.corpus, one.world_seed) == (arm.corpus, arm.world_seed)]
    bases = [one for one in near if one.role == "base" and one.student == arm.student.partition("[")[0]]
    teachers = [one for one in near if one.role == "teacher" and one.data_frac in (None, arm.data_frac)]
    if arm.teacher is not None:
        teachers = [one for one in teachers if (one.teacher, one.teacher_seed) == (arm.teacher, arm.teacher_seed)]
    if arm.role != "student" or (len(bases), len(teachers)) != (1, 1):
        return None
    own, base, teacher = map(scores_of, (arm, bases[0], teachers[0]))
    if own is None or base is None or teacher is None or not own.ids or not own.ids == base.ids == teacher.ids:
        return None
    sign = 1 if metric.higher_is_better else -1
    # base and teacher are one model each: their own seeds are not in the interval, which is for this base and teacher
    gap = np.broadcast_to(teacher.values.mean(0) - base.values.mean(0), own.values.shape)  # (S, N)
    parts = [replace(own, values=sign * part) for part in (own.values - base.values.mean(0), gap)]
    return cube_of(parts)


def crossovers(
    records: Iterable[Record],
    metric: Metric,
    load_items: LoadItems = read_items,
    delta: float = 0.0,
    margin: float | None = None,
) -> dict[Arm, Crossover]:
    """The crossover of every method and teacher with SFT, by its arm (data_frac null).

    Where a line has several replicates, the crossover is over them (world_seed and teacher_seed null;
    `intervals.curve_over_replicates`). A seed that is missing at one fraction is left out at all; a line without a
    common seed at two fractions or more has no entry. The sign of losses is changed, so above 0 is better than SFT.
    `margin` of equivalence: null is MARGIN for accuracy and none for a loss, whose unit differs. Raises SettingsError
    as `by_arm` and `crossover` do.
    """
    arms, values = by_arm(records), cache(values_of(load_items))
    sign = 1 if metric.higher_is_better else -1
    margin = MARGIN if margin is None and metric.higher_is_better else margin
    lines: dict[Arm, dict[tuple[Any, Any], dict[float, ArmValues]]] = {}
    for arm, cells in arms.items():
        if arm.role != "student" or arm == arm.partner or arm.partner not in arms or arm.data_frac is None:
            continue
        pairs = gain(cells, arms[arm.partner], metric, values)
        if pairs is not None:
            line = arm._replace(data_frac=None, world_seed=None, teacher_seed=None)
            draw = (arm.world_seed, arm.teacher_seed)
            lines.setdefault(line, {}).setdefault(draw, {})[arm.data_frac] = pairs
    found = {}
    for line, draws in lines.items():
        # the same fractions in all replicates, since a fitted value has one weight for each
        fractions = sorted(set.intersection(*(set(points) for points in draws.values())))
        if len(fractions) < 2:
            continue
        cubes = {draw: cube_of([points[f] for f in fractions]) for draw, points in draws.items()}
        known = {draw: cube._replace(values=sign * cube.values) for draw, cube in cubes.items() if len(cube.values)}
        if known:
            world_seed, teacher_seed = next(iter(known)) if len(known) == 1 else (None, None)
            key = line._replace(world_seed=world_seed, teacher_seed=teacher_seed)
            found[key] = crossover(fractions, over_replicates(list(known.values())), delta=delta, margin=margin)
    return found


def mean_of(points: Sequence[ArmValues]) -> ArmValues | None:
    """The mean of several gains over one SFT arm, as with several teachers, on the seeds that all have; null without
    one. It holds for these teachers only."""
    seeds = tuple(seed for seed in points[0].seeds if all(seed in point.seeds for point in points))
    if len(points) == 1 or not seeds:
        return points[0] if seeds else None
    same = all(point.ids == points[0].ids for point in points)
    rows = [point.values[[point.seeds.index(seed) for seed in seeds]] for point in points]
    values = np.mean([row if same else row.mean(1, keepdims=True) for row in rows], axis=0)  # (S, N or 1)
    floors = [[point.at_floor[point.seeds.index(seed)] for seed in seeds] for point in points]
    at_floor = tuple(any(floor) for floor in zip(*floors, strict=True))
    first = points[0]
    return replace(
        first,
        seeds=seeds,
        values=values,
        ids=first.ids if same else (),
        strata=first.strata if same else None,
        at_floor=at_floor,
        sizes=tuple(values.shape[1] for _ in seeds),
    )


def cube_of(points: Sequence[ArmValues]) -> Cube:
    """Values at several points (fractions, or arms), of the seeds that all have; S is 0 if there is none."""
    seeds = [seed for seed in points[0].seeds if all(seed in point.seeds for point in points)]
    same = all(point.ids == points[0].ids for point in points)
    # points with other items cannot be paired item by item, only by their means
    width = points[0].values.shape[1] if same else 1
    rows = [point.values[[point.seeds.index(seed) for seed in seeds]] for point in points]
    stacked = np.stack([row if same else row.mean(1, keepdims=True) for row in rows], axis=1)  # (cells, F, N or 1)
    # cells of one data seed share its rows: they are one unit, and averaged before a variance is taken
    groups = list(_independent(seeds).values())
    # `reshape` keeps three axes where no seed is common, (0, F, N)
    means = np.array([stacked[group].mean(0) for group in groups]).reshape(len(groups), len(points), width)
    return Cube(means, points[0].ids if same else (), points[0].strata if same else None, points[0].limits)


def _independent(seeds: Sequence[tuple[int, int]]) -> dict[int, list[int]]:
    """Row numbers of each independent seed: a data seed, or a training seed where there is one data seed."""
    one_subset = len({data for data, _ in seeds}) == 1
    groups: dict[int, list[int]] = {}
    for row, (data, train) in enumerate(seeds):
        groups.setdefault(train if one_subset else data, []).append(row)
    return groups


def over_replicates(cubes: Sequence[Cube]) -> Curve:
    """One curve over the replicates; without items for all where one replicate has none."""
    if not all(cube.ids for cube in cubes):
        cubes = [Cube(cube.values.mean(2, keepdims=True), (), None, cube.limits) for cube in cubes]
    same_items = bool(cubes[0].ids) and len({cube.ids for cube in cubes}) == 1
    values, strata = [cube.values for cube in cubes], [cube.strata for cube in cubes]
    return curve_over_replicates(values, strata, same_items, cubes[0].limits)


def _stack(
    pairs: Mapping[tuple[int, int], tuple[CellScore, CellScore | None]], parts: bool = False
) -> ArmValues | None:
    """Values (or differences) by seed on the common items; scores alone where a cell has no items.

    `parts`: each seed looks at n items of its own. Over the N items of all seeds they become
    (value - mean) N / n + mean, and the mean for the others: the linearised domain mean of survey sampling, whose
    mean is the seed's and whose spread over items is that of a mean of n. With n = N nothing changes.
    """
    if not pairs:
        return None
    seeds = tuple(pairs)
    sides = [side for pair in pairs.values() for side in pair if side is not None]
    at_floor = tuple(any(side.at_floor for side in pair if side) for pair in pairs.values())
    needed = [side.items for side in sides if not side.at_floor]  # at the floor every item is 0
    known = [frame for frame in needed if frame is not None]
    indexes = [frame.index for frame in known] or [pd.Index([])]
    same = all(index is indexes[0] or index.equals(indexes[0]) for index in indexes)
    # a part differs from seed to seed, so all that occur are kept; else an item counts where every cell has it
    ids = indexes[0] if same else reduce(lambda a, b: a.union(b) if parts else a.intersection(b, sort=False), indexes)
    # items that not all cells have are left out, and with them, maybe, a whole benchmark of a macro-average
    common = same or not known or enough(known[0]["source"].reindex(ids).to_numpy(), max(map(number_of_parts, known)))
    # values of items and bare scores cannot stand in one array: where one cell has no items, all are scores, (S, 1)
    if len(known) < len(needed) or len(ids) < 2 or not common:
        rows = [own.score - (other.score if other else 0.0) for own, other in pairs.values()]
        wrong = sum(side.mismatch for side in sides)
        doubt = f"items of {wrong} of {len(sides)} cells do not average to their score" if wrong else ""
        return ArmValues(seeds, np.array(rows)[:, None], (), None, at_floor, doubt, (len(ids),) * len(seeds))
    ids = ids if ids.is_monotonic_increasing else ids.sort_values()

    def in_order(column: pd.Series) -> pd.Series:
        return column if column.index.equals(ids) else column[~column.index.duplicated()].reindex(ids)

    def by_item(side: CellScore | None) -> Array:
        frame = side.items if side else None
        # without a frame: a diverged cell, whose every item is 0, or no partner, from which nothing is taken off
        return np.zeros(len(ids)) if frame is None else values_on(frame, ids)["value"].to_numpy(float)

    values = np.stack([by_item(own) - by_item(other) for own, other in pairs.values()])  # (S, N)
    source = pd.concat([frame["source"] for frame in known]) if parts else known[0]["source"]
    strata = tuple(in_order(source).to_numpy(object))
    sizes = np.isfinite(values).sum(1)  # (S,); a value is NaN where the seed's part lacks the item
    if parts:
        means = np.nanmean(values, 1, keepdims=True)
        values = np.where(np.isfinite(values), (values - means) * len(ids) / sizes[:, None] + means, means)
    return ArmValues(seeds, values, tuple(map(str, ids)), strata, at_floor, sizes=tuple(map(int, sizes)))
