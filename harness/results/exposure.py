"""Exposure: whether what a held-out item asks was in the student's training, only in the teacher's, or in neither.

A held-out prompt itself is in no training row (rows are removed by prompt hash), so exposure is of what it
asks: in the miniature the fact or the operands, read back from the words (`Corpus.asks`; operands of skills
are held out with the prompt, so skills are never seen). Of a corpus that cannot tell, and of a benchmark, the item's
words are looked for in rows (`contamination.py`): a paraphrase is not found, and `neither` says no more than that.
Where words were not compared, held-out rows are by prompt hash alone, and of a benchmark's items nothing is known.

Each model may have seen it in rows or been told in pre-training, and the two are kept apart:

    student_rows           a train row of the cell asks it, whether or not the budget visits it; rows that a
                           teacher wrote are its teaching, not the cell's data, and do not count
    synthetic_rows         but where such a row repeats the item's own words, the student has seen it
    student_pretraining    the base's pre-training answered it: a miniature knows the facts of `knows`, fresh weights
                           nothing, and of any other model (hub, folder, GGUF, server) it is not known: null
    teacher_rows, teacher_pretraining    the same of the teacher and its fine-tuning rows; false without a teacher

Seen is rows or pre-training, in three-valued logic. A row whose answer is wrong, or left to the teacher, counts too:

    student    the student has seen it
    teacher    the student has not, the teacher has
    neither    neither has, and all that either was trained on is known
    unknown    else: not in the cell's rows and the student's base is one of the others; or the student has not
               seen it, nor do the lessons ask it, and the teacher's base is one of the others

    exposures = Exposures(store, frozen_plan); exposures.of_items(record, "gsm8k", items)["exposure"]
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from harness.config.checks import refuse
from harness.data.corpora import load_corpus
from harness.plan.frozen import FrozenCell, FrozenPlan
from harness.results.contamination import ROWS, Contamination, Training, keys, row_numbers, teachers_of, training_of
from harness.results.records import Record
from harness.store.store import Store

EXPOSURES = ("student", "teacher", "neither", "unknown")
SEEN_BY = ("student_rows", "synthetic_rows", "student_pretraining", "teacher_rows", "teacher_pretraining")


class Exposures:
    """The exposure of a grid's scored items, cell by cell; rows are read once, whatever the number of cells.

    `frozen` is the grid's plan (`harness/results/records.py`).
    """

    def __init__(self, store: Store, frozen: FrozenPlan) -> None:
        self._store = store
        self._stages = frozen.stages
        self._cells = {cell.fingerprint: cell for cell in frozen.cells}
        self._contamination = Contamination(store, frozen)
        self._frame = cache(self._frame_of)
        self._asked = cache(_asked)
        self._matches = cache(self._matches_of)

    def of(self, record: Record) -> pd.DataFrame:
        """By prompt hash of the held-out rows: `exposure` (text) and SEEN_BY (nullable booleans).

        Raises SettingsError for a record that is no student's of this grid, where none of its evaluations uses held-out
        rows, and where rows left the store.
        """
        cell = self._cell(record)
        mixtures = {name: self._inputs(cell, name).get("mixture") for name in cell.evaluations}
        evaluation = next((name for name, mixture in mixtures.items() if mixture), None)
        if evaluation is None:
            raise refuse("record", record.cell, "none of its evaluations uses held-out rows", "add evals.names=heldout")
        asked = self._frame(mixtures[evaluation], *self._trainings(cell))
        # where words were not compared, prompt hash and question alone decide
        repeated = self._repeated(cell, evaluation, asked.index).fillna(False)
        seen = {name: asked[name] | repeated[name] if name in repeated else asked[name] for name in SEEN_BY}
        return pd.DataFrame({"exposure": _exposure(seen), **seen})

    def of_items(self, record: Record, evaluation: str, items: pd.DataFrame) -> pd.DataFrame:
        """The same for items of any evaluation (columns source, id, prompt_hash), with their index.

        Raises SettingsError as `of` does.
        """
        cell = self._cell(record)
        heldout = "mixture" in self._inputs(cell, evaluation)
        named = keys(items, heldout)
        frame = self.of(record) if heldout else self._of_benchmark(cell, evaluation, pd.Index(named.unique()))
        return frame.reindex(named).set_axis(items.index)

    def _of_benchmark(self, cell: FrozenCell, evaluation: str, index: pd.Index) -> pd.DataFrame:
        repeated = self._repeated(cell, evaluation, index)
        nothing = pd.Series(pd.NA, index, dtype="string")  # no benchmark asks what a miniature's pre-training answers
        seen = {name: repeated[name] for name in SEEN_BY if name in ROWS}
        student, teachers = self._trainings(cell)
        for name, trainings in (("student", (student,)), ("teacher", teachers)):
            seen[f"{name}_pretraining"] = self._told_any(trainings, nothing)
        return pd.DataFrame({"exposure": _exposure(seen), **{name: seen[name] for name in SEEN_BY}})

    def _repeated(self, cell: FrozenCell, evaluation: str, index: pd.Index) -> pd.DataFrame:
        """Whether rows repeat each item, by the names in SEEN_BY; null where they were not compared."""
        flags = self._contamination.flags(cell, evaluation)
        names = [name for name in SEEN_BY if name in ROWS]
        if flags is None:
            return pd.DataFrame({name: pd.Series(pd.NA, index, dtype="boolean") for name in names})
        return flags[names].reindex(index, fill_value=False).astype("boolean")

    def _cell(self, record: Record) -> FrozenCell:
        cell = self._cells.get(record.cell) if record.role == "student" else None
        if cell is None:
            raise refuse("record", record.cell, "exposure is known for students of this grid only")
        return cell

    def _inputs(self, cell: FrozenCell, evaluation: str) -> Mapping[str, str]:
        return self._stages[cell.evaluations[evaluation]]["inputs"]

    def _trainings(self, cell: FrozenCell) -> tuple[Training, tuple[Training, ...]]:
        """What the student of a cell and its teachers, if it has any, were trained on."""
        model = self._inputs(cell, next(iter(cell.evaluations)))["model"]
        teachers = tuple(training_of(self._stages, key) for key in teachers_of(self._stages, cell.train))
        return training_of(self._stages, model), teachers

    def _frame_of(self, mixture: str, student: Training, teachers: tuple[Training, ...]) -> pd.DataFrame:
        asked = self._asked(self._file(mixture, "heldout.parquet"), self._corpus(mixture))
        # what a teacher wrote is no row of the mixture; `of` adds the synthetic rows that repeat an item's words
        seen: dict[str, pd.Series] = {"synthetic_rows": pd.Series(False, asked.index, dtype="boolean")}
        for name, trainings in (("student", (student,)), ("teacher", teachers)):
            in_rows = np.zeros(len(asked), dtype=bool)  # (n,), by held-out item
            for subset in dict.fromkeys(subset for training in trainings for subset in training.subsets):
                rows, items = self._matches(self._stages[subset]["inputs"]["mixture"], mixture)
                in_rows[items[np.isin(rows, row_numbers(self._file(subset, "train")))]] = True
            seen[f"{name}_rows"] = pd.Series(in_rows, asked.index, dtype="boolean")
            seen[f"{name}_pretraining"] = self._told_any(trainings, asked["question"])
        return pd.DataFrame(seen)

    def _told_any(self, trainings: Sequence[Training], questions: pd.Series) -> pd.Series:
        """Which questions the pre-training of any of some models answered, boolean (n,); null where not known."""
        found = pd.Series(False, questions.index, dtype="boolean")
        for base in dict.fromkeys(training.base for training in trainings):
            found |= pd.Series(self._told(base, questions), questions.index, dtype="boolean")
        return found

    def _told(self, base: str, questions: pd.Series) -> Any:
        """Which questions a base's pre-training answered (n,); null of a base whose pretraining is not known."""
        settings = self._stages[base]["settings"]
        if settings["init"] == "random":
            return False
        if settings["kind"] != "mini":
            return pd.NA
        told = load_corpus(settings["kind"]).pretraining_facts(settings["world_seed"], settings["knows"])
        return questions.isin(told).to_numpy()

    def _matches_of(self, mixture: str, heldout: str) -> tuple[np.ndarray, np.ndarray]:
        """Train rows of one mixture and held-out items of another that ask the same, as pairs of numbers (m,)."""
        items = self._asked(self._file(heldout, "heldout.parquet"), self._corpus(heldout)).reset_index()
        path = self._file(mixture, "train.parquet")
        prompts = pq.read_table(path, columns=["prompt_hash"])["prompt_hash"]
        # the prompt's hash is one short column; whole rows are read only where some item has a question to look for
        same = np.flatnonzero(pc.is_in(prompts, value_set=pa.array(items["prompt_hash"])))
        found = [pd.DataFrame({"row": same, "prompt_hash": prompts.take(same).to_pylist()}).merge(_number(items))]
        if items["question"].notna().any():
            turns = _user_turns(pq.read_table(path, columns=["messages"])["messages"])
            asks = cache(load_corpus(self._corpus(mixture)).asks)
            turns["question"] = [asks(text) for text in turns["text"]]
            # a merge matches null with null: without `dropna` every turn that asks nothing known would match every such
            # item
            found.append(turns.dropna().merge(_number(items).dropna()))
        pairs = pd.concat([pair[["row", "item"]] for pair in found])
        return pairs["row"].to_numpy(), pairs["item"].to_numpy()

    def _corpus(self, mixture: str) -> str:
        return self._stages[mixture]["settings"]["corpus"]["kind"]

    def _file(self, key: str, name: str) -> Path:
        path = self._store.folder(key) / name
        if not path.exists():
            way_out = "run the grid again with the same store; missing stages are made again"
            raise refuse("by", "exposure", f"the rows of {self._stages[key]['address']} are not in the store", way_out)
        return path


def _asked(path: Path, corpus: str) -> pd.DataFrame:
    """What each held-out prompt asks last, by prompt hash; null where its corpus cannot tell."""
    table = pq.read_table(path, columns=["messages", "prompt_hash"])
    last = _user_turns(table["messages"]).groupby("row")["text"].last()
    asks = load_corpus(corpus).asks
    frame = pd.DataFrame(
        {"question": pd.array([asks(text) for text in last], dtype="string")},
        index=pd.Index(table["prompt_hash"].to_pylist(), name="prompt_hash"),
    )
    # `reindex` by prompt hash refuses an index that names a prompt twice
    return frame[~frame.index.duplicated()]


def _user_turns(messages: pa.ChunkedArray) -> pd.DataFrame:
    """Every user turn of rows of messages: `row` (its number) and `text`, in order."""
    whole = messages.combine_chunks()
    turns = whole.flatten()
    rows, roles, texts = pc.list_parent_indices(whole), turns.field("role"), turns.field("content")
    asked = pc.equal(roles, "user")
    return pd.DataFrame({"row": rows.filter(asked).to_numpy(), "text": texts.filter(asked).to_pylist()})


def _number(items: pd.DataFrame) -> pd.DataFrame:
    return items.assign(item=np.arange(len(items)))


def _exposure(seen: Mapping[str, pd.Series]) -> pd.Series:
    by_student = seen["student_rows"] | seen["synthetic_rows"] | seen["student_pretraining"]
    by_teacher = seen["teacher_rows"] | seen["teacher_pretraining"]
    # where a value is null the condition is null too, and the item stays unknown
    exposure = pd.Series("unknown", by_student.index, dtype="string")
    exposure[by_student.fillna(False)] = "student"
    exposure[(~by_student & by_teacher).fillna(False)] = "teacher"
    exposure[(~by_student & ~by_teacher).fillna(False)] = "neither"
    return exposure
