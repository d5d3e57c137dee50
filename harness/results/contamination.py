"""Contamination: which items of an evaluation are repeated in the rows a model was trained on, cell by cell.

The `overlap` stages hold which rows of a mixture, or of a teacher's synthetic rows, repeat which items (8-gram
overlap); a cell's share follows from the rows it trains on. Scores are given with and without the repeated items. Rows
that ask the same in other words are the subject of `exposure.py`; the pretraining data of a base model are not known.

    student_rows       a train row of the model's own repeats the item, whether or not the budget visits it
    synthetic_rows     a row that the teacher generated for it does
    in_context_rows    a row from the pool of in-context examples for those synthetic rows does
    teacher_rows       a row of the teacher's fine-tuning does

    contamination = Contamination(store, frozen_plan); contamination.flags(frozen_cell, "gsm8k")["student_rows"].sum()
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from harness.data.corpora import load_corpus
from harness.data.ngram_overlap import HELDOUT
from harness.data.sequences import conversation_of
from harness.evals import ALL, Score
from harness.plan.frozen import FrozenCell, FrozenPlan
from harness.results.arms import Metric
from harness.results.items import item_values, read_items
from harness.results.records import MEMORY, RepeatedItems
from harness.store.integrity import artifact_file
from harness.store.store import Store

ROWS = ("student_rows", "synthetic_rows", "in_context_rows", "teacher_rows")
NOTEWORTHY = 0.02
"""Share of repeated items above which a record warns; Tülu 3 removes a source above it (arXiv 2411.15124, 3.2)."""
REPEATED = "are repeated in training rows"
MOSTLY = 0.5
"""Share of items in a model's own training rows above which its score says nothing of what it can do."""


class Training(NamedTuple):
    """What a model was trained on: rows, rows its teacher generated, and its pretrained base (keys of stages)."""

    subsets: tuple[str, ...]
    synthetic: tuple[str, ...]
    base: str


def training_of(stages: Mapping[str, Any], key: str) -> Training:
    """What the model of one stage was trained on, all stages before it included."""
    subsets: dict[str, None] = {}
    synthetic: dict[str, None] = {}
    # from the model that is scored back to its base, through each training stage and each rounding
    while stages[key]["kind"] in ("train", "quantise"):
        inputs = stages[key]["inputs"]
        if stages[key]["kind"] == "train":
            # a dict keeps the order and each key once: two phases may train on one subset
            subsets[inputs["subset"]] = None
            synthetic |= dict.fromkeys(inputs[role] for role in inputs if role == "synthetic")
        key = inputs["start"] if "start" in inputs else inputs["model"]
    return Training(tuple(subsets), tuple(synthetic), key)


def teachers_of(stages: Mapping[str, Any], train: Iterable[str]) -> tuple[str, ...]:
    """The stages that made the teachers of train stages, whether they are live or made labels, text or caches.

    None for a student without a teacher, and several in the order of the cell's members.
    """
    found: dict[str, str] = {}
    for key in train:
        for role, upstream in stages[key]["inputs"].items():
            name, *place = role.split(":")
            # the member's place, where there are several teachers; blocks of one teacher's labels are of the first
            member = place[0] if "teachers" in stages[key].get("settings", {}) and place else "0"
            if name == "teacher":
                found.setdefault(member, upstream)
            # a teacher that is not live stands behind the stage that wrote its labels, text or cache
            elif name not in ("subset", "start") and "teacher" in stages[upstream]["inputs"]:
                found.setdefault(member, stages[upstream]["inputs"]["teacher"])
    return tuple(found[member] for member in sorted(found, key=int))


def row_numbers(folder: Path) -> np.ndarray:
    """Numbers in its mixture of the conversations that a subset trains on, from the subset's `train` folder.

    Raises OSError for a file that cannot be read, ValueError for a folder without any.
    """
    tables = [pa.ipc.open_stream(pa.memory_map(str(path))).read_all() for path in sorted(folder.glob("*.arrow"))]
    return np.unique(conversation_of(np.concatenate([table["row"].to_numpy() for table in tables])))


class Contamination:
    """The repeated items of a grid's cells and reference models; what cells share is read once."""

    def __init__(self, store: Store, frozen: FrozenPlan) -> None:
        """`frozen` is the grid's plan (`harness/results/records.py`)."""
        self._store = store
        self._stages = frozen.stages
        self._pairs, self._items = cache(self._pairs_of), cache(self._items_of)
        self._hit, self._flags = cache(self._hit_of), cache(self._flags_of)

    def flags(self, cell: FrozenCell, evaluation: str) -> pd.DataFrame | None:
        """By item (`keys`) whether it is in ROWS (booleans), for a frozen cell, or one of its references.

        None where rows were not compared with this evaluation: it was not asked for, is not done, or read the
        benchmark from the hub at another revision. Raises OSError where a finished stage lacks a file.
        """
        evaluated = cell.evaluations[evaluation]
        name = HELDOUT if "mixture" in self._stages[evaluated]["inputs"] else evaluation
        compared = {self._stages[key]["inputs"]["rows"]: key for key in cell.overlaps}
        own = training_of(self._stages, self._stages[evaluated]["inputs"]["model"])
        taught = [training_of(self._stages, teacher) for teacher in teachers_of(self._stages, cell.train)]
        lessons = tuple(dict.fromkeys(subset for training in taught for subset in training.subsets))
        shown = [self._stages[key]["inputs"]["subset"] for key in own.synthetic]
        wanted = zip(ROWS, (own.subsets, own.synthetic, shown, lessons), strict=True)
        parts = {kind: [(self._rows_of(one), one) for one in keys] for kind, keys in wanted}
        needed = {rows for found in parts.values() for rows, _ in found}
        # a model that was trained on no row repeats nothing
        if not needed:
            return pd.DataFrame(columns=ROWS, dtype=bool)
        taken = (one for found in parts.values() for _, one in found)
        # rows that were not compared would pass for rows that repeat nothing
        if not needed <= compared.keys() or not all(map(self._store.done, taken)):
            return None
        if not all(self._usable(key, evaluated, name) for key in compared.values()):
            return None
        made_of = tuple(tuple((compared[rows], one) for rows, one in found) for found in parts.values())
        return self._flags(name, next(iter(compared.values())), made_of)

    def repeated(
        self, cell: FrozenCell, evaluation: str, scores: Sequence[Score], items: str
    ) -> tuple[RepeatedItems | None, list[str]]:
        """What a record holds of one evaluation, and warnings; null where nothing was compared.

        Counts of scored items: by ROWS, `own` (in rows of the model's own or written for it), `teacher_only` (in the
        teacher's and not in those); and by metric the score `without` the own ones, null where none is left. Raises
        OSError as `flags` does, and where `items` cannot be read.
        """
        flags = self.flags(cell, evaluation)
        if flags is None:
            missing = f"contamination: {evaluation} was not compared with the training rows"
            return None, [missing] if cell.overlaps else []
        whole = [score for score in scores if score.eval == evaluation and score.source == ALL]
        counts = {"items": max((score.items for score in whole), default=0)}
        if not flags.to_numpy().any() or not whole:
            return RepeatedItems(counts["items"]), []
        without: dict[str, float | None] = {}
        frame = read_items(items)
        evaluated = cell.evaluations[evaluation]
        heldout = "mixture" in self._stages[evaluated]["inputs"]
        for score in whole:
            values = item_values(frame, Metric(evaluation, score.metric))
            if values is None or values["count"].sum() == 0:
                continue
            mine = flags.reindex(keys(values, heldout), fill_value=False)
            own = (mine["student_rows"] | mine["synthetic_rows"]).to_numpy()
            if not without:  # counts are those of the evaluation's first metric
                only = mine["teacher_rows"].to_numpy() & ~own
                counts = {"items": len(own), "own": int(own.sum()), "teacher_only": int(only.sum())}
                counts |= {kind: int(mine[kind].sum()) for kind in ROWS}
            rest = values[~own]
            without[score.metric] = float(rest["total"].sum() / rest["count"].sum()) if len(rest) else None
        found = RepeatedItems(without=without, **counts)
        if heldout and self._questions_known(evaluated):
            return found, []  # `exposure.py` finds what rows ask, in any wording
        return found, _warnings(evaluation, found, {score.metric: score.score for score in whole})

    def _questions_known(self, evaluated: str) -> bool:
        mixture = self._stages[self._stages[evaluated]["inputs"]["mixture"]]
        return load_corpus(mixture["settings"]["corpus"]["kind"]).knows_questions

    def _rows_of(self, key: str) -> str:
        """What is compared as a whole: a subset's mixture, or synthetic rows themselves."""
        stage = self._stages[key]
        return stage["inputs"]["mixture"] if stage["kind"] == "subset" else key

    def _usable(self, overlap: str, evaluated: str, name: str) -> bool:
        """Whether an overlap stage is done, and looked for the items that were scored."""
        if not self._store.done(overlap):
            return False
        resolved = self._store.manifest(overlap)["facts"]["resolved"]["data_revisions"].get(name)
        # without a revision on either side there is nothing that could differ
        if resolved is None or not self._store.done(evaluated):
            return True
        return self._store.manifest(evaluated)["facts"]["resolved"]["data_revision"] == resolved

    def _pairs_of(self, overlap: str) -> tuple[np.ndarray, np.ndarray]:
        table = pq.read_table(artifact_file(self._store, overlap, "pairs.parquet"), columns=["row", "item"])
        return table["row"].to_numpy(), table["item"].to_numpy()

    def _items_of(self, overlap: str, name: str) -> tuple[pd.Index, dict[int, str]]:
        """An evaluation's items by key, and the key of each by its number among all."""
        table = pd.read_parquet(artifact_file(self._store, overlap, "items.parquet"))
        table = table[table["eval"] == name]
        named = keys(table, heldout=name == HELDOUT)
        return pd.Index(named.unique()), dict(zip(table.index, named, strict=True))

    def _flags_of(self, name: str, items: str, made_of: tuple[tuple[tuple[str, str], ...], ...]) -> pd.DataFrame:
        """By item whether it is in each of ROWS, given for each the keys (overlap, subset or synthetic rows) it is of.

        Cells that train on the same rows share one table, which nobody changes.
        """
        index, _ = self._items(items, name)
        flags = {
            kind: index.isin([item for overlap, one in keys_of for item in self._hit(overlap, name, one)])
            for kind, keys_of in zip(ROWS, made_of, strict=True)
        }
        return pd.DataFrame(flags, index=index)

    def _hit_of(self, overlap: str, name: str, key: str) -> list[str]:
        """Keys of the items of an evaluation that are repeated in a subset, or in synthetic rows."""
        rows, items = self._pairs(overlap)
        if len(rows) and self._stages[key]["kind"] == "subset":
            # pairs are of a whole mixture, and a subset trains on some of its rows; synthetic rows count whole
            items = items[np.isin(rows, row_numbers(self._store.folder(key) / "train"))]
        named = self._items(overlap, name)[1]
        return [named[item] for item in np.unique(items).tolist() if item in named]


def _warnings(evaluation: str, found: RepeatedItems, scores: Mapping[str, float]) -> list[str]:
    many, said = NOTEWORTHY * found.items, []
    if found.own > many:
        (metric, without), *_ = found.without.items()
        left = "none is left without them" if without is None else f"{without:.3f} without them"
        mostly = found.own > MOSTLY * found.items
        kind, where = ("memory", f"are in the training rows: {MEMORY}") if mostly else ("contamination", REPEATED)
        said.append(
            f"{kind}: {found.own} of {found.items} items of {evaluation} {where}; "
            f"{metric} is {scores[metric]:.3f}, {left}"
        )
    if found.teacher_only > many:
        said.append(
            f"contamination: {found.teacher_only} of {found.items} items of {evaluation} are repeated in rows "
            "that only the teacher was trained on"
        )
    return said


def keys(items: pd.DataFrame, heldout: bool) -> pd.Series:
    """What tells the items of an evaluation apart: the prompt of held-out rows, source and id of a benchmark's."""
    if heldout:
        return items["prompt_hash"].astype(str)
    return items["source"].astype(str) + "\n" + items["id"].astype(str)
