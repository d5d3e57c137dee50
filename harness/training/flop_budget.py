"""FLOP budget: the number of FLOP-matched optimizer steps, by the marginal cost of a training phase.

Marginal cost is training, the live teacher's forward passes, sequences generated while training, and the labels,
synthetic rows or caches made for the cell, charged whole; making the teacher is not in it (`results/cost.py` has
the other two figures). Steps are fixed before training, from the rows' mean lengths, so schedules end where they
should; where generated sequences turn out longer or shorter the FLOPs differ, and `off_budget` warns.

    steps_for(budget, share=0.8, labels=3e12, visit=visit_flops(phase, sizes, row_tokens=180))
"""

from dataclasses import dataclass

from harness.config.budget import Budget
from harness.config.checks import refuse
from harness.config.recipe import TrainingPhase
from harness.models.flops import forward_flops, train_flops

OFF = 0.1
"""Share of the budget by which the FLOPs may differ from it without a warning."""


@dataclass(frozen=True)
class Sizes:
    """Parameters of the models a phase runs."""

    student: int
    frozen: int = 0
    """Of the student's, those that are not trained."""
    teacher: int = 0
    """Of the live teacher; 0 without one."""


def visit_flops(phase: TrainingPhase, sizes: Sizes, row_tokens: float) -> float:
    """Expected FLOPs of training on one row of `row_tokens` tokens, prompt and answer.

    A generated sequence is taken to be as long as the row it replaces; each of its tokens is processed once.
    """
    flops = train_flops(sizes.student, row_tokens, sizes.frozen)
    if phase.queries_teacher:
        flops += forward_flops(sizes.teacher, row_tokens)
    if phase.sequences == "student":
        flops += phase.student_share * forward_flops(sizes.student, row_tokens)
    if phase.sequences == "interleaved":
        flops += forward_flops(sizes.student + sizes.teacher, row_tokens)
    return flops


def steps_for(budget: Budget, share: float, labels: float, visit: float) -> int:
    """Optimizer steps within `share` of the budget, of `visit` FLOPs a row, after `labels` FLOPs of the teacher.

    Raises SettingsError where not one step is left.
    """
    left = share * budget.amount - labels
    steps = int(left / (visit * budget.batch_size))
    if steps < 1:
        raise refuse(
            "budget.amount",
            budget.amount,
            f"{share:.0%} of it, less {labels:.3g} FLOPs for the teacher's labels, is less than one step of "
            f"{visit * budget.batch_size:.3g}",
            f"give at least {(labels + visit * budget.batch_size) / share:.2g}",
        )
    return steps


def off_budget(budget: Budget, share: float, spent: float) -> str:
    """A warning where `spent` FLOPs differ from the budget's share by more than a tenth, else empty."""
    wanted = share * budget.amount
    if abs(spent - wanted) <= OFF * wanted:
        return ""
    return (
        f"{spent:.3g} FLOPs were spent where the budget's share is {wanted:.3g}: generated sequences were longer or "
        "shorter than the rows they replaced"
    )
