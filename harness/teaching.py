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
from harness.config.model import Lesson, Model, Teacher
from harness.config.recipe import TrainStage
from harness.data.corpora import corpus_from, corpus_name
from harness.evaluations import dropped_by
from harness.models.files import model_identity
from harness.stage import Stage

EDGES = (
    *(step * 10.0**-decade for decade in (4, 3, 2) for step in (1, 2, 5)),
    *(tenth / 10 for tenth in range(1, 11)),
)
"""Where blocks of rows end, as fractions of each source's order."""

SYNTHESIS = (
    "synthetic_rows",
    "synthetic_ratio",
    "examples_in_context",
    "least_prompt_tokens",
    "least_answer_tokens",
    "near_duplicate",
    "verified",
    "self_consistency",
    "consistency_samples",
)
"""Values of a recipe that say which synthetic rows there are."""


def block_edges(data_frac: float) -> list[tuple[float, float]]:
    """The blocks that hold every row of a fraction: (start, end] ranges of the order, the first from 0."""
    ends = [edge for edge in EDGES if edge < data_frac * (1 - 1e-9)]
    ends.append(EDGES[len(ends)])
    return list(zip([0.0, *ends], ends, strict=False))


def mixture_stage(cell: Cell, corpus: Any) -> Stage:
    """The whole corpus as rows, with its held-out split."""
    identity = {
        name: value
        for name, value in corpus.identity(cell.world_seed).items()
        if name not in ("max_length", "max_new_tokens")
    }
    kind = corpus_name(corpus)
    return Stage(
        "mixture",
        kind,
        {"corpus": {"kind": kind, **identity}},
        where={"corpus": {"kind": kind, **asdict(corpus)}, "world_seed": cell.world_seed},
    )


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


def subset_stage(
    mixture: Stage,
    tokenizer: Stage,
    data_frac: float,
    data_seed: int,
    max_length: int,
    exclude: Stage | None = None,
    answers: str = "given",
    overlap: Stage | None = None,
) -> Stage:
    """The rows a fraction holds, rendered for one tokenizer, with validation carved from them where they have
    answers; without those whose prompt `exclude` holds out, or that `overlap` names."""
    inputs = {"mixture": mixture, "tokenizer": tokenizer} | ({"exclude": exclude} if exclude else {})
    inputs |= {"overlap": overlap} if overlap else {}
    settings: dict[str, Any] = {"data_frac": data_frac, "data_seed": data_seed, "max_length": max_length}
    settings |= {"validation": 0.1} if answers == "given" else {"validation": 0.0, "answers": answers}
    return Stage("subset", f"{mixture.name}-{data_frac:g}-s{data_seed}", settings, inputs)


def block_stage(
    mixture: Stage,
    tokenizer: Stage,
    edges: tuple[float, float],
    data_seed: int,
    max_length: int,
    answers: str = "given",
) -> Stage:
    """The rows of one block, validation rows among them, rendered for one tokenizer; it may hold none."""
    settings = {
        "block": list(edges),
        "data_frac": edges[1],
        "data_seed": data_seed,
        "max_length": max_length,
        "validation": 0.0,
        **({} if answers == "given" else {"answers": answers}),
    }
    inputs = {"mixture": mixture, "tokenizer": tokenizer}
    return Stage("subset", f"{mixture.name}-block-{edges[1]:g}-s{data_seed}", settings, inputs)


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


def label_stages(cell: Cell, stage: TrainStage, mixture: Stage, subset: Stage, teacher: Stage) -> dict[str, Stage]:
    """The teacher's answers to the cell's prompts by role of input: a stage a block, or one for what is visited."""
    settings: dict[str, Any] = {
        "sampling_temperature": stage.sampling_temperature,
        "samples_per_prompt": stage.samples_per_prompt,
        "precision": cell.budget.precision,
        "max_new_tokens": cell.corpus.max_new_tokens,
        "max_length": cell.corpus.max_length,
    }
    if cell.teacher.label_rows == "visited":
        if cell.budget.kind == "flops":
            raise refuse(
                "teacher.label_rows",
                "visited",
                "how many rows a FLOP budget visits depends on what the labels cost",
                "use teacher.label_rows=blocks",
            )
        settings["visits"] = {"budget": asdict(cell.budget), "span": list(stage.span), "seed": cell.train_seed}
        name = f"{teacher.name}-{cell.data_frac:g}-s{cell.train_seed}"
        return {"labels": Stage("labels", name, settings, {"rows": subset, "teacher": teacher}, _where(cell))}
    return {
        f"labels:{block.settings['data_frac']:g}": Stage(
            "labels",
            f"{teacher.name}-block-{block.settings['data_frac']:g}",
            settings,
            {"rows": block, "teacher": teacher},
            _where(cell),
        )
        for block in _blocks(cell, mixture, teacher)
    }


def cache_stages(cell: Cell, mixture: Stage, teacher: Stage) -> dict[str, Stage]:
    """What the teacher says about the data's own text, stored block by block, by role of input."""
    settings: dict[str, Any] = {
        "signal": cell.signal.stored(),
        "seed": cell.teacher_seed,
        "max_length": cell.corpus.max_length,
    }
    if teacher.settings.get("kind") != "http":  # a server has a precision of its own
        settings["precision"] = cell.budget.precision
    return {
        f"cache:{block.settings['data_frac']:g}": Stage(
            "cache",
            f"{teacher.name}-{cell.signal.kind}-block-{block.settings['data_frac']:g}",
            settings,
            {"rows": block, "teacher": teacher},
            _where(cell),
        )
        for block in _blocks(cell, mixture, teacher)
    }


def synthesize_stage(cell: Cell, stage: TrainStage, mixture: Stage, subset: Stage, teacher: Stage) -> Stage:
    """Prompts and answers the teacher writes after seeing the cell's own rows."""
    if stage.verified and not cell.corpus.knows_truth:
        raise refuse(
            "method.verified",
            True,
            f"corpus={corpus_name(cell.corpus)} cannot tell whether the answer to a new prompt is right",
            "set method.verified=false, or method.self_consistency=0.6 to let the teacher vote",
        )
    settings: dict[str, Any] = {
        "sampling_temperature": stage.sampling_temperature,
        "max_new_tokens": cell.corpus.max_new_tokens,
        "max_length": cell.corpus.max_length,
        "seed": cell.data_seed,
    }
    settings |= {name: getattr(stage, name) for name in SYNTHESIS}
    inputs = {"subset": subset, "mixture": mixture, "teacher": teacher}
    inputs |= {"overlap": dropped} if (dropped := dropped_by(cell, mixture, mixture)) else {}
    return Stage("synthesize", f"{teacher.name}-s{cell.data_seed}", settings, inputs, _where(cell))


def _where(cell: Cell) -> dict[str, Any]:
    """Where a teacher that is a server is to be found; never identity."""
    return {"teacher_url": cell.teacher.path} if cell.teacher.kind == "http" else {}


def _blocks(cell: Cell, mixture: Stage, teacher: Stage) -> list[Stage]:
    assert cell.data_seed is not None
    return [
        block_stage(mixture, teacher.adopted(), edges, cell.data_seed, cell.corpus.max_length, cell.corpus.answers)
        for edges in block_edges(cell.data_frac)
    ]


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
