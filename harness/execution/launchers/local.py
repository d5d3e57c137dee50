"""The local pool: a bounded number of worker processes that live as long as the grid.

A worker imports torch once and makes many stages; one process per cell would spend half its time importing. A worker
that dies costs one attempt: the stage is reported with the signal that killed the worker, and a new worker takes its
place. A worker that was stopped (SIGSTOP) is ended within a minute, and one whose heartbeat has failed for ten minutes
too; another one takes its stage up. `worker.py` is the worker; it ends when this process ends, even where this process
is killed.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from harness.config.machine import Machine
from harness.execution.attempt import AttemptResult, record_death
from harness.runtime.preemption import EXIT_CODE
from harness.runtime.processes import available_cores, visible_gpus
from harness.runtime.progress import Progress
from harness.store.liveness import LOST_SECONDS, STALE_SECONDS, is_stopped
from harness.store.store import Store

MAX_DEFAULT_WORKERS = 4
GRACE_SECONDS = 30.0  # for the step under way and a checkpoint
CHECK_SECONDS = 2.0  # between two looks at the workers' heartbeats


class WorkerPool:
    """At most `slots` workers, each making one stage at a time."""

    def __init__(self, store: Store, machine: Machine, workers: int, listener: Callable[[str, Progress], None]) -> None:
        cores = available_cores()
        self.gpus = visible_gpus() if machine.device != "cpu" else []
        self.slots = workers or (len(self.gpus) or min(cores, MAX_DEFAULT_WORKERS))
        self.machine, self.threads = machine, machine.threads or max(1, cores // self.slots)
        self.store, self.listener = store, listener
        self.workers: list[_Worker] = []
        self.waiting: deque[tuple[Mapping[str, Any], str]] = deque()
        self._looked = time.monotonic()
        self._taken_up: set[str] = set()

    def submit(self, spec: Mapping[str, Any], maker: str) -> None:
        """Hand one stage to a free worker, or queue it. Raises OSError where a worker cannot be started."""
        self.waiting.append((spec, maker))
        self._feed()

    def events(self, timeout: float) -> Iterator[AttemptResult]:
        """Wait up to `timeout` seconds; yield attempts that ended, and pass progress to the listener.

        Raises OSError where a worker cannot be started.
        """
        by_connection = {worker.connection: worker for worker in self.workers}
        for connection in wait(list(by_connection), timeout):
            worker = by_connection[connection]  # type: ignore[index]
            try:
                message = worker.connection.recv()
            except (EOFError, OSError):
                yield from self._report_death(worker)
                continue
            if isinstance(message, Progress):
                self.listener(worker.key or "", message)
            else:
                worker.task = None
                yield message
        if time.monotonic() - self._looked >= CHECK_SECONDS:
            self._looked = time.monotonic()
            for worker in [worker for worker in self.workers if worker.lost(self.store)]:
                yield from self._replace(worker)
        self._feed()

    def close(self) -> None:
        """End idle workers and stop the others; those whose stage supports it leave a checkpoint."""
        for worker in self.workers:
            worker.connection.close()  # an idle worker ends by itself
            if worker.key is not None:
                worker.process.terminate()
        for worker in self.workers:
            try:
                worker.process.wait(timeout=GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                worker.process.kill()

    def _feed(self) -> None:
        while self.waiting:
            free = next((worker for worker in self.workers if worker.key is None), None)
            # workers start on demand, each with the lowest free number, which decides its GPU
            if free is None and len(self.workers) < self.slots:
                taken = {worker.number for worker in self.workers}
                number = next(n for n in range(self.slots) if n not in taken)
                free = _Worker(number, self.store.root, self.machine, self.threads, self.gpus)
                self.workers.append(free)
            if free is None:
                return
            spec, maker = self.waiting[0]
            try:
                free.connection.send((dict(spec), maker))
            except OSError:  # it died while idle, so no stage is lost
                free.process.wait()
                self.workers.remove(free)
                continue
            free.task = self.waiting.popleft()

    def _replace(self, worker: "_Worker") -> Iterator[AttemptResult]:
        """End a lost worker and let another one take its stage up; a stage is taken up once."""
        task = worker.task
        worker.process.kill()  # SIGKILL ends a stopped process too
        reports = list(
            self._report_death(worker, f"its worker was stopped or hung for {LOST_SECONDS:g} s and was ended")
        )
        if task is None or task[0]["key"] in self._taken_up or any(one.status == "done" for one in reports):
            yield from reports
        else:
            self._taken_up.add(task[0]["key"])
            self.waiting.appendleft(task)

    def _report_death(self, worker: "_Worker", why: str = "") -> Iterator[AttemptResult]:
        code = worker.process.wait()
        self.workers.remove(worker)
        if worker.key is None:
            return
        if self.store.done(worker.key):  # it stopped after the stage was published
            yield AttemptResult(worker.key, "done")
        elif code == EXIT_CODE:
            yield AttemptResult(worker.key, "failed", "preempted", "stopped on request; the next run continues it")
        else:
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            hint = ", as the kernel does when memory runs out" if code == -signal.SIGKILL else ""
            reason = why or f"its worker ended with {how}{hint}"
            record_death(self.store, worker.key, reason)
            yield AttemptResult(worker.key, "failed", "killed", reason)


class _Worker:
    """A worker process, the connection to it, and the key it is working on."""

    def __init__(self, number: int, root: Path, machine: Machine, threads: int, gpus: list[str]) -> None:
        self.number = number
        self.connection, theirs = Pipe()
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
            "TQDM_DISABLE": "1",  # progress is reported through harness.runtime.progress
        }
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
        assert isinstance(theirs, Connection)
        # A command in a session of its own, and not a fork: the caller's main module is not imported again, and
        # Ctrl-C, which a terminal sends to its whole process group, reaches the caller alone.
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "harness.execution.launchers.worker",
                str(theirs.fileno()),
                str(root),
                json.dumps(asdict(machine)),
            ],
            pass_fds=[theirs.fileno()],
            env=environment,
            start_new_session=True,
        )
        theirs.close()
        self.task: tuple[Mapping[str, Any], str] | None = None
        self._stopped_since: float | None = None

    @property
    def key(self) -> str | None:
        """The key of the stage that it makes."""
        return None if self.task is None else self.task[0]["key"]

    def lost(self, store: Store) -> bool:
        """Whether its stage gets no heartbeat any more, or the process has been stopped for as long."""
        if self.key is None:
            return False
        # stopped before it has claimed the stage, there is no heartbeat to miss
        if not is_stopped(self.process.pid):
            self._stopped_since = None
        elif self._stopped_since is None:
            self._stopped_since = time.monotonic()
        elif time.monotonic() - self._stopped_since >= LOST_SECONDS:
            return True
        # longer than for a stopped one: a stage may keep the interpreter, and so its heartbeat, busy for a while
        return store.silent_seconds(self.key) >= STALE_SECONDS
