"""Jobs: what Slurm says of the tasks that were to make a grid's stages, where the store itself is silent.

One call of `sacct` for a whole grid, or of `squeue` where the cluster keeps no accounts. Truth in order: the
artifact, its attempts, then this. A job nobody sees is `unknown`, never failed.

    states = job_states(store, keys); states[key].status, states[key].reason
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.checks import SettingsError
from harness.launch.queue import ask
from harness.status import StageState
from harness.store import Store

FIELDS = "JobName,JobID,State,ExitCode,ElapsedRaw,AllocTRES,Reason"
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
    "FAILED": "application",
    "COMPLETED": "application",
}
"""How a job that ended without its artifact is classed, by Slurm's word."""


@dataclass(frozen=True)
class JobState:
    """One task as Slurm sees it: `pending`, `running`, `ended` (with a class) or `unknown`, and why."""

    job: str
    status: str
    failure_class: str | None = None
    reason: str = ""

    def as_stage_state(self, known: StageState) -> StageState:
        """The state of what the task makes, where the store says only `known`."""
        if self.status in ("pending", "running"):
            return StageState(self.status, reason=f"job {self.job}" + (f": {self.reason}" if self.reason else ""))
        if self.status == "ended":
            return StageState("failed", self.failure_class, self.reason)
        return known


@dataclass(frozen=True)
class Account:
    """One line of accounts: a try at one task."""

    array: str
    task: int
    job: str
    state: str
    exit_code: str
    seconds: float
    gpus: int
    reason: str


def job_states(store: Store, keys: Iterable[str]) -> dict[str, JobState]:
    """The state of the task that makes each key, for keys that were ever sent to Slurm."""
    notes = read_notes(store, keys)
    latest: dict[tuple[str, int], Account] = {}
    for account in accounts({note["array"] for note in notes.values()}):
        latest[account.array, account.task] = account
    return {key: _state(latest.get((note["array"], note["task"]))) for key, note in notes.items()}


def read_notes(store: Store, keys: Iterable[str]) -> dict[str, Mapping[str, Any]]:
    """The notes that say which task makes a key, where there is one."""
    found = {}
    for key in keys:
        try:
            found[key] = json.loads((store.root / "jobs" / key).read_text())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            continue
    return found


def accounts(arrays: Iterable[str], every_try: bool = False) -> list[Account]:
    """What the cluster's accounts say of the tasks of some arrays, older tries first; `every_try`: those before a
    requeue too."""
    names = sorted(arrays)
    if not names:
        return []
    more = ["--duplicates"] if every_try else []
    try:
        text = ask(
            "sacct", "-X", "-n", "-P", "--array", *more, f"--name={','.join(names)}", "-S", "now-90days", "-o", FIELDS
        )
    except SettingsError as error:
        if "disabled" not in str(error):
            raise
        text = ask("squeue", "-h", "-r", "-o", "%j|%i|%T|0:0|0||%r")
    wanted = set(names)
    found = [_account(line) for line in text.splitlines() if line.partition("|")[0] in wanted]
    return [one for one in found if one is not None]


def _account(line: str) -> Account | None:
    name, job, state, exit_code, seconds, resources, reason = line.split("|")[:7]
    task = re.search(r"_(\d+)$", job)
    if "[" in job:  # a pending array that Slurm has not split yet
        return None
    gpus = re.search(r"gres/gpu=(\d+)", resources)
    return Account(
        name,
        int(task[1]) if task else 0,
        job,
        state.split()[0] if state else "",
        exit_code,
        float(seconds or 0),
        int(gpus[1]) if gpus else 0,
        reason,
    )


def _state(account: Account | None) -> JobState:
    if account is None:
        return JobState("", "unknown", reason="Slurm no longer knows its job")
    if account.state in WAITING:
        return JobState(account.job, "pending", reason=account.reason.strip("()"))
    if account.state in RUNNING:
        return JobState(account.job, "running")
    said = f"job {account.job} ended as {account.state.lower().replace('_', ' ')}"
    if account.state == "FAILED":
        said += f" with exit code {account.exit_code.partition(':')[0]}"
    return JobState(account.job, "ended", CLASSES.get(account.state, "application"), said)
