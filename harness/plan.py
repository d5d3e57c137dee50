"""Plan: from cells to the stages that make them, without repeats and without running anything.

A stage's identity is its kind, version, settings and its inputs' identities. Two cells that need the
same stage share its address, so an SFT and a KD cell at 1 % train on one subset, and a teacher is made
once for the whole grid. Nothing here imports torch or reads data.

    plan = Plan.of([cell_a, cell_b]); [stage.address for stage in plan.stages]
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from harness.config import Budget, Cell, Lesson, Model, Teacher, refuse
from harness.corpora import corpus_from, corpus_name
from harness.identity import fingerprint
from harness.methods import method_name
from harness.model_files import model_identity
from harness.recipe import TrainStage
from harness.stage import Stage

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


@dataclass(frozen=True)
class CellPlan:
    """The stages of one cell by what they are for."""

    cell: Cell
    train: tuple[Stage, ...]
    evaluate: Stage
    teaching: tuple[Stage, ...]
    teacher: Stage | None
    references: Mapping[str, Stage]
    """`evaluate` stages of the models the student is compared with: base, and teacher where there is one."""

    @property
    def fingerprint(self) -> str:
        """The cell is what its student's evaluation is."""
        return self.evaluate.fingerprint

    def stages(self) -> Iterator[Stage]:
        """Every stage of the cell, references included."""
        for stage in (self.evaluate, *self.references.values()):
            yield from stage.ancestry()


@dataclass(frozen=True)
class Plan:
    """The union of cell plans: each stage once, inputs before those that use them."""

    cells: tuple[CellPlan, ...]
    stages: tuple[Stage, ...]

    @classmethod
    def of(cls, cells: Iterable[Cell]) -> "Plan":
        """Plan the cells; cells with one identity (SFT under several teachers) become one."""
        planned = {plan.fingerprint: plan for plan in map(plan_cell, cells)}
        stages: dict[str, Stage] = {}
        for plan in planned.values():
            for stage in plan.stages():
                stages.setdefault(stage.key, stage)
        return cls(tuple(planned.values()), tuple(stages.values()))

    @property
    def name(self) -> str:
        """A short hash of the cells, the grid's name when nobody gave one."""
        return "grid-" + fingerprint(sorted(plan.fingerprint for plan in self.cells))[:10]


def plan_cell(cell: Cell) -> CellPlan:
    """The stages of one cell; refuses what cannot be planned (a method without its teacher)."""
    cell = cell.with_seeds()
    assert cell.data_seed is not None and cell.train_seed is not None
    recipe = tuple(stage.normal() for stage in cell.method.stages())
    needs_teacher = any(stage.uses_teacher for stage in recipe)
    if needs_teacher and cell.teacher.kind == "none":
        raise refuse(
            "teacher",
            cell.teacher.name,
            f"method={method_name(cell.method)} needs a teacher",
            "choose one, e.g. teacher=weak, or method=sft",
        )
    mixture = mixture_stage(cell, cell.corpus)
    base = base_stage(cell, cell.student)
    subset = subset_stage(cell, mixture, base, cell.data_frac, cell.data_seed, cell.corpus.max_length)
    teacher = teacher_stage(cell, mixture) if needs_teacher else None

    train: list[Stage] = []
    teaching: list[Stage] = []
    for index, recipe_stage in enumerate(recipe):
        inputs = {"subset": subset, "start": train[-1] if train else base}
        if recipe_stage.sequences in ("teacher", "synthetic", "mixed"):
            assert teacher is not None
            rows = _teacher_rows(cell, recipe_stage, mixture, subset, teacher)
            teaching.append(rows)
            inputs["labels" if recipe_stage.sequences == "teacher" else "synthetic"] = rows
        if recipe_stage.asks_teacher:
            assert teacher is not None
            inputs["teacher"] = teacher
        name = f"{method_name(cell.method)}-{cell.data_frac:g}-s{cell.train_seed}"
        train.append(
            train_stage(
                name,
                recipe_stage,
                cell.budget,
                cell.train_seed,
                index,
                inputs,
                max_new_tokens=cell.corpus.max_new_tokens,
            )
        )
    references = {"base": evaluate_stage(cell, base, mixture)}
    if teacher is not None:
        references["teacher"] = evaluate_stage(cell, teacher, mixture)
    return CellPlan(cell, tuple(train), evaluate_stage(cell, train[-1], mixture), tuple(teaching), teacher, references)


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
    cell: Cell,
    mixture: Stage,
    tokenizer: Stage,
    data_frac: float,
    data_seed: int,
    max_length: int,
    exclude: Stage | None = None,
) -> Stage:
    """The rows a fraction holds, rendered for one tokenizer, with validation carved from them."""
    inputs = {"mixture": mixture, "tokenizer": tokenizer} | ({"exclude": exclude} if exclude else {})
    settings = {"data_frac": data_frac, "data_seed": data_seed, "max_length": max_length, "validation": 0.1}
    return Stage("subset", f"{mixture.name}-{data_frac:g}-s{data_seed}", settings, inputs)


def train_stage(
    name: str,
    recipe_stage: TrainStage,
    budget: Budget,
    seed: int,
    index: int,
    inputs: Mapping[str, Stage],
    max_new_tokens: int,
    loss_on: str = "assistant",
) -> Stage:
    """One training stage; a value that this stage does not read stays out of its identity."""
    settings: dict[str, Any] = {
        "stage": recipe_stage.identity(),
        "budget": asdict(budget),
        "seed": seed,
        "index": index,
        "loss_on": loss_on,
    }
    if recipe_stage.sequences == "student":
        settings["max_new_tokens"] = max_new_tokens
    return Stage("train", name, settings, inputs)


def evaluate_stage(cell: Cell, model: Stage, mixture: Stage) -> Stage:
    """Scores of one model on the held-out rows."""
    settings = {
        "evals": sorted(cell.evals.names),
        "limit": cell.evals.limit,
        "max_new_tokens": cell.corpus.max_new_tokens,
    }
    return Stage("evaluate", model.name, settings, {"model": model, "mixture": mixture})


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
    return model


def _lesson_rows(cell: Cell, teacher: Teacher, lesson: Lesson, mixture: Stage, model: Stage) -> Stage:
    if lesson.corpus is None:
        assert cell.data_seed is not None
        matched = teacher.data_frac == "match"
        return subset_stage(
            cell,
            mixture,
            model,
            cell.data_frac if matched else float(teacher.data_frac),
            cell.data_seed if matched else cell.teacher_seed,
            cell.corpus.max_length,
        )
    corpus = corpus_from(lesson.corpus)
    own = mixture_stage(cell, corpus)
    disjoint = corpus_name(corpus) == corpus_name(cell.corpus) == "mini"  # one held-out set per world
    return subset_stage(
        cell, own, model, 1.0, cell.teacher_seed, corpus.max_length, exclude=None if disjoint else mixture
    )


def _teacher_rows(cell: Cell, recipe_stage: TrainStage, mixture: Stage, subset: Stage, teacher: Stage) -> Stage:
    """Rows the teacher writes for a stage: answers to the cell's prompts, or new prompts and answers."""
    inputs = {"subset": subset, "mixture": mixture, "teacher": teacher}
    settings: dict[str, Any] = {
        "sampling_temperature": recipe_stage.sampling_temperature,
        "max_new_tokens": cell.corpus.max_new_tokens,
        "max_length": cell.corpus.max_length,
    }
    if recipe_stage.sequences in ("synthetic", "mixed"):
        if recipe_stage.verified and not cell.corpus.knows_truth:
            raise refuse(
                "method.verified",
                True,
                f"corpus={corpus_name(cell.corpus)} cannot tell whether the answer to a new prompt is right",
                "set method.verified=false, or method.self_consistency=0.6 to let the teacher vote",
            )
        settings |= {"seed": cell.data_seed} | {name: getattr(recipe_stage, name) for name in SYNTHESIS}
        return Stage("synthesize", f"{teacher.name}-s{cell.data_seed}", settings, inputs)
    settings |= {"budget": asdict(cell.budget), "span": list(recipe_stage.span), "seed": cell.train_seed}
    return Stage("labels", f"{teacher.name}-{cell.data_frac:g}-s{cell.train_seed}", settings, inputs)
