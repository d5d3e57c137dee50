"""PartialOutput: what a stage has made so far, kept where its next attempt finds it.

A stage that asks a teacher about many rows makes its artifact of shards and goes on, when it was stopped, after
the last whole one. A shard is an Arrow file, written under another name, synced and renamed; then a page beside
it says how long it is. So a killed process leaves whole shards, and a torn one is made again. `checkpoints.py`
does this for a fit.

    00000.arrow    one record batch
    00000.json     whose shard it is, its size, what making it counted and how long it took; written last

    shards = PartialOutput(settings, inputs, size=512, tally=teacher.spent)
    batch = read_batch(shards.made("00000", make))      # `make` returns a pa.RecordBatch
"""

import json
import os
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from harness.runtime import preemption
from harness.store.fingerprint import fingerprint
from harness.store.store import fsync, write_json


class PartialOutput:
    """The shards of one stage, in its checkpoint folder; outside an attempt in a folder that goes with the object."""

    def __init__(
        self, settings: Mapping[str, Any], inputs: Mapping[str, Path], size: int, tally: Counter[str] | None = None
    ) -> None:
        """`settings` and `inputs` of the stage and the rows in a shard are what its shards follow from.

        `tally` is counted up while shards are made, and by what was counted for those that are there already.
        """
        identity = {name: value for name, value in settings.items() if name != "where"}
        artifacts = {role: folder.name for role, folder in inputs.items()}
        self.belongs = fingerprint([identity, artifacts, size])
        self.tally: Counter[str] = Counter() if tally is None else tally
        self.earlier_seconds = 0.0
        """Seconds that earlier attempts spent on the shards which were used again."""
        folder = preemption.folder()
        if folder is None:
            self._lent = tempfile.TemporaryDirectory()
            folder = Path(self._lent.name)
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def made(self, name: str, make: Callable[[], pa.RecordBatch]) -> Path:
        """The file of this shard, made now unless it is there.

        Raises Preempted between shards when the stage was asked to stop. A signal ends `make` where it stands, as
        nothing of half a shard is kept, and waits while a shard is written.
        """
        path = self.folder / f"{name}.arrow"
        page = self._page(path)
        if page is not None:
            self.tally.update(page["tally"])
            self.earlier_seconds += page["seconds"]
            return path
        if preemption.stop_requested():
            raise preemption.Preempted(f"asked to stop before shard {name}")
        before, started = Counter(self.tally), time.perf_counter()
        batch = make()
        with preemption.polling():
            size = _write(path, batch)
            counted = dict(self.tally - before)
            page = {"belongs": self.belongs, "size": size, "tally": counted, "seconds": time.perf_counter() - started}
            write_json(path.with_suffix(".json"), page)
            fsync(self.folder)
        if preemption.stop_requested():
            raise preemption.Preempted(f"asked to stop after shard {name}")
        return path

    def _page(self, path: Path) -> dict[str, Any] | None:
        """What is written of a shard; None where it is not whole, or another stage's."""
        try:
            page = json.loads(path.with_suffix(".json").read_text())
            whole = page["belongs"] == self.belongs and path.stat().st_size == page["size"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return page if whole else None


def read_batch(path: Path) -> pa.RecordBatch:
    """The record batch of a shard, memory-mapped."""
    return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)


def _write(path: Path, batch: pa.RecordBatch) -> int:
    """Put a batch in place as one file, whole or not at all; returns its size in bytes."""
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with open(unfinished, "wb") as file:
        with pa.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
    os.replace(unfinished, path)
    return size
