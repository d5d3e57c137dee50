"""Phase steps: training phases with too few optimizer steps, found before anything is computed.

With fewer than about 50 steps a schedule has hardly begun, and a comparison of methods says little about them. A plan
with such phases is warned of in one line that names them; where `budget.least_steps_per_phase` is set it is refused.

    print(*short_phases_warning(plan))
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from harness.config.checks import refuse
from harness.methods import method_name
from harness.plan.cell_plan import CellPlan, Plan
from harness.plan.estimate import train_steps
from harness.plan.graph import Stage

FEW_STEPS = 50
"""Optimizer steps below which a phase is warned of."""
MARGIN = 2
"""Times a budget of FLOPs that has to buy a step; lengths are estimated, so a stage decides between one and this."""
NAMED = 4
"""How many phases a warning names."""


def check_phase_steps(plan: Plan) -> None:
    """Raise SettingsError for the first phase with fewer steps than its cell's `budget.least_steps_per_phase`, or for
    which a budget of FLOPs buys no step by far."""
    for cell in plan.cells:
        if cell.cell.budget.kind == "flops":
            _check_flops(cell)
        least = cell.cell.budget.least_steps_per_phase
        if least is None:
            continue
        for stage in cell.train:
            steps = train_steps(stage)
            if steps < least:
                raise refuse(
                    "budget.least_steps_per_phase",
                    least,
                    f"{_phase(cell, stage)} has {steps} optimizer steps",
                    "raise budget.min_steps or budget.amount, make budget.batch_size or a share of the method smaller, "
                    "or set budget.epochs_of=phase where it trains on synthetic rows",
                )


def _check_flops(cell: CellPlan) -> None:
    """Raise SettingsError where twice the budget would buy no step of a phase, by lengths that are estimated here."""
    for stage in cell.train:
        budget = stage.settings["budget"]
        twice = replace(stage, settings={**stage.settings, "budget": {**budget, "amount": MARGIN * budget["amount"]}})
        if train_steps(twice) < 1:
            raise refuse(
                "budget.amount",
                budget["amount"],
                f"so few FLOPs buy not one optimizer step of {_phase(cell, stage)}",
                "give more: `python -m harness.grid plan` says what a step costs, or take budget=steps",
            )


def short_phases_warning(plan: Plan) -> Iterator[str]:
    """One line that names the phases with fewer than FEW_STEPS steps; none where there is no such phase."""
    short = {stage.key: f"{_phase(cell, stage)} ({steps})" for cell, stage, steps in _short(plan.cells)}
    if short:
        named = list(short.values())
        more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
        yield (
            f"fewer than {FEW_STEPS} optimizer steps in {len(named)} training "
            f"{'phase' if len(named) == 1 else 'phases'}: {'; '.join(named[:NAMED])}{more}. Raise budget.min_steps or "
            "budget.amount where methods are to be compared"
        )


def _short(cells: Iterable[CellPlan]) -> Iterator[tuple[CellPlan, Stage, int]]:
    for cell in cells:
        for stage in cell.train:
            if (steps := train_steps(stage)) < FEW_STEPS:
                yield cell, stage, steps


def _phase(plan: CellPlan, stage: Stage) -> str:
    """A phase in words: `method=kd data_frac=0.01, phase 1 of 2`."""
    cell = plan.cell
    number = f", phase {plan.train.index(stage) + 1} of {len(plan.train)}" if len(plan.train) > 1 else ""
    return f"method={method_name(cell.method)} student={cell.student.name} data_frac={cell.data_frac:g}{number}"
