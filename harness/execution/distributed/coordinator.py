"""Coordination of a job's processes: rank 0 decides which stage is made, the other ranks make it with rank 0.

Rank 0 alone reads the store, claims, writes attempts and publishes. The other ranks wait while rank 0 makes a stage by
itself, and make with it each stage that needs all of them (`graph.TOGETHER`). A rank that is lost ends the job for all,
so that no process waits in a collective operation for one that has ended. Each message is one line of JSON:

    rank 0         {"stage": key, "claim": nonce, "port": 23117}   make it with me (port null: I make it alone)
                   {"leave": true}      the stage is over for me        {"end": 1}    exit code of every process
    other ranks    {"token": token, "rank": 2, "host": "n2"}
                   {"left": [failure class, reason] or null, "claim": nonce}    I have finished my part of the stage
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
    Connection,
    Problem,
    Rank,
    connect,
    exit_now,
    job_token,
    listen,
    process_group,
)
from harness.runtime import preemption
from harness.runtime.processes import ProcessError, free_port
from harness.store.store import Lease, Store

LOSS_SECONDS = 1.0  # between a process's end and the moment rank 0 knows of it, on a busy node


class Coordinator:
    """Rank 0 of a job with several processes."""

    def __init__(self, rank: Rank, secret: str, store: Store) -> None:
        """`secret` is a text that only processes of this job have read. Raises OSError where no port is free."""
        self.rank, self.store, self.lost = rank, store, ""
        """`lost` names the process that is gone; from then on no stage begins."""
        self._token = job_token(rank, secret)
        self._server = listen(self._token)
        self._connections: dict[int, Connection] = {}
        self._hosts: dict[int, str] = {}
        self._left: dict[int, Problem | None] = {}
        self._stage_now: tuple[str, Lease] | None = None
        self._ended = False
        self._changed = threading.Condition()
        threading.Thread(target=self._accept, daemon=True).start()

    @contextmanager
    def stage(self, key: str, claim: Lease, all_make: bool) -> Iterator[None]:
        """While the block makes the claimed stage, the other ranks make it too (`all_make`) or wait.

        Raises ProcessError where the stage failed in another process, or one is gone, in place of the error or the stop
        that this causes here. Where the block does not end although a process is gone, this process is ended.
        """
        if not self._wait(self._all_joined, JOIN_SECONDS) and not self.lost:
            missing = next(rank for rank in range(1, self.rank.count) if rank not in self._connections)
            self.lost = f"{self._name(missing)} did not start within {JOIN_SECONDS:g} s"
        if self.lost:
            raise ProcessError(self.lost, "killed")
        # before the message is sent: an answer may follow at once, and is kept only for the present claim
        self._left, self._stage_now = {}, (key, claim)
        port = free_port() if all_make else None
        try:
            with nullcontext() if port is None else process_group(self.rank, port):
                try:
                    self._send_all({"stage": key, "claim": claim.nonce, "port": port})
                    yield
                    if all_make:
                        self._wait(self._all_left)
                        self._raise_problems()
                finally:  # sent before the connections of the process group close
                    self._send_all({"leave": True})
        except preemption.Preempted as stop:
            # a scheduler stops the other ranks of a job that has lost one: the loss, which may be noticed a moment
            # later, is why the stage ended
            if all_make:
                with preemption.polling():
                    self._wait(self._all_left, LOSS_SECONDS)
            if self.lost:
                raise ProcessError(self.lost, "killed") from stop
            raise
        except Exception as error:
            if all_make:
                # The others say what went wrong with them. Half the grace period, since after the whole of it they end
                # themselves. A signal that arrives meanwhile is answered after the stage.
                with preemption.polling():
                    self._wait(self._all_left, GRACE_SECONDS / 2)
            cause = self._cause(error)
            if cause is error:
                raise
            raise cause from error
        finally:
            self._stage_now = None

    def end(self, code: int) -> None:
        """Send the exit code to the other ranks, also to those that connect late."""
        self._wait(self._all_joined, GRACE_SECONDS if code else JOIN_SECONDS)
        self._ended = True
        self._send_all({"end": code})
        self._server.close()

    def _cause(self, error: Exception) -> Exception:
        """Why the stage failed: the error of another process, where this one's is only a connection that closed."""
        if not isinstance(error, RuntimeError) or failure_class(error) != "application":
            return error
        if self.lost:
            return ProcessError(self.lost, "killed")
        # A rank that fails closes its connections, which shows here as a RuntimeError of a collective operation. A
        # line that both have is one error which all ranks met, and this rank's stands for it.
        others = (found for found in self._problems() if one_line(error) not in str(found))
        return next(others, error)

    def _problems(self) -> Iterator[Exception]:
        for rank, problem in sorted(self._left.items()):
            if problem is not None:
                yield ProcessError(f"{self._name(rank)}: {problem[1]}", problem[0])

    def _raise_problems(self) -> None:
        if self.lost:
            raise ProcessError(self.lost, "killed")
        for problem in self._problems():
            raise problem

    def _all_joined(self) -> bool:
        return len(self._connections) == self.rank.count - 1

    def _all_left(self) -> bool:
        return len(self._left) == self.rank.count - 1

    def _wait(self, until: Callable[[], bool], seconds: float | None = None) -> bool:
        """Wait for the other ranks, but not for one that is gone; whether the condition came true."""
        with self._changed:
            self._changed.wait_for(lambda: until() or bool(self.lost), seconds)
            return until()

    def _send_all(self, message: Mapping[str, Any]) -> None:
        for connection in list(self._connections.values()):
            connection.send(message)

    def _accept(self) -> None:
        while True:
            try:
                connection = Connection(self._server.accept()[0])
            except OSError:  # closed: the job ends
                return
            threading.Thread(target=self._receive, args=(connection,), daemon=True).start()

    def _receive(self, connection: Connection) -> None:
        """Accept one other rank, and keep what it reports until its connection closes."""
        hello = connection.receive() or {}
        # another program, or a process of an earlier start of this job
        if hello.get("token") != self._token:
            connection.close()
            return
        rank: int = hello["rank"]
        connection.send({"welcome": rank})
        with self._changed:
            self._connections[rank], self._hosts[rank] = connection, hello["host"]
            self._changed.notify_all()
        while (message := connection.receive()) is not None:
            stage = self._stage_now
            if stage is None or message["claim"] != stage[1].nonce:
                continue  # of a stage that is over
            problem = message["left"]
            with self._changed:
                self._left[rank] = None if problem is None else (problem[0], problem[1])
                self._changed.notify_all()
            if problem is not None:
                self._send_all({"leave": True})
                self._force_end(problem[0], f"{self._name(rank)}: {problem[1]}")
        if not self._ended:
            with self._changed:
                self.lost = self.lost or f"{self._name(rank)} is gone: it was killed, or its node failed"
                self._changed.notify_all()
            self._record_death("killed", self.lost)  # at once: Slurm may end the job at any moment
            self._send_all({"leave": True})
            self._force_end("killed", self.lost)

    def _force_end(self, failure: str, reason: str) -> None:
        """End this process where the present stage does not end by itself within the grace period."""
        stage = self._stage_now
        deadline = time.monotonic() + GRACE_SECONDS
        while self._stage_now is stage and stage is not None:
            if time.monotonic() > deadline:
                self._record_death(failure, reason)
                stage[1].release()
                exit_now(reason, 1)
            time.sleep(0.05)

    def _record_death(self, failure: str, reason: str) -> None:
        if self._stage_now is not None:
            record_death(self.store, self._stage_now[0], reason, failure)

    def _name(self, rank: int) -> str:
        host = self._hosts.get(rank)
        return f"process {rank} of {self.rank.count}" + (f" on {host}" if host else "")


Follow = Callable[[str], Problem | None]
"""Make the stage of a key together with rank 0; returns the failure, or None."""


class Participant:
    """Any rank of a job but rank 0."""

    def __init__(self, rank: Rank, secret: str, store: Store) -> None:
        """Connect to rank 0; raises TimeoutError where it does not answer."""
        self.rank, self.store = rank, store
        self._connection = connect(rank, job_token(rank, secret))
        self._messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._making = self._leave_requested = False
        self._stage_now: tuple[str, str] | None = None

    def serve(self, follow: Follow) -> int:
        """Make stages with rank 0 until it ends; returns the job's exit code. Only rank 0 answers signals."""
        threading.Thread(target=self._receive, daemon=True).start()
        with preemption.stoppable_between(), preemption.polling():
            message = self._messages.get()
            while message is not None and "end" not in message:
                if message.get("port") is not None:
                    self._make(message, follow)
                message = self._messages.get()
            return 1 if message is None else message["end"]

    def _make(self, message: Mapping[str, Any], follow: Follow) -> None:
        """Make a stage with rank 0, and stay in its process group until all ranks have finished."""
        self._making = True  # set first: a message that comes after the next line is answered by `_force_end`
        try:
            if self._leave_requested:  # before it began: rank 0 waits for every answer
                self._leave(message, None)
                return
            with process_group(self.rank, message["port"]):
                problem = follow(message["stage"])
                self._leave(message, None if self._leave_requested else problem)
                # after a problem the group is closed at once, which frees a rank that waits for this one
                while problem is None and not self._leave_requested:
                    time.sleep(0.01)
        finally:
            self._making = False

    def _leave(self, message: Mapping[str, Any], problem: Problem | None) -> None:
        self._connection.send({"left": problem, "claim": message["claim"]})

    def _receive(self) -> None:
        """Keep the messages of rank 0 until its connection closes."""
        while (message := self._connection.receive()) is not None:
            if "stage" in message:
                self._stage_now, self._leave_requested = (message["stage"], message["claim"]), False
            else:
                self._stage_now, self._leave_requested = None, True
                # here and not in the main thread, which may wait in a collective operation for good
                self._force_end(message.get("end", 1))
            self._messages.put(message)
            if "end" in message:
                return
        if self._stage_now is not None and self.rank.number == 1:  # at once: Slurm may end the job at any moment
            key, nonce = self._stage_now
            record_death(self.store, key, f"process 0 of {self.rank.count} is gone: it was killed, or its node failed")
            Lease(self.store.root / "claims" / key, nonce).release()
        self._leave_requested = True
        self._force_end(1)
        self._messages.put(None)

    def _force_end(self, code: int) -> None:
        """End this process where it does not leave its stage by itself within the grace period."""
        deadline = time.monotonic() + GRACE_SECONDS
        while self._making:
            if time.monotonic() > deadline:
                exit_now("the stage is over in rank 0", code)
            time.sleep(0.05)
