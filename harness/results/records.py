"""Records: what is known of each cell and reference model, read from a frozen plan and the store.

A record holds what was asked, what it cost, how it scored, or why there is no score. The frozen plan is the grid's
`plan.json`, so records of a grid can be read long after the command that made them.

    records(store, frozen_plan(store, "grid-1a2b"))[0].status
    Record.of(json.loads(line)).plain()      # a line of records.jsonl, read and written
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cache, partial
from types import NoneType
from typing import TYPE_CHECKING, Any

from harness.config.checks import SettingsError, refuse
from harness.evals import ALL, Score
from harness.models.diverged import TeacherDivergedError
from harness.plan.frozen import FrozenCell, FrozenPlan, targets_of
from harness.plan.metrics import MACRO_AVERAGE
from harness.results.cost import Cost, cell_cost
from harness.results.suite import lacking, suite_of, with_macro_average
from harness.stand_ins import LICENSE as STAND_IN
from harness.store.integrity import artifact_file, suspects
from harness.store.status import StageState, cell_state, stage_state
from harness.store.store import DamagedError, Store

if TYPE_CHECKING:
    import pandas as pd

    from harness.results.contamination import Contamination

REHEARSAL = "rehearsal: numbers mean nothing"
"""What every result of models with random weights shows (`scale=rehearsal`)."""

LATER_KEYS = ("blamed", "realised_frac", "scored_on")
"""Keys that lines of earlier versions lack."""
MEMORY = "this score measures memory"
"""Words of the warning about an evaluation that is mostly in the training rows: the first of all warnings."""


AGAIN = "collect the grid again: python -m harness.grid results <grid>"
SHAPES: Mapping[Any, str] = {
    str: "a text",
    Mapping: "an object of keys and values",
    (list, tuple, NoneType): "a list",
    (Mapping, NoneType): "an object of keys and values",
    (str, NoneType): "a text or null",
    (int, NoneType): "a whole number or null",
    (int, float, NoneType): "a number or null",
}
"""In words, what `FORMS` asks for."""
FORMS: Mapping[str, Any] = {
    **dict.fromkeys(("role", "method", "student", "corpus", "budget", "cell", "grid", "status"), str),
    **dict.fromkeys(("teacher", "reason", "failure_class", "artifact"), (str, NoneType)),
    **dict.fromkeys(("seed", "data_seed", "train_seed", "world_seed", "teacher_seed"), (int, NoneType)),
    "data_frac": (int, float, NoneType),
    "settings": Mapping,
    **dict.fromkeys(("scores", "warnings"), (list, tuple, NoneType)),
    **dict.fromkeys(("items", "contamination", "tuned", "cost"), (Mapping, NoneType)),
}
"""By key of a record, the type of its value."""


@dataclass(frozen=True)
class RepeatedItems:
    """How many scored items of one evaluation are repeated in training rows; `contamination.py` defines each count."""

    items: int
    """Items that were scored."""
    own: int = 0
    """Items in the model's own rows, or in rows that its teacher generated for it."""
    teacher_only: int = 0
    """Items in the teacher's rows and not in those."""
    student_rows: int = 0
    synthetic_rows: int = 0
    in_context_rows: int = 0
    teacher_rows: int = 0
    without: Mapping[str, float | None] = field(default_factory=dict)
    """By metric, the score without the `own` items; null where none is left, empty where none is repeated."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """The receipt of one cell, or of a reference model (base, teacher) that cells are compared with.

    Fields have the names and the order of the keys in `records.jsonl`.
    """

    role: str
    """`student`, `base` or `teacher`."""
    method: str
    """The method's label; of a reference model its role."""
    student: str
    teacher: str | None
    corpus: str
    budget: str
    data_frac: float | None
    seed: int | None
    data_seed: int | None
    train_seed: int | None
    world_seed: int | None
    teacher_seed: int | None
    settings: Mapping[str, Any]
    """The settings that were asked for, as nested plain JSON (`harness.plan.frozen.settings_of`)."""
    cell: str
    """Fingerprint of the cell or reference model."""
    grid: str
    status: str
    """A status of `harness.store.status.StageState`; only a `done` record has all of its scores."""
    reason: str | None = None
    failure_class: str | None = None
    blamed: str | None = None
    """Of a failure, whose it is: `student` where its own training or scoring failed, else `input` (its base model, its
    teacher, its rows); null where none failed, and in records of earlier versions."""
    scores: tuple[Score, ...] = ()
    items: Mapping[str, str] = field(default_factory=dict)
    """By evaluation, where the scores of single items lie: a path, or a name within an exported folder."""
    scored_on: Mapping[str, str] = field(default_factory=dict)
    """By benchmark, the data it was scored on with its split; none of scores made before this was recorded."""
    contamination: Mapping[str, RepeatedItems] = field(default_factory=dict)
    """By evaluation; none where training rows were not compared with its items."""
    warnings: tuple[str, ...] = ()
    tuned: Mapping[str, Any] = field(default_factory=dict)
    """Settings that trials chose, by dotted name."""
    cost: Mapping[str, Cost] = field(default_factory=dict)
    """By purpose, as `cost.cell_cost` gives it."""
    realised_frac: float | None = None
    """The share of the rows that `data_frac` took, whole rows and at least one a source; null where it is not known."""
    artifact: str | None = None
    """The folder of the trained model; null in an exported folder."""
    key_order: tuple[str, ...] = field(default=(), repr=False, compare=False)
    """The order of keys in the line it was read from, in which `plain` writes them again; empty for a new record."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Record":
        """From a line of `records.jsonl`. Raises SettingsError for a missing or unknown key or an odd value."""
        if not isinstance(given, Mapping):
            raise refuse("record", given, "a record is an object of keys and values", AGAIN)
        names = {one.name: one for one in fields(cls) if one.name != "key_order"}
        if unknown := [name for name in given if name not in names]:
            why = f"a record has no such key; the keys are {', '.join(names)}"
            raise refuse("record", unknown[0], why, "read it with the version of the program that wrote it")
        needed = [name for name, one in names.items() if one.default is MISSING and one.default_factory is MISSING]
        if missing := [name for name in needed if name not in given]:
            why = f"the record of cell {given.get('cell')} lacks this key"
            raise refuse("record", missing[0], why, AGAIN)
        for name, kind in FORMS.items():
            if name in given and not isinstance(given[name], kind):
                raise refuse(f"record.{name}", given[name], f"it is {SHAPES[kind]}", AGAIN)
        found = dict(given)
        found["scores"] = tuple(_part(Score, "scores", one) for one in given.get("scores") or ())
        found["warnings"] = tuple(given.get("warnings") or ())
        found["cost"] = {name: _part(Cost, "cost", one) for name, one in (given.get("cost") or {}).items()}
        repeated = (given.get("contamination") or {}).items()
        found["contamination"] = {name: _part(RepeatedItems, "contamination", counts) for name, counts in repeated}
        return cls(**found, key_order=tuple(given))

    def plain(self) -> dict[str, Any]:
        """The same as plain JSON, with every key: those it was read with in their order, then the others."""
        found = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "key_order"}
        # scores.json has its keys sorted, and so has every record that was written from it
        found["scores"] = [dict(sorted(asdict(score).items())) for score in self.scores]
        found["warnings"] = list(self.warnings)
        found["cost"] = {purpose: asdict(cost) for purpose, cost in self.cost.items()}
        found["contamination"] = {name: asdict(counts) for name, counts in self.contamination.items()}
        # in the order they were read, so that a file is written again byte for byte; older ones lack a key
        if self.key_order:
            found = {name: value for name, value in found.items() if name in self.key_order or name not in LATER_KEYS}
        return {name: found[name] for name in dict.fromkeys((*self.key_order, *found))}


def _part(kind: Any, name: str, given: Any) -> Any:
    """A score, a cost or counts from plain JSON. Raises SettingsError for other keys, and for a text as a number."""
    known = {one.name: one for one in fields(kind)}
    if not isinstance(given, Mapping) or set(given) - set(known):
        raise refuse(f"record.{name}", given, f"each has the keys {', '.join(known)}", AGAIN)
    numbers = [one for one, field_ in known.items() if "float" in str(field_.type) or "int" in str(field_.type)]
    for one in numbers:
        if one in given and isinstance(given[one], str | bool | list):
            raise refuse(f"record.{name}.{one}", given[one], "it is a number", AGAIN)
    try:
        return kind(**given)
    except TypeError:
        missing = [one for one in known if one not in given]
        raise refuse(f"record.{name}", given, f"it lacks {', '.join(missing)}", AGAIN) from None


def read_records(text: str) -> list[Record]:
    """The records of a `records.jsonl`. Raises SettingsError as `Record.of` does, naming the line."""
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            given = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise refuse(f"records.jsonl, line {number}", line[:60], f"it is not JSON ({error})", AGAIN) from None
        try:
            found.append(Record.of(given))
        except SettingsError as error:
            raise SettingsError(f"records.jsonl, line {number}: {error}") from None
    return found


def lines_of(records: Iterable[Record]) -> str:
    """Records as the text of a `records.jsonl`."""
    return "".join(json.dumps(record.plain()) + "\n" for record in records)


def records(store: Store, frozen: FrozenPlan) -> list[Record]:
    """One record per cell, then one per reference model (base, teacher), in plan order.

    An evaluation whose files are damaged makes a record that failed, with the file's name. Raises OSError where a file
    cannot be read, DamagedError where one that is shared by cells is damaged.
    """
    from harness.results.contamination import Contamination  # it reads tables, which planning does without

    facts, contamination = _Facts(store, frozen), Contamination(store, frozen)
    found = [_record(store, frozen, cell, facts, contamination) for cell in frozen.cells]
    seen: set[str] = set()
    for cell in frozen.cells:
        for role, reference in cell.references.items():
            # one base or teacher is the reference of many cells, and has one record
            if reference.fingerprint not in seen:
                seen.add(reference.fingerprint)
                found.append(_record(store, frozen, cell.as_reference(role), facts, contamination))
    return found


class _Facts:
    """The facts of finished stages, each manifest read once, and how many cells of the grid use a stage."""

    def __init__(self, store: Store, frozen: FrozenPlan) -> None:
        self.store = store
        self.state_of = cache(partial(stage_state, store))
        # what several cells use is divided among them in the amortised cost
        self.users = Counter(key for cell in frozen.cells for key in (*cell.teaching, *cell.making_teacher))
        self._read: dict[str, dict[str, Any] | None] = {}
        self.damaged: dict[str, str] = {}
        """By key, why the facts of a finished stage cannot be read."""
        self.suspects = suspects(store)

    def of(self, keys: Iterable[str]) -> list[dict[str, Any]]:
        """Facts of those of the stages that are finished."""
        return [found for key in keys if (found := self._of(key)) is not None]

    def shared(self, keys: Iterable[str]) -> list[tuple[dict[str, Any], int]]:
        """The same, each with the number of cells that use the stage."""
        return [(found, max(1, self.users[key])) for key in keys if (found := self._of(key)) is not None]

    def _of(self, key: str) -> dict[str, Any] | None:
        if key not in self._read:
            try:
                self._read[key] = self.store.manifest(key)["facts"] if self.store.done(key) else None
            except DamagedError as error:
                self._read[key], self.damaged[key] = None, str(error)
        return self._read[key]


def _record(
    store: Store, frozen: FrozenPlan, cell: FrozenCell, facts: _Facts, contamination: "Contamination"
) -> Record:
    state = cell_state(facts.state_of, frozen.addresses(cell.needs), targets_of(cell))
    rehearsal = cell.settings.get("student", {}).get("license") == STAND_IN
    own = [key for key in cell.needs if key not in cell.making_teacher]
    said = [warning for stage in facts.of(own) for warning in stage.get("warnings", [])]
    scores: list[Score] = []
    items: dict[str, str] = {}
    scored_on: dict[str, str] = {}
    repeated: dict[str, RepeatedItems] = {}
    damaged = [found[key] for found in (facts.suspects, facts.damaged) for key in cell.needs if key in found]
    # of the first rank, before what stages warn of; blocks of one kind warn of the same
    warnings = list(dict.fromkeys([*(f"damaged: {why}" for why in damaged), *said]))
    for name, key in cell.evaluations.items():
        if store.done(key):  # an evaluation that failed does not hide the scores of the others
            try:
                text, path = artifact_file(store, key, "scores.json").read_text(), artifact_file(store, key, ITEMS)
            except DamagedError as error:
                state = StageState("failed", "input", str(error), key)
                continue
            scores += [Score(**score) for score in json.loads(text)]
            items[name] = str(path)
            for evaluated in facts.of([key]):
                scored_on |= _scored_on(name, evaluated)
            counts, more = contamination.repeated(cell, name, scores, items[name])
            repeated |= {} if counts is None else {name: counts}
            warnings += more
    warnings.sort(key=lambda warning: MEMORY not in warning)  # what makes a score worthless stands first
    # plans of earlier versions name no primary metric, and their records stay as they were
    if frozen.primary_metric is not None:
        lost = lacking(scores, cell.settings)
        # of a cell that is not evaluated yet, all are lacking, which needs no warning
        if lost and state.status != "running" and {score.eval for score in scores} & set(suite_of(cell.settings)):
            warnings.append(f"{MACRO_AVERAGE}: not computed, because there is no score of {', '.join(lost)}")
        scores = list(with_macro_average(scores, cell.settings))
    return Record(
        role=cell.role,
        method=cell.method,
        student=cell.student,
        teacher=cell.teacher,
        corpus=cell.corpus,
        # the budget is named in every table and figure
        budget=f"{cell.budget} ({REHEARSAL})" if rehearsal else cell.budget,
        data_frac=cell.data_frac,
        seed=cell.seed,
        data_seed=cell.data_seed,
        train_seed=cell.train_seed,
        world_seed=cell.world_seed,
        teacher_seed=cell.teacher_seed,
        settings=cell.settings,
        cell=cell.fingerprint,
        grid=frozen.grid,
        status=state.status,
        reason=state.reason,
        failure_class=state.failure_class,
        blamed=_blamed(cell, state),
        scores=tuple(scores),
        items=items,
        scored_on=scored_on,
        contamination=repeated,
        warnings=tuple(warnings),
        tuned=cell.tuned or {},
        cost=cell_cost(facts.of(cell.train), facts.shared(cell.teaching), facts.shared(cell.making_teacher)),
        realised_frac=next((one["realised_frac"] for one in facts.of(own) if "realised_frac" in one), None)
        if cell.role == "student"
        else None,
        artifact=str(store.folder(cell.train[-1])) if cell.train else None,
    )


def _blamed(cell: FrozenCell, state: StageState) -> str | None:
    """Whose failure a cell's is: a teacher whose weights are no numbers may be noticed where its student is trained."""
    if state.status != "failed":
        return None
    own = state.stage in (*cell.train, *cell.evaluations.values())
    return "student" if own and TeacherDivergedError.__name__ not in (state.reason or "") else "input"


def _scored_on(evaluation: str, evaluated: Mapping[str, Any]) -> dict[str, str]:
    """The data that an evaluation read, with its split, by its facts; empty where they do not say."""
    scored = (evaluated.get("resolved") or {}).get("scored")
    if scored is None:
        return {}
    splits, data = scored["splits"], ", ".join(scored.get("files") or [scored["data"]])
    return {evaluation: f"{data} ({'all of it' if splits == [ALL] else 'split ' + ', '.join(splits)})"}


ITEMS = "items.parquet"
LOG = "log.jsonl"
NAMES = ("method", "teacher", "student", "corpus", "budget", "data_frac", "seed", "world_seed")


def curves(store: Store, frozen: FrozenPlan) -> "pd.DataFrame":
    """One row per logged step. `nll` is of the step's own rows in nats per token and `sequences` says whose text they
    are; `loss` is the method's own objective and cannot be compared between methods. A student that is not finished
    has no rows."""
    import pandas as pd

    frames = []
    for cell in frozen.cells:
        logs = [store.folder(key) / LOG for key in cell.train]
        if not all(store.done(key) for key in cell.train) or not all(path.is_file() for path in logs):
            continue
        logs = [artifact_file(store, key, LOG) for key in cell.train]
        names, before = {name: getattr(cell, name) for name in NAMES}, 0
        for number, path in enumerate(logs):
            frame = pd.DataFrame([json.loads(line) for line in path.read_text().splitlines()])
            if frame.empty:
                continue
            # each stage counts its steps from its own start; a curve counts through all of them
            frames.append(frame.assign(**names, stage=number, step=frame["step"] + before))
            before += int(frame["step"].max())
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*NAMES, "stage", "step", "nll"])
