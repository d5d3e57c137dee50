"""The status screen: a grid's cells by state, what is running and how far, and every failure by its one line.

for line in screen(store, frozen, StatusSnapshot.at(store, frozen)): print(line)
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from harness.execution.slurm.job_accounting import states_of
from harness.plan.frozen import FrozenCell, FrozenPlan, targets_of
from harness.store.status import StageState, cell_state, stage_state
from harness.store.store import Store
from harness.teachers.discovery import read_address

ORDER = ("running", "pending", "interrupted", "missing", "failed")
LISTED = 12
"""Cells, running stages and kinds of failure in full; more are counted."""


@dataclass(frozen=True)
class StatusSnapshot:
    """A grid as it was at one moment: states of its stages by key, and of its cells in their order."""

    stages: Mapping[str, StageState]
    cells: list[tuple[FrozenCell, StageState]]

    @classmethod
    def at(cls, store: Store, frozen: FrozenPlan, ask_slurm: bool = True) -> "StatusSnapshot":
        """Ask the store, and Slurm once where the store is silent; changes nothing.

        Raises SettingsError where Slurm does not answer.
        """
        keys = frozen.stages
        stages = states_of(store, keys) if ask_slurm else {key: stage_state(store, key) for key in keys}
        cells = []
        for cell in frozen.cells:
            addresses = frozen.addresses(cell.needs)
            cells.append((cell, cell_state(lambda key: stages[key], addresses, targets_of(cell))))
        return cls(stages, cells)

    @property
    def counts(self) -> Counter[str]:
        """Cells by state."""
        return Counter(state.status for _, state in self.cells)

    @property
    def moving(self) -> bool:
        """Whether anything runs or waits in a queue."""
        return any(state.status in ("running", "pending") for state in self.stages.values())


def headline(grid: str, snapshot: StatusSnapshot) -> str:
    """How many cells are in which state, in a line."""
    rest = "".join(f", {snapshot.counts[status]} {status}" for status in ORDER if snapshot.counts[status])
    return f"{grid}: {snapshot.counts['done']} of {len(snapshot.cells)} cells done{rest}"


def screen(store: Store, frozen: FrozenPlan, snapshot: StatusSnapshot, every_cell: bool = False) -> Iterator[str]:
    """The lines of the screen; cells one by one where few are left, or `every_cell`."""
    yield headline(frozen.grid, snapshot)
    running = [key for key, state in snapshot.stages.items() if state.status == "running"]
    for key in running[:LISTED]:
        yield f"  running     {frozen.stages[key]['address']}  {_progress(store, key, snapshot.stages[key])}"
    if len(running) > LISTED:
        yield f"  running     ... and {len(running) - LISTED} more stages"
    yield from _servers(store, frozen)
    yield from _failures(snapshot)
    # failed cells are listed above, by reason
    left = [(cell, state) for cell, state in snapshot.cells if state.status not in ("done", "failed")]
    for cell, state in snapshot.cells if every_cell else left if len(left) <= LISTED else []:
        yield f"  {state.status:<12}{cell_line(cell)}" + (f"  {state.reason}" if state.reason else "")


def cell_line(cell: FrozenCell) -> str:
    """A cell's fingerprint, as `explain` and `logs` take it, and what tells it from the others."""
    teacher = f" teacher={cell.teacher}" if cell.teacher else ""
    # by its last training stage; a cell that trains nothing has only evaluations
    fingerprint = (list(cell.train) or targets_of(cell))[-1].rsplit("-", 1)[-1][:8]
    return f"{fingerprint}  {cell.method} {cell.data_frac:g} {cell.student}{teacher} seed={cell.seed}"


def _failures(snapshot: StatusSnapshot) -> Iterator[str]:
    """Failed cells, those of one class and reason together, the most frequent first, each with one cell."""
    found: dict[tuple[str | None, str | None], list[tuple[FrozenCell, StageState]]] = {}
    for cell, state in snapshot.cells:
        if state.status == "failed":
            # the stage's own reason: that of the cell begins with an address, so no two cells would share one
            reason = snapshot.stages[state.stage].reason if state.stage else state.reason
            found.setdefault((state.failure_class, reason), []).append((cell, state))
    ordered = sorted(found.values(), key=lambda alike: -len(alike))
    for alike in ordered[:LISTED]:
        cell, state = alike[0]
        more = f" and {len(alike) - 1} more" if len(alike) > 1 else ""
        yield f"  failed      {cell_line(cell)}{more}  {state.failure_class}: {state.reason}"
    if len(ordered) > LISTED:
        yield f"  failed      ... and {len(ordered) - LISTED} other reasons"


def _servers(store: Store, frozen: FrozenPlan) -> Iterator[str]:
    """The jobs that serve the grid's teachers, and where they listen."""
    # an address file names its model and not the grids that use it, so the grid's models choose among the files
    served = {spec["settings"].get("served_model") for spec in frozen.stages.values() if spec["kind"] == "base"}
    for path in sorted((store.root / "servers").glob("*.json")):
        page = read_address(path)
        if page is not None and page["model"] in served:
            yield f"  server      {page['model']}  {page.get('failed') or page['url'] or 'starts'}, job {page['job']}"


def _progress(store: Store, key: str, state: StageState) -> str:
    """How far the last attempt at a running stage is, when it should end, and where it runs."""
    page = (store.attempts(key) or [{}])[-1]
    said = []
    if page.get("step") and page.get("total"):
        spent = page.get("seconds", page["heartbeat"] - page["started"])
        # the stage has gone on since its last heartbeat, up to which the step was counted
        left = spent / page["step"] * (page["total"] - page["step"]) - (time.time() - page["heartbeat"])
        said.append(f"{page['step']}/{page['total']}")
        if page.get("loss") is not None:
            said.append(f"loss {page['loss']:.3f}")
        said.append(f"about {max(left, 0) / 60:.0f} min left")
    where = " ".join(filter(None, (page.get("host"), page.get("job") and f"job {page['job']}")))
    return ", ".join(filter(None, [*said, where or state.reason]))
