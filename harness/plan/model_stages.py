"""Teaching: the stages that stand between a cell's rows and a teacher, planned without running anything.

`plan.py` strings a cell together; here are the teacher itself and what it says before training begins.
A teacher answers and scores fixed blocks of rows. A block is a range of each source's seeded row order
(`stages/subset.py`), the ranges end at 1, 2, 5 in each decade and at every tenth, and no fraction, budget
or student is part of its address: a larger fraction adds blocks and relabels nothing.

    block_edges(0.03)       # (0, 0.0001), (0.0001, 0.0002), ..., (0.01, 0.02), (0.02, 0.05)
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from harness.config.budget import Budget
from harness.config.cell import Cell
from harness.config.checks import refuse
from harness.config.model import Lesson, Model, Student, Teacher
from harness.config.recipe import TrainStage
from harness.data.corpora import corpus_from, corpus_name
from harness.models.files import model_identity
from harness.plan.data_stages import dropped_by, mixture_stage, subset_stage
from harness.plan.graph import Stage


def base_stage(cell: Cell, model: Model) -> Stage:
    """A model before this study trains it: built, adopted or pruned."""
    return Stage(
        "base",
        model.name,
        model_identity(model, cell.world_seed),
        where={
            "model": {name: getattr(model, name) for name in Model.__dataclass_fields__},
            "world_seed": cell.world_seed,
        },
    )


def train_stage(
    name: str,
    recipe_stage: TrainStage,
    budget: Budget,
    seed: int,
    index: int,
    inputs: Mapping[str, Stage],
    max_new_tokens: int,
    loss_on: str = "assistant",
    lora: Mapping[str, float] | None = None,
    signal: Mapping[str, Any] | None = None,
) -> Stage:
    """One training stage; a value that this stage does not read stays out of its identity."""
    settings: dict[str, Any] = {
        "stage": recipe_stage.identity(),
        "budget": asdict(budget),
        "seed": seed,
        "index": index,
        "loss_on": loss_on,
    }
    if recipe_stage.sequences in ("student", "interleaved"):
        settings["max_new_tokens"] = max_new_tokens
    if lora is not None:
        settings["lora"] = dict(lora)
    if signal is not None:
        settings["signal"] = dict(signal)
    return Stage("train", name, settings, inputs)


def teacher_stage(cell: Cell, mixture: Stage) -> Stage:
    """The teacher after its lessons; identity of the cell enters only where a lesson uses the cell's corpus."""
    teacher = cell.teacher
    model = base_stage(cell, teacher)
    for index, lesson in enumerate(teacher.lessons):
        subset = _lesson_rows(cell, teacher, lesson, mixture, model)
        model = train_stage(
            f"teacher_{teacher.name}",
            TrainStage(),
            lesson.budget,
            cell.teacher_seed,
            index,
            {"subset": subset, "start": model},
            max_new_tokens=0,
            loss_on=lesson.loss_on,
        )
    return model if teacher.quantise is None else quantise_stage(model, teacher.quantise)


def quantise_stage(model: Stage, to: str) -> Stage:
    """A model with its weights rounded to `int8` or `nf4`."""
    return Stage("quantise", f"{model.name}-{to}", {"to": to}, {"model": model})


def _lesson_rows(cell: Cell, teacher: Teacher, lesson: Lesson, mixture: Stage, model: Stage) -> Stage:
    if lesson.corpus is None:
        assert cell.data_seed is not None
        matched = teacher.data_frac == "match"
        if matched and cell.corpus.answers == "none":
            raise refuse(
                "teacher.data_frac",
                "match",
                "a teacher is trained on answers, and corpus.answers=none leaves the cell's own rows without any",
                "set teacher.data_frac=1.0, or choose a teacher without lessons on the cell's corpus",
            )
        return subset_stage(
            mixture,
            model,
            cell.data_frac if matched else float(teacher.data_frac),
            cell.data_seed if matched else cell.teacher_seed,
            cell.corpus.max_length,
            overlap=dropped_by(cell, mixture, mixture),
        )
    corpus = corpus_from(lesson.corpus)
    if corpus.answers == "none":
        raise refuse(
            "teacher.lessons", "answers: none", "a lesson trains on answers", "set its corpus to answers: given"
        )
    own = mixture_stage(cell, corpus)
    disjoint = corpus_name(corpus) == corpus_name(cell.corpus) == "mini"  # one held-out set per world
    exclude = None if disjoint else mixture
    dropped = dropped_by(cell, own, mixture)
    return subset_stage(own, model, 1.0, cell.teacher_seed, corpus.max_length, exclude, overlap=dropped)


def _train(cell: Cell, stage: TrainStage, index: int, inputs: Mapping[str, Stage], name: str) -> Stage:
    assert cell.train_seed is not None
    stored = stage.asks_teacher and cell.signal.kind != "live"
    return train_stage(
        f"{name}-{cell.data_frac:g}-s{cell.train_seed}",
        stage,
        cell.budget,
        cell.train_seed,
        index,
        inputs,
        max_new_tokens=cell.corpus.max_new_tokens,
        lora=lora_of(cell.student),
        signal=cell.signal.identity() if stored else None,
    )


def lora_of(student: Student) -> dict[str, float] | None:
    """The adapters a student is trained by, every value filled in; None where all its weights are trained."""
    if student.lora_rank is None:
        return None
    alpha = 2 * student.lora_rank if student.lora_alpha is None else student.lora_alpha
    return {"rank": student.lora_rank, "alpha": float(alpha), "dropout": float(student.lora_dropout)}
