"""Signal stages: what the teacher generates or scores for each phase of training, before it or while it runs.

phase_signal(rows, phase, teacher).prepared    # {"labels:0.01": ..., "labels:0.02": ...}
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.config.cell import Cell
from harness.config.checks import refuse
from harness.config.recipe import CROSS, TrainingPhase
from harness.data.corpora import corpus_name
from harness.methods import method_name
from harness.models.kinds import ServedModel, TypedModel, model_of, surely_alike, surely_equal
from harness.plan.data_stages import CellRows
from harness.plan.graph import Stage
from harness.plan.model_stages import base_stage

ROOM = 2
"""How many times as long a row may be in the teacher's chat template: marks and a system prompt of its own."""
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
"""Values of a phase that decide which synthetic rows there are."""


@dataclass(frozen=True)
class PhaseSignal:
    """The stages by which a teacher takes part in one phase, by role of input; none for a phase without a teacher."""

    prepared: Mapping[str, Stage] = field(default_factory=dict)
    """Made before the phase: labels, synthetic rows, or caches of the teacher's logits."""
    live: Mapping[str, Stage] = field(default_factory=dict)
    """Read while the phase trains: the teacher's model, and the rows in its own tokens where tokenizers differ."""

    @property
    def inputs(self) -> dict[str, Stage]:
        """All of them, as inputs of the phase's train stage."""
        return {**self.prepared, **self.live}


def phase_signal(rows: CellRows, phase: TrainingPhase, teacher: Stage | None) -> PhaseSignal:
    """What a phase takes from its teacher. Raises SettingsError for labels or synthetic rows that cannot be planned."""
    if not phase.uses_teacher:
        return PhaseSignal()
    assert teacher is not None, "a method that needs a teacher and has none was refused"
    # a teacher that labels or generates before training need not be there while the phase runs
    live = phase.queries_teacher and rows.cell.signal.kind == "live"
    return PhaseSignal(_prepared(rows, phase, teacher), _live(rows, phase, teacher) if live else {})


def _prepared(rows: CellRows, phase: TrainingPhase, teacher: Stage) -> dict[str, Stage]:
    if phase.sequences == "teacher":
        return label_stages(rows, phase, teacher)
    if phase.sequences in ("synthetic", "mixed"):
        return {"synthetic": synthesize_stage(rows, phase, teacher)}
    if phase.queries_teacher and rows.cell.signal.kind != "live":
        return cache_stages(rows, phase, teacher)
    return {}


def _live(rows: CellRows, phase: TrainingPhase, teacher: Stage) -> dict[str, Stage]:
    if phase.divergence in CROSS:
        return {"teacher": teacher, "teacher_rows": rows.rendered_for(base_stage(rows.cell, rows.cell.teacher))}
    # the teacher scores the student's own ids, or the same conversation in its own chat template
    alike = phase.teacher == "self" or surely_alike(model_of(rows.cell.student), model_of(rows.cell.teacher))
    own = not alike and rows.cell.teacher.rendering == "own"
    if own and phase.sequences != "synthetic":  # synthetic rows come with the teacher's rendering of them
        return {"teacher": teacher, "teacher_reading": rows.rendered_for(teacher.base_model(), ROOM)}
    return {"teacher": teacher}


def may_differ(cell: Cell, phase: TrainingPhase) -> bool:
    """Whether a phase's teacher may have other tokens or another template than the student, as far as files tell."""
    # the teacher `self` is the student before
    return phase.teacher == "given" and not surely_equal(model_of(cell.student), model_of(cell.teacher))


def label_stages(rows: CellRows, phase: TrainingPhase, teacher: Stage) -> dict[str, Stage]:
    """The teacher's answers to the cell's prompts by role of input: a stage a block, or one for what is visited.

    Raises SettingsError for `teacher.label_rows=visited` under a FLOP budget.
    """
    cell = rows.cell
    settings: dict[str, Any] = {
        "sampling_temperature": phase.sampling_temperature,
        "samples_per_prompt": phase.samples_per_prompt,
        "precision": cell.budget.precision,
        "max_new_tokens": cell.corpus.max_new_tokens,
        "max_length": cell.corpus.max_length,
    }
    if cell.teacher.label_rows == "visited":
        # labels are charged to a FLOP budget, and their cost is known only after they were generated
        if cell.budget.kind == "flops":
            raise refuse(
                "teacher.label_rows",
                "visited",
                "how many rows a FLOP budget visits depends on what the labels cost",
                "use teacher.label_rows=blocks",
            )
        # the visited rows follow from budget, span and seed, so these enter the address; a block has none of them
        settings["visits"] = {
            "budget": cell.budget.on(phase.other_rows).identity(),
            "span": list(phase.span),
            "seed": cell.train_seed,
        }
        name = f"{teacher.name}-{cell.data_frac:g}-s{cell.train_seed}"
        inputs = {"rows": rows.subset, "teacher": teacher}
        if may_differ(cell, phase):
            inputs["teacher_reading"] = rows.rendered_for(teacher.base_model(), ROOM)
        return {"labels": Stage("labels", name, settings, inputs, _where(teacher))}
    return {
        f"labels:{block.settings['data_frac']:g}": Stage(
            "labels",
            f"{teacher.name}-block-{block.settings['data_frac']:g}",
            settings,
            {"rows": block, "teacher": teacher},
            _where(teacher),
        )
        for block in rows.blocks(teacher.base_model())
    }


def cache_stages(rows: CellRows, phase: TrainingPhase, teacher: Stage) -> dict[str, Stage]:
    """The teacher's logits on the data's own answers, cached block by block, by role of input."""
    cell = rows.cell
    settings: dict[str, Any] = {
        "signal": cell.signal.stored(),
        "seed": cell.teacher_seed,
        "max_length": cell.corpus.max_length,
    }
    if _model_of(teacher).weights_here:  # a server has a precision of its own
        settings["precision"] = cell.budget.precision
    inputs: list[dict[str, Stage]] = [
        {"rows": block, "teacher": teacher} for block in rows.blocks(teacher.base_model())
    ]
    if may_differ(cell, phase):
        # kept in the student's tokens, at the scored positions of its own rendering
        student = base_stage(cell, cell.student)
        inputs = [{"rows": block, "teacher": teacher, "student": student} for block in rows.blocks(student)]
        alike = surely_alike(model_of(cell.student), model_of(cell.teacher))
        if not alike and cell.teacher.rendering == "own":
            for one, read in zip(inputs, rows.blocks(teacher.base_model(), ROOM), strict=True):
                one["teacher_rows"] = read
        elif not alike:
            settings["rendering"] = "student"
    return {
        f"cache:{one['rows'].settings['data_frac']:g}": Stage(
            "cache",
            f"{teacher.name}-{cell.signal.kind}-block-{one['rows'].settings['data_frac']:g}",
            settings,
            one,
            _where(teacher),
        )
        for one in inputs
    }


def synthesize_stage(rows: CellRows, phase: TrainingPhase, teacher: Stage) -> Stage:
    """Prompts and answers that the teacher generates with the cell's own rows in its context.

    Raises SettingsError where answers are to be verified and the corpus knows no truth.
    """
    cell = rows.cell
    if phase.verified and not cell.corpus.knows_truth:
        raise refuse(
            "method.verified",
            True,
            f"corpus={corpus_name(cell.corpus)} cannot tell whether the answer to a new prompt is right",
            "set method.verified=false, or method.self_consistency=0.6 to compare several answers of the teacher",
        )
    settings: dict[str, Any] = {
        "sampling_temperature": phase.sampling_temperature,
        "max_new_tokens": cell.corpus.max_new_tokens,
        "max_length": cell.corpus.max_length,
        "seed": cell.data_seed,
    }
    settings |= {name: getattr(phase, name) for name in SYNTHESIS}
    inputs = {"subset": rows.subset, "mixture": rows.mixture, "teacher": teacher}
    # rows that a teacher generates are compared with the scored items too, while they are filtered
    inputs |= {"overlap": dropped} if (dropped := rows.dropped_by(rows.mixture)) else {}
    if may_differ(cell, phase):
        inputs["student"] = base_stage(cell, cell.student)  # its tokenizer renders the rows that are kept
    return Stage("synthesize", f"{teacher.name}-s{cell.data_seed}", settings, inputs, _where(teacher))


def check_answers(cell: Cell, phases: tuple[TrainingPhase, ...]) -> None:
    """Raise SettingsError where prompts have no answers and a phase reads them, or the budget counts their tokens."""
    if cell.corpus.answers == "given":
        return
    name = method_name(cell.method)
    for phase in phases:
        if phase.reads_answers:
            start, end = phase.span
            raise refuse(
                "corpus.answers",
                "none",
                f"method={name} reads the data's answers ({phase.sequences} sequences x {phase.divergence}, "
                f"{start:.0%} to {end:.0%} of the budget)",
                "use method=seq_kd, method=logit_kd method.answers=teacher, or method=on_policy or skd with "
                "method.warmup=0; or set corpus.answers=given",
            )
    if cell.budget.kind in ("trained_tokens", "flops"):
        raise refuse(
            "budget.kind",
            cell.budget.kind,
            "with corpus.answers=none the length of an answer is known only after a model has generated it",
            "use budget.kind=steps or epochs",
        )


def _where(teacher: Stage) -> dict[str, Any]:
    """Where a teacher is that is served over HTTP; never identity."""
    model = _model_of(teacher)
    return model.where if isinstance(model, ServedModel) else {}


def _model_of(teacher: Stage) -> TypedModel:
    """The base model that a teacher was before it was fine-tuned or rounded."""
    return model_of(teacher.base_model().where["model"])
