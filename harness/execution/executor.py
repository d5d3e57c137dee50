"""Execution: make the stages of a plan that the store does not have, those on the longest remaining path first.

Corpora are read first, so bad rows are refused before anything is trained. A failed stage blocks the stages that need
it and no others. A stage whose lease another run holds is waited for, not repeated.

    states = execute(plan, store, settings, View())
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Protocol

from harness.config.cell import Settings
from harness.config.checks import SettingsError
from harness.config.machine import Machine
from harness.execution.attempt import AttemptResult
from harness.execution.launchers.inline import Inline
from harness.execution.launchers.local import WorkerPool
from harness.execution.wandb_run import tracking
from harness.plan.estimate import stage_seconds
from harness.plan.graph import MAKERS, Again, Stage, Work
from harness.runtime.progress import Progress
from harness.store.integrity import set_aside_damaged, verifying
from harness.store.status import RECHECKED_CLASSES, StageState, stage_state
from harness.store.storage_error import StorageError
from harness.store.store import Store

BUSY_RETRY_SECONDS = 2.0
READING_KIND = "mixture"
REPAIRS = 2
"""How often one stage's inputs are made again in a run: a disk that damages them once more cannot be used."""
BUSY = StageState("waiting", reason="another run is making it")


class View(Protocol):
    """What shows a run to the user: it receives every change of a stage's state and the progress of stages."""

    def expect(self, seconds: Mapping[str, float]) -> None:
        """How long each stage to be made is expected to take."""

    def changed(self, stage: Stage, state: StageState) -> None:
        """A stage is in a new state."""

    def progressed(self, stage: Stage, progress: Progress) -> None:
        """A running stage reports its progress."""

    def warn(self, text: str) -> None:
        """Something that the user must know, and that ends no stage."""

    def tick(self) -> None:
        """Time has passed; a live view may redraw."""


class Execution:
    """A plan being executed: the states of its stages, and which of them can start."""

    def __init__(self, plan: Work, store: Store, view: View, states: dict[str, StageState]) -> None:
        self.store, self.view, self.states = store, view, states
        self.stages = {stage.key: stage for stage in plan.stages}
        self.targets = set(plan.targets)
        self.retry_at: dict[str, float] = {}
        self.repairs: Counter[str] = Counter()
        self.waiting = {key for key, state in states.items() if state.status == "waiting"}
        self._connect()
        self.unread = {key for key in self.waiting if self.stages[key].kind == READING_KIND}
        # the view must know all states before the first block changes one
        for key, state in list(states.items()):
            view.changed(self.stages[key], state)
        for key, state in list(states.items()):
            if state.status == "failed":
                self.block(key)

    def ready(self) -> list[str]:
        """Keys of the stages that can start now; until every corpus is read, only stages that read one."""
        now = time.monotonic()
        # bad rows are refused before anything is trained: nothing else starts while a corpus is unread
        free = self.free & self.unread if self.unread else self.free
        return [key for key in free if self.retry_at.get(key, 0) <= now]

    def start(self, key: str) -> bool:
        """Mark a stage as running; False where another run is making it, which is checked again later."""
        if self.store.claimed(key):
            self.retry_at[key] = time.monotonic() + BUSY_RETRY_SECONDS
            if self.states[key] != BUSY:
                self.set(key, BUSY)
            return False
        self.free.discard(key)
        self.set(key, StageState("running"))
        return True

    def finish(self, outcome: AttemptResult) -> None:
        """Record how an attempt ended, and free or block the stages that need it.

        Raises SettingsError where a corpus is refused: the run stops, since it has computed nothing yet.
        """
        key, stage = outcome.key, self.stages[outcome.key]
        # another run took the lease between `start` and the attempt
        if outcome.status == "busy":
            self.free.add(key)
            self.states[key] = BUSY
            self.retry_at[key] = time.monotonic() + BUSY_RETRY_SECONDS
            return
        if outcome.failure_class == "input" and self.repairs[key] < REPAIRS:
            self.repairs[key] += 1
            self.repair(key, outcome.reason or "")
            return
        self.waiting.discard(key)
        self.unread.discard(key)
        if outcome.status == "done":
            self.set(key, StageState("done"))
            for user in self.users[key]:
                self.unmade[user] -= 1
                if not self.unmade[user] and user in self.waiting:
                    self.free.add(user)
            return
        if stage.kind == READING_KIND and outcome.failure_class == "settings":
            raise SettingsError(outcome.reason)
        self.set(key, StageState("failed", outcome.failure_class, outcome.reason))
        self.block(key)

    def repair(self, key: str, reason: str) -> None:
        """Make the inputs of `key` again that are not in the store any more, then `key`."""
        self.view.warn(reason)

        def visit(user: str) -> None:
            for upstream in (stage.key for stage in self.stages[user].inputs.values()):
                if upstream not in self.waiting and not self.store.done(upstream):
                    self.waiting.add(upstream)
                    self.set(upstream, StageState("waiting", reason="it was damaged or removed, and is made again"))
                    visit(upstream)

        visit(key)
        self.set(key, StageState("waiting", reason="its inputs are made again"))
        self._connect()

    def block(self, key: str) -> None:
        """Block the stages that need the failed stage `key`, and those that no cell needs any more because of it."""
        failed = self.states[key]
        reason = f"needs {self.stages[key].address}, which failed: {failed.reason}"
        # users of users too: a blocked stage never ends, so nothing would block them later
        for user in _reached([*self.users[key]], self.users.__getitem__):
            self._give_up(user, StageState("blocked", failed.failure_class, reason))

        # a stage that waits is of use only if a waiting target still needs it
        def inputs_that_wait(stage_key: str) -> list[str]:
            upstream = (stage.key for stage in self.stages[stage_key].inputs.values())
            return [one for one in upstream if one in self.waiting]

        useful = _reached([*self.targets & self.waiting], inputs_that_wait)
        for other in self.waiting.difference(useful):
            if self.states[other].status == "waiting":
                self._give_up(
                    other, StageState("blocked", failed.failure_class, f"no cell needs it any more: {reason}")
                )

    def set(self, key: str, state: StageState) -> None:
        """Record a state and pass it to the view."""
        self.states[key] = state
        self.view.changed(self.stages[key], state)

    def _connect(self) -> None:
        """Which stages wait for which: `users` of each stage, how many inputs are `unmade`, and which are `free`."""
        self.users: dict[str, list[str]] = {key: [] for key in self.states}
        self.unmade: dict[str, int] = {}
        for key in self.states:
            inputs = {stage.key for stage in self.stages[key].inputs.values() if stage.key in self.states}
            # a failed input counts as unmade for good: its users are blocked and never become free
            inputs = {upstream for upstream in inputs if self.states[upstream].status != "done"}
            self.unmade[key] = len(inputs)
            for upstream in inputs:
                self.users[upstream].append(key)
        idle = (key for key in self.waiting if self.states[key].status == "waiting")
        self.free: set[str] = {key for key in idle if not self.unmade[key]}

    def _give_up(self, key: str, state: StageState) -> None:
        if key in self.waiting and self.states[key].status == "waiting":
            self.waiting.discard(key)
            self.free.discard(key)
            self.unread.discard(key)
            self.set(key, state)


def execute(
    plan: Work, store: Store, settings: Settings, view: View, again: Again = MappingProxyType({})
) -> dict[str, StageState]:
    """Make the stages that are missing; returns the state of every stage that was needed, by key.

    `again`: by key, fields that replace those of a stage's spec. Raises SettingsError where a corpus is refused,
    StorageError where the store is full, read-only or gone: no further stage is started, and those that run end first.
    KeyboardInterrupt stops the workers and passes on; published stages stay, and the same command continues.
    """
    for line in set_aside_damaged(store, [stage.key for stage in plan.stages], settings.verify).values():
        view.warn(line)
    run = Execution(plan, store, view, _needed(plan, store, settings.retry))
    for line in _lost(plan, store, run.states):
        view.warn(line)
    if not run.waiting:
        return run.states
    view.expect({key: stage_seconds(run.stages[key]) for key in run.waiting})
    remaining = _remaining_seconds(plan)
    launcher = _launcher(store, settings, lambda key, progress: view.progressed(run.stages[key], progress))
    busy: set[str] = set()
    tracked = tracking(settings.track, settings.grid) | verifying(settings.verify)
    fault: AttemptResult | None = None
    try:
        while run.waiting:
            if fault is not None and not busy:
                raise StorageError(str(fault.reason))
            # the longest remaining path first, so that the whole run ends soonest
            for key in sorted(run.ready(), key=lambda key: -remaining[key]):
                if len(busy) >= launcher.slots or fault is not None:
                    break
                if run.start(key):
                    busy.add(key)
                    stage = run.stages[key]
                    launcher.submit({**stage.spec(), **tracked, **again.get(key, {})}, MAKERS[stage.kind][0])
            if not busy:  # every stage that could start is being made by another run
                time.sleep(0.2)
            for outcome in launcher.events(timeout=0.25):
                busy.discard(outcome.key)
                run.finish(outcome)
                fault = outcome if outcome.ends_run else fault
            view.tick()
        if fault is not None:
            raise StorageError(str(fault.reason))
        return run.states
    finally:
        launcher.close()


def _launcher(store: Store, settings: Settings, listener: Callable[[str, Progress], None]) -> "Inline | WorkerPool":
    machine: Machine = settings.machine
    if settings.launch.kind == "inline":
        return Inline(store, machine, listener)
    return WorkerPool(store, machine, settings.launch.workers, listener)


def _needed(plan: Work, store: Store, retry: bool) -> dict[str, StageState]:
    """States of the stages that some unfinished cell needs, and of every cell's own evaluations."""
    states: dict[str, StageState] = {}

    def visit(stage: Stage) -> None:
        if stage.key in states:
            return
        state = stage_state(store, stage.key)
        # its inputs are not visited: they are made only where another stage needs them
        if state.status == "failed" and state.failure_class not in RECHECKED_CLASSES and not retry:
            states[stage.key] = state
            return
        states[stage.key] = state if state.status == "done" else StageState("waiting")
        if state.status != "done":
            for upstream in stage.inputs.values():
                visit(upstream)

    for target in plan.targets.values():
        visit(target)
    if retry:
        for key in _set_aside(plan, store):
            visit(next(stage for stage in plan.stages if stage.key == key))
    # in the plan's order, inputs first, which is that of the view
    return {stage.key: states[stage.key] for stage in plan.stages if stage.key in states}


def _set_aside(plan: Work, store: Store) -> dict[str, str]:
    """Stages of the plan whose artifact was set aside and is not made again, each with the reason."""
    keys = {stage.key for stage in plan.stages}
    notes = {note["key"]: note["reason"] for note in store.quarantine() if note.get("key") in keys}
    return {key: reason for key, reason in notes.items() if not store.done(key)}


def _lost(plan: Work, store: Store, states: Mapping[str, StageState]) -> Iterator[str]:
    """A line for each artifact that was set aside and that nothing left to make needs."""
    addresses = {stage.key: stage.address for stage in plan.stages}
    for key, reason in _set_aside(plan, store).items():
        if key not in states:
            yield (
                f"{addresses[key]} is in quarantine/ ({reason}); scores made from it stay, and retry=true makes it "
                "again."
            )


def _remaining_seconds(plan: Work) -> Mapping[str, float]:
    """Estimated seconds from the start of a stage to the end of the last stage that needs it."""
    remaining: dict[str, float] = {}
    users: dict[str, list[str]] = {stage.key: [] for stage in plan.stages}
    for stage in plan.stages:
        for upstream in stage.inputs.values():
            users[upstream.key].append(stage.key)
    # users stand after their inputs in a plan, so from the end each stage finds what its users still take
    for stage in reversed(plan.stages):
        after = max((remaining[user] for user in users[stage.key]), default=0.0)
        remaining[stage.key] = stage_seconds(stage) + after
    return remaining


def _reached(starts: list[str], following: Callable[[str], Iterable[str]]) -> list[str]:
    """The starts, and all that is reached from them step by step, each once and in the order it was reached."""
    # `starts` is used up, so callers pass a list of their own
    found: dict[str, None] = {}
    while starts:
        key = starts.pop()
        if key not in found:
            found[key] = None
            starts += following(key)
    return list(found)
