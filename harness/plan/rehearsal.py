"""Rehearsal: the cells of a paper experiment, with stand-ins for models, mixture and benchmarks, and at a small size.

Everything that decides which stages there are stays: methods and their phases, teachers and their fine-tuning, signals,
fractions, kinds of budgets, evaluations. What changes is what costs: models, rows, lengths, steps, items and seeds.

    rehearsed(compose(["experiments=data_scaling", "scale=paper"]).cells, folder)
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from harness.config.budget import Budget
from harness.config.cell import Cell
from harness.config.checks import refuse
from harness.config.model import Model, Teacher
from harness.stand_ins import BENCHMARKS, CORPUS, LICENSE, MODELS, folder_of
from harness.stand_ins.shapes import STAND_INS

SERVER = "$HARNESS_REHEARSAL_SERVER"
"""The address of the stand-ins' server, which `python -m harness.rehearsal` starts and sets."""
STEPS = 10
"""So many that a share of a tenth has a step of its own."""
AMOUNTS = {"steps": STEPS, "epochs": 0.1, "trained_tokens": 3000, "flops": 4e9}
"""By kind of budget, its amount: a few steps each."""
CORPUS_SIZE = {"max_length": 192, "max_new_tokens": 24, "heldout_rows": 40}
METHOD_SIZE = {"synthetic_rows": 24, "buffer_size": 16}
BATCH = 8
ITEMS = 2
T = TypeVar("T")


def rehearsed(cells: Sequence[Cell], folder: Path) -> tuple[Cell, ...]:
    """The cells with stand-ins of `folder` and small sizes; of several seeds the first, with each of its settings.

    Raises SettingsError for a model on the hub that has no stand-in.
    """
    first = min(cell.seed for cell in cells)
    return tuple(_rehearsed(cell, folder) for cell in cells if cell.seed == first)


def _rehearsed(cell: Cell, folder: Path) -> Cell:
    evals = replace(cell.evals, limit=ITEMS, data_dir=str(folder / BENCHMARKS), revisions={})
    return replace(
        cell,
        student=_stand_in(cell.student, folder),
        teacher=_teacher(cell.teacher, folder),
        corpus=_corpus(cell.corpus, folder),
        method=_sized(cell.method, METHOD_SIZE),
        budget=_small(cell.budget),
        evals=evals,
    )


def _teacher(teacher: Teacher, folder: Path) -> Teacher:
    """A teacher's stand-in with small fine-tunings; of several teachers each member's."""
    found = _stand_in(teacher, folder)
    lessons = [
        replace(one, budget=_small(one.budget), corpus=None if one.corpus is None else _corpus(one.corpus, folder))
        for one in found.lessons
    ]
    members = [replace(one, teacher=_teacher(one.teacher, folder)) for one in found.members]
    return replace(found, lessons=lessons, members=members)


def _stand_in(model: T, folder: Path) -> T:
    """A model with its stand-in's files, or a served one with the stand-ins' server; others stay."""
    assert isinstance(model, Model)
    if model.kind == "http":
        tokenizer = str(folder / MODELS / _known(model.setting, "tokenizer", model.tokenizer))
        _known(model.setting, "served_model", model.served_model)
        return replace(model, path=SERVER, tokenizer=tokenizer, revision=None, api_key_env=None, license=LICENSE)
    if model.kind != "hf":
        return model
    path = str(folder / MODELS / _known(model.setting, "path", model.path))
    return replace(model, path=path, revision=None, license=LICENSE)


def _known(setting: str, field: str, hub_id: str | None) -> str:
    """The folder name of a hub id's stand-in."""
    if hub_id not in STAND_INS:
        way_out = "add it to harness/stand_ins/shapes.py"
        raise refuse(f"{setting}.{field}", hub_id, "scale=rehearsal has no stand-in for this model", way_out)
    return folder_of(hub_id)


def _corpus(corpus: Any, folder: Path) -> Any:
    sized = _sized(corpus, CORPUS_SIZE)
    return replace(sized, path=str(folder / CORPUS), revision=None) if hasattr(sized, "domains") else sized


def _small(budget: Budget) -> Budget:
    floor = {} if budget.kind == "flops" else {"min_steps": STEPS}
    small = replace(budget, amount=AMOUNTS[budget.kind], batch_size=BATCH)
    return _sized(small, {**floor, "least_steps_per_phase": None})


def _sized(settings: Any, sizes: dict[str, Any]) -> Any:
    """Settings with those of `sizes` that they have."""
    have = {one.name for one in fields(settings)}
    return replace(settings, **{name: size for name, size in sizes.items() if name in have})
