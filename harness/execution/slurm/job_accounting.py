"""Jobs: what Slurm says of the tasks that were to make a grid's stages, where the store itself is silent.

One call of `sacct` for a whole grid, or of `squeue` where the cluster keeps no accounts. Truth in order: the
artifact, its attempts, then this. A job nobody sees says nothing; it is never a failure.

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
"""How a job that ended without its artifact is classed, by Slurm's word; any other is `application`."""
OUT_OF_MEMORY = ("exceeded job memory limit", "exceeded memory limit", "oom-kill", "oom_kill", "out of memory")
LOG_TAIL = 4000


@dataclass(frozen=True)
class Account:
    """One line of accounts: a try at one task."""

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
    """The state of every key: what the store says, or where it has nothing, the job that was to make it."""
    found = {key: stage_state(store, key) for key in keys}
    for key, account in latest(store, (key for key, state in found.items() if not _tells(state))).items():
        found[key] = _state(account, store) or found[key]
    return found


def latest(store: Store, keys: Iterable[str]) -> dict[str, Account]:
    """The last try at each of those keys that were sent to a cluster this machine can ask."""
    notes = read_entries(store, keys)
    tries = {(one.array, one.task): one for one in accounts({note["array"] for note in notes.values()})}
    places = {key: (note["array"], note["task"]) for key, note in notes.items()}
    return {key: tries[place] for key, place in places.items() if place in tries}


def accounts(arrays: Iterable[str], every_try: bool = False) -> list[Account]:
    """What the cluster's accounts say of the tasks of some arrays, older tries first.

    `every_try`: those before a requeue too. Empty on a machine without Slurm.
    """
    names = set(arrays)
    if not names or shutil.which("sacct") is None:
        return []
    more = ["--duplicates"] if every_try else []
    try:
        command = ("sacct", "-X", "-n", "-P", *more, f"--name={','.join(sorted(names))}")
        text = run_command(*command, "-S", "now-90days", "-o", FIELDS)
    except SettingsError as error:
        if "disabled" not in str(error):
            raise
        text = run_command("squeue", "-h", "-r", "-o", "%j|%i|%T|0:0|0||%N|%r")
    lines = (line.split("|") for line in text.splitlines())
    # a pending array that Slurm has not split yet is one line for many tasks: "12_[3-9]"
    return [_account(*line) for line in lines if line[0] in names and "[" not in line[1]]


def _tells(state: StageState) -> bool:
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
        state.split()[0] if state else "",
        int(exit_code.partition(":")[0] or 0),
        float(seconds or 0),
        int(amounts.get("cpu", 0)),
        int(amounts.get("gres/gpu", 0)),
        "" if nodes == "None assigned" else nodes,
        reason,
    )


def _state(account: Account, store: Store) -> StageState | None:
    """The state of what the task makes; None where a job that ended well left the store to speak."""
    if account.state in WAITING:
        why = account.reason.strip("()")
        return StageState("pending", reason=f"job {account.job}" + (f": {why}" if why not in ("", "None") else ""))
    if account.state in RUNNING:
        return StageState("running", reason=f"job {account.job} on {account.nodes}")
    if account.state == "COMPLETED" or account.exit_code == EXIT_CODE:
        return None  # asked to stop, and what it did is kept; or made, and removed since
    said = f"job {account.job} ended as {account.state.lower().replace('_', ' ')}"
    if account.state == "FAILED":
        said += f" with exit code {account.exit_code}"
        if _ran_out_of_memory(account, store):
            return StageState("failed", "oom_host", f"{said}, out of memory")
    return StageState("failed", CLASSES.get(account.state, "application"), said)


def _ran_out_of_memory(account: Account, store: Store) -> bool:
    """Whether Slurm says so in the job's own output, as it does where its accounts only call the job failed."""
    tails = (path.read_text(errors="replace")[-LOG_TAIL:].lower() for path in log_files(store, account.job))
    return any(word in tail for tail in tails for word in OUT_OF_MEMORY)
