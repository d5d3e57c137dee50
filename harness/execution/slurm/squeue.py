"""The queue: nodes, limits and jobs of a cluster, read with Slurm's own commands.

Reading it takes one call each of `squeue`, `sinfo` and `scontrol`, whatever the size of the grid, and one more of
`squeue` where the accounts limit this user's jobs.

    queue = Queue.read(); queue.job_id("my_grid.cells.3f2a10.0", task=3)      # "1234_3", or None
"""

import getpass
import re
import shutil
import subprocess
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from harness.config.checks import SettingsError, refuse
from harness.config.cluster import Cluster, Resources

SECONDS = 60.0
AWAY_SECONDS = 120.0  # a controller that is restarted is back by then
AGAIN_SECONDS = 5.0
DEFAULT_LARGEST_ARRAY = 1001
DEFAULT_MOST_JOBS = 10000


class Node(NamedTuple):
    """CPUs, memory and GPUs of one kind of node in a partition."""

    partition: str
    cpus: int
    memory_gb: float
    gpus: int


@dataclass
class Queue:
    """One cluster at the time of the last reading."""

    nodes: Sequence[Node]
    largest_array: int
    most_jobs: int
    """Jobs of all users that may be in the queue at once."""
    own_limit: int | None = None
    """Jobs of this user that may be in the queue at once; None: no limit of its own."""
    jobs: dict[tuple[str, int], str] = field(default_factory=dict)
    """Ids of pending and running jobs of all users, by name and task (0 for a job that is no array)."""
    own_jobs: int = 0
    """How many of them are this user's; counted only where `own_limit` is set."""

    @classmethod
    def read(cls) -> "Queue":
        """Query Slurm; raises SettingsError where this machine has no Slurm or the controller does not answer."""
        if shutil.which("sbatch") is None:
            raise SettingsError(
                "slurm cannot be used: there is no sbatch on this machine; run this on a login node of the cluster, or "
                "try `slurm/dev_cluster start`."
            )
        config = dict(re.findall(r"^(\w+)\s*=\s*(\d+)", run_command("scontrol", "show", "config"), re.MULTILINE))
        queue = cls(
            _nodes(run_command("sinfo", "-h", "-o", "%R|%c|%m|%G")),
            int(config.get("MaxArraySize", DEFAULT_LARGEST_ARRAY)),
            int(config.get("MaxJobCount", DEFAULT_MOST_JOBS)),
            min(_own_limits(), default=None),
        )
        queue.refresh()
        return queue

    def refresh(self) -> None:
        """Read the jobs in the queue again. Raises SettingsError where the controller does not answer."""
        self.jobs = tasks_of()
        if self.own_limit is not None:
            own = run_command("squeue", "-h", "-r", "-o", "%i", f"--user={getpass.getuser()}")
            self.own_jobs = len(own.splitlines())

    @property
    def room(self) -> int:
        """How many more tasks the queue takes from this user."""
        room = self.most_jobs - len(self.jobs)
        return room if self.own_limit is None else min(room, self.own_limit - self.own_jobs)

    def add(self, array: str, jobs: Sequence[str]) -> None:
        """Add tasks that were submitted after the last reading."""
        self.jobs |= {(array, task): job for task, job in enumerate(jobs)}
        self.own_jobs += len(jobs)

    def job_id(self, array: str, task: int) -> str | None:
        """The id of a task that waits or runs, as a dependency names it."""
        return self.jobs.get((array, task))

    def check(self, rule: Resources, cluster: Cluster) -> None:
        """Raise SettingsError where no node of the rule's partition has the resources that the rule requests."""
        partition = rule.partition or cluster.partition
        names = sorted({node.partition for node in self.nodes})
        if partition is not None and partition not in names:
            raise refuse("slurm.partition", partition, f"{cluster.name} has {', '.join(names)}")
        nodes = [node for node in self.nodes if partition in (None, node.partition)]
        requested = {"gpus": rule.gpus, "cpus": rule.cpus * rule.tasks_per_node, "memory_gb": rule.memory_gb or 0}
        for name, amount in requested.items():
            most = max((getattr(node, name) for node in nodes), default=0)
            if amount > most:
                raise refuse(
                    f"slurm.resources.{name}", amount, f"the largest node of {partition or cluster.name} has {most:g}"
                )


def tasks_of(arrays: Collection[str] = (), patience: float | None = None) -> dict[tuple[str, int], str]:
    """Ids of the tasks that wait or run, by name and task; of all jobs, or of these arrays.

    `patience`: seconds to wait for a controller that is away. Raises SettingsError where it stays away,
    FileNotFoundError where this machine has no squeue.
    """
    found = {}
    chosen = [f"--name={','.join(sorted(arrays))}"] if arrays else []
    # -r gives each task of an array its own line; a pending array is one line otherwise
    for line in run_command("squeue", "-h", "-r", "-o", "%j|%K|%i", *chosen, patience=patience).splitlines():
        # from the right: a job's name is free text and may contain the separator
        name, task, job = line.rsplit("|", 2)
        found[name, int(task) if task.isdigit() else 0] = job
    return found


def run_command(*command: str, patience: float | None = None) -> str:
    """The output of a Slurm command.

    Raises SettingsError where the command fails, hangs, or no controller answers within `patience` seconds. Raises
    FileNotFoundError where this machine has no such command.
    """
    end = time.monotonic() + (AWAY_SECONDS if patience is None else patience)
    while True:
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise SettingsError(
                f"{command[0]} did not answer within {SECONDS:g} s; check that the controller runs"
            ) from error
        if not answer.returncode:
            return answer.stdout
        # only an absent controller is waited for; any other refusal is taken as final
        if "Unable to contact" not in answer.stderr or time.monotonic() > end:
            reason = (answer.stderr.strip().splitlines() or ["no reason given"])[0]
            raise SettingsError(f"{' '.join(command[:3])} failed: {reason}; run it on a login node of the cluster")
        time.sleep(AGAIN_SECONDS)


def _own_limits() -> list[int]:
    """Limits of this user's jobs in the queue, from the cluster's accounts; empty where they set none."""
    # a cluster without accounts has no such limits
    with suppress(SettingsError, FileNotFoundError):
        limits = run_command(
            "sacctmgr", "-n", "-P", "show", "assoc", f"user={getpass.getuser()}", "format=MaxSubmitJobs"
        )
        return [int(limit) for limit in limits.split()]
    return []


def _nodes(text: str) -> list[Node]:
    found = []
    for line in text.splitlines():
        partition, cpus, memory, gres = line.split("|")
        # gres is `gpu:4`, `gpu:a100:4(S:0-1)`, or several of them; sinfo writes `16+` where the nodes of a line
        # differ, and states the least
        gpus = sum(int(number) for number in re.findall(r"gpu(?::[^:,(]+)?:(\d+)", gres))
        found.append(Node(partition, int(cpus.rstrip("+")), int(memory.rstrip("+")) / 1024, gpus))
    return found
