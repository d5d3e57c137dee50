"""Status: what the store says about a stage or a cell. Reads only; looking never changes anything.

Truth in order: a published artifact, then a live claim, then how the last attempt ended.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.store.store import Store

STUCK_AFTER = 2
MENDABLE = ("settings", "server")
"""Classes of failures that may be mended by now, the row, the folder or the server: looking again costs nothing."""


@dataclass(frozen=True)
class StageState:
    """`done`, `running`, `pending` (queued), `waiting`, `failed`, `interrupted`, `missing` or `blocked`, and why."""

    status: str
    failure_class: str | None = None
    reason: str | None = None
    stage: str | None = None
    """Of a cell: the key of the stage that decides it."""


def stuck(attempts: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the last attempts were all stopped or killed and `STUCK_AFTER` restarts got no further than the first."""
    last = attempts[-1 - STUCK_AFTER :]
    if len(last) <= STUCK_AFTER or any(page.get("failure_class") not in ("preempted", "killed") for page in last):
        return False
    first, *later = (page.get("step") or 0 for page in last)
    return max(later) <= first


def stage_state(store: Store, key: str) -> StageState:
    """The state of one stage, from the store alone."""
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
    reason = last.get("reason") or "the attempt ended without a word"
    if last.get("failure_class") == "preempted":
        return StageState("interrupted", "preempted", f"{reason}; the next run goes on with it")
    return StageState("interrupted", "killed", f"{reason}; the next run starts it again")


def cell_state(
    state_of: Callable[[str], StageState], addresses: Mapping[str, str], targets: Iterable[str]
) -> StageState:
    """The state of a cell: done when all its `targets` (keys) are, or what its stages (key -> address) say why not."""
    if all(state_of(key).status == "done" for key in targets):
        return StageState("done")
    found = {key: state_of(key) for key in addresses}
    for wanted in ("failed", "running", "interrupted", "pending"):
        for key, state in found.items():
            if state.status == wanted:
                reason = f"{addresses[key]}: {state.reason}" if state.reason else f"{addresses[key]} is {wanted}"
                return StageState(wanted, state.failure_class, reason, key)
    left = sum(state.status != "done" for state in found.values())
    return StageState("missing", reason=f"{left} of {len(found)} stages not made yet")
