"""The frozen plan: a plan as plain JSON in its grid's folder, read long after the command that made it.

`cell_plan.py` plans with stages as objects; here a stage is its key and its spec, which is all that a reader needs.
Reading a plan loads neither the planner nor numpy, so that `python -m harness.grid status` starts at once.

    frozen = frozen_plan(store, "data_scaling")
    [cell.evaluations["verified"] for cell in frozen.cells]      # keys of stages
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from harness.config.checks import NAME, SettingsError, check_name, refuse
from harness.store.fingerprint import plain
from harness.store.store import REPAIR, DamagedError, Store, read_json, write_json

if TYPE_CHECKING:
    from harness.config.cell import Cell
    from harness.plan.cell_plan import CellPlan, Plan
    from harness.plan.evaluation_stages import Deployment
    from harness.plan.graph import Stage
    from harness.plan.tuning import Tuned


SEEDS = ("seed", "data_seed", "train_seed", "world_seed", "teacher_seed")
"""Names of a cell's seeds, in the order in which records hold them."""


@dataclass(frozen=True)
class FrozenDeployment:
    """One model in one number format."""

    measure: str
    """Key of the stage that measures size, memory and speed."""
    evaluations: Mapping[str, str]
    """By evaluation, keys of the stages that score the rounded weights; empty where weights are not rounded."""


@dataclass(frozen=True, kw_only=True)
class FrozenModel:
    """A model that is scored, a cell's student or a reference model: its names, and its stages by key."""

    fingerprint: str
    method: str
    """Of a reference model its role, `base` or `teacher`."""
    student: str
    teacher: str | None
    budget: str
    data_frac: float | None
    """Null for a model that is the same at every fraction."""
    evaluations: Mapping[str, str]
    """By evaluation, the key of its `evaluate` stage; empty for a trial, which is trained only."""
    needs: tuple[str, ...]
    """Keys of all stages up to those of `evaluations`, inputs first."""
    train: tuple[str, ...]
    """Keys of the stages that train the model, in order."""
    teaching: tuple[str, ...]
    """Keys of the stages in which the teacher labels, generates or scores for this model."""
    making_teacher: tuple[str, ...]
    """Keys of the stages that it takes to make the teacher."""
    tuned: Mapping[str, Any] | None = None
    """Settings that trials chose, by dotted name; null where nothing was tuned."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """From plain JSON. Raises SettingsError where a key is missing; keys of other versions are left out."""
        return cls(**_fields_of(cls, given))

    def plain(self) -> dict[str, Any]:
        """The same as plain JSON."""
        found = plain(self)
        # left out where it is null, so that plans of untuned grids stay as they are
        return found if self.tuned is not None else {name: part for name, part in found.items() if name != "tuned"}


@dataclass(frozen=True, kw_only=True)
class FrozenCell(FrozenModel):
    """One cell: its student as a model that is scored, what was asked of it, and what it is compared with."""

    role: str = "student"
    corpus: str
    seed: int | None
    data_seed: int | None
    train_seed: int | None
    world_seed: int | None
    teacher_seed: int | None
    settings: Mapping[str, Any]
    """Settings as they were asked for (`settings_of`)."""
    overlaps: tuple[str, ...] = ()
    """Keys of the stages that look for items of the evaluations in training rows."""
    deployments: Mapping[str, Mapping[str, FrozenDeployment]] = field(default_factory=dict)
    """By role (student, teacher) and number format."""
    references: Mapping[str, FrozenModel] = field(default_factory=dict)
    """By role (base, teacher), the models that the student is compared with."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """From plain JSON. Raises SettingsError where a key is missing; keys of other versions are left out."""
        found = _fields_of(cls, given)
        found["references"] = {role: FrozenModel.of(one) for role, one in given.get("references", {}).items()}
        found["deployments"] = {
            role: {name: FrozenDeployment(one["measure"], one["evaluations"]) for name, one in formats.items()}
            for role, formats in given.get("deployments", {}).items()
        }
        return cls(**found)

    def plain(self) -> dict[str, Any]:
        """The same as plain JSON."""
        return super().plain() | {"references": {role: one.plain() for role, one in self.references.items()}}

    def as_reference(self, role: str) -> "FrozenCell":
        """A reference model of the cell, with the cell's corpus, seeds and settings."""
        reference = self.references[role]
        own = {one.name: getattr(reference, one.name) for one in fields(FrozenModel)}
        # one of several teachers is recorded as it is where it teaches alone
        role, _, place = role.partition(":")
        if place:
            member = self.settings["teacher"]["members"][int(place)]
            own["settings"] = {**self.settings, "teacher": member["teacher"]}
        return replace(self, role=role, **own)


@dataclass(frozen=True)
class FrozenPlan:
    """The plan of one grid."""

    grid: str
    """Its name."""
    stages: Mapping[str, Mapping[str, Any]]
    """By key, each stage's spec (`Stage.spec`), which stays plain JSON: workers are sent it as it is."""
    cells: tuple[FrozenCell, ...]
    track: str | None = None
    """Whether the grid is logged to Weights & Biases, as `Settings.track`; null for trials."""
    primary_metric: str | None = None
    """The metric on which claims and verdict rest, in full (`metrics.primary_metric`); null for trials, and for plans
    of earlier versions."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "FrozenPlan":
        """From plain JSON (`plan.json`). Raises SettingsError where a cell lacks a key."""
        cells = tuple(FrozenCell.of(cell) for cell in given["cells"])
        return cls(given["grid"], given["stages"], cells, given.get("track"), given.get("primary_metric"))

    def plain(self) -> dict[str, Any]:
        """The same as plain JSON."""
        found = {"grid": self.grid, "stages": self.stages, "cells": [cell.plain() for cell in self.cells]}
        more = {"track": self.track, "primary_metric": self.primary_metric}
        return found | {name: value for name, value in more.items() if value is not None}

    def addresses(self, keys: Iterable[str]) -> dict[str, str]:
        """The addresses of some stages, by key."""
        return {key: self.stages[key]["address"] for key in keys}


def freeze(
    plan: "Plan",
    grid: str,
    tuned: "Mapping[str, Tuned]" = MappingProxyType({}),
    track: str | None = None,
    primary_metric: str | None = None,
) -> FrozenPlan:
    """The frozen plan: every stage's spec, every cell with its labels and the keys of its stages.

    `tuned`: by fingerprint, the cells whose settings were chosen by trials; they are labelled by the settings that
    were asked for.
    """
    asked = [tuned[one.fingerprint].asked if one.fingerprint in tuned else one.cell for one in plan.cells]
    # labelled together, because a setting is named only where it varies in the grid
    labels = _labels(plan.cells, asked)
    cells = [
        _freeze_cell(cell_plan, label, tuned.get(cell_plan.fingerprint))
        for cell_plan, label in zip(plan.cells, labels, strict=True)
    ]
    return FrozenPlan(grid, {stage.key: stage.spec() for stage in plan.stages}, tuple(cells), track, primary_metric)


@dataclass(frozen=True)
class Part:
    """A part of a frozen plan, to be made: its stages inputs first, targets by key, and shared teachers' keys."""

    stages: "tuple[Stage, ...]"
    targets: "Mapping[str, Stage]"
    teachers: frozenset[str]


def targets_of(model: FrozenModel) -> list[str]:
    """Keys of the stages that a cell, or a reference model, is made for: of a trial, its last training stage."""
    return list(model.evaluations.values()) or list(model.train[-1:])


def thaw(frozen: FrozenPlan, targets: Iterable[str]) -> Part:
    """The stages that make some targets of a frozen plan. Raises SettingsError where the code has changed since."""
    from harness.plan.graph import Stage

    # every stage is made again from its spec, which compares its key with the stored one
    stages = Stage.of(frozen.stages)
    wanted = {key: stages[key] for key in targets}
    # a dict keeps the first place of each stage, which is before all that use it
    needed = {stage.key: stage for target in wanted.values() for stage in target.ancestry()}
    taught = (cell for cell in frozen.cells if cell.making_teacher and cell.teacher != "self")
    # the last of its stages is the teacher itself; of several teachers the references name each
    teachers = (
        key
        for cell in taught
        for key in (
            cell.making_teacher[-1],
            *(one.train[-1] for role, one in cell.references.items() if role.startswith("teacher:")),
        )
    )
    return Part(tuple(needed.values()), wanted, frozenset(teachers))


def keep_plan(store: Store, frozen: FrozenPlan) -> Path:
    """Write a frozen plan into its grid's folder, which is returned. Raises OSError where it cannot be written."""
    folder = store.grid_folder(frozen.grid)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "plan.json", frozen.plain())
    return folder


def grid_names(store: Store) -> list[str]:
    """The grids whose plans a store keeps; earlier versions took names with a slash, whose plans lie deeper."""
    grids = store.root / "grids"
    return sorted(path.parent.relative_to(grids).as_posix() for path in grids.glob("**/plan.json"))


def frozen_plan(store: Store, grid: str) -> FrozenPlan:
    """The plan a grid was run with.

    Raises SettingsError where the store has no such grid, or an older version of this program kept its plan;
    DamagedError where the plan cannot be read.
    """
    # another name might lead out of the store; earlier versions took names of several parts
    if not all(NAME.fullmatch(part) for part in grid.split("/")):
        check_name("grid", grid)
    path = store.grid_folder(grid) / "plan.json"
    if not path.is_file():
        raise refuse("grid", grid, f"the store {store.root} has {', '.join(grid_names(store)) or 'no grid yet'}")
    try:
        return FrozenPlan.of(read_json(path))
    except DamagedError:
        raise
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path} cannot be read: it is no plan of a grid; {REPAIR}.") from error
    # the stages are in the store under their keys, so planning again costs nothing that is finished
    except SettingsError as error:
        why = f"its plan was kept by an older version of this program ({error})"
        raise refuse("grid", grid, why, "run its command again; what is finished is reused") from error


def _fields_of(kind: type[FrozenModel], given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the given values that are fields of `kind`, lists as tuples."""
    # a plan of an earlier version may lack fields that have a default
    for one in fields(kind):
        if one.name not in given and one.default is MISSING and one.default_factory is MISSING:
            raise refuse("cell", given.get("fingerprint"), f"it has no `{one.name}`", "plan its grid again")
    found = {one.name: given[one.name] for one in fields(kind) if one.name in given}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def _needs(targets: "Iterable[Stage]") -> Iterator[str]:
    return (stage.key for target in targets for stage in target.ancestry())


def _freeze_cell(plan: "CellPlan", label: Mapping[str, Any], tuned: "Tuned | None") -> FrozenCell:
    from harness.plan.evaluation_stages import fingerprint_of

    cell = plan.cell
    references: dict[str, FrozenModel] = {}
    for role, evaluations in plan.references.items():
        place = role.partition(":")[2]
        teacher = cell.teacher.members[int(place)].teacher if place else cell.teacher
        needs = tuple(dict.fromkeys(_needs(evaluations.values())))
        references[role] = FrozenModel(
            fingerprint=fingerprint_of(evaluations),
            evaluations={name: stage.key for name, stage in evaluations.items()},
            needs=needs,
            method=role.partition(":")[0],
            train=tuple(key for key in needs if key.startswith(("train-", "base-"))),
            teaching=(),
            making_teacher=(),
            # a teacher trained on the cell's own rows is another one at every fraction
            data_frac=cell.data_frac if role != "base" and teacher.data_frac == "match" else None,
            budget="",
            student=cell.student.name if role == "base" else "",
            teacher=None if role == "base" else teacher.name if place else label["teacher"],
            tuned={},
        )
    return FrozenCell(
        fingerprint=plan.fingerprint,
        **label,
        data_frac=cell.data_frac,
        **{name: getattr(cell, name) for name in SEEDS},
        settings=settings_of(plan) | ({} if plan.taught_by == "given" else {"teacher": plan.taught_by}),
        evaluations={name: stage.key for name, stage in plan.evaluations.items()},
        needs=tuple(dict.fromkeys(_needs(plan.evaluations.values() or plan.train[-1:]))),
        train=tuple(stage.key for stage in plan.train),
        teaching=tuple(stage.key for stage in plan.teaching),
        making_teacher=tuple(dict.fromkeys(stage.key for stage in plan.making_teacher())),
        overlaps=tuple(stage.key for stage in plan.overlaps),
        deployments={
            role: {name: _freeze_deployment(one) for name, one in formats.items()}
            for role, formats in plan.deployments.items()
        },
        tuned=None if tuned is None else plain(tuned.values),
        references=references,
    )


def _freeze_deployment(one: "Deployment") -> FrozenDeployment:
    return FrozenDeployment(one.measure.key, {name: stage.key for name, stage in one.evaluations.items()})


def settings_of(plan: "CellPlan") -> dict[str, Any]:
    """The settings asked of the cell, as plain JSON with the kinds of method and corpus named."""
    from harness.data.corpora import corpus_name
    from harness.methods import method_name

    cell = plan.cell
    names = ("student", "teacher", "data_frac", "budget", "evals", *SEEDS)
    settings = {name: plain(getattr(cell, name)) for name in names} | {"budget": plain(cell.budget.identity())}
    if cell.student.lora_rank is None:  # described as it was before students could have adapters
        settings["student"] = {k: v for k, v in settings["student"].items() if not k.startswith("lora_")}
    if settings["student"]["family"] == "words":  # and as models were when minis had one tokenizer
        del settings["student"]["family"]
    settings["teacher"] = _teacher_settings(settings["teacher"])
    settings["method"] = {"name": method_name(cell.method), **plain(cell.method)}
    if settings["method"].get("estimator") == "full":
        del settings["method"]["estimator"]
    # what is known of the teacher's distributions, where that is not all of them
    for signal in (stage.settings["signal"] for stage in plan.train if "signal" in stage.settings):
        settings["method"]["signal"] = plain(signal)
    settings["corpus"] = {"kind": corpus_name(cell.corpus), **plain(cell.corpus)}
    if cell.corpus.answers == "given":  # described as it was before prompts could stand alone
        del settings["corpus"]["answers"]
    return settings


def _teacher_settings(found: dict[str, Any]) -> dict[str, Any]:
    """A teacher's settings without those that are younger than the first plans and have their defaults."""
    members = [{**one, "teacher": _teacher_settings(one["teacher"])} for one in found["members"]]
    left_out = {"family": "words", "rendering": "own", "members": [], "combine": "by_row"}
    told = {name: value for name, value in found.items() if name not in left_out or value != left_out[name]}
    return told | ({"members": members, "combine": found["combine"]} if members else {})


def _labels(plans: "Sequence[CellPlan]", cells: "Sequence[Cell]") -> list[dict[str, Any]]:
    """Short names of what varies in the grid: `kd`, and `kd[student_share=1]` where that is not the default."""
    from harness.data.corpora import corpus_name
    from harness.methods import method_name

    signals = _vary([(cell.signal.kind, cell.signal) for cell in cells])
    named = [
        (method_name(cell.method) + (f"[signal={signal}]" if plan.stored_signal else ""), cell.method)
        for plan, cell, signal in zip(plans, cells, signals, strict=True)
    ]
    methods = _vary(named)
    corpora = _vary([(corpus_name(cell.corpus), cell.corpus) for cell in cells])
    students = _vary([(cell.student.name, cell.student) for cell in cells], leave_out=("init_seed",))
    # two teachers of one name would be one arm of every table
    teachers = _vary([(cell.teacher.name, cell.teacher) for cell in cells], leave_out=("init_seed", "members"))
    return [
        {
            "method": method,
            "corpus": corpus,
            "student": student,
            "teacher": teacher if plan.taught_by == "given" else plan.teacher_name,
            "budget": cell.budget.label,
        }
        for method, corpus, student, teacher, plan, cell in zip(
            methods, corpora, students, teachers, plans, cells, strict=True
        )
    ]


def _leaves(settings: Any) -> dict[str, Any]:
    """Settings by name, those of a teacher's lessons apart: `lessons.0.budget.amount`."""
    found: dict[str, Any] = {}
    for name, value in plain(settings).items():
        if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
            for place, one in enumerate(value):
                found |= {f"{name}.{place}.{leaf}": inner for leaf, inner in _leaves(one).items()}
        elif isinstance(value, Mapping) and value:
            found |= {f"{name}.{leaf}": inner for leaf, inner in _leaves(value).items()}
        else:
            found[name] = value
    return found


def _vary(named: list[tuple[str, Any]], leave_out: tuple[str, ...] = ()) -> list[str]:
    # compared by name: `kd` varies in a setting only where two `kd` cells differ in it
    values: dict[str, dict[str, set[str]]] = {}
    for name, settings in named:
        for setting, value in _leaves(settings).items():
            values.setdefault(name, {}).setdefault(setting, set()).add(json.dumps(value))
    labels = []
    for name, settings in named:
        # the default is left unnamed, so that one arm keeps its short label
        usual = {one.name: one.default for one in fields(settings)}
        varying = [
            f"{setting}={value}"
            for setting, value in _leaves(settings).items()
            if len(values[name][setting]) > 1
            and setting.partition(".")[0] not in leave_out
            and (setting not in usual or value != usual[setting])
        ]
        labels.append(f"{name}[{', '.join(varying)}]" if varying else name)
    return labels
