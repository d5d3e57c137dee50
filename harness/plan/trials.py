"""Trials: what tuning trains, run as a grid of its own, and what was chosen, kept beside the grid.

`tuning.py` chooses the trials and the best one; here they are planned, run and read. A trial is
trained and never scored on held-out rows. Trials are stages like any other: after an interruption the same
command continues, and `python -m harness.grid status <grid>-tuning` shows them.

    tuned, report = tune_grid(cells, Tune.of({...}), "my_grid", store, make)
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from harness.config.cell import Cell
from harness.config.checks import SettingsError
from harness.plan.cell_plan import CellPlan, Plan, plan_cell
from harness.plan.frozen import FrozenPlan, freeze, frozen_plan, keep_plan, targets_of
from harness.plan.tuning import Search, Tune, Tuned, search, tuned_cells
from harness.store.fingerprint import plain
from harness.store.status import StageState
from harness.store.store import Store


def tune_grid(
    cells: Sequence[Cell],
    tune: Tune,
    grid: str,
    store: Store,
    make: Callable[[Plan, str], Mapping[str, StageState]],
) -> tuple[list[Tuned], dict[str, Any]]:
    """Run the trials; returns every cell at the settings chosen for its arm, and all trials as plain JSON.

    `make` makes a plan under a grid's name, wherever it runs, and returns how its stages ended.
    Raises SettingsError where an arm has no trial with a score, before the grid itself is begun.
    """
    known: dict[str, CellPlan] = {}
    name = f"{grid}-tuning"

    def run(wanted: list[Cell]) -> list[float | str]:
        plans = [trial_plan(plan_cell(cell)) for cell in wanted]
        plan = Plan.union(plans)
        # the kept plan has the trials of earlier rounds too; `make` gets those of this round alone
        known.update({one.fingerprint: one for one in plans})
        keep_plan(store, _with_finished(store, freeze(Plan.union(known.values()), name)))
        states = make(plan, name)
        return [_validation_nll(store, one, states) for one in plans]

    # `search` runs all rounds; cells are tuned afterwards, since any round may move an optimum
    searches = search(cells, tune, run)
    return tuned_cells(cells, searches), _describe(searches, tune)


def trial_plan(plan: CellPlan) -> CellPlan:
    """The cell's stages up to its trained student, with nothing scored."""
    return replace(plan, evaluations={}, references={}, deployments={}, overlaps=())


def _with_finished(store: Store, frozen: FrozenPlan) -> FrozenPlan:
    """The plan with the finished trials of the plan that the grid has: a run that is stopped early forgets none."""
    try:
        before = frozen_plan(store, frozen.grid)
    except SettingsError:  # none yet, or it cannot be read and is written anew
        return frozen
    now = {cell.fingerprint for cell in frozen.cells}
    kept = [cell for cell in before.cells if cell.fingerprint not in now and all(map(store.done, targets_of(cell)))]
    stages = {key: before.stages[key] for cell in kept for key in cell.needs}
    return replace(frozen, stages={**stages, **frozen.stages}, cells=(*frozen.cells, *kept))


def _validation_nll(store: Store, plan: CellPlan, states: Mapping[str, StageState]) -> float | str:
    key = plan.train[-1].key
    # a failed trial has no score, and the search goes on with the others
    if not store.done(key):
        state = states[key]
        return f"{state.status}: {state.reason}"
    found = store.manifest(key)["facts"]["metrics"].get("validation_nll")
    if found is None:
        return "the cell has too few rows for a validation split; raise data_frac"
    return float(found)


def _describe(searches: Iterable[Search], tune: Tune) -> dict[str, Any]:
    arms: list[dict[str, Any]] = []
    for one in searches:
        end = one.open_end()
        arms.append(
            {
                "arm": one.name,
                "teacher": one.cell.teacher.name,
                "chosen": one.best.values,
                "validation_nll": one.best.nll,
                "open_end": None if end is None else end[0],
                "trials": [{"values": t.values, "validation_nll": t.nll, "reason": t.reason} for t in one.trials],
            }
        )
    return {"tune": plain(tune), "trials_per_arm": max(len(arm["trials"]) for arm in arms), "arms": arms}
