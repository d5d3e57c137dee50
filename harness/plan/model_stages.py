"""Model stages: a base model, what it becomes by training on rows, and the fine-tuned teacher.

base = base_stage(cell, cell.student)
train_phase(cell, phase, 0, {"subset": rows.subset, "start": base}, "sft").address    # train-sft-0.01-s0-...
"""

from collections.abc import Mapping
from typing import Any

from harness.config.budget import Budget
from harness.config.cell import Cell
from harness.config.checks import refuse
from harness.config.model import Lesson, Model, Student
from harness.config.recipe import CROSS, TrainingPhase
from harness.data.corpora import corpus_from, corpus_name
from harness.models.kinds import ServedModel, model_of, surely_alike
from harness.plan.data_stages import BadRows, CellRows, mixture_stage, subset_stage
from harness.plan.graph import Stage


def base_stage(cell: Cell, model: Model) -> Stage:
    """A model before this study trains it: the pretrained model itself, pruned, or with fresh weights.

    Raises OSError where a file of a local model cannot be read.
    """
    return Stage(
        "base",
        model.name,
        model_of(model).identity(cell.world_seed),
        where={
            "model": {name: getattr(model, name) for name in Model.__dataclass_fields__},
            "world_seed": cell.world_seed,
            "setting": model.setting,  # for messages; of a model that is student and teacher, one of the two
        },
    )


def train_stage(
    name: str,
    phase: TrainingPhase,
    budget: Budget,
    seed: int,
    index: int,
    inputs: Mapping[str, Stage],
    max_new_tokens: int,
    loss_on: str = "assistant",
    lora: Mapping[str, float] | None = None,
    signal: Mapping[str, Any] | None = None,
    rendering: str = "own",
    where: Mapping[str, Any] | None = None,
    teachers: Mapping[str, Any] | None = None,
) -> Stage:
    """The stage of one training phase; a value that the phase does not read stays out of its identity."""
    settings: dict[str, Any] = {
        "stage": phase.identity(),
        "budget": budget.on(phase.other_rows).identity(),
        "seed": seed,
        "index": index,
        "loss_on": loss_on,
    }
    # only these generate while they train
    if phase.sequences in ("student", "interleaved"):
        settings["max_new_tokens"] = max_new_tokens
    if lora is not None:
        settings["lora"] = dict(lora)
    if signal is not None:
        settings["signal"] = dict(signal)
    if rendering != "own":
        settings["rendering"] = rendering
    if teachers is not None:
        settings["teachers"] = dict(teachers)
    return Stage("train", name, settings, inputs, where or {})


def train_phase(
    cell: Cell,
    phase: TrainingPhase,
    index: int,
    inputs: Mapping[str, Stage],
    name: str,
    teachers: Mapping[str, Any] | None = None,
) -> Stage:
    """The student after one phase of its method, named after it; `index` is the phase's place in the recipe.

    `teachers`: of a phase that several teachers take part in, which of them teaches what (`several.composition`).
    """
    assert cell.train_seed is not None
    # of a teacher that reads the student's rendering anyway the setting moves no number
    taught_by = None if cell.teacher.several else model_of(cell.teacher)
    server = taught_by if phase.teacher == "given" and isinstance(taught_by, ServedModel) else None
    reads = "teacher" in inputs and phase.teacher == "given" and phase.divergence not in CROSS
    differs = reads and taught_by is not None and not surely_alike(model_of(cell.student), taught_by)
    return train_stage(
        f"{name}-{cell.data_frac:g}-s{cell.train_seed}",
        phase,
        cell.budget,
        cell.train_seed,
        index,
        inputs,
        max_new_tokens=cell.corpus.max_new_tokens,
        lora=lora_of(cell.student),
        signal=cell.signal.identity(phase, server is not None),
        rendering=cell.teacher.rendering if differs else "own",
        where=server.where if server is not None and "teacher" in inputs else None,
        teachers=teachers,
    )


def teacher_stage(rows: CellRows) -> Stage:
    """The teacher after its fine-tuning; the cell's rows enter its identity only where it is fine-tuned on them.

    Raises SettingsError where its fine-tuning would read answers that a corpus does not have.
    """
    cell, teacher = rows.cell, rows.cell.teacher
    model = base_stage(cell, teacher)
    for index, lesson in enumerate(teacher.lessons):
        model = train_stage(
            f"teacher_{teacher.name}",
            TrainingPhase(),
            lesson.budget,
            cell.teacher_seed,
            index,
            {"subset": _lesson_rows(rows, lesson, model), "start": model},
            max_new_tokens=0,
            loss_on=lesson.loss_on,
        )
    return model if teacher.quantise is None else quantise_stage(model, teacher.quantise)


def quantise_stage(model: Stage, to: str) -> Stage:
    """A model with its weights rounded to `int8` or `nf4`."""
    return Stage("quantise", f"{model.name}-{to}", {"to": to}, {"model": model})


def lora_of(student: Student) -> dict[str, float] | None:
    """The adapters a student is trained by, every value filled in; None where all its weights are trained."""
    if student.lora_rank is None:
        return None
    # filled in before it is hashed: the default and the same value set by hand are one stage
    alpha = 2 * student.lora_rank if student.lora_alpha is None else student.lora_alpha
    return {"rank": student.lora_rank, "alpha": float(alpha), "dropout": float(student.lora_dropout)}


def _lesson_rows(rows: CellRows, lesson: Lesson, model: Stage) -> Stage:
    """The rows of one fine-tuning of the teacher, rendered for its tokenizer: the cell's corpus, or one of its own."""
    cell, teacher = rows.cell, rows.cell.teacher
    if lesson.corpus is None:
        assert cell.data_seed is not None
        # a matched teacher sees the student's own rows, hence its fraction and data seed; any other one has rows that
        # do not vary with the cell
        matched = teacher.data_frac == "match"
        if matched and cell.corpus.answers == "none":
            raise refuse(
                "teacher.data_frac",
                "match",
                "a teacher is fine-tuned on answers, and with corpus.answers=none the cell's own rows have none",
                "set teacher.data_frac=1.0, or choose a teacher that is not fine-tuned on the cell's corpus",
            )
        return subset_stage(
            rows.mixture,
            model,
            cell.data_frac if matched else float(teacher.data_frac),
            cell.data_seed if matched else cell.teacher_seed,
            cell.corpus.max_length,
            overlap=rows.dropped_by(rows.mixture),
            bad_rows=BadRows.of(cell.corpus),
        )
    corpus = corpus_from(lesson.corpus)
    if corpus.answers == "none":
        raise refuse(
            "teacher.lessons", "answers: none", "a teacher is fine-tuned on answers", "set its corpus to answers: given"
        )
    own = mixture_stage(cell, corpus)
    # rows that the cell holds out must not reach its student through the teacher
    disjoint = corpus_name(corpus) == corpus_name(cell.corpus) == "mini"  # one held-out set per world
    exclude = None if disjoint else rows.mixture
    return subset_stage(
        own,
        model,
        1.0,
        cell.teacher_seed,
        corpus.max_length,
        exclude,
        overlap=rows.dropped_by(own),
        bad_rows=BadRows.of(corpus),
    )
