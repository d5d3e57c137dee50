"""The local pool: a bounded number of worker processes that live as long as the grid.

Workers import torch once and make many stages (one process per cell would spend half its time importing).
A worker that dies costs one attempt: the stage is reported with the signal that killed it and a fresh
worker takes its place. Workers end when the parent does, however it ends.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from harness.attempt import Outcome, attempt
from harness.config import Machine
from harness.store import Store
from harness.track import Progress

MAX_DEFAULT_WORKERS = 4


class Pool:
    """Bounded workers; one stage each at a time."""

    def __init__(self, store: Store, machine: Machine, workers: int, listener: Callable[[str, Progress], None]) -> None:
        cores = len(os.sched_getaffinity(0))
        self.gpus = _visible_gpus() if machine.device != "cpu" else []
        self.slots = workers or (len(self.gpus) or min(cores, MAX_DEFAULT_WORKERS))
        self.machine = replace(machine, threads=machine.threads or max(1, cores // self.slots))
        self.store, self.listener = store, listener
        self.workers: list[_Worker] = []
        self.waiting: deque[tuple[Mapping[str, Any], str]] = deque()

    def submit(self, spec: Mapping[str, Any], maker: str) -> None:
        """Hand one stage to a free worker, or queue it."""
        self.waiting.append((spec, maker))
        self._feed()

    def events(self, timeout: float) -> Iterator[Outcome]:
        """Wait up to `timeout` seconds; yield attempts that ended, and pass progress to the listener."""
        by_connection = {worker.connection: worker for worker in self.workers}
        for connection in wait(list(by_connection), timeout):
            worker = by_connection[connection]  # type: ignore[index]
            try:
                message = worker.connection.recv()
            except (EOFError, ConnectionResetError):
                yield from self._bury(worker)
                continue
            if isinstance(message, Progress):
                self.listener(worker.key or "", message)
            else:
                worker.key = None
                yield message
        self._feed()

    def close(self) -> None:
        """Send idle workers home and stop the others; what they had not published is made again next time."""
        for worker in self.workers:
            worker.connection.close()  # an idle worker ends by itself
            if worker.key is not None:
                worker.process.terminate()
        for worker in self.workers:
            worker.process.join(timeout=5)
            if worker.process.is_alive():
                worker.process.kill()

    def _feed(self) -> None:
        while self.waiting:
            free = next((worker for worker in self.workers if worker.key is None), None)
            if free is None and len(self.workers) < self.slots:
                taken = {worker.number for worker in self.workers}
                number = next(n for n in range(self.slots) if n not in taken)
                free = _Worker(number, self.store.root, self.machine, self.gpus)
                self.workers.append(free)
            if free is None:
                return
            spec, maker = self.waiting.popleft()
            free.key = spec["key"]
            free.connection.send((dict(spec), maker))

    def _bury(self, worker: "_Worker") -> Iterator[Outcome]:
        worker.process.join()
        self.workers.remove(worker)
        if worker.key is not None:
            code = worker.process.exitcode or 0
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            hint = "; the kernel does this when memory runs out" if code == -signal.SIGKILL else ""
            yield Outcome(worker.key, "failed", "killed", f"its worker ended with {how}{hint}")


class _Worker:
    """A worker process, the connection to it, and the key it is working on."""

    def __init__(self, number: int, root: Path, machine: Machine, gpus: list[str]) -> None:
        context = multiprocessing.get_context("spawn")
        self.number = number
        self.connection, theirs = context.Pipe()
        gpu = gpus[number % len(gpus)] if gpus else None
        self.process = context.Process(target=_work, args=(theirs, root, machine, gpu), daemon=True)
        self.process.start()
        theirs.close()
        self.key: str | None = None


def _work(connection: Connection, root: Path, machine: Machine, gpu: str | None) -> None:
    """A worker's life: make stages until the parent says nothing more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["OMP_NUM_THREADS"] = str(machine.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["TQDM_DISABLE"] = "1"  # progress is reported through harness.track
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    store = Store(root)
    while True:
        try:
            spec, maker = connection.recv()
        except EOFError:
            return
        connection.send(attempt(store, spec, maker, machine, connection.send))


def _visible_gpus() -> list[str]:
    """GPU ids this process may use, without importing torch: CUDA_VISIBLE_DEVICES, else /dev/nvidia<n>."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu for gpu in visible.split(",") if gpu.strip()]
    return [path.name.removeprefix("nvidia") for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]
