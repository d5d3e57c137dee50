"""The Slurm launcher: what a plan lacks becomes job arrays, in a few calls of sbatch, and the command returns.

A submission is a folder of the store that is whole before the first call: the stages, the tasks of every
array, and the code they run. Each target has a note in `jobs/` that says which task makes it, so whoever comes
later waits for that task and submits nothing twice; if its job is gone, the note counts for nothing. submitit
writes and sends the batch files. Jobs look at the store, not at Slurm: a dependency only spares them the wait.

    submission = submit(plan, store, settings, cluster, "my_grid")
"""

import json
import os
import shlex
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from harness import job
from harness.batches import Batch, batches, own_jobs
from harness.checks import refuse
from harness.cluster import Cluster, Resources
from harness.config import Settings
from harness.launch.jobs import read_notes
from harness.launch.queue import Queue
from harness.launch.snapshot import publish_code
from harness.plan import Plan
from harness.store import Store, write_json

WATCH_SECONDS = 10.0
SUBMITTING_SECONDS = 60.0
"""How long a live submitter may take between noting a target and having it in the queue."""


@dataclass(frozen=True)
class Submission:
    """What was sent: arrays by name, and how many targets others were already making."""

    folder: Path
    arrays: Mapping[str, list[str]]
    """Job ids of the tasks, by the array's name."""
    targets: int
    attached: int

    def told(self) -> str:
        """What was sent, in words."""
        lines = [f"{name}: {len(ids)} tasks, job {ids[0].partition('_')[0]}" for name, ids in self.arrays.items()]
        waiting = f"; {self.attached} are being made already" if self.attached else ""
        lines.append(f"{self.targets} jobs' work sent in {len(self.arrays)} calls of sbatch{waiting}")
        return "\n".join(lines)


def submit(plan: Plan, store: Store, settings: Settings, cluster: Cluster, grid: str) -> Submission:
    """Send what is neither in the store nor in the queue; raises SettingsError before anything is sent."""
    queue = Queue.look()
    chunks = [part for batch in batches(plan, store.done, cluster) for part in _chunks(batch, queue.largest_array)]
    for rule in {batch.resources for batch in chunks}:
        queue.check(rule, cluster)
    notes = Notes(store, queue)
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
    folder = store.root / "submissions" / name
    jobs = own_jobs(plan, store.done)
    sent: dict[str, list[str]] = {}
    attached = targets = 0
    made: list[tuple[str, Batch, list[tuple[str, ...]]]] = []
    for number, batch in enumerate(chunks):
        array = f"{grid}.{batch.kind}.{name[-6:]}.{number}"
        tasks: list[tuple[str, ...]] = []
        for task in batch.tasks:
            mine = tuple(key for key in task.targets if notes.take(key, array, len(tasks)))
            attached += len(task.targets) - len(mine)
            targets += len(mine)
            if mine:
                tasks.append(mine)
        if tasks:
            made.append((array, batch, tasks))
    if made:
        folder.mkdir(parents=True)
        write_json(
            folder / "submission.json",
            {
                "grid": grid,
                "cluster": cluster.name,
                "store": str(store.root),
                "restarts": cluster.restarts,
                "machine": asdict(settings.machine),
                "stages": {stage.key: stage.spec() for stage in plan.stages},
                "jobs": {key: [stage.key for stage in stages] for key, stages in jobs.items()},
                "arrays": {array: tasks for array, _, tasks in made},
            },
        )
        code = publish_code(store)
    for array, batch, tasks in made:
        after = [notes.job_of(key, sent) for key in sorted(batch.needs) if not store.done(key)]
        sent[array] = _send(folder, code, array, batch.resources, tasks, after, cluster, plan)
    return Submission(folder, sent, targets, attached)


def wait(store: Store, targets: Sequence[str], tell: Callable[[str], None]) -> None:
    """Return when no job in the queue makes any of the targets; `tell` hears of every change of the counts."""
    queue, said = Queue.look(), ""
    notes = read_notes(store, targets)
    while True:
        live = sum(queue.job_id(note["array"], note["task"]) is not None for note in notes.values())
        done = sum(map(store.done, targets))
        text = f"{done} of {len(targets)} evaluations done, {live} in the queue"
        if text != said:
            tell(text)
        if not live:
            return
        said = text
        time.sleep(WATCH_SECONDS)
        queue.look_again()


class Notes:
    """Which task of which array makes a target: `jobs/<key>` in the store."""

    def __init__(self, store: Store, queue: Queue) -> None:
        self.folder, self.queue = store.root / "jobs", queue
        self.folder.mkdir(exist_ok=True)

    def take(self, key: str, array: str, task: int) -> bool:
        """Note that `array` makes `key`; False where a live job, or one being sent, makes it already."""
        process = psutil.Process()
        note = {"array": array, "task": task, "host": socket.gethostname(), "pid": process.pid}
        for _ in range(2):
            try:
                with open(self.folder / key, "x") as file:
                    json.dump({**note, "time": time.time()}, file)
                return True
            except FileExistsError:
                if self.live(key):
                    return False
                with suppress(FileNotFoundError):
                    os.replace(self.folder / key, self.folder / f".{key}.{uuid.uuid4().hex}")
        return False

    def live(self, key: str) -> bool:
        """Whether the noted job is in the queue, or is being sent at this moment."""
        note = self._read(key)
        if note is None:
            return False
        if self.queue.job_id(note["array"], note["task"]) is not None:
            return True
        if time.time() - note["time"] > SUBMITTING_SECONDS or not _alive(note):
            return False
        return self._sent_at_last(note) is not None

    def job_of(self, key: str, sent: Mapping[str, list[str]]) -> str:
        """The job id to wait for: of an array sent just now, or one that is in the queue."""
        note = self._read(key)
        assert note is not None, f"nobody makes {key}"
        if note["array"] in sent:
            return sent[note["array"]][note["task"]]
        found = self.queue.job_id(note["array"], note["task"]) or self._sent_at_last(note)
        if found is None:
            raise refuse("slurm", note["array"], "its job left the queue while this one was sent", "run it again")
        return found

    def _sent_at_last(self, note: Mapping[str, Any]) -> str | None:
        """The id of a job that another submitter is sending, once it is in the queue."""
        while time.time() - note["time"] < SUBMITTING_SECONDS and _alive(note):
            self.queue.look_again()
            if (found := self.queue.job_id(note["array"], note["task"])) is not None:
                return found
            time.sleep(1.0)
        return None

    def _read(self, key: str) -> dict[str, Any] | None:
        try:
            return json.loads((self.folder / key).read_text())
        except (FileNotFoundError, ValueError):
            return None


def _alive(note: Mapping[str, Any]) -> bool:
    """Whether the process that noted it runs; that of another machine counts as alive for its minute."""
    return note["host"] != socket.gethostname() or psutil.pid_exists(note["pid"])


def _chunks(batch: Batch, largest: int) -> Iterator[Batch]:
    """The batch in arrays that the cluster takes."""
    for first in range(0, len(batch.tasks), largest):
        yield Batch(batch.tasks[first : first + largest], batch.resources, batch.needs, batch.kind)


def _send(
    folder: Path,
    code: Path,
    array: str,
    resources: Resources,
    tasks: Sequence[Sequence[str]],
    after: Sequence[str],
    cluster: Cluster,
    plan: Plan,
) -> list[str]:
    """One call of sbatch; returns the tasks' job ids."""
    from submitit import SlurmExecutor

    address = {stage.key: stage.address for stage in plan.stages}
    executor = SlurmExecutor(folder / "slurm", python=cluster.python)
    executor.update_parameters(**parameters(code, array, resources, after, cluster))
    told = [[address[key] for key in task] for task in tasks]
    submission = str(folder / "submission.json")
    if len(told) == 1:
        return [str(executor.submit(job.run, told[0], submission).job_id)]
    return [str(one.job_id) for one in executor.map_array(job.run, told, [submission] * len(told))]


def parameters(code: Path, array: str, resources: Resources, after: Sequence[str], cluster: Cluster) -> dict[str, Any]:
    """What sbatch is told, in submitit's words."""
    told: dict[str, Any] = {
        "job_name": array,
        "partition": resources.partition or cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": resources.constraint or cluster.constraint,
        "exclude": cluster.exclude,
        "time": resources.minutes,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.tasks_per_node,
        "cpus_per_task": resources.cpus,
        "gpus_per_node": resources.gpus or None,
        "mem": f"{int(1024 * resources.memory_gb)}MB",
        "signal_delay_s": cluster.notice_seconds,
        "array_parallelism": cluster.throttle,
        "wckey": None,
        "dependency": f"afterok:{':'.join(after)}" if after else None,
        "setup": [f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}", *cluster.setup],
        "additional_parameters": {"requeue": True, "kill-on-invalid-dep": "yes"},
    }
    return {name: value for name, value in told.items() if value is not None or name == "wckey"}
