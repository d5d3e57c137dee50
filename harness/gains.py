"""Gains: the cells of an arm brought together by seed and test item, and paired with SFT.

`arms.py` sorts cells into arms, `stats.py` and `crossover.py` do the arithmetic, `table.py` turns what is
here into rows. The gain of a cell is its score minus that of
the SFT cell with the same student, corpus, fraction, budget, world and seeds, item by item; SFT has no
teacher, so one SFT cell is the partner of every teacher's cells.

    arms = by_arm(records)
    gain(arms[arm], arms[arm.partner], Metric("verified", "accuracy"), read_items).values    # (S, N)
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from harness.arms import Arm, Metric, Record, by_arm, score_of, seeds_of
from harness.crossover import Crossover, crossover
from harness.evals import ALL, CANARY
from harness.stats import Array, Interval, draws_of, seeds_and_items

LoadItems = Callable[[str], pd.DataFrame]


@dataclass(frozen=True)
class Replicates:
    """Scores, or paired gains, of one arm: `values` (S, N), or (S, 1) where the items are not known."""

    seeds: tuple[tuple[int, int], ...]
    """(data_seed, train_seed) of each row."""
    values: Array
    ids: tuple[str, ...]
    """Item ids, empty where the items are not known."""
    strata: tuple[str, ...] | None
    """Each item's source; null where the items are not known."""

    @property
    def covers(self) -> str:
        """Which variance an interval of these values contains, in words."""
        items = len(self.ids) > 1
        if len(self.seeds) > 1:
            one_subset = len({data for data, _ in self.seeds}) == 1
            seeds = "training seeds (one draw of rows)" if one_subset else "seeds"
            return f"{seeds} and items" if items else f"{seeds} only"
        return "items only" if items else "nothing"


def read_items(path: str) -> pd.DataFrame:
    """The scores of single items that an evaluation left on disk."""
    return pd.read_parquet(Path(path))


def scores(cells: Iterable[Record], metric: Metric, load_items: LoadItems) -> Replicates | None:
    """Scores of an arm's finished cells on the items that all of them have; null without any."""
    found = {seeds_of(c): s for c in cells if (s := _scored(c, metric, load_items)) is not None}
    return _stack({seed: (found[seed], None) for seed in sorted(found)})


def gain(cells: Iterable[Record], sft: Iterable[Record], metric: Metric, load_items: LoadItems) -> Replicates | None:
    """Paired gains on the seeds and items that both arms have; null without a common seed."""
    own, other = (
        {seeds_of(c): s for c in side if (s := _scored(c, metric, load_items)) is not None} for side in (cells, sft)
    )
    return _stack({seed: (own[seed], other[seed]) for seed in sorted(own.keys() & other.keys())})


def estimate(name: str, parts: Mapping[Arm, Replicates | None]) -> dict[str, Any]:
    """Columns `name`, `_low`, `_high`, `_p`, `_covers` of one estimate: over seeds, or draws if several."""
    known = {arm: part for arm, part in parts.items() if part is not None}
    interval: Interval | None = None
    covers = ""
    if len(known) == 1:
        part = next(iter(known.values()))
        interval, covers = seeds_and_items(part.values, part.strata), part.covers
    elif known:
        drawn = draws_of(*_over_draws(known))
        interval, covers = drawn.across, f"{len(known)} draws, {drawn.scope}"
    columns: dict[str, Any] = {f"{name}_covers": covers}
    for column, field in (("", "estimate"), ("_low", "low"), ("_high", "high"), ("_p", "p")):
        columns[f"{name}{column}"] = getattr(interval, field) if interval else math.nan
    return columns


def crossovers(
    records: Iterable[Record],
    metric: Metric,
    load_items: LoadItems = read_items,
    delta: float = 0.0,
    margin: float = 0.02,
) -> dict[Arm, Crossover]:
    """The crossover of every method and teacher with SFT, by its arm (data_frac null).

    Where a line was run in several draws of world or teacher, the draws are the replicates (world_seed and
    teacher_seed null). Fractions that lack a seed the others have lose that seed everywhere; a line without
    a seed at two fractions or more has no entry. Losses are turned round, so above 0 is better than SFT.
    """
    arms = by_arm(records)
    sign = 1 if metric.higher_is_better else -1
    lines: dict[Arm, dict[tuple[Any, Any], dict[float, Replicates]]] = {}
    for arm, cells in arms.items():
        if arm.role != "student" or arm == arm.partner or arm.partner not in arms or arm.data_frac is None:
            continue
        pairs = gain(cells, arms[arm.partner], metric, load_items)
        if pairs is not None:
            line = arm._replace(data_frac=None, world_seed=None, teacher_seed=None)
            draw = (arm.world_seed, arm.teacher_seed)
            lines.setdefault(line, {}).setdefault(draw, {})[arm.data_frac] = pairs
    found = {}
    for line, draws in lines.items():
        fractions = sorted(set.intersection(*(set(points) for points in draws.values())))
        cubes = {draw: _cube([points[f] for f in fractions]) for draw, points in draws.items()}
        known = {draw: cube for draw, cube in cubes.items() if cube is not None}
        if len(fractions) < 2 or not known:
            continue
        values, strata = next(iter(known.values()))
        key = line
        if len(known) > 1:
            values, strata = np.stack([cube.mean((0, 2)) for cube, _ in known.values()])[:, :, None], None
        else:
            world_seed, teacher_seed = next(iter(known))
            key = line._replace(world_seed=world_seed, teacher_seed=teacher_seed)
        found[key] = crossover(fractions, sign * values, strata, delta, margin)
    return found


def _over_draws(parts: Mapping[Any, Replicates]) -> tuple[dict[Any, Array], dict[Any, tuple[str, ...]]]:
    """Arguments of `stats.draws_of`: items vary only where all draws have the same ones."""
    same = len({part.ids for part in parts.values()}) == 1
    # other worlds have other items, so a draw's mean already carries their noise: their strata differ in name
    strata = {d: tuple(s if same else f"{d} {s}" for s in p.strata) for d, p in parts.items() if p.strata}
    return {d: p.values for d, p in parts.items()}, strata


class _Scored(NamedTuple):
    score: float
    items: pd.DataFrame | None  # as item_values returns them


def _scored(record: Record, metric: Metric, load_items: LoadItems) -> _Scored | None:
    """The score and items of one record; items that do not average to the score are not used."""
    score = score_of(record, metric)
    if score is None:
        return None
    items = item_values(load_items(record["items"]), metric) if record.get("items") else None
    if items is None or len(items) < 2 or abs(items["value"].mean() - score) > 1e-4 * max(1.0, abs(score)):
        items = None
    return _Scored(score, items)


def item_values(items: pd.DataFrame, metric: Metric) -> pd.DataFrame | None:
    """Values per item (index id; columns value, source) whose mean is the metric; null if there are none.

    A loss per token is a ratio of sums, r = sum(nll) / sum(tokens): its items are
    (nll - r tokens) / mean(tokens) + r, whose mean is r and whose spread is that of the ratio.
    """
    rows = items[items["eval"] == metric.eval]
    # facts that nobody was taught are scored apart and never enter `all` (harness/evals)
    rows = rows[rows["source"] != CANARY if metric.source == ALL else rows["source"] == metric.source]
    column, tokens = (metric.metric if metric.metric in rows else "score"), f"{metric.metric}_tokens"
    rows = rows[rows[column].notna()].drop_duplicates("id")
    if tokens in rows:
        rows = rows[rows[tokens] > 0]
    if rows.empty:
        return None
    value = rows[column].astype(float)
    if tokens in rows:
        count = rows[tokens].astype(float)
        ratio = value.sum() / count.sum()
        value = (value - ratio * count) / count.mean() + ratio
    return pd.DataFrame({"value": value, "source": rows["source"].astype(str)}).set_index(rows["id"].astype(str))


def _stack(pairs: Mapping[tuple[int, int], tuple[_Scored, _Scored | None]]) -> Replicates | None:
    """Values (or differences) by seed on the common items; scores alone where a cell has no items."""
    if not pairs:
        return None
    seeds = tuple(pairs)
    frames = [side.items for pair in pairs.values() for side in pair if side is not None]
    known = [frame for frame in frames if frame is not None]
    ids = reduce(lambda a, b: a.intersection(b, sort=False), (f.index for f in known)) if known else pd.Index([])
    if len(known) < len(frames) or len(ids) < 2:
        rows = [own.score - (other.score if other else 0.0) for own, other in pairs.values()]
        return Replicates(seeds, np.array(rows)[:, None], (), None)
    ids = ids.sort_values()
    columns = iter([frame["value"].reindex(ids).to_numpy() for frame in known])
    values = [next(columns) - (next(columns) if other else 0.0) for _, other in pairs.values()]
    return Replicates(seeds, np.stack(values), tuple(map(str, ids)), tuple(known[0]["source"].reindex(ids)))


def _cube(points: list[Replicates]) -> tuple[Array, tuple[str, ...] | None] | None:
    """Gains (S, F, N) of one line on the seeds and items that all fractions have."""
    if not points:
        return None
    seeds = [s for s in points[0].seeds if all(s in point.seeds for point in points)]
    if not seeds:
        return None
    rows = [point.values[[point.seeds.index(s) for s in seeds]] for point in points]
    if any(point.ids != points[0].ids or not point.ids for point in points):
        return np.stack([r.mean(1) for r in rows], axis=1)[:, :, None], None
    return np.stack(rows, axis=1), points[0].strata
