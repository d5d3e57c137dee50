"""Spending: how many optimizer steps a budget of FLOPs buys, by the marginal cost of what a phase does.

Marginal cost is training, the live teacher's forward passes, text written while training, and the labels,
synthetic rows or caches made for the cell, charged whole; making the teacher is not in it (`cost.py` has
the formulas and the other two figures). Steps are fixed before training, from the rows' mean lengths, so
schedules end where they should; text that turns out longer or shorter makes the spending differ, which a
warning tells.

    steps_for(budget, share=0.8, written=3e12, visit=visit_flops(phase, sizes, row_tokens=180))
"""

from dataclasses import dataclass

from harness.config.budget import Budget
from harness.config.checks import refuse
from harness.config.recipe import TrainingPhase
from harness.models.flops import forward_flops, train_flops

OFF = 0.1
"""Share of the budget by which spending may differ from it before a warning says so."""


@dataclass(frozen=True)
class Sizes:
    """Parameters of the models a phase runs."""

    student: int
    frozen: int = 0
    """Of the student's, those that are not trained."""
    teacher: int = 0
    """Of the live teacher; 0 without one."""


def visit_flops(phase: TrainingPhase, sizes: Sizes, row_tokens: float) -> float:
    """Expected FLOPs of training one row of `row_tokens` tokens, prompt and answer.

    A written text is taken to be as long as the row it stands for; each of its tokens is read or written once.
    """
    flops = train_flops(sizes.student, row_tokens, sizes.frozen)
    if phase.asks_teacher:
        flops += forward_flops(sizes.teacher, row_tokens)
    if phase.sequences == "student":
        flops += phase.student_share * forward_flops(sizes.student, row_tokens)
    if phase.sequences == "interleaved":
        flops += forward_flops(sizes.student + sizes.teacher, row_tokens)
    return flops


def steps_for(budget: Budget, share: float, written: float, visit: float) -> int:
    """Optimizer steps that `share` of the budget buys after `written` FLOPs; where it buys none, SettingsError."""
    left = share * budget.amount - written
    steps = int(left / (visit * budget.batch_size))
    if steps < 1:
        raise refuse(
            "budget.amount",
            budget.amount,
            f"{share:.0%} of it, less {written:.3g} FLOPs for what the teacher wrote, buys no step of "
            f"{visit * budget.batch_size:.3g}",
            f"give at least {(written + visit * budget.batch_size) / share:.2g}",
        )
    return steps


def off_budget(budget: Budget, share: float, spent: float) -> str:
    """A warning where `spent` FLOPs differ from the budget's share by more than a tenth, else empty."""
    wanted = share * budget.amount
    if abs(spent - wanted) <= OFF * wanted:
        return ""
    return f"{spent:.3g} FLOPs were spent where the budget's share is {wanted:.3g}: texts were longer or shorter"
