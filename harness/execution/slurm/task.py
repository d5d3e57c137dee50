"""A task of a job: stages made by address from a frozen submission."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from harness.config.machine import Machine
from harness.execution.attempt import AttemptResult, alone, attempt, follow, record_failure
from harness.execution.distributed.coordinator import Coordinator, Participant
from harness.execution.distributed.process_group import own_rank
from harness.plan.graph import MAKERS, TOGETHER
from harness.runtime import preemption
from harness.runtime.processes import slurm_job
from harness.store.status import STUCK_AFTER, stuck
from harness.store.storage_error import StorageError, storage_faults
from harness.store.store import Store

BUSY_SECONDS = 5.0
REQUEUE_SECONDS = 60.0


def run(addresses: Sequence[str], submission: str) -> None:
    """Started by submitit: as `make`, and a failure is this process's exit code. Raises as `make` does."""
    code = make(addresses, Path(submission))
    if code:
        sys.stdout.flush()
        os._exit(code)  # submitit would otherwise write the exit down as a result


def make(addresses: Sequence[str], submission: Path) -> int:
    """Make every address with what only it needs; the first failure does not keep the others from being made.

    Of several processes of one job rank 0 decides and makes; the others make with it what takes all of them.
    Returns the exit code of this process. Raises OSError or ValueError where the submission cannot be read, KeyError
    for an address that it lacks, TimeoutError where rank 0 does not answer.
    """
    os.environ.setdefault("OMP_NUM_THREADS", os.environ.get("SLURM_CPUS_PER_TASK", "1"))  # read by torch at import
    text = submission.read_text()
    written = json.loads(text)
    store, machine = Store(Path(written["store"])), Machine(**written["machine"])
    rank = own_rank()
    if rank is None:
        return _make_all(addresses, written, store, machine, None)
    if rank.number > 0:
        return Participant(rank, text, store).serve(partial(_follow, store, written, machine))
    # the code is 1 until all is made: an error that passes through here must not end the other ranks as a success
    coordinator, code = Coordinator(rank, text, store), 1
    try:
        code = _make_all(addresses, written, store, machine, coordinator)
    finally:
        coordinator.end(code)
    return code


def _make_all(
    addresses: Sequence[str],
    written: Mapping[str, Any],
    store: Store,
    machine: Machine,
    coordinator: Coordinator | None,
) -> int:
    # a target may be named by its address or its key
    jobs = {written["stages"][key]["address"]: keys for key, keys in written["jobs"].items()} | written["jobs"]
    failed: dict[str, str] = {}
    try:
        with preemption.stoppable_between(), storage_faults(store.root):
            for address in addresses:
                if failed.keys() & jobs[address]:
                    continue  # a stage that it needs has just failed, and that was reported
                outcome = _make_target(store, written, jobs[address], machine, coordinator)
                if outcome.status != "done":
                    failed[outcome.key] = f"{address}: {outcome.failure_class}: {outcome.reason}"
                # no further stage can begin without the lost process; the job ends, and its dependents see that it
                # failed
                if coordinator is not None and coordinator.lost:
                    break
    except preemption.Preempted as stopped:
        print(f"harness: {stopped}; what was done is kept", flush=True)
        # SIGTERM may come from scancel, which must not be undone; SIGUSR2 is the notice that the submission asked for
        if preemption.received() == signal.SIGUSR2:
            requeue(written["cluster"]["restarts"])
        return preemption.EXIT_CODE
    except StorageError as fault:
        print(f"harness: {fault}", flush=True)
        return 1
    for line in failed.values():
        print(f"harness: {line}", flush=True)
    return 1 if failed else 0


def _follow(store: Store, written: Mapping[str, Any], machine: Machine, key: str) -> tuple[str, str] | None:
    """Make one stage together with rank 0; the failure class and reason, or None."""
    spec = written["stages"][key]
    return follow(store, spec, MAKERS[spec["kind"]][0], machine)


def _make_target(
    store: Store, written: Mapping[str, Any], keys: Sequence[str], machine: Machine, coordinator: Coordinator | None
) -> AttemptResult:
    """One target: its private stages in order, inputs looked up again; how the last, or the failed one, ended."""
    outcome = AttemptResult("", "done")
    for key in keys:
        spec = written["stages"][key]
        # The store decides, not the dependency between jobs: an input may have been removed since, and a stage that is
        # done needs none.
        missing = [upstream for upstream in spec["inputs"].values() if not store.done(upstream)]
        if missing and not store.done(key):
            address = written["stages"][missing[0]]["address"]
            return AttemptResult(key, "failed", "blocked", f"needs {address}, which is not in the store")
        outcome = _make_stage(store, spec, machine, coordinator)
        if outcome.status != "done":
            return outcome
    return outcome


def _make_stage(
    store: Store, spec: Mapping[str, Any], machine: Machine, coordinator: Coordinator | None
) -> AttemptResult:
    """One stage; where another job is making it, that one is waited for."""
    key = spec["key"]
    if not store.done(key) and not store.claimed(key) and stuck(store.attempts(key)):
        reason = f"stopped {STUCK_AFTER} times in a row without progress; give it more time or memory"
        record_failure(store, spec, "stuck", reason)
        return AttemptResult(key, "failed", "stuck", reason)
    others = alone if coordinator is None else partial(coordinator.stage, all_make=spec["kind"] in TOGETHER)
    while True:
        print(f"harness: {spec['address']}", flush=True)
        outcome = attempt(store, spec, MAKERS[spec["kind"]][0], machine, others=others)
        if outcome.status != "busy":
            return outcome
        # the other process may fail or die; then the next attempt takes the lease
        while store.claimed(key) and not store.done(key):
            time.sleep(BUSY_SECONDS)


def requeue(restarts: int) -> None:
    """Put this job back into the queue, a bounded number of times; a scontrol that is away or hangs is reported."""
    job = slurm_job()
    if job is None:
        return
    if int(os.environ.get("SLURM_RESTART_COUNT", "0")) >= restarts:
        print(f"harness: not queued again after {restarts} restarts; raise slurm.restarts to allow more", flush=True)
        return
    # a refusal is not checked: the checkpoint is kept, and the process ends with its exit code in either case
    try:
        subprocess.run(["scontrol", "requeue", job], timeout=REQUEUE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"harness: not queued again ({type(error).__name__}); send the grid again to continue", flush=True)
