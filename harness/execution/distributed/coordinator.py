"""Coordination of a job's processes: rank 0 says what all of them do, the other ranks do it.

Rank 0 alone looks at the store, claims, writes attempts down and publishes. The other ranks wait while it makes a stage
by itself, and make with it what takes all of them (`graph.TOGETHER`). A rank that is gone ends the job for all: no
process waits in a collective operation for one that will not come.

    leader      {"stage": key, "claim": nonce, "port": 23117}   make it with me (port null: I make it alone)
                {"leave": true}      the stage is over for me        {"end": 1}    exit code of every process
    follower    {"hello": word, "rank": 2, "host": "n2"}     {"left": [failure class, reason] or null, "claim": nonce}
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from harness.execution.attempt import failure_class, one_line, record_death
from harness.execution.distributed.process_group import (
    GRACE_SECONDS,
    JOIN_SECONDS,
    Line,
    Member,
    Problem,
    call,
    exit_now,
    listen,
    together,
    word,
)
from harness.runtime import preemption
from harness.runtime.processes import ProcessError, free_port
from harness.store.store import Lease, Store


class Leader:
    """The first process of a job with several."""

    def __init__(self, member: Member, secret: str, store: Store) -> None:
        """`secret` is a text that only processes of this job have read."""
        self.member, self.store, self.lost = member, store, ""
        """`lost` says which process is gone; from then on no stage begins."""
        self._word = word(member, secret)
        self._server = listen(self._word)
        self._lines: dict[int, Line] = {}
        self._hosts: dict[int, str] = {}
        self._left: dict[int, Problem | None] = {}
        self._under_way: tuple[str, Lease] | None = None
        self._ended = False
        self._changed = threading.Condition()
        threading.Thread(target=self._accept, daemon=True).start()

    @contextmanager
    def stage(self, key: str, claim: Lease, all_make: bool) -> Iterator[None]:
        """While the block makes the claimed stage, the others make it too (`all_make`) or wait.

        Raises ProcessError where the stage failed in another process, or one is gone, in place of the error that
        this causes here. A block that does not end although one is gone is ended with the process.
        """
        if not self._wait(self._all_joined, JOIN_SECONDS) and not self.lost:
            missing = next(rank for rank in range(1, self.member.count) if rank not in self._lines)
            self.lost = f"{self._name(missing)} did not start within {JOIN_SECONDS:g} s"
        if self.lost:
            raise ProcessError(self.lost, "killed")
        self._left, self._under_way = {}, (key, claim)
        port = free_port() if all_make else None
        try:
            with nullcontext() if port is None else together(self.member, port):
                try:
                    self._tell({"stage": key, "claim": claim.nonce, "port": port})
                    yield
                    if all_make:
                        self._wait(self._all_left)
                        self._refuse_problems()
                finally:  # known before the connections of the process group close
                    self._tell({"leave": True})
        except Exception as error:
            if all_make:
                self._wait(self._all_left, GRACE_SECONDS / 2)
            cause = self._cause(error)
            if cause is error:
                raise
            raise cause from error
        finally:
            self._under_way = None

    def end(self, code: int) -> None:
        """Tell the others to end with this exit code, late ones too."""
        self._wait(self._all_joined, GRACE_SECONDS if code else JOIN_SECONDS)
        self._ended = True
        self._tell({"end": code})
        self._server.close()

    def _cause(self, error: Exception) -> Exception:
        """Why the stage failed: another process where this one's error is only a connection that closed."""
        if not isinstance(error, RuntimeError) or failure_class(error) != "application":
            return error
        if self.lost:
            return ProcessError(self.lost, "killed")
        others = (found for found in self._problems() if one_line(error) not in str(found))
        return next(others, error)

    def _problems(self) -> Iterator[Exception]:
        for rank, problem in sorted(self._left.items()):
            if problem is not None:
                yield ProcessError(f"{self._name(rank)}: {problem[1]}", problem[0])

    def _refuse_problems(self) -> None:
        if self.lost:
            raise ProcessError(self.lost, "killed")
        for problem in self._problems():
            raise problem

    def _all_joined(self) -> bool:
        return len(self._lines) == self.member.count - 1

    def _all_left(self) -> bool:
        return len(self._left) == self.member.count - 1

    def _wait(self, until: Callable[[], bool], seconds: float | None = None) -> bool:
        """Wait for the others, but not for one that is gone; whether they all did it."""
        with self._changed:
            self._changed.wait_for(lambda: until() or bool(self.lost), seconds)
            return until()

    def _tell(self, message: Mapping[str, Any]) -> None:
        for line in list(self._lines.values()):
            line.send(message)

    def _accept(self) -> None:
        while True:
            try:
                line = Line(self._server.accept()[0])
            except OSError:  # closed: the job ends
                return
            threading.Thread(target=self._hear, args=(line,), daemon=True).start()

    def _hear(self, line: Line) -> None:
        """Take a follower in, and note what it says until it is gone."""
        hello = line.receive() or {}
        if hello.get("hello") != self._word:
            line.close()
            return
        rank: int = hello["rank"]
        line.send({"welcome": rank})
        with self._changed:
            self._lines[rank], self._hosts[rank] = line, hello["host"]
            self._changed.notify_all()
        while (message := line.receive()) is not None:
            stage = self._under_way
            if stage is None or message["claim"] != stage[1].nonce:
                continue  # of a stage that is over
            problem = message["left"]
            with self._changed:
                self._left[rank] = None if problem is None else (problem[0], problem[1])
                self._changed.notify_all()
            if problem is not None:
                self._tell({"leave": True})
                self._hurry(problem[0], f"{self._name(rank)}: {problem[1]}")
        if not self._ended:
            with self._changed:
                self.lost = self.lost or f"{self._name(rank)} is gone: it was killed, or its node failed"
                self._changed.notify_all()
            self._write_down("killed", self.lost)  # at once: Slurm may end the job at any moment
            self._tell({"leave": True})
            self._hurry("killed", self.lost)

    def _hurry(self, failure: str, reason: str) -> None:
        """End this process if the stage under way does not end by itself."""
        stage = self._under_way
        deadline = time.monotonic() + GRACE_SECONDS
        while self._under_way is stage and stage is not None:
            if time.monotonic() > deadline:
                self._write_down(failure, reason)
                stage[1].release()
                exit_now(reason, 1)
            time.sleep(0.05)

    def _write_down(self, failure: str, reason: str) -> None:
        if self._under_way is not None:
            record_death(self.store, self._under_way[0], reason, failure)

    def _name(self, rank: int) -> str:
        host = self._hosts.get(rank)
        return f"process {rank} of {self.member.count}" + (f" on {host}" if host else "")


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
            record_death(
                self.store, key, f"process 0 of {self.member.count} is gone: it was killed, or its node failed"
            )
            Lease(self.store.root / "claims" / key, nonce).release()
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
