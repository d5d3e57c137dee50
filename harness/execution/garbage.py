"""Garbage: artifacts that no grid, claim or queued job needs, and what ended processes left.

found = garbage(store)
found.artifacts, found.leftovers, found.notes
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.config.checks import SettingsError
from harness.execution.slurm.squeue import Queue
from harness.execution.slurm.submissions import being_sent, read_entry
from harness.plan.frozen import frozen_plan, grid_names
from harness.store.fsck import leftovers
from harness.store.store import DamagedError, Store, read_json


@dataclass(frozen=True)
class Garbage:
    """What could be deleted, and why something is not."""

    artifacts: list[Path]
    """Folders of artifacts that are needed nowhere."""
    leftovers: list[Path]
    """Scratch folders, unfinished files, claims and checkpoints that no process needs."""
    notes: list[str]
    """What the user must know, in sentences."""


def garbage(store: Store) -> Garbage:
    """What no plan, live claim or queued job of a store needs; changes nothing.

    While a plan or submission cannot be read, no artifact and no checkpoint is garbage: it may need any of them.
    Raises OSError where the store cannot be read.
    """
    needed, notes = set(_of_claims(store)), []
    for name in grid_names(store):
        try:
            needed |= frozen_plan(store, name).stages.keys()
        except SettingsError as error:
            notes.append(f"{error} Until then no artifact is deleted, since that grid may need any of them.")
    try:
        needed |= set(_of_queue(store))
    except DamagedError as error:
        notes.append(f"{error} Until then no artifact is deleted, since a queued job may need any of them.")
    left = list(leftovers(store))
    if notes:
        return Garbage([], left, notes)
    # checkpoints of a stage that a grid still needs stay: its next attempt continues from them
    stopped = (path for path in sorted((store.root / "checkpoints").glob("*")) if not store.claimed(path.name))
    left += [path for path in stopped if path.name not in needed and path not in left]
    return Garbage([store.folder(key) for key in store.published() if key not in needed], left, notes)


def _of_claims(store: Store) -> Iterator[str]:
    """Stages that live attempts make, and their inputs."""
    for path in (store.root / "claims").glob("[!.]*"):
        if store.claimed(path.name):
            yield path.name
            for entry in store.attempts(path.name)[-1:]:
                yield from entry.get("inputs", ())


def _of_queue(store: Store) -> Iterator[str]:
    """Stages of the submissions whose jobs are queued, or may be: this machine may not see their queue.

    Raises DamagedError where a submission cannot be read.
    """
    paths = (store.root / "jobs").glob("[!.]*")
    entries = [entry for path in paths if not store.done(path.name) and (entry := read_entry(store, path.name))]
    if entries:
        try:
            queue = Queue.read()
            live = [entry for entry in entries if queue.job_id(entry["array"], entry["task"]) is not None]
            entries = live + [entry for entry in entries if entry not in live and being_sent(store, entry)]
        except SettingsError:
            pass  # without an answer from Slurm every job may still be there
    for submission in sorted({entry["submission"] for entry in entries}):
        path = store.root / "submissions" / submission / "submission.json"
        if path.is_file():
            yield from read_json(path)["stages"]
