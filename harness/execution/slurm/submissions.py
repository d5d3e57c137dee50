"""Submissions: which task of which array makes a stage, one small file each in the store's `jobs/`.

An entry names a task in Slurm's queue and counts for as long as that task is in the queue. The process that writes
the entry sends the task; another submitter that needs the stage waits for that task.

    submissions = Submissions(store, Queue.read())
    submissions.take(key, "20260301-12", "my_grid.cells.3f2a10.0", 3)
"""

import json
import os
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.execution.slurm.squeue import Queue
from harness.store.liveness import runs, this_process
from harness.store.store import Store, write_json

SUBMITTING_SECONDS = 60.0
"""How long a live submitter may take from writing a stage's entry until its task is in the queue."""


def new_entry(submission: str, array: str, task: int) -> dict[str, Any]:
    """An entry written now by this process."""
    return {"submission": submission, "array": array, "task": task, **this_process(), "time": time.time()}


def read_entry(store: Store, key: str) -> dict[str, Any] | None:
    """`submission`, `array` and `task` that make `key`, with the submitting process and the time; None without any.

    Raises OSError where the store cannot be read.
    """
    try:
        return json.loads((store.root / "jobs" / key).read_text())
    except (FileNotFoundError, ValueError):  # ValueError: another process is writing it
        return None


def read_entries(store: Store, keys: Iterable[str]) -> dict[str, Mapping[str, Any]]:
    """The entries of the keys that have one. Raises OSError where the store cannot be read."""
    return {key: entry for key in keys if (entry := read_entry(store, key)) is not None}


def read_submission(store: Store, key: str) -> dict[str, Any] | None:
    """The frozen submission with which `key` was last submitted; None where it never was.

    Raises FileNotFoundError where its folder is gone.
    """
    entry = read_entry(store, key)
    if entry is None:
        return None
    return json.loads((store.root / "submissions" / entry["submission"] / "submission.json").read_text())


def write_sent(store: Store, submission: str, array: str, jobs: Sequence[str]) -> None:
    """Keep the ids of an array's tasks once the cluster has accepted it.

    Raises OSError where the store cannot be written.
    """
    write_json(_sent(store, submission, array), jobs)


def read_sent(store: Store, entry: Mapping[str, Any]) -> str | None:
    """The cluster's id of an entry's task; None where the task was not submitted.

    Raises OSError where the store cannot be read.
    """
    try:
        return json.loads(_sent(store, entry["submission"], entry["array"]).read_text())[entry["task"]]
    except FileNotFoundError:
        return None


def being_sent(store: Store, entry: Mapping[str, Any]) -> bool:
    """Whether the submitter may still submit the task; on another machine it has `SUBMITTING_SECONDS`."""
    # once it is sent, the queue alone says whether the task is live
    if read_sent(store, entry) is not None or time.time() - entry["time"] > SUBMITTING_SECONDS:
        return False
    return runs(entry) is not False


def _sent(store: Store, submission: str, array: str) -> Path:
    return store.root / "submissions" / submission / f"{array}.json"


def log_files(store: Store, job: str) -> list[Path]:
    """The files with the output of a job's processes."""
    return sorted((store.root / "submissions").glob(f"*/slurm/{job}_*_log.*"))


def arrays_of(store: Store, grid: str) -> set[str]:
    """Names of all arrays that were submitted for a grid."""
    # an array's file is <grid>.<kind>.<hash>.<number>.json, and a grid's name may have dots of its own; the pattern
    # leaves submission.json out, which has none before its suffix
    names = (path.stem for path in (store.root / "submissions").glob("*/*.*.json"))
    return {name for name in names if name.rsplit(".", 3)[0] == grid}


class Submissions:
    """The entries of a store, checked against the queue of a cluster."""

    def __init__(self, store: Store, queue: Queue) -> None:
        self.store, self.queue = store, queue
        self.folder = store.root / "jobs"
        self.folder.mkdir(exist_ok=True)

    def take(self, key: str, submission: str, array: str, task: int) -> bool:
        """Write the entry that `array` makes `key`; False where a job in the queue, or being submitted, makes it.

        Raises SettingsError where the queue has to be read again and Slurm does not answer, OSError where the store
        cannot be written.
        """
        entry = new_entry(submission, array, task)
        for _ in range(2):
            try:
                self._write(key, entry)
                return True
            except FileExistsError:
                if self.job_id(key) is not None:
                    return False
                # Another submitter may have taken the key since the check. Then both send it, and of the two jobs one
                # gets the stage's lease.
                with suppress(FileNotFoundError):
                    os.replace(self.folder / key, self.folder / f".{key}.{uuid.uuid4().hex}")
        return False

    def give_back(self, keys: Iterable[str], array: str) -> None:
        """Remove the entries of an array that was not sent, so that the next submission takes their stages at once."""
        for key in keys:
            if (read_entry(self.store, key) or {}).get("array") == array:
                (self.folder / key).unlink(missing_ok=True)

    def _write(self, key: str, entry: Mapping[str, Any]) -> None:
        """Write an entry whole or not at all. Raises FileExistsError where there is one."""
        written = self.folder / f".{key}.{uuid.uuid4().hex}"
        try:
            written.write_text(json.dumps(entry))
            # unlike a rename, a link is refused where the name is taken
            os.link(written, self.folder / key)
        finally:
            written.unlink(missing_ok=True)

    def job_id(self, key: str) -> str | None:
        """The id of the job in the queue that makes `key`; waits for one that is being submitted; None without any.

        Raises SettingsError where the queue has to be read again and Slurm does not answer.
        """
        entry = read_entry(self.store, key)
        if entry is None:
            return None
        found = self.queue.job_id(entry["array"], entry["task"])
        # a submitter takes all entries first and sends the arrays afterwards, so a task may not be in the queue yet
        while found is None and being_sent(self.store, entry):
            time.sleep(1.0)
            self.queue.refresh()
            found = self.queue.job_id(entry["array"], entry["task"])
        return found
