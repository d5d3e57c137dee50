"""Running a grid: plan, check, then execute or submit; command line and Python API both call this.

frozen = run_grid(compose(["method=sft,kd", "data_frac=0.01,1.0"]))
"""

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
from harness.plan.claims import check_claims, declare
from harness.plan.compose import Composed
from harness.plan.estimate import plan_text
from harness.plan.frozen import FrozenPlan, freeze, keep_plan
from harness.plan.graph import Again
from harness.plan.metrics import grid_metrics, primary_metric
from harness.plan.phase_steps import short_phases_warning
from harness.plan.trials import tune_grid
from harness.plan.tuning import Tune
from harness.plan.unread import unread_lines
from harness.store.integrity import set_aside_damaged
from harness.store.status import StageState, stage_state
from harness.store.store import DamagedError, Store, read_json, write_json


def run_grid(composed: Composed, stream: TextIO | None = None) -> FrozenPlan:
    """Plan, check and execute on this machine; returns the frozen plan, whose results are then in the store.

    Raises SettingsError before anything is computed, for settings that cannot work. Ctrl-C passes on as
    KeyboardInterrupt; finished stages stay in the store.
    """
    settings = composed.settings
    store = Store.open(settings.store)
    planned = Plan.of(composed.cells)
    preflight(planned, settings.machine, store.done)
    for line in unread_lines(composed, planned):
        print(f"note: {line}", file=stream or sys.stderr)
    for line in short_phases_warning(planned):
        print(f"warning: {line}", file=stream or sys.stderr)
    with view_of(stream or sys.stderr) as view:

        def make(plan: Plan, grid: str) -> Mapping[str, StageState]:
            preflight(plan, settings.machine, store.done)
            return execute(plan, store, replace(settings, grid=grid), view)

        planned, frozen = _settled(composed, planned, store, make)
        execute(planned, store, replace(settings, grid=frozen.grid), view)
    return frozen


def submit_grid(composed: Composed, log: Callable[[str], None] = print) -> FrozenPlan | None:
    """Plan, check and submit the stages that the store lacks to the cluster of `composed.settings.slurm`.

    `log` receives the plan's cost and what was submitted. Returns None at once, or with `wait` the frozen plan when all
    jobs have ended. Raises SettingsError before anything is submitted.
    """
    from harness.execution.slurm.submit import submit, wait

    settings = composed.settings
    if settings.tune and not settings.wait:
        raise refuse("wait", False, "trials must end before the grid is known", "set wait=true, or leave tune out")
    cluster = Cluster.of(settings.slurm)
    store = Store.open(settings.store)
    planned = Plan.of(composed.cells)
    # without a machine: the devices of a login node say nothing about those of the nodes
    preflight(planned, made=store.done)
    for line in unread_lines(composed, planned):
        log(f"note: {line}")
    for line in short_phases_warning(planned):
        log(f"warning: {line}")

    def send(plan: Plan, grid: str) -> None:
        # sizes now, so that what is damaged is submitted again; each job verifies the content of what it uses
        for line in set_aside_damaged(store, [stage.key for stage in plan.stages], settings.verify).values():
            log(f"warning: {line}")
        log(plan_text(plan, store, cluster))
        # {} tries failed stages again without changes; None leaves them out
        again: Again | None = {} if settings.retry else None
        sent = submit(plan, store, settings.machine, cluster, grid, again, settings.track, settings.verify)
        log(sent.describe())

    def make(plan: Plan, grid: str) -> Mapping[str, StageState]:
        preflight(plan, made=store.done)
        send(plan, grid)
        wait(store, list(plan.targets), log)
        return {key: stage_state(store, key) for key in plan.targets}

    planned, frozen = _settled(composed, planned, store, make)
    send(planned, frozen.grid)
    if not settings.wait:
        log(f"python -m harness.grid status {frozen.grid}")
        return None
    wait(store, list(planned.targets), log)
    return frozen


def _settled(
    composed: Composed, planned: Plan, store: Store, make: Callable[[Plan, str], Mapping[str, StageState]]
) -> tuple[Plan, FrozenPlan]:
    """The plan and its frozen form, every arm at the settings that its trials chose where the grid is tuned.

    `make` makes the trials' plan under a grid's name, and returns the states of its stages.
    """
    settings, chosen, trials = composed.settings, {}, None
    # before the trials, which take compute; trials change no evaluation
    known = grid_metrics(plan.cell for plan in planned.cells)
    primary = primary_metric(settings.primary_metric, known)
    check_claims(settings.claims, known)
    if settings.tune:
        tuned, trials = tune_grid(composed.cells, Tune.of(settings.tune), wanted_name(settings, planned), store, make)
        plans = [plan_cell(one.cell) for one in tuned]
        # arms whose trials chose other settings are other cells, with other stages
        planned = Plan.union(plans)
        chosen = {plan.fingerprint: one for plan, one in zip(plans, tuned, strict=True)}
    frozen = freeze(planned, _name(settings, planned, store), chosen, settings.track, primary)
    # Claims are kept before anything of the grid is made, with the count of its cells that were finished already. They
    # come before the plan, so claims that are refused leave no plan behind.
    declare(store, frozen, settings.claims, known)
    folder = keep_plan(store, frozen)
    if trials is not None:
        write_json(folder / "tuning.json", trials)
    return planned, frozen


def wanted_name(settings: Settings, planned: Plan) -> str:
    """The grid's name: the setting `grid`, else the experiment's slug, else a hash of its cells."""
    return settings.grid or settings.experiments or planned.name


def _name(settings: Settings, planned: Plan, store: Store) -> str:
    """The wanted name; where the store has other cells under it, that name with a hash of these cells.

    A grid's name means the same cells for good. Raises SettingsError where the user chose a name of other cells.
    """
    name = wanted_name(settings, planned)
    path = store.grid_folder(name) / "plan.json"
    if not path.is_file():
        return name
    try:
        cells = {cell["fingerprint"] for cell in read_json(path)["cells"]}
    except (DamagedError, KeyError, TypeError):
        aside = store.set_file_aside(path, "it is no plan of a grid any more")
        print(f"warning: {path} could not be read; it is set aside as {aside}, and written anew", file=sys.stderr)
        return name
    if cells == {cell.fingerprint for cell in planned.cells}:
        return name
    # A name that the user did not choose gets a hash in addition, so two experiments with one slug stay apart.
    if settings.grid:
        raise refuse("grid", name, "that name belongs to a grid of other cells in this store", "choose another name")
    return f"{name}-{planned.name.rsplit('-', 1)[-1]}"
