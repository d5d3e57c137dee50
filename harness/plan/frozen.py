"""The frozen plan: a plan as plain JSON in its grid's folder, read long after the command that made it."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from harness.config.cell import Cell
from harness.config.checks import refuse
from harness.data.corpora import corpus_name
from harness.methods import method_name
from harness.plan.cell_plan import CellPlan, Plan
from harness.plan.evaluation_stages import Deployment, fingerprint_of
from harness.plan.graph import Stage
from harness.plan.tuning import DRAWS, Tuned
from harness.plan.tuning import SEEDS as CELL_SEEDS
from harness.store.fingerprint import plain
from harness.store.store import Store, write_json

if TYPE_CHECKING:
    pass


SEEDS = (*CELL_SEEDS, *DRAWS)


def freeze(plan: Plan, grid: str, tuned: Mapping[str, Tuned] = MappingProxyType({})) -> dict[str, Any]:
    """The plan as plain JSON: every stage's spec, every cell with its labels and the keys of its stages.

    `tuned`: by fingerprint, the cells whose settings were chosen by trials; they are named as they were asked for.
    """
    asked = [tuned[one.fingerprint].asked if one.fingerprint in tuned else one.cell for one in plan.cells]
    labels = _labels(plan.cells, asked)
    return {
        "grid": grid,
        "stages": {stage.key: stage.spec() for stage in plan.stages},
        "cells": [
            _freeze_cell(cell_plan, label, tuned.get(cell_plan.fingerprint))
            for cell_plan, label in zip(plan.cells, labels, strict=True)
        ],
    }


@dataclass(frozen=True)
class Part:
    """A part of a frozen plan, to be made: its stages inputs first, targets by key, and shared teachers' keys."""

    stages: tuple[Stage, ...]
    targets: Mapping[str, Stage]
    teachers: frozenset[str]


def targets_of(cell: Mapping[str, Any]) -> list[str]:
    """Keys of what a frozen cell, or one of its references, is made for: a trial's is its last training stage."""
    return list(cell["evaluations"].values()) or cell["train"][-1:]


def thaw(frozen: Mapping[str, Any], targets: Iterable[str]) -> Part:
    """The stages that make some targets of a frozen plan; refused where the code has changed since."""
    stages = Stage.of(frozen["stages"])
    wanted = {key: stages[key] for key in targets}
    needed = {stage.key: stage for target in wanted.values() for stage in target.ancestry()}
    taught = (cell for cell in frozen["cells"] if cell["making_teacher"] and cell["teacher"] != "self")
    teachers = (cell["making_teacher"][-1] for cell in taught)
    return Part(tuple(needed.values()), wanted, frozenset(teachers))


def keep_plan(store: Store, frozen: Mapping[str, Any]) -> Path:
    """Write a frozen plan into its grid's folder, which is returned."""
    folder = store.grid_folder(frozen["grid"])
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "plan.json", frozen)
    return folder


def grid_names(store: Store) -> list[str]:
    """The grids whose plans a store keeps."""
    return sorted(path.parent.name for path in (store.root / "grids").glob("*/plan.json"))


def frozen_plan(store: Store, grid: str) -> dict[str, Any]:
    """The plan a grid was run with."""
    path = store.grid_folder(grid) / "plan.json"
    if not path.is_file():
        raise refuse("grid", grid, f"the store {store.root} has {', '.join(grid_names(store)) or 'no grid yet'}")
    frozen = json.loads(path.read_text())
    if any("evaluations" not in cell for cell in frozen["cells"]):
        why = "its plan was kept by an older version of this program"
        raise refuse("grid", grid, why, "run its command again; what is finished is reused")
    return frozen


def _needs(targets: Iterable[Stage]) -> Iterator[str]:
    return (stage.key for target in targets for stage in target.ancestry())


def _freeze_cell(plan: CellPlan, label: Mapping[str, Any], tuned: Tuned | None) -> dict[str, Any]:
    cell = plan.cell
    once = dict.fromkeys(_needs(plan.evaluations.values() or plan.train[-1:]))
    making = list(dict.fromkeys(stage.key for stage in plan.making_teacher()))
    frozen = {
        "fingerprint": plan.fingerprint,
        "role": "student",
        **label,
        "data_frac": cell.data_frac,
        "teacher": plan.teacher_name,
        **{name: getattr(cell, name) for name in SEEDS},
        "settings": settings_of(plan) | ({} if plan.taught_by == "given" else {"teacher": plan.taught_by}),
        "evaluations": {name: stage.key for name, stage in plan.evaluations.items()},
        "needs": list(once),
        "train": [stage.key for stage in plan.train],
        "teaching": [stage.key for stage in plan.teaching],
        "making_teacher": making,
        "overlaps": [stage.key for stage in plan.overlaps],
    }
    frozen["deployments"] = {
        role: {name: _freeze_deployment(one) for name, one in formats.items()}
        for role, formats in plan.deployments.items()
    }
    if tuned is not None:
        frozen["tuned"] = plain(tuned.values)
    references: dict[str, dict[str, Any]] = {}
    for role, evaluations in plan.references.items():
        needs = list(dict.fromkeys(_needs(evaluations.values())))
        model = cell.student if role == "base" else cell.teacher
        references[role] = {
            "fingerprint": fingerprint_of(evaluations),
            "evaluations": {name: stage.key for name, stage in evaluations.items()},
            "needs": needs,
            "method": role,
            "train": [key for key in needs if key.startswith(("train-", "base-"))],
            "teaching": [],
            "making_teacher": [],
            # a teacher trained on the cell's own rows is another one at every fraction
            "data_frac": cell.data_frac if role == "teacher" and cell.teacher.data_frac == "match" else None,
            "budget": "",
            "student": cell.student.name if role == "base" else "",
            "teacher": model.name if role == "teacher" else None,
            "tuned": {},
        }
    return {**frozen, "references": references}


def _freeze_deployment(one: Deployment) -> dict[str, Any]:
    evaluations = {name: stage.key for name, stage in one.evaluations.items()}
    return {"measure": one.measure.key, "evaluations": evaluations}


def settings_of(plan: CellPlan) -> dict[str, Any]:
    """What was asked of the cell, as plain JSON with the kinds of method and corpus named."""
    cell = plan.cell
    names = ("student", "teacher", "data_frac", "budget", "evals", *SEEDS)
    settings = {name: plain(getattr(cell, name)) for name in names}
    if cell.student.lora_rank is None:  # described as it was before students could have adapters
        settings["student"] = {k: v for k, v in settings["student"].items() if not k.startswith("lora_")}
    for role in ("student", "teacher"):
        if settings[role]["family"] == "words":  # and as models were when minis had one tokenizer
            del settings[role]["family"]
    settings["method"] = {"name": method_name(cell.method), **plain(cell.method)}
    if plan.stored_signal:
        settings["method"]["signal"] = cell.signal.identity()
    settings["corpus"] = {"kind": corpus_name(cell.corpus), **plain(cell.corpus)}
    if cell.corpus.answers == "given":  # described as it was before prompts could stand alone
        del settings["corpus"]["answers"]
    return settings


def _labels(plans: Sequence[CellPlan], cells: Sequence[Cell]) -> list[dict[str, str]]:
    """Short names of what varies in the grid: `kd`, and `kd[student_share=1]` where that is not the default."""
    signals = _vary([(cell.signal.kind, cell.signal) for cell in cells])
    named = [
        (method_name(cell.method) + (f"[signal={signal}]" if plan.stored_signal else ""), cell.method)
        for plan, cell, signal in zip(plans, cells, signals, strict=True)
    ]
    methods = _vary(named)
    corpora = _vary([(corpus_name(cell.corpus), cell.corpus) for cell in cells])
    students = _vary([(cell.student.name, cell.student) for cell in cells], leave_out=("init_seed",))
    return [
        {"method": method, "corpus": corpus, "student": student, "budget": cell.budget.label}
        for method, corpus, student, cell in zip(methods, corpora, students, cells, strict=True)
    ]


def _vary(named: list[tuple[str, Any]], leave_out: tuple[str, ...] = ()) -> list[str]:
    values: dict[str, dict[str, set[str]]] = {}
    for name, settings in named:
        for field, value in plain(settings).items():
            values.setdefault(name, {}).setdefault(field, set()).add(json.dumps(value))
    labels = []
    for name, settings in named:
        usual = {one.name: one.default for one in fields(settings)}
        varying = [
            f"{field}={value}"
            for field, value in plain(settings).items()
            if len(values[name][field]) > 1 and field not in leave_out and value != usual[field]
        ]
        labels.append(f"{name}[{', '.join(varying)}]" if varying else name)
    return labels
