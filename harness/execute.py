"""Execute: make the stages of a plan that the store does not have, in the order that finishes soonest.

Data is read first, so bad rows are refused before anything is trained. A failed stage blocks what needs
it and nothing else. Stages that another live run has claimed are waited for, not repeated.

    states = execute(plan, store, settings, View())
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from harness.attempt import Outcome
from harness.config import Machine, Settings, SettingsError
from harness.estimate import stage_seconds
from harness.launch.inline import Inline
from harness.launch.local import Pool
from harness.plan import Plan
from harness.stage import MAKERS, Stage
from harness.status import StageState, stage_state
from harness.store import Store
from harness.track import Progress

BUSY_RETRY_SECONDS = 2.0
READING = "mixture"


class View(Protocol):
    """Whoever watches a run: told of every change of a stage's state and of progress."""

    def changed(self, stage: Stage, state: StageState) -> None:
        """A stage is in a new state."""

    def progressed(self, stage: Stage, progress: Progress) -> None:
        """A running stage says how far it is."""

    def tick(self) -> None:
        """Time has passed; a live view may redraw."""


@dataclass
class Run:
    """One execution under way: the states of its stages and what is still to be made."""

    plan: Plan
    store: Store
    view: View
    states: dict[str, StageState]

    def __post_init__(self) -> None:
        self.stages = {stage.key: stage for stage in self.plan.stages}
        self.retry_at: dict[str, float] = {}

    def set(self, key: str, state: StageState) -> None:
        """Record a state and tell the view."""
        self.states[key] = state
        self.view.changed(self.stages[key], state)

    def ready(self) -> list[str]:
        """Waiting stages whose inputs are all done; while data is unread, only stages that read data."""
        now = time.monotonic()
        waiting = [key for key, state in self.states.items() if state.status == "waiting"]
        unread = [
            key
            for key in self.states
            if self.stages[key].kind == READING and self.states[key].status in ("waiting", "running")
        ]
        return [
            key
            for key in waiting
            if self.retry_at.get(key, 0) <= now
            and (not unread or self.stages[key].kind == READING)
            and all(
                self.states[i.key].status == "done" for i in self.stages[key].inputs.values() if i.key in self.states
            )
        ]

    def block(self, key: str) -> None:
        """Mark everything that needs the failed stage `key`."""
        for other, stage in self.stages.items():
            if (
                self.states.get(other)
                and self.states[other].status == "waiting"
                and any(ancestor.key == key for ancestor in stage.ancestry())
            ):
                failed = self.states[key]
                self.set(
                    other,
                    StageState(
                        "blocked",
                        failed.failure_class,
                        f"needs {self.stages[key].address}, which failed: {failed.reason}",
                    ),
                )

    def finish(self, outcome: Outcome) -> None:
        """Take in how an attempt ended; bad data stops the run, since nothing was computed yet."""
        stage = self.stages[outcome.key]
        if outcome.status == "busy":
            self.retry_at[outcome.key] = time.monotonic() + BUSY_RETRY_SECONDS
            self.set(outcome.key, StageState("waiting", reason="another run is making it"))
        elif outcome.status == "done":
            self.set(outcome.key, StageState("done"))
        else:
            if stage.kind == READING and outcome.failure_class == "settings":
                raise SettingsError(outcome.reason)
            self.set(outcome.key, StageState("failed", outcome.failure_class, outcome.reason))
            self.block(outcome.key)


def execute(plan: Plan, store: Store, settings: Settings, view: View) -> dict[str, StageState]:
    """Make what is missing; returns the state of every stage that was needed, by key.

    KeyboardInterrupt stops the workers and passes on; what is published stays, and the same command
    goes on from there.
    """
    run = Run(plan, store, view, _needed(plan, store, settings.retry))
    for key, state in list(run.states.items()):
        view.changed(run.stages[key], state)
        if state.status == "failed":
            run.block(key)
    if all(state.status != "waiting" for state in run.states.values()):
        return run.states
    remaining = _remaining_seconds(plan)
    launcher = _launcher(store, settings, lambda key, progress: view.progressed(run.stages[key], progress))
    busy: set[str] = set()
    try:
        while True:
            for key in sorted(run.ready(), key=lambda key: -remaining[key])[: max(0, launcher.slots - len(busy))]:
                busy.add(key)
                run.set(key, StageState("running"))
                launcher.submit(run.stages[key].spec(), MAKERS[run.stages[key].kind][0])
            if not busy and all(state.status != "waiting" for state in run.states.values()):
                return run.states
            if not busy:
                time.sleep(0.2)
            for outcome in launcher.events(timeout=0.25):
                busy.discard(outcome.key)
                run.finish(outcome)
            view.tick()
    finally:
        launcher.close()


def _launcher(store: Store, settings: Settings, listener: Callable[[str, Progress], None]) -> "Inline | Pool":
    machine: Machine = settings.machine
    if settings.launch.kind == "inline":
        return Inline(store, machine, listener)
    return Pool(store, machine, settings.launch.workers, listener)


def _needed(plan: Plan, store: Store, retry: bool) -> dict[str, StageState]:
    """States of the stages that some unfinished cell needs, and of every cell's own evaluations."""
    states: dict[str, StageState] = {}

    def visit(stage: Stage) -> None:
        if stage.key in states:
            return
        state = stage_state(store, stage.key)
        if state.status == "failed" and not retry:
            states[stage.key] = state
            return
        states[stage.key] = state if state.status == "done" else StageState("waiting")
        if state.status != "done":
            for upstream in stage.inputs.values():
                visit(upstream)

    for cell in plan.cells:
        for target in (cell.evaluate, *cell.references.values()):
            visit(target)
    return {stage.key: states[stage.key] for stage in plan.stages if stage.key in states}


def _remaining_seconds(plan: Plan) -> Mapping[str, float]:
    """Estimated seconds from the start of a stage to the end of the last stage that needs it."""
    remaining: dict[str, float] = {}
    users: dict[str, list[str]] = {stage.key: [] for stage in plan.stages}
    for stage in plan.stages:
        for upstream in stage.inputs.values():
            users[upstream.key].append(stage.key)
    for stage in reversed(plan.stages):
        after = max((remaining[user] for user in users[stage.key]), default=0.0)
        remaining[stage.key] = stage_seconds(stage) + after
    return remaining


def outcome_counts(states: Mapping[str, StageState]) -> dict[str, Any]:
    """How many stages are in each state."""
    counts: dict[str, int] = {}
    for state in states.values():
        counts[state.status] = counts.get(state.status, 0) + 1
    return counts
