"""One trial of each kind: a run of a cell that is killed, or whose store fails, and the run after it.

A trial is right where the next run ends in the table of an undisturbed one, byte for byte, and nothing is left over
that `gc` does not clear. It needs a process of its own that has warmed up (`cells.warm_up`) and forks.

    trials = Trials(folder, "real")
    trials.crash("inline", 17).right
"""

import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from harness.store.store import Store
from tests.torture import cells
from tests.torture.injector import Fault, operations

LIMIT = 120.0
"""Seconds a run may take; what takes longer hangs."""


@dataclass(frozen=True)
class Trial:
    """What was done, and what is wrong; empty where all is right."""

    what: str
    wrong: str
    left: tuple[str, ...] = ()
    """Leftovers that `gc` did not clear."""

    @property
    def right(self) -> bool:
        """Whether the table was equal and nothing was left."""
        return not self.wrong and not self.left


@contextmanager
def stores(folder: Path | None = None) -> Iterator[Path]:
    """A folder for tortured stores, removed afterwards: in memory where that can be, since syncing is free there."""
    memory = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(prefix="torture-", dir=folder or (memory if os.access(memory, os.W_OK) else None)))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


class Trials:
    """Trials of one cell, in a folder."""

    def __init__(self, folder: Path, cell: str) -> None:
        self.folder, self.cell = folder, cell
        folder.mkdir(parents=True, exist_ok=True)
        first = folder / f"warm-{cell}-{os.getpid()}"
        cells.warm_up(cell, first)
        shutil.rmtree(first)

    @cache  # noqa: B019 (a handful of objects, which live as long as the process)
    def undisturbed(self, launch: str, act: str = "kill") -> tuple[Any, list[str]]:
        """The table of a run without a fault, and its operations."""
        root = self._fresh()
        said = self._run(root, launch, Fault(str(root / "store"), 0, act, str(root / "count")))
        assert said and said["ended"] == "done" and not said["lost"], said
        found = operations(root / "count")
        shutil.rmtree(root)
        return said["table"], found

    def crash(self, launch: str, at: int) -> Trial:
        """The process that performs the operation `at` is killed before it."""
        root = self._fresh()
        said = self._run(root, launch, Fault(str(root / "store"), at, "kill", str(root / "count")))
        return self._after(root, launch, f"killed before {self._operation(root, at)}", said)

    def fails(self, launch: str, act: str, at: int) -> Trial:
        """The operation `at` fails, and where the fault lasts all that follow; said in one sentence, or got over."""
        root = self._fresh()
        said = self._run(root, launch, Fault(str(root / "store"), at, act, str(root / "count")))
        what, wrong = f"{act} at {at if act == 'EFBIG' else self._operation(root, at)}", ""
        if said is None:
            wrong = "died"
        elif said["ended"] == "traceback":
            wrong = said["sentence"]
        elif said["ended"] == "done":
            # a page or a checkpoint that could not be written stops nothing; a stage that failed has the class, and
            # what there is of the table is right
            bad = [(kind, reason) for kind, reason in said["lost"] if kind != "storage"]
            wrong = f"other classes: {bad}" if bad else ""
            whole = self.undisturbed("inline")[0]
            wrong = wrong or ("" if _lines(said["table"]) <= _lines(whole) else "another table")
        elif "the same command goes on" not in said["sentence"] and "cannot be written" not in said["sentence"]:
            wrong = f"no way out: {said['sentence']}"
        if wrong:
            shutil.rmtree(root)
            return Trial(what, wrong)
        return self._after(root, launch, what, said)

    def random_kill(self, seed: int) -> Trial:
        """A command, a worker or both get a signal at a random moment."""
        draw = random.Random(seed)
        launch = draw.choice(["inline", "2", "2"])
        number = draw.choice([signal.SIGKILL] * 6 + [signal.SIGTERM, signal.SIGINT])
        whom = draw.choice(["command", "worker", "both"]) if launch != "inline" else "command"
        took = self._seconds(launch)
        root = self._fresh()
        process = self._start(root, launch, None, "report")
        time.sleep(draw.uniform(0.02, 1.0) * took)
        workers = _children(process.pid)
        targets = [process.pid] if whom != "worker" else []
        targets += draw.sample(workers, min(len(workers), 1 if whom == "worker" else 2)) if whom != "command" else []
        for pid in targets:
            _signal(pid, number)
        said = self._ended(process, root, "report")
        what = f"{signal.Signals(number).name} to {whom} ({launch})"
        wrong = said["sentence"] if said is not None and said["ended"] == "traceback" else ""
        return self._after(root, launch, what, said, wrong)

    def race(self, seed: int, racers: int = 8) -> Trial:
        """Processes race on one grid: every stage is made once, and their tables are equal."""
        root = self._fresh()
        launches = ["inline" if number % 2 else "2" for number in range(racers)]
        started = [self._start(root, launch, None, f"report-{n}") for n, launch in enumerate(launches)]
        said = [self._ended(process, root, f"report-{n}") for n, process in enumerate(started)]
        wrong = [one["sentence"] if one else "died" for one in said if one is None or "sentence" in one]
        expected = self.undisturbed("inline")[0]
        wrong += ["another table" for one in said if one and "sentence" not in one and one["table"] != expected]
        store = Store.at(root / "store")
        tries = {key: store.attempts(key) for key in store.published()}
        wrong += [f"{key} was made {len(made)} times" for key, made in tries.items() if len(made) != 1]
        left = tuple(cells.clear(root / "store"))
        shutil.rmtree(root)
        return Trial(f"{racers} processes race (seed {seed})", "; ".join(wrong), left)

    def _after(self, root: Path, launch: str, what: str, said: dict | None, wrong: str = "") -> Trial:
        """The run that follows; the same command, and no fault."""
        again = self._run(root, launch, None)
        table, _ = self.undisturbed("inline")  # of whichever launch
        if not wrong:
            if again is None:
                wrong = "the next run died"
            elif again["ended"] != "done" or again["lost"]:
                wrong = f"the next run {again['ended']}: {again.get('sentence', again['lost'])}"
            elif again["table"] != table:
                wrong = "another table after the next run"
        left = tuple(cells.clear(root / "store")) if not wrong else ()
        shutil.rmtree(root)
        return Trial(what, wrong, left)

    @cache  # noqa: B019
    def _seconds(self, launch: str) -> float:
        started = time.monotonic()
        self.undisturbed.__wrapped__(self, launch)
        return time.monotonic() - started

    def _fresh(self) -> Path:
        root = self.folder / f"{self.cell}-{os.getpid()}-{time.monotonic_ns()}"
        root.mkdir()
        return root

    def _operation(self, root: Path, at: int) -> str:
        found = operations(root / "count")
        return f"operation {at}: {found[at - 1] if at <= len(found) else 'not reached'}"

    def _run(self, root: Path, launch: str, fault: Fault | None) -> dict | None:
        name = f"report-{time.monotonic_ns()}"
        return self._ended(self._start(root, launch, fault, name), root, name)

    def _start(self, root: Path, launch: str, fault: Fault | None, name: str) -> BaseProcess:
        arguments = (self.cell, root / "store", launch, fault, root / name)
        process = get_context("fork").Process(target=cells.run, args=arguments)
        process.start()
        return process

    def _ended(self, process: BaseProcess, root: Path, name: str) -> dict | None:
        process.join(LIMIT)
        if process.is_alive():
            process.kill()
            process.join()
            return {"ended": "traceback", "sentence": f"still running after {LIMIT:.0f} s", "table": {}, "lost": []}
        path = root / name
        return json.loads(path.read_text()) if path.is_file() else None


def _lines(table: dict[str, Any]) -> set[tuple[str, str]]:
    """A table as single facts, so that a part of one can be compared."""
    return {(name, line) for name, value in table.items() for line in str(value).splitlines()}


def _children(pid: int | None) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _signal(pid: int | None, number: int) -> None:
    with suppress(ProcessLookupError):  # it has just ended
        os.kill(pid or 0, number)
