"""Running a grid: plan, check, execute or submit. Every door comes through here.

frozen = run_grid(compose(["method=sft,kd", "data_frac=0.01,1.0"]))
"""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TextIO

from harness.config.cell import Settings
from harness.config.checks import refuse
from harness.config.cluster import Cluster
from harness.execution.executor import execute
from harness.execution.preflight import preflight
from harness.execution.view import view_of
from harness.plan.cell_plan import Plan, plan_cell
from harness.plan.claims import declare
from harness.plan.compose import Composed
from harness.plan.estimate import plan_text
from harness.plan.frozen import FrozenPlan, freeze, keep_plan
from harness.plan.graph import Again
from harness.plan.trials import tune_grid
from harness.plan.tuning import Tune
from harness.store.status import StageState, stage_state
from harness.store.store import Store, write_json


def run_grid(composed: Composed, stream: TextIO | None = None) -> FrozenPlan:
    """Plan, check and execute here; returns the frozen plan, whose results the store has now.

    What can be refused is refused before anything is computed (SettingsError). Ctrl-C leaves what is finished in the
    store and passes on as KeyboardInterrupt.
    """
    settings = composed.settings
    store = Store.open(settings.store)
    planned = Plan.of(composed.cells)
    preflight(planned, settings.machine)
    with view_of(stream or sys.stderr) as view:

        def make(plan: Plan, grid: str) -> Mapping[str, StageState]:
            preflight(plan, settings.machine)
            return execute(plan, store, replace(settings, grid=grid), view)

        planned, frozen = _settled(composed, planned, store, make)
        execute(planned, store, replace(settings, grid=frozen.grid), view)
    return frozen


def submit_grid(composed: Composed, tell: Callable[[str], None] = print) -> FrozenPlan | None:
    """Plan, check and send what the store lacks to the cluster of `composed.settings.slurm`.

    `tell` hears what the plan costs and what was sent. Returns None at once, or with `wait` the frozen plan when all
    jobs have ended. Raises SettingsError before anything is sent.
    """
    from harness.execution.slurm.submit import submit, wait

    settings = composed.settings
    if settings.tune and not settings.wait:
        raise refuse("wait", False, "trials must end before the grid is known", "set wait=true, or leave tune out")
    cluster = Cluster.of(settings.slurm)
    store = Store.open(settings.store)
    planned = Plan.of(composed.cells)
    preflight(planned)

    def send(plan: Plan, grid: str) -> None:
        tell(plan_text(plan, store, cluster))
        again: Again | None = {} if settings.retry else None
        tell(submit(plan, store, settings.machine, cluster, grid, again, settings.track).told())

    def make(plan: Plan, grid: str) -> Mapping[str, StageState]:
        preflight(plan)
        send(plan, grid)
        wait(store, list(plan.targets), tell)
        return {key: stage_state(store, key) for key in plan.targets}

    planned, frozen = _settled(composed, planned, store, make)
    send(planned, frozen.grid)
    if not settings.wait:
        tell(f"python -m harness.grid status {frozen.grid}")
        return None
    wait(store, list(planned.targets), tell)
    return frozen


def _settled(
    composed: Composed, planned: Plan, store: Store, make: Callable[[Plan, str], Mapping[str, StageState]]
) -> tuple[Plan, FrozenPlan]:
    """The plan, with every arm at the settings that trials chose where it is to be tuned, and as it is kept.

    `make` makes the trials' plan under a grid's name, and returns how its stages ended.
    """
    settings, chosen, trials = composed.settings, {}, None
    if settings.tune:
        tuned, trials = tune_grid(composed.cells, Tune.of(settings.tune), wanted_name(settings, planned), store, make)
        plans = [plan_cell(one.cell) for one in tuned]
        planned = Plan.union(plans)
        chosen = {plan.fingerprint: one for plan, one in zip(plans, tuned, strict=True)}
    frozen = freeze(planned, _name(settings, planned, store), chosen, settings.track)
    declare(store, frozen, settings.claims)
    folder = keep_plan(store, frozen)
    if trials is not None:
        write_json(folder / "tuning.json", trials)
    return planned, frozen


def wanted_name(settings: Settings, planned: Plan) -> str:
    """The grid's name: as asked, else the experiment's slug, else a hash of its cells."""
    return settings.grid or settings.experiments or planned.name


def _name(settings: Settings, planned: Plan, store: Store) -> str:
    """The wanted name, or where that keeps other cells, one beside it; a name keeps its cells for good."""
    name = wanted_name(settings, planned)
    path = store.grid_folder(name) / "plan.json"
    if not path.is_file():
        return name
    cells = {cell["fingerprint"] for cell in json.loads(path.read_text())["cells"]}
    if cells == {cell.fingerprint for cell in planned.cells}:
        return name
    if settings.grid:
        raise refuse("grid", name, "that name belongs to a grid of other cells in this store", "choose another name")
    return f"{name}-{planned.name.rsplit('-', 1)[-1]}"
