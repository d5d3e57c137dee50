"""A follower: a process of a job that does what the first one says (`leader.py`), and ends when that is gone."""

import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from harness.attempt import note_death
from harness.members import Member, together
from harness.rendezvous import GRACE_SECONDS, Problem, call, exit_now, word
from harness.runtime import preemption
from harness.store.store import Claim, Store

Follow = Callable[[str], Problem | None]
"""Make the stage of a key beside the leader; returns what went wrong."""


class Follower:
    """Any process of a job but the first."""

    def __init__(self, member: Member, secret: str, store: Store) -> None:
        """Find the leader; raises TimeoutError where it does not answer."""
        self.member, self.store = member, store
        self._line = call(member, word(member, secret))
        self._messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._making = self._told_to_leave = False
        self._under_way: tuple[str, str] | None = None

    def serve(self, follow: Follow) -> int:
        """Do what the leader says until it ends; returns the job's exit code. Signals are the leader's to answer."""
        threading.Thread(target=self._hear, daemon=True).start()
        with preemption.stoppable_between(), preemption.polling():
            message = self._messages.get()
            while message is not None and "end" not in message:
                if message.get("port") is not None:
                    self._make(message, follow)
                message = self._messages.get()
            return 1 if message is None else message["end"]

    def _make(self, message: Mapping[str, Any], follow: Follow) -> None:
        """Make a stage with the leader, and stay in its process group until all are through."""
        self._making = True  # before the look: what comes later is answered by `_hurry`
        try:
            if self._told_to_leave:  # before it began: the leader waits for every answer
                self._leave(message, None)
                return
            with together(self.member, message["port"]):
                problem = follow(message["stage"])
                self._leave(message, None if self._told_to_leave else problem)
                while problem is None and not self._told_to_leave:  # else closing frees whoever waits for this one
                    time.sleep(0.01)
        finally:
            self._making = False

    def _leave(self, message: Mapping[str, Any], problem: Problem | None) -> None:
        self._line.send({"left": problem, "claim": message["claim"]})

    def _hear(self) -> None:
        """Note what the leader says until it is gone."""
        while (message := self._line.receive()) is not None:
            if "stage" in message:
                self._under_way, self._told_to_leave = (message["stage"], message["claim"]), False
            else:
                self._under_way, self._told_to_leave = None, True
                self._hurry(message.get("end", 1))
            self._messages.put(message)
            if "end" in message:
                return
        if self._under_way is not None and self.member.rank == 1:  # at once: Slurm may end the job at any moment
            key, nonce = self._under_way
            note_death(self.store, key, f"process 0 of {self.member.count} is gone: it was killed, or its node failed")
            Claim(self.store.root / "claims" / key, nonce).release()
        self._told_to_leave = True
        self._hurry(1)
        self._messages.put(None)

    def _hurry(self, code: int) -> None:
        """End this process if it does not come out of its stage by itself."""
        deadline = time.monotonic() + GRACE_SECONDS
        while self._making:
            if time.monotonic() > deadline:
                exit_now("the stage is over in the first process", code)
            time.sleep(0.05)
