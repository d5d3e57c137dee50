"""The harness from Python: the same cells, plans, runs and tables as the command line, no Hydra in sight.

The functions here are what notebooks and scripts need; `run.py` and `grid.py` are the same from a command line.

    import harness.api as harness
    cells = harness.grid(data_frac=[0.01, 0.1, 1.0], method=["sft", "kd"], seed=[0, 1, 2])
    finished = harness.run(cells, store="outputs")
    harness.results(finished.grid)          # a tidy DataFrame
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.cell import Cell, Settings
from harness.config.checks import refuse
from harness.config.machine import Launch, Machine
from harness.execution.runner import run_grid
from harness.execution.wandb_run import log_grid
from harness.plan.cell_plan import Plan
from harness.plan.compose import Composed, compose
from harness.plan.frozen import FrozenPlan, frozen_plan
from harness.report.terminal import Finished
from harness.results.records import Record, records
from harness.store.storage_error import storage_faults
from harness.store.store import Store

if TYPE_CHECKING:
    import pandas as pd

    from harness.results.exposure import Exposures
    from harness.results.outcome import Outcome


def grid(**settings: Any) -> tuple[Cell, ...]:
    """Cells of the product of `settings`; a list or another iterable sweeps, dots in names are written `__`.

    `grid(method=["sft", "kd"], budget__amount=100, seed=range(3))`; a value that is a list itself stands in a list
    (`evals__names=[["heldout"]]`). Raises SettingsError as the command line would.
    """
    product: dict[str, list[Any]] = {}
    for name, value in settings.items():
        key = name.replace("__", ".")
        if key in product:
            raise refuse(key, value, "it is given twice, with a dot and with __", "give it once")
        values = _plain(value)
        product[key] = values if isinstance(values, list) else [values]
    # planned as on the command line: presets, checks and defaults are the same
    composed = compose([], sweep={"product": product})
    for note in composed.notes:
        warnings.warn(note, stacklevel=2)
    return composed.cells


def _plain(value: Any) -> Any:
    """A value as a configuration holds it: NumPy's numbers as Python's, every iterable as a list, a set in order."""
    if isinstance(value, str | bytes | Mapping) or is_dataclass(value):
        return value
    if isinstance(value, Set):
        value = sorted(value, key=lambda one: (isinstance(one, str), one))
    if callable(getattr(value, "tolist", None)):  # an array, or one number of NumPy
        value = value.tolist()
    return [_plain(one) for one in value] if isinstance(value, Iterable) and not isinstance(value, str) else value


def plan(cells: Iterable[Cell]) -> Plan:
    """The stages of the cells, without repeats; nothing is run. Raises SettingsError for what cannot be planned."""
    return Plan.of(_cells(cells))


RUN_SETTINGS = ("claims", "grid", "launch", "machine", "primary_metric", "retry", "track", "tune", "verify")
"""Of `harness.config.cell.Settings`, what `run` takes: the others are settings of cells, or of a command line."""


def run(cells: Iterable[Cell], store: str = "outputs", **settings: Any) -> Finished:
    """Make what the store lacks of the cells, on this machine; `settings` are those of RUN_SETTINGS, e.g. `retry=True`.

    Raises SettingsError for another setting, and for whatever can be refused before anything is computed;
    StorageError, which is one, where the store is full, read-only or gone: the same call goes on when it is not.
    """
    # `Settings` has more fields than a run of given cells reads; one that would be ignored is refused
    for name in sorted(settings.keys() - set(RUN_SETTINGS)):
        way_out = "give a setting of cells to `grid`; submit to Slurm with `python -m harness.run ... slurm=<cluster>`"
        raise refuse(name, settings[name], f"`run` takes store, {', '.join(RUN_SETTINGS)}", way_out)
    for name, kind in (("launch", Launch), ("machine", Machine)):
        if name in settings and not isinstance(settings[name], kind):
            raise refuse(name, settings[name], f"it is a {kind.__name__}", f"give harness.config.{kind.__name__}(...)")
    if not isinstance(settings.get("retry", False), bool):
        raise refuse("retry", settings["retry"], "it must be True or False")
    own = Settings(method=None, corpus=None, store=store, **settings)
    with storage_faults(Store.at(store).root):
        frozen = run_grid(Composed(_cells(cells), own))
        return collect(Store.open(store), frozen)


def _cells(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """The cells of a grid. Raises SettingsError for what is none, and for no cell at all."""
    found = tuple(cells) if isinstance(cells, Iterable) else (cells,)
    if not found or not all(isinstance(one, Cell) for one in found):
        other = next((one for one in found if not isinstance(one, Cell)), ())
        raise refuse("cells", other, "a grid is made of cells", "give what `grid(...)` returns")
    return found


def collect(store: Store, frozen: FrozenPlan, receipts: bool | None = None) -> Finished:
    """Read what came of a grid by its frozen plan; write table, figures and receipts, and log them if it is tracked.

    `receipts` null: those of a large grid are left out (`terminal.MOST_RECEIPTS`). Raises OSError where the store
    cannot be written. A fault of tracking is a warning of what is returned.
    """
    # tracking comes last: whatever goes wrong with it, table, figures and receipts are in the store
    finished = Finished.collect(store, frozen, receipts)
    if (track := frozen.track or "none") == "none":
        return finished
    return replace(finished, warnings=log_grid(store.root, track, finished.grid, finished.outcome.logged()))


def results(name: str, store: str = "outputs") -> "pd.DataFrame":
    """One row per cell x evaluation x metric x source of a grid, with identity, cost and status.

    Raises SettingsError where the store has no such grid, as every function here that reads one does.
    """
    return read(name, store).results


def read(name: str, store: str = "outputs") -> "Outcome":
    """A grid of a store, or a folder that `Outcome.export` wrote: summary, verdict, crossovers, claims.

    `read("data_scaling").summary`, `.results`, `.verdict`, `.findings`, `.export(folder)`. Raises SettingsError where
    the store has no such grid, or the folder lacks a file.
    """
    # imported here, as in the functions below: planning and running need no tables
    from harness.results.outcome import RECORDS, Outcome

    # a grid's folder in a store has records too, but a plan beside them; an exported folder has no plan
    if (Path(name) / RECORDS).is_file() and not (Path(name) / "plan.json").is_file():
        return Outcome.read(Path(name))
    opened = Store.at(store)
    return Outcome.of(opened, frozen_plan(opened, name))


def report(*grids: str, store: str = "outputs", out: str | Path | None = None) -> list[Path]:
    """Write the report of grids: a page, Markdown, tables and figures (see `harness.report.page.write_report`).

    Raises SettingsError where there is no such grid or folder.
    """
    from harness.report.page import write_report

    return write_report(*grids, store=store, out=out)


def gains(name: str, by: str | Sequence[str] = "exposure", store: str = "outputs") -> "pd.DataFrame":
    """One row per arm of a grid x class of held-out item: score, SFT's on the same items, gain with interval.

    `by`: `exposure`, `source` or others of `harness.results.breakdown.BY`; several are crossed. Raises SettingsError
    where the store has no such grid, for an unknown name in `by`, and where exposure cannot be read.
    """
    from harness.results.arms import Metric
    from harness.results.breakdown import breakdown

    found, exposures = _records_and_exposures(name, store)
    primary = frozen_plan(Store.at(store), name).primary_metric
    named = Metric.named(primary) if primary else None
    return breakdown(found, [by] if isinstance(by, str) else by, exposures, primary=named)


def curves(name: str, store: str = "outputs") -> "pd.DataFrame":
    """One row per logged training step of every finished student of a grid (`harness.results.records.curves`).

    Raises SettingsError where the store has no such grid.
    """
    from harness.results.records import curves as curves_of

    opened = Store.at(store)
    return curves_of(opened, frozen_plan(opened, name))


def items(name: str, store: str = "outputs") -> "pd.DataFrame":
    """One row per finished cell of a grid x evaluation x held-out item, with the item's exposure.

    Raises SettingsError where the store has no such grid, or exposure cannot be read.
    """
    from harness.results.breakdown import items as items_of

    return items_of(*_records_and_exposures(name, store))


def _records_and_exposures(name: str, store: str) -> "tuple[list[Record], Exposures]":
    from harness.results.exposure import Exposures

    opened = Store.at(store)
    frozen = frozen_plan(opened, name)
    return records(opened, frozen), Exposures(opened, frozen)
