"""Job accounting: Slurm's states of the tasks that make a grid's stages, for stages of which the store has none.

One call of `sacct` for a whole grid, or of `squeue` where the cluster keeps no accounts. The artifact decides before
its attempts, and its attempts before Slurm. A task that Slurm does not list has no state, which is not a failure.

    states_of(store, keys)["evaluate-3f2a..."]      # StageState("pending", reason="job 1234_3: Dependency")
"""

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass

from harness.config.checks import SettingsError
from harness.execution.slurm.squeue import run_command
from harness.execution.slurm.submissions import log_files, read_entries
from harness.runtime.preemption import EXIT_CODE
from harness.store.status import StageState, stage_state
from harness.store.store import Store

FIELDS = "JobName,JobID,State,ExitCode,ElapsedRaw,AllocTRES,NodeList,Reason"
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED")
RUNNING = ("RUNNING", "COMPLETING", "CONFIGURING", "STAGE_OUT", "RESIZING")
CLASSES = {
    "OUT_OF_MEMORY": "oom_host",
    "TIMEOUT": "timeout",
    "DEADLINE": "timeout",
    "PREEMPTED": "preempted",
    "NODE_FAIL": "node_failure",
    "BOOT_FAIL": "node_failure",
    "CANCELLED": "cancelled",
}
"""Failure class of a job that ended without its artifact, by Slurm's state; any other state is `application`."""
OUT_OF_MEMORY = ("exceeded job memory limit", "exceeded memory limit", "oom-kill", "oom_kill", "out of memory")
LOG_TAIL = 4000


@dataclass(frozen=True)
class Account:
    """One line of Slurm's accounts: one run of one task."""

    array: str
    task: int
    job: str
    state: str
    exit_code: int
    seconds: float
    cpus: int
    gpus: int
    nodes: str
    reason: str


def states_of(store: Store, keys: Iterable[str]) -> dict[str, StageState]:
    """The state of every key: that of the store, or where the store has none, that of the job which is to make it.

    Raises SettingsError where Slurm does not answer.
    """
    found = {key: stage_state(store, key) for key in keys}
    for key, account in latest(store, (key for key, state in found.items() if not _is_decided(state))).items():
        found[key] = _state(account, store) or found[key]
    return found


def latest(store: Store, keys: Iterable[str]) -> dict[str, Account]:
    """The last run of the task of each key, for keys that were submitted and whose cluster this machine can query.

    Raises SettingsError as `accounts`.
    """
    entries = read_entries(store, keys)
    # accounts come with older runs first, so the last run of a task stays
    runs = {(one.array, one.task): one for one in accounts({entry["array"] for entry in entries.values()})}
    tasks = {key: (entry["array"], entry["task"]) for key, entry in entries.items()}
    return {key: runs[task] for key, task in tasks.items() if task in runs}


def accounts(arrays: Iterable[str], every_try: bool = False) -> list[Account]:
    """The cluster's accounts of the tasks of some arrays, older runs first.

    `every_try`: also the runs before a requeue. Empty on a machine without Slurm. Raises SettingsError where Slurm does
    not answer.
    """
    names = set(arrays)
    if not names or shutil.which("sacct") is None:
        return []
    more = ["--duplicates"] if every_try else []
    try:
        # -X leaves out the steps inside a job; without -S sacct begins at midnight of today
        command = ("sacct", "-X", "-n", "-P", *more, f"--name={','.join(sorted(names))}")
        text = run_command(*command, "-S", "now-90days", "-o", FIELDS)
    except SettingsError as error:
        # a cluster without accounts knows pending and running jobs only; squeue has no exit code, time or resources
        if "disabled" not in str(error):
            raise
        text = run_command("squeue", "-h", "-r", "-o", "%j|%i|%T|0:0|0||%N|%r")
    lines = (line.split("|") for line in text.splitlines())
    # a pending array that Slurm has not split yet is one line for many tasks: "12_[3-9]"
    return [_account(*line) for line in lines if line[0] in names and "[" not in line[1]]


def _is_decided(state: StageState) -> bool:
    # an attempt that left no outcome may be queued again, or Slurm may know why it ended
    return state.status not in ("missing", "interrupted")


def _account(
    name: str, job: str, state: str, exit_code: str, seconds: str, resources: str, nodes: str, reason: str
) -> Account:
    task = re.search(r"_(\d+)$", job)
    amounts = dict(re.findall(r"(cpu|gres/gpu)=(\d+)", resources))
    return Account(
        name,
        int(task[1]) if task else 0,
        job,
        # "CANCELLED by 1000" is a state too
        state.split()[0] if state else "",
        int(exit_code.partition(":")[0] or 0),
        float(seconds or 0),
        int(amounts.get("cpu", 0)),
        int(amounts.get("gres/gpu", 0)),
        "" if nodes == "None assigned" else nodes,
        reason,
    )


def _state(account: Account, store: Store) -> StageState | None:
    """The state of the stage that the task makes; None where the job ended well, so that the store's state holds."""
    if account.state in WAITING:
        why = account.reason.strip("()")
        return StageState("pending", reason=f"job {account.job}" + (f": {why}" if why not in ("", "None") else ""))
    if account.state in RUNNING:
        return StageState("running", reason=f"job {account.job} on {account.nodes}")
    if account.state == "COMPLETED" or account.exit_code == EXIT_CODE:
        return None  # it was asked to stop and left a checkpoint, or the artifact was removed since
    reason = f"job {account.job} ended as {account.state.lower().replace('_', ' ')}"
    if account.state == "FAILED":
        reason += f" with exit code {account.exit_code}"
        if _ran_out_of_memory(account, store):
            return StageState("failed", "oom_host", f"{reason}, out of memory")
    return StageState("failed", CLASSES.get(account.state, "application"), reason)


def _ran_out_of_memory(account: Account, store: Store) -> bool:
    """Whether Slurm reports it in the job's output, as it does on clusters whose accounts only state a failed job."""
    tails = (path.read_text(errors="replace")[-LOG_TAIL:].lower() for path in log_files(store, account.job))
    return any(word in tail for tail in tails for word in OUT_OF_MEMORY)
