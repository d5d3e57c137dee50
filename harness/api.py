"""The harness from Python: the same cells, plans, runs and tables as the command line, no Hydra in sight.

The functions here are what notebooks and scripts need; `run.py` and `grid.py` say the same in words.

    import harness.api as harness
    cells = harness.grid(data_frac=[0.01, 0.1, 1.0], method=["sft", "kd"], seed=[0, 1, 2])
    finished = harness.run(cells, store="outputs")
    harness.results(finished.grid)          # a tidy DataFrame
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from harness.config.cell import Cell, Settings
from harness.config.checks import refuse
from harness.config.cluster import Cluster
from harness.execute import execute
from harness.finished import Finished
from harness.plan.cell_plan import Plan, plan_cell
from harness.plan.claims import declare
from harness.plan.compose import Composed, compose
from harness.plan.estimate import plan_text
from harness.plan.frozen import freeze, frozen_plan, keep_plan
from harness.plan.graph import Again
from harness.plan.trials import tune_grid
from harness.plan.tuning import Tune
from harness.preflight import preflight
from harness.record import records
from harness.store.status import StageState, stage_state
from harness.store.store import Store, write_json
from harness.view import view_of

if TYPE_CHECKING:
    import pandas as pd

    from harness.exposure import Exposures
    from harness.outcome import Outcome


def grid(**settings: Any) -> tuple[Cell, ...]:
    """Cells of the product of `settings`; a list sweeps, dots in names are written `__`.

    `grid(method=["sft", "kd"], budget__amount=100)`; a value that is a list itself stands in a list
    (`evals__names=[["heldout"]]`). Raises SettingsError as the command line would.
    """
    product = {
        name.replace("__", "."): value if isinstance(value, list) else [value] for name, value in settings.items()
    }
    return compose([], sweep={"product": product}).cells


def plan(cells: Iterable[Cell]) -> Plan:
    """The stages of the cells, without repeats; nothing is run."""
    return Plan.of(cells)


def run(cells: Sequence[Cell], store: str = "outputs", **settings: Any) -> Finished:
    """Make what the store lacks of the cells; `settings` as in harness.config.cell.Settings (`retry=True`, ...)."""
    own = Settings(method=None, corpus=None, store=store, **settings)
    return run_grid(Composed(tuple(cells), own))


def results(name: str, store: str = "outputs") -> "pd.DataFrame":
    """One row per cell x evaluation x metric x source of a grid, with identity, cost and status."""
    return read(name, store).results


def read(name: str, store: str = "outputs") -> "Outcome":
    """A grid of a store, or a folder that `Outcome.export` wrote: summary, verdict, crossovers, claims.

    `read("data_scaling").summary`, `.results`, `.verdict`, `.findings`, `.export(folder)`.
    """
    from harness.outcome import RECORDS, Outcome

    if (Path(name) / RECORDS).is_file() and not (Path(name) / "plan.json").is_file():
        return Outcome.read(Path(name))
    opened = Store(Path(store).absolute())
    return Outcome.of(opened, frozen_plan(opened, name))


def report(*grids: str, store: str = "outputs", out: str | Path | None = None) -> list[Path]:
    """Write the report of grids: a page, Markdown, tables, figures (`harness.report.report`, which says more)."""
    from harness.report import report as write

    return write(*grids, store=store, out=out)


def gains(name: str, by: str | Sequence[str] = "exposure", store: str = "outputs") -> "pd.DataFrame":
    """One row per arm of a grid x class of held-out item: score, SFT's on the same items, gain with interval.

    `by`: `exposure`, `source` or others of `harness.breakdown.BY`; several are crossed.
    """
    from harness.breakdown import breakdown

    found, exposures = _records_and_exposures(name, store)
    return breakdown(found, [by] if isinstance(by, str) else by, exposures)


def curves(name: str, store: str = "outputs") -> "pd.DataFrame":
    """One row per logged training step of every finished student of a grid (`harness.curves`)."""
    from harness.curves import curves as curves_of

    opened = Store(Path(store).absolute())
    return curves_of(opened, frozen_plan(opened, name))


def items(name: str, store: str = "outputs") -> "pd.DataFrame":
    """One row per finished cell of a grid x evaluation x held-out item, with the item's exposure."""
    from harness.breakdown import items as items_of

    return items_of(*_records_and_exposures(name, store))


def run_grid(composed: Composed, stream: TextIO | None = None) -> Finished:
    """Plan, check, execute and collect; the way of every door.

    What can be refused is refused before anything is computed. Ctrl-C leaves what is finished in the
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
        execute(planned, store, replace(settings, grid=frozen["grid"]), view)
    return Finished.collect(store, frozen)


def submit_grid(composed: Composed, tell: Callable[[str], None] = print) -> Finished | None:
    """Plan, check and send what the store lacks to the cluster of `composed.settings.slurm`.

    `tell` hears what the plan costs and what was sent. Returns at once, or with `wait` when all jobs have ended.
    """
    from harness.launch.slurm import submit, wait

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
    send(planned, frozen["grid"])
    if not settings.wait:
        tell(f"python -m harness.grid status {frozen['grid']}")
        return None
    wait(store, list(planned.targets), tell)
    return Finished.collect(store, frozen)


def _settled(
    composed: Composed, planned: Plan, store: Store, make: Callable[[Plan, str], Mapping[str, StageState]]
) -> tuple[Plan, dict[str, Any]]:
    """The plan, with every arm at the settings that trials chose where it is to be tuned, and as it is kept.

    `make` makes the trials' plan under a grid's name, and returns how its stages ended.
    """
    settings, chosen, trials = composed.settings, {}, None
    if settings.tune:
        tuned, trials = tune_grid(composed.cells, Tune.of(settings.tune), wanted_name(settings, planned), store, make)
        plans = [plan_cell(one.cell) for one in tuned]
        planned = Plan.union(plans)
        chosen = {plan.fingerprint: one for plan, one in zip(plans, tuned, strict=True)}
    frozen = {**freeze(planned, _name(settings, planned, store), chosen), "track": settings.track}
    declare(store, frozen, settings.claims)
    folder = keep_plan(store, frozen)
    if trials is not None:
        write_json(folder / "tuning.json", trials)
    return planned, frozen


def _records_and_exposures(name: str, store: str) -> "tuple[list[dict[str, Any]], Exposures]":
    from harness.exposure import Exposures

    opened = Store(Path(store).absolute())
    frozen = frozen_plan(opened, name)
    return records(opened, frozen), Exposures(opened, frozen)


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
