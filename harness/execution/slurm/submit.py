"""The Slurm launcher: it submits missing stages as job arrays, in a few calls of sbatch, and returns.

A submission is a folder of the store that is complete before the first call: the stages, the tasks of every array,
and the code they run. Each target has an entry in `jobs/` that names the task which makes it (`submissions.py`), so a
later submission waits for that task and submits nothing twice; an entry whose job has left the queue is ignored.
submitit writes and submits the batch files. A job takes its inputs from the store; a dependency between jobs only
keeps it from waiting for them on a node.

    submission = submit(plan, store, machine, cluster, "my_grid")
"""

import io
import os
import shlex
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from harness.config.checks import SettingsError, refuse
from harness.config.cluster import Cluster, Resources
from harness.config.machine import Machine
from harness.config.sbatch_options import dashed
from harness.execution.slurm import server_job
from harness.execution.slurm.arrays import Batch, Job, batches, check_batch_sizes, own_jobs
from harness.execution.slurm.code_snapshot import publish_code
from harness.execution.slurm.model_servers import Server, pointed, take_servers
from harness.execution.slurm.squeue import Queue
from harness.execution.slurm.submissions import Submissions, read_entries, write_sent
from harness.execution.slurm.task import run as run_task
from harness.execution.slurm.usage import check_gpu_hours
from harness.execution.wandb_run import tracking
from harness.plan.graph import TOGETHER, Again, Stage, Work
from harness.plan.memory import check_memory
from harness.store.integrity import verifying
from harness.store.status import RECHECKED_CLASSES, StageState, stage_state
from harness.store.store import Store, write_json

WATCH_SECONDS = 10.0
SPARE_JOBS = 10
"""Places in the queue that are left for jobs the user submits by hand."""
LONGEST_PACK_MINUTES = 24 * 60.0
PROCESS_MANAGERS = ("PMI_", "PMIX_", "PMI2_", "OMPI_COMM_WORLD_", "KMP_AFFINITY", "GOMP_CPU_AFFINITY")
"""Variables by which a shell inside a job is told its own rank, address and CPUs."""
FOR_SBATCH = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")
"""Variables by which Slurm's commands find their cluster."""


@dataclass(frozen=True)
class Submission:
    """The arrays that were submitted, and the counts of targets that were not."""

    folder: Path
    arrays: Mapping[str, list[str]]
    """Job ids of the tasks, by the array's name."""
    targets: int
    """Targets that were submitted."""
    attached: int
    """Targets that a job in the queue makes already."""
    failed: Mapping[str, StageState]
    """By address, stages that failed before; the stages that need them were not submitted."""

    def describe(self) -> str:
        """The submission in lines of text."""
        lines = [f"{name}: {len(ids)} tasks, job {ids[0].partition('_')[0]}" for name, ids in self.arrays.items()]
        lines += [f"{address} failed ({state.failure_class}): {state.reason}" for address, state in self.failed.items()]
        if self.failed:
            lines.append(
                "The stages that need it were not submitted; `python -m harness.grid retry <grid>` tries again"
            )
        waiting = f"; {self.attached} are in the queue already" if self.attached else ""
        lines.append(f"{self.targets} targets submitted in {len(self.arrays)} calls of sbatch{waiting}")
        return "\n".join(lines)


def submit(
    work: Work,
    store: Store,
    machine: Machine,
    cluster: Cluster,
    grid: str,
    again: Again | None = None,
    track: str = "none",
    verify: str = "full",
) -> Submission:
    """Submit the stages that are neither in the store nor made by a job in the queue.

    Stages that failed, and those that need them, are left out unless `again` is given: by key, the changes with which
    failed stages are tried again. Raises SettingsError, before anything is submitted, where the cluster lacks what a
    job requests, the queue is full, `slurm.gpu_hours` would be exceeded, this machine has no Slurm or its controller
    does not answer. Raises OSError where the store cannot be written.
    """
    queue = Queue.read()
    check_memory(work, store, machine, cluster)
    check_gpu_hours(work, store, cluster, grid)
    submissions = Submissions(store, queue)
    failed: dict[str, StageState] = {}
    jobs = own_jobs(work, store.done)
    if again is None:
        jobs, failed = _without_failed(jobs, store)
    # jobs of other submissions drop out before the packing, so that packs and the count of tasks hold only what is
    # sent
    unsent = {key: one for key, one in jobs.items() if submissions.job_id(key) is None}
    chunks = [part for batch in _fitting(unsent, cluster, queue) for part in _chunks(batch, queue.largest_array)]
    _check(chunks, cluster, queue)
    check_batch_sizes(chunks, jobs)
    # Entries are taken before anything is sent: a target that another submitter took in the meantime drops out here.
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
    arrays: dict[str, Batch] = {}
    for number, batch in enumerate(chunks):
        array = f"{grid}.{batch.kind}.{name[-6:]}.{number}"
        tasks: list[tuple[str, ...]] = []
        for task in batch.tasks:
            if mine := tuple(key for key in task if submissions.take(key, name, array, len(tasks))):
                tasks.append(mine)
        if tasks:
            arrays[array] = replace(batch, tasks=tuple(tasks))
    folder = store.root / "submissions" / name
    sent: dict[str, list[str]] = {}

    def send(array: str, options: Mapping[str, Any], function: Callable[..., None], given: Sequence[Any]) -> None:
        from submitit.core.utils import FailedJobError

        try:
            sent[array] = _send(folder, cluster, options, function, given)
        except FailedJobError as error:
            # what was sent makes its stages; the entries of the rest go, so that the next command takes them
            for unsent, batch in arrays.items():
                if unsent not in sent:
                    submissions.give_back((key for task in batch.tasks for key in task), unsent)
            for server in set(servers) - set(sent):
                submissions.give_back([servers[server].key], server)
            raise _refused_by_sbatch(error, array, len(sent), len(arrays) + len(servers)) from None
        write_sent(store, name, array, sent[array])
        # later arrays of this submission find these ids for their dependencies
        queue.add(array, sent[array])

    # The submission's folder must be complete before the first job can start.
    if arrays:
        code = publish_code(store)
        made = {
            array: [[stage for key in task for stage in jobs[key].stages] for task in batch.tasks]
            for array, batch in arrays.items()
        }
        servers = take_servers(store, submissions, cluster, f"{grid}.serve.{name[-6:]}", name, made)
        added = tracking(track, grid) | verifying(verify)
        _write(folder, store, machine, cluster, grid, jobs, arrays, servers, again or {}, added)
        # servers first: the arrays that query one need its job's id, since they may start only after it has
        for server in servers:
            assert cluster.serve is not None
            send(server, parameters(code, server, cluster.serve.resources, [], cluster), server_job.run, [server])
    for array, batch in arrays.items():
        # an input that was published meanwhile is no dependency: its job has left the queue, or is about to
        after = [_job_id(submissions, key) for key in sorted(batch.needs) if not store.done(key)]
        started = sorted({_job_id(submissions, server.key) for server in batch.servers})
        addresses = [[jobs[key].stages[-1].address for key in task] for task in batch.tasks]
        send(array, parameters(code, array, batch.resources, after, cluster, started), run_task, addresses)
    targets = sum(len(task) for batch in arrays.values() for task in batch.tasks)
    return Submission(folder, sent, targets, len(jobs) - targets, failed)


def wait(store: Store, targets: Sequence[str], log: Callable[[str], None]) -> None:
    """Return when no job in the queue makes any of the targets; `log` receives every change of the counts.

    Raises SettingsError where this machine has no Slurm or its controller does not answer.
    """
    queue, logged = Queue.read(), ""
    entries = read_entries(store, targets)
    while True:
        live = sum(queue.job_id(entry["array"], entry["task"]) is not None for entry in entries.values())
        done = sum(map(store.done, targets))
        text = f"{done} of {len(targets)} evaluations done, {live} in the queue"
        if text != logged:
            log(text)
        if not live:
            return
        logged = text
        time.sleep(WATCH_SECONDS)
        queue.refresh()


def _without_failed(jobs: Mapping[str, Job], store: Store) -> tuple[dict[str, Job], dict[str, StageState]]:
    """The jobs that can be made, and by address the failed stages that block the others."""
    failed: dict[str, StageState] = {}
    hopeless: dict[str, bool] = {}

    def visit(key: str) -> bool:
        if key not in hopeless:
            states = {stage.address: stage_state(store, stage.key) for stage in jobs[key].stages}
            mine = {
                address: state
                for address, state in states.items()
                if state.status == "failed" and state.failure_class not in RECHECKED_CLASSES
            }
            failed.update(mine)
            # a list, since a generator would stop at the first failed input and leave the others out of the report
            hopeless[key] = bool(mine) or any([visit(upstream) for upstream in jobs[key].needs if upstream in jobs])
        return hopeless[key]

    return {key: job for key, job in jobs.items() if not visit(key)}, failed


def _check(chunks: Sequence[Batch], cluster: Cluster, queue: Queue) -> None:
    """Raise SettingsError where the cluster lacks what the jobs, or a model server they query, request."""
    rules = {batch.resources for batch in chunks}
    for server in {server for batch in chunks for server in batch.servers}:
        if cluster.serve is None:
            way_out = f"give slurm/{cluster.name}.yaml one as in slurm/example_a100.yaml, or set teacher.path"
            raise refuse("slurm.serve", None, f"{cluster.name} has no settings to serve {server.model}", way_out)
        rules.add(cluster.serve.resources)
    for rule in rules:
        queue.check(rule, cluster)


def _write(
    folder: Path,
    store: Store,
    machine: Machine,
    cluster: Cluster,
    grid: str,
    jobs: Mapping[str, Job],
    arrays: Mapping[str, Batch],
    servers: Mapping[str, Server],
    again: Again,
    added: dict[str, Any],
) -> None:
    """Write all that the jobs of a submission read; they need nothing else of the submitting process."""
    mine = {key: jobs[key] for batch in arrays.values() for task in batch.tasks for key in task}
    made = (stage for job in mine.values() for stage in job.stages)
    stages: dict[str, Stage] = {one.key: one for stage in made for one in stage.ancestry()}
    specs = {key: pointed(stage.spec(), stage, store) | added for key, stage in stages.items()}
    for batch in (one for one in arrays.values() if one.resources.shard):
        for stage in (stage for task in batch.tasks for key in task for stage in mine[key].stages):
            if stage.kind in TOGETHER:
                specs[stage.key]["machine"] = {"shard": True}
    # after `shard`: a retry adds its settings of the machine to those of the rule, and its own decide
    for key in again.keys() & specs.keys():
        specs[key] |= {**again[key], "machine": {**specs[key].get("machine", {}), **again[key]["machine"]}}
    folder.mkdir(parents=True)
    write_json(
        folder / "submission.json",
        {
            "grid": grid,
            "cluster": asdict(cluster),
            "store": str(store.root),
            "machine": asdict(machine),
            "stages": specs,
            "jobs": {key: [stage.key for stage in job.stages] for key, job in mine.items()},
            "arrays": {array: batch.tasks for array, batch in arrays.items()},
            "servers": {server: model._asdict() for server, model in servers.items()},
        },
    )


def _fitting(jobs: Mapping[str, Job], cluster: Cluster, queue: Queue) -> list[Batch]:
    """The jobs in at most as many tasks as the queue has room for: the more short cells, the more share a task.

    Raises SettingsError where they do not fit even so.
    """
    room = queue.room - SPARE_JOBS
    minutes = cluster.pack_minutes
    while True:
        found = batches(jobs, replace(cluster, pack_minutes=minutes))
        tasks = sum(len(batch.tasks) for batch in found)
        if tasks <= room:
            return found
        if minutes > LONGEST_PACK_MINUTES:
            reason = f"the queue takes {max(room, 0)} more jobs and the grid needs {tasks}"
            raise refuse("slurm", cluster.name, reason, "submit a part of the grid first, or request a higher limit")
        # pack_minutes may be 0, which no doubling changes
        minutes = 2 * max(minutes, 1)


def _chunks(batch: Batch, largest: int) -> Iterator[Batch]:
    """The batch in arrays of the size that the cluster allows."""
    for first in range(0, len(batch.tasks), largest):
        yield replace(batch, tasks=batch.tasks[first : first + largest])


def _job_id(submissions: Submissions, key: str) -> str:
    found = submissions.job_id(key)
    if found is None:
        raise refuse("slurm", key, "its job left the queue while this one was submitted", "run the command again")
    return found


def _refused_by_sbatch(error: Exception, array: str, sent: int, of: int) -> SettingsError:
    """What sbatch said in one sentence, what is in the queue already, and what to do."""
    said = [line.removeprefix("sbatch: ").removeprefix("error: ").strip() for line in str(error).splitlines()]
    why = "; ".join(dict.fromkeys(line for line in said if line)) or "no reason given"
    limit = any(word in why for word in ("Limit", "limit", "violates"))
    when = "run it again when jobs have left the queue" if limit else "correct slurm/*.yaml, then run it again"
    way_out = f"the same command sends the rest: {when}"
    left = f"{sent} of {of} arrays were sent and stay in the queue"
    return SettingsError(f"slurm cannot be used: sbatch refused {array} ({why}); {left}; {way_out}.")


@contextmanager
def clean_environment() -> Iterator[None]:
    """While the block runs, this process has none of the variables that Slurm and MPI set for a job it may run in.

    sbatch would pass them on, and its own (`SBATCH_*`) would override the cluster's file. What Slurm's commands need to
    find their cluster stays.
    """
    from submitit.helpers import clean_env

    kept = {name: os.environ[name] for name in FOR_SBATCH if name in os.environ}
    with clean_env([name for name in os.environ if name.startswith(PROCESS_MANAGERS)]):
        os.environ.update(kept)
        yield


def _send(
    folder: Path, cluster: Cluster, parameters: Mapping[str, Any], function: Callable[..., None], given: Sequence[Any]
) -> list[str]:
    """One call of sbatch, a task for each of `given`; returns the tasks' job ids."""
    from submitit import SlurmExecutor

    executor = SlurmExecutor(folder / "slurm", python=cluster.python)
    executor.update_parameters(**parameters)
    submission = str(folder / "submission.json")
    # submitit prints what sbatch says, which the sentence of a refusal has
    with clean_environment(), redirect_stderr(io.StringIO()):
        if len(given) == 1:
            return [str(executor.submit(function, given[0], submission).job_id)]
        return [str(one.job_id) for one in executor.map_array(function, given, [submission] * len(given))]


def parameters(
    code: Path,
    array: str,
    resources: Resources,
    after: Sequence[str],
    cluster: Cluster,
    started: Sequence[str] = (),
) -> dict[str, Any]:
    """sbatch's options under submitit's names; the job waits until jobs `after` ended well and jobs `started` run."""
    waits = [f"{how}:{':'.join(ids)}" for how, ids in (("afterok", after), ("after", started)) if ids]
    options: dict[str, Any] = {
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
        # in MB: `memory_gb` may be a fraction, and sbatch takes whole numbers
        "mem": None if resources.memory_gb is None else f"{int(1024 * resources.memory_gb)}MB",
        "signal_delay_s": cluster.notice_seconds,
        "array_parallelism": cluster.throttle,
        # submitit would charge a key named `submitit`; None, unlike a left-out value, replaces that default
        "wckey": None,
        "dependency": ",".join(waits) or None,
        # without the condition an empty PYTHONPATH would add an empty entry, which is the current folder
        "setup": [f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}", *cluster.setup],
        # a job whose dependency has failed could never start, and would stay in the queue for good
        "additional_parameters": {"requeue": True, "kill-on-invalid-dep": "yes", **_extra(resources, cluster)},
        # where one of several processes dies, srun ends the others
        "srun_args": ["--kill-on-bad-exit=1"] if resources.count > 1 else None,
    }
    return {name: value for name, value in options.items() if value is not None or name == "wckey"}


def _extra(resources: Resources, cluster: Cluster) -> dict[str, Any]:
    """The options of `extra`, a rule's over the cluster's; null and false leave one out."""
    found = dashed(cluster.extra) | dashed(resources.extra)
    return {name: value for name, value in found.items() if value is not None and value is not False}
