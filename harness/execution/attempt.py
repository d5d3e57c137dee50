"""One attempt at a stage: take its lease, make it, publish it, and record how the attempt ended.

Every worker runs this, on any machine; launchers decide where. A failure gets a class, by which it is shown and
retried (`retry.py`).
"""

import importlib
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.config.checks import SettingsError
from harness.config.machine import Machine
from harness.config.secrets import masked
from harness.execution import wandb_run
from harness.execution.base_references import check_references
from harness.models.diverged import DivergedError, check_facts
from harness.runtime import preemption
from harness.runtime.processes import ProcessError, process_count, slurm_job, threads, visible_gpus
from harness.runtime.progress import LineListener, Listener, Progress, listen
from harness.runtime.provenance import provenance
from harness.store.integrity import InputError, check_inputs, damage, set_aside
from harness.store.storage_error import FULL, StorageError, storage_faults
from harness.store.store import DamagedError, Lease, Store, write_json
from harness.teachers.http_endpoint import ServerError

HEARTBEAT_SECONDS = 15.0


@dataclass(frozen=True)
class AttemptResult:
    """How an attempt ended: `done`, `failed` (with class and one line), or `busy` (another process holds its lease)."""

    key: str
    status: str
    failure_class: str | None = None
    reason: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    ends_run: bool = False
    """Whether the store itself is full, read-only or gone, so that no other stage can be published either."""


Others = Callable[[str, Lease], AbstractContextManager[None]]
"""From a stage's key and lease to the context in which it is made, together with the job's other processes."""


def alone(key: str, lease: Lease) -> AbstractContextManager[None]:
    """The context of a job of one process."""
    return nullcontext()


def attempt(
    store: Store,
    spec: Mapping[str, Any],
    maker: str,
    machine: Machine,
    listener: Listener = lambda progress: None,
    others: Others = alone,
) -> AttemptResult:
    """Make one stage unless it is done or another process holds its lease.

    `spec` is `Stage.spec()`; it may add `machine` (settings of the machine for this stage alone), `retried` (a note for
    the stage's record), `track` and `verify`. `maker` is "module:function". Inputs must be published; they are verified
    first, and a damaged one is set aside: the result is then of class `input`. Of the processes of one job
    rank 0 calls `attempt` and the others call `follow`; `others(key, lease)` is the context in which rank 0 makes the
    stage with them.

    A failure of the stage is returned, not raised, and so is a fault of the store. Raises Preempted when a signal
    (SIGTERM, SIGUSR2) requests a stop: the next attempt continues from the checkpoints that this one leaves.
    """
    key, machine = spec["key"], replace(machine, **spec.get("machine", {}))
    lease = attempt_log = None
    try:
        with storage_faults(store.root):
            if (facts := _published_facts(store, key)) is not None:
                return AttemptResult(key, "done", facts=facts)
            lease = store.claim(key)
            if lease is None:
                return AttemptResult(key, "busy")
            # again: it may have been published after the first look and before the lease was taken
            if (facts := _published_facts(store, key)) is not None:
                return AttemptResult(key, "done", facts=facts)
            with (
                preemption.stoppable(store.checkpoints(key)),
                AttemptLog(store, spec, lease) as attempt_log,
                storage_faults(store.root),  # within, so that the log has the class and the sentence
            ):

                def on_progress(progress: Progress) -> None:
                    attempt_log.note(progress)
                    listener(progress)

                check_inputs(store, spec, spec.get("verify", "full"))
                if spec.get("verify", "full") == "full":
                    check_references(store, spec)
                # Tracking ends before publication: what went wrong with it is a warning in the published manifest.
                with store.scratch(key) as out, storage_faults(store.root, out):
                    with wandb_run.curve(store, spec) as curve, others(key, lease):
                        attempt_log.entry |= {"machine": asdict(machine), "processes": process_count()}
                        manifest = _make(store, spec, maker, machine, out, on_progress, curve.log)
                    facts = manifest["facts"]
                    if curve.problem is not None:
                        facts["warnings"] = [*facts.get("warnings", []), curve.problem]
                    store.publish(key, out, manifest)
            return AttemptResult(key, "done", facts=facts)
    except Exception as error:  # Preempted and KeyboardInterrupt are none: they pass, and the caller stops
        # The artifact decides: it may be in its place although syncing it failed, or another attempt has published it
        # and removed what this one still needed.
        with suppress(OSError, ValueError):
            if store.done(key):
                return AttemptResult(key, "done", facts=store.manifest(key)["facts"])
        failure = failure_class(error)
        if attempt_log is None:  # the lease or the log could not be written; a fault that has passed is recorded now
            with suppress(OSError):
                record_failure(store, spec, failure, one_line(error))
        ends_run = isinstance(error, StorageError) and (error.number in FULL or not writable(store))
        return AttemptResult(key, "failed", failure, one_line(error), ends_run=ends_run)
    finally:
        if lease is not None:
            lease.release()


def _published_facts(store: Store, key: str) -> Mapping[str, Any] | None:
    """The facts of a published artifact; None where there is none, or its manifest is damaged and set aside."""
    try:
        return store.manifest(key)["facts"] if store.done(key) else None
    except DamagedError:
        if (found := damage(store, key, largest=-1)) is not None:
            set_aside(store, found)
    except FileNotFoundError:  # another process has set it aside
        pass
    return None


def writable(store: Store) -> bool:
    """Whether the store takes a small file now."""
    try:
        Store.open(store.root)
    except SettingsError:
        return False
    return True


def follow(store: Store, spec: Mapping[str, Any], maker: str, machine: Machine) -> tuple[str, str] | None:
    """Make a stage on a rank other than 0, whose process attempts it; returns (failure class, line), or None.

    This rank takes no lease, records no attempt and publishes nothing. It sees a signal only in a maker that polls,
    where all ranks answer it at the same step.
    """
    machine = replace(machine, **spec.get("machine", {}))
    try:
        with (
            storage_faults(store.root),
            preemption.stoppable(store.checkpoints(spec["key"])),
            preemption.polling(),
            store.scratch(spec["key"]) as out,
        ):
            _make(store, spec, maker, machine, out, lambda progress: None)
    except preemption.Preempted:
        return None  # so was rank 0, which records it
    except Exception as error:
        return failure_class(error), one_line(error)
    return None


def _make(
    store: Store,
    spec: Mapping[str, Any],
    maker: str,
    machine: Machine,
    out: Path,
    listener: Listener,
    lines: LineListener | None = None,
) -> dict[str, Any]:
    """The manifest of a stage made in `out`, with its facts."""
    module, function = maker.split(":")
    make = getattr(importlib.import_module(module), function)
    inputs = {role: store.folder(key) for role, key in spec["inputs"].items()}
    # the monotonic clock, since the other may be set while the stage is made
    started = time.monotonic()
    with listen(listener, lines), threads(machine.threads or spec.get("threads")):
        facts = make({**spec["settings"], "where": spec["where"]}, inputs, out, machine)
    check_facts(facts)
    if "retried" in spec:
        facts["warnings"] = [*facts.get("warnings", []), f"made {spec['retried']}"]
    # a stage that continued states the seconds of its earlier attempts, so the artifact has its whole cost
    facts = {**facts, "seconds": time.monotonic() - started + facts.get("earlier_seconds", 0.0)}
    ran_on = {**asdict(machine), "gpu": _gpu_name(), "processes": process_count()}
    return {
        **spec,
        "facts": facts,
        "provenance": provenance(),
        "machine": ran_on,
        "published": time.time(),
    }


def _gpu_name() -> str | None:
    """Name of the GPU in use; None where the stage did not import torch or torch found no GPU."""
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None


class AttemptLog:
    """The file of one attempt: written at the start, at every heartbeat, and at the end with the outcome."""

    def __init__(self, store: Store, spec: Mapping[str, Any], lease: Lease) -> None:
        self.path: Path = store.new_attempt(spec["key"])
        self.lease = lease
        self.entry: dict[str, Any] = {
            "address": spec["address"],
            "inputs": sorted(spec["inputs"].values()),
            "started": time.time(),
            "outcome": "running",
            **place(),
            **{name: None for name in ("step", "total", "loss", "ended", "failure_class", "reason", "traceback")},
        }
        self._begun = time.monotonic()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def note(self, progress: Progress) -> None:
        """Keep the stage's progress; the next heartbeat writes it."""
        self.entry |= {"step": progress.step, "total": progress.total, "loss": progress.loss}

    def __enter__(self) -> "AttemptLog":
        self._write()
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._stop.set()
        # joined first: the outcome is written below, and no beat may follow it
        self._thread.join()
        self.entry |= {"outcome": "done", "ended": time.time()}
        if isinstance(error, preemption.Preempted) and isinstance(error.__context__, ProcessError):
            error = error.__context__  # the stop arrived while a stage that had lost a process was cleaned up
        if error is not None:
            stopped = isinstance(error, KeyboardInterrupt | SystemExit) or failure_class(error) == "killed"
            self.entry |= {
                "outcome": "interrupted" if stopped else "failed",
                "failure_class": failure_class(error),
                "reason": one_line(error),
                "traceback": masked("".join(traceback.format_exception(error))),
            }
        # A store that is full or gone takes no page either. How the attempt ended is its caller's result all the same,
        # and an attempt without an end is made again.
        with suppress(OSError):
            self._write()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            # far more often than `store.STALE_SECONDS`, so a few beats that a shared folder refuses cost no lease
            self.lease.beat()
            with suppress(OSError):  # as on a full disk, where the next beat may find room again
                self._write()

    def _write(self) -> None:
        # JSON has neither NaN nor infinity, and a loss that diverged must not end the heartbeat
        loss = self.entry["loss"]
        finite = loss is not None and abs(loss) < float("inf")
        with self._lock:
            # by the monotonic clock: `started`, `heartbeat` and `ended` are off where the clock was set in between
            seconds = time.monotonic() - self._begun
            entry = {**self.entry, "heartbeat": time.time(), "seconds": seconds}
            write_json(self.path, {**entry, "loss": loss if finite else None})


def place() -> dict[str, Any]:
    """Where this process runs and what it may use: `host`, `pid`, `job` (Slurm's id, or None), `cpus`, `gpus`."""
    return {
        # Slurm's name of the node, which `sbatch --exclude` takes when a retry avoids it
        "host": os.environ.get("SLURMD_NODENAME", socket.gethostname()),
        "pid": os.getpid(),
        "job": slurm_job(),
        "cpus": int(os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("OMP_NUM_THREADS") or 1)
        * int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")),
        "gpus": int(os.environ.get("SLURM_JOB_NUM_NODES", "1")) * len(visible_gpus()),
    }


def record_death(store: Store, key: str, reason: str, failure: str = "killed") -> None:
    """Record the end of the last attempt at `key` where its process died before it could do so itself.

    Where the store cannot be written, the attempt stays without an end; one of a dead process counts as interrupted.
    """
    with suppress(OSError):
        attempts, last = store.attempts(key), store.last_attempt_file(key)
        # an outcome that the process itself has recorded stays
        if last is not None and attempts and attempts[-1].get("outcome", "running") == "running":
            outcome = "interrupted" if failure == "killed" else "failed"
            entry = {**attempts[-1], "outcome": outcome, "failure_class": failure, "reason": reason}
            write_json(last, {**entry, "ended": time.time()})


def record_failure(store: Store, spec: Mapping[str, Any], failure: str, reason: str) -> None:
    """Record a failed attempt at a stage that was refused before it was made.

    Raises OSError where the store cannot be written.
    """
    now = time.time()
    entry = {"address": spec["address"], "started": now, "ended": now, "outcome": "failed", "reason": reason}
    write_json(store.new_attempt(spec["key"]), {**entry, "failure_class": failure})


def failure_class(error: BaseException) -> str:
    """The class of a failure, by which it is shown and retried."""
    name = type(error).__name__
    # The order matters: StorageError and ServerError are SettingsErrors, Preempted a SystemExit. Errors of torch are
    # known by name, since this module does not import it; torch reports missing host memory as a RuntimeError.
    if isinstance(error, ProcessError):
        return error.failure
    if isinstance(error, InputError):
        return "input"
    if isinstance(error, StorageError):
        return "storage"
    if isinstance(error, SettingsError):
        return "server" if isinstance(error, ServerError) else "settings"
    if isinstance(error, ImportError):
        return "import"
    if isinstance(error, MemoryError) or "DefaultCPUAllocator: can't allocate" in str(error):
        return "oom_host"
    if name == "OutOfMemoryError":
        return "oom_cuda"
    if isinstance(error, DivergedError):
        return "diverged"
    if isinstance(error, preemption.Preempted):
        return "preempted"
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "cancelled"
    return "application"


def one_line(error: BaseException) -> str:
    """The first line of an error's message; with the error's type unless the message is written for users."""
    first = masked((str(error).strip().splitlines() or [""])[0])
    return first if isinstance(error, SettingsError | ProcessError) else f"{type(error).__name__}: {first}"
