"""The inline launcher: attempts run in this process, one at a time; for tests, notebooks and debugging."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from harness.config.machine import Machine
from harness.execution.attempt import AttemptResult, attempt
from harness.runtime.progress import Progress
from harness.store.store import Store


class Inline:
    """Runs the submitted stages when `events` is called."""

    # one at a time: after each stage the executor chooses the next by the longest remaining path
    slots = 1

    def __init__(self, store: Store, machine: Machine, listener: Callable[[str, Progress], None]) -> None:
        self.store, self.machine, self.listener = store, machine, listener
        self.waiting: deque[tuple[Mapping[str, Any], str]] = deque()

    def submit(self, spec: Mapping[str, Any], maker: str) -> None:
        """Queue one stage."""
        self.waiting.append((spec, maker))

    def events(self, timeout: float) -> Iterator[AttemptResult]:
        """Run the queued stages and yield the result of each attempt; `timeout` has no effect.

        Raises Preempted as `attempt` does.
        """
        while self.waiting:
            spec, maker = self.waiting.popleft()
            yield attempt(self.store, spec, maker, self.machine, partial(self.listener, spec["key"]))

    def close(self) -> None:
        """Nothing to stop."""
