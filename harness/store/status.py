"""Status: the state of a stage or a cell, read from the store; nothing here writes.

Three sources, the first that applies decides: a published artifact, a live lease, the end of the last attempt.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.store.store import Store

STUCK_AFTER = 2
RECHECKED_CLASSES = ("settings", "server", "storage", "input")
"""Failure classes whose cause (a row, a server, a disk, an input) may have been repaired since, and whose check is
cheap: their stages are tried again by the next run, without `retry`."""


@dataclass(frozen=True)
class StageState:
    """`done`, `running`, `pending` (queued), `waiting`, `failed`, `interrupted`, `missing` or `blocked`, and why."""

    status: str
    failure_class: str | None = None
    reason: str | None = None
    stage: str | None = None
    """In the state of a cell: the key of the stage that decides it."""


def stuck(attempts: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the last attempts were all stopped or killed, and `STUCK_AFTER` restarts got no further than the first.

    `attempts` are the entries of `Store.attempts`, oldest first.
    """
    # One attempt and its restarts. An attempt that was killed before its first report has no step, which counts as 0.
    # A failed attempt among them is no stop: it has a class of its own, and `retry` decides about it.
    last = attempts[-1 - STUCK_AFTER :]
    stopped = all(entry.get("failure_class") in ("preempted", "killed") for entry in last)
    if len(last) <= STUCK_AFTER or not stopped:
        return False
    first, *later = (entry.get("step") or 0 for entry in last)
    return max(later) <= first


def stage_state(store: Store, key: str) -> StageState:
    """The state of one stage, from the store alone. Raises OSError where the store cannot be read."""
    if store.done(key):
        return StageState("done")
    attempts = store.attempts(key)
    if store.claimed(key):
        return StageState("running")
    if not attempts:
        return StageState("missing")
    last = attempts[-1]
    if last.get("outcome") == "failed":
        return StageState("failed", last["failure_class"], last["reason"])
    reason = last.get("reason") or "the attempt ended and left no reason"
    if last.get("failure_class") == "preempted":
        return StageState("interrupted", "preempted", f"{reason}; the next run continues it")
    return StageState("interrupted", "killed", f"{reason}; the next run starts it again")


def cell_state(
    state_of: Callable[[str], StageState], addresses: Mapping[str, str], targets: Iterable[str]
) -> StageState:
    """The state of a cell: done when all its `targets` (keys) are done, else that of the stage that holds it up.

    `addresses` gives the address of each of its stages by key; the reason names the stage.
    """
    if all(state_of(key).status == "done" for key in targets):
        return StageState("done")
    found = {key: state_of(key) for key in addresses}
    # a failed stage comes first: the cell cannot be finished, though its other stages may still run
    for wanted in ("failed", "running", "interrupted", "pending"):
        for key, state in found.items():
            if state.status == wanted:
                reason = f"{addresses[key]}: {state.reason}" if state.reason else f"{addresses[key]} is {wanted}"
                return StageState(wanted, state.failure_class, reason, key)
    left = sum(state.status != "done" for state in found.values())
    return StageState("missing", reason=f"{left} of {len(found)} stages are not made yet")
