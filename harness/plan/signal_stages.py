"""Signal stages: what the teacher generates or scores before a student trains."""

from dataclasses import asdict
from typing import Any

from harness.config.cell import Cell
from harness.config.checks import refuse
from harness.config.recipe import CROSS, TrainStage
from harness.data.corpora import corpus_name
from harness.methods import method_name
from harness.plan.data_stages import _subset, block_edges, block_stage, dropped_by
from harness.plan.graph import Stage
from harness.plan.model_stages import base_stage

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


def _check_answers(cell: Cell, recipe: tuple[TrainStage, ...]) -> None:
    """Refuse, where prompts stand alone, what reads the data's answers or counts their tokens."""
    if cell.corpus.answers == "given":
        return
    name = method_name(cell.method)
    for stage in recipe:
        if stage.reads_answers:
            start, end = stage.span
            raise refuse(
                "corpus.answers",
                "none",
                f"method={name} reads the data's answers ({stage.sequences} sequences x {stage.divergence}, "
                f"{start:.0%} to {end:.0%} of the budget)",
                "use method=seq_kd, method=logit_kd method.answers=teacher, or method=on_policy or skd with "
                "method.warmup=0; or set corpus.answers=given",
            )
    if cell.budget.kind in ("trained_tokens", "flops"):
        raise refuse(
            "budget.kind",
            cell.budget.kind,
            "with corpus.answers=none nobody knows before the teacher or the student writes how long an answer is",
            "use budget.kind=steps or epochs",
        )


def _said(cell: Cell, stage: TrainStage, mixture: Stage, subset: Stage, teacher: Stage) -> dict[str, Stage]:
    """What the teacher writes, or has written down of its judgement, before a stage trains; by role of input."""
    if stage.sequences == "teacher":
        return label_stages(cell, stage, mixture, subset, teacher)
    if stage.sequences in ("synthetic", "mixed"):
        return {"synthetic": synthesize_stage(cell, stage, mixture, subset, teacher)}
    if stage.asks_teacher and cell.signal.kind != "live":
        return cache_stages(cell, mixture, teacher)
    return {}


def _asked(cell: Cell, stage: TrainStage, mixture: Stage, teacher: Stage) -> dict[str, Stage]:
    """The teacher where it is asked while a stage trains, with its own rendering of the rows where it needs one."""
    if not stage.asks_teacher or cell.signal.kind != "live":
        return {}
    if stage.divergence not in CROSS:
        return {"teacher": teacher}
    return {"teacher": teacher, "teacher_rows": _subset(cell, mixture, base_stage(cell, cell.teacher))}
