"""Partial output: the parts of its artifact that an unfinished stage has made, kept for the next attempt.

A stage that queries a teacher for many rows makes its artifact part by part. When it is stopped, its next attempt
continues after the last complete part. A part is an Arrow file, written under another name, synced and renamed; then
a JSON file beside it states its size and hash. So a killed process leaves complete parts, and one that is incomplete or
was changed is made again.
`training/checkpoints.py` does the same for a fit.

    00000.arrow    one record batch
    00000.json     the stage it belongs to, its size, what was counted and the seconds it took; written last

    partial_output = PartialOutput(settings, inputs, size=512, tally=teacher.spent)
    batch = read_batch(partial_output.made("00000", make))      # `make` returns a pa.RecordBatch
"""

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from harness.config.file_hash import content_sha256, file_sha256
from harness.runtime import preemption
from harness.store.fingerprint import fingerprint
from harness.store.store import fsync, replacing, write_json


class PartialOutput:
    """The parts of one stage, in its checkpoint folder; outside an attempt, in a temporary folder of the object."""

    def __init__(
        self, settings: Mapping[str, Any], inputs: Mapping[str, Path], size: int, tally: Counter[str] | None = None
    ) -> None:
        """A part is used again only by a stage of the same `settings`, `inputs` and `size` (rows in a part).

        `tally`: the counter that `make` raises. For a part that exists, its stored counts are added instead.
        Raises TypeError or ValueError where `settings` have no stable text form, OSError where the folder cannot be
        made.
        """
        # `where` names folders and servers, which may be others at the next attempt and change no row. The folder of an
        # input has the input's key as its name, so parts stay valid when the store is moved.
        identity = {name: value for name, value in settings.items() if name != "where"}
        artifacts = {role: folder.name for role, folder in inputs.items()}
        self.stage_fingerprint = fingerprint([identity, artifacts, size])
        self.tally: Counter[str] = Counter() if tally is None else tally
        self.earlier_seconds = 0.0
        """Seconds that earlier attempts spent on the parts which were used again."""
        folder = preemption.folder()
        if folder is None:
            # kept as an attribute: the folder is removed when this object is
            self._temporary = tempfile.TemporaryDirectory()
            folder = Path(self._temporary.name)
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def made(self, name: str, make: Callable[[], pa.RecordBatch]) -> Path:
        """The file of the part `name`, made now unless it exists.

        Raises Preempted between parts when a stop was requested. A signal interrupts `make`, since half a part is
        never kept; it is held back while a part is written. Raises OSError where a part cannot be written.
        """
        path = self.folder / f"{name}.arrow"
        summary = self._read_summary(path)
        if summary is not None:
            self.tally.update(summary["tally"])
            self.earlier_seconds += summary["seconds"]
            return path
        if preemption.stop_requested():
            raise preemption.Preempted(f"stopped on request before part {name}")
        # a copy, since `make` raises the counter in place and the part stores its own share alone
        before, started = Counter(self.tally), time.perf_counter()
        batch = make()
        # A signal in these lines only sets the flag, which is read after them. The summary is written last: a part
        # without one is incomplete, so a crash between the two files costs one part.
        with preemption.polling():
            size = _write(path, batch)
            counted = dict(self.tally - before)
            seconds = time.perf_counter() - started
            summary = {"belongs": self.stage_fingerprint, "size": size, "tally": counted, "seconds": seconds}
            summary["sha256"] = file_sha256(path, remember=False)
            write_json(path.with_suffix(".json"), summary)
            fsync(self.folder)
        if preemption.stop_requested():
            raise preemption.Preempted(f"stopped on request after part {name}")
        return path

    def _read_summary(self, path: Path) -> dict[str, Any] | None:
        """The JSON file of a part; None where the part is incomplete or of another stage."""
        try:
            summary = json.loads(path.with_suffix(".json").read_text())
            whole = summary["belongs"] == self.stage_fingerprint and path.stat().st_size == summary["size"]
            # a part of an earlier version states no hash
            whole = whole and content_sha256(path) == summary.get("sha256", content_sha256(path))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return summary if whole else None


def read_batch(path: Path) -> pa.RecordBatch:
    """The record batch of a part, memory-mapped.

    Raises OSError where the file cannot be opened, ValueError where it is no Arrow file.
    """
    return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)


def _write(path: Path, batch: pa.RecordBatch) -> int:
    """Write a batch as one file, which is complete or absent; returns its size in bytes."""
    # A name of its own: leases are advisory, so two attempts may write the same part at the same time. The folder is
    # made again where the other one has published the artifact, and with that removed it.
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished, open(unfinished, "wb") as file:
        with pa.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
        return file.tell()
