"""Arrays: the jobs that make the missing stages of a plan, grouped into few arrays, with their dependencies.

A stage is a job of its own only where several cells share it and it is expensive (mixture, base, teacher, labels,
caches, synthetic rows). All other stages of a cell are one task, which makes them in order. Tasks with the same
resources and the same dependencies form one array. Nothing here calls Slurm.

    for batch in batches(own_jobs(plan, done), cluster): batch.tasks, batch.needs, batch.resources
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

from harness.config.cluster import Cluster, Resources
from harness.execution.slurm.model_servers import Server, server_of
from harness.plan.estimate import stage_seconds
from harness.plan.graph import TOGETHER, Stage, Work

DEAR = ("mixture", "base", "labels", "cache", "synthesize")
"""Kinds that are jobs of their own where several cells share them, as trained teachers are too."""


@dataclass(frozen=True)
class Batch:
    """Tasks with the same resources and the same dependencies: one array."""

    tasks: tuple[tuple[str, ...], ...]
    """Of each task the keys of the targets it makes, with the stages only they need; several where short cells share
    a task."""
    resources: Resources
    needs: frozenset[str]
    """Keys of the stages, made by earlier batches, that every task waits for."""
    kind: str
    """The kind of the targets, for the job's name."""
    servers: frozenset[Server] = frozenset()
    """The cluster's model servers that every task queries."""


class Job(NamedTuple):
    """The stages that make one target, inputs first and the target last, and the keys of other jobs it waits for."""

    stages: tuple[Stage, ...]
    needs: frozenset[str]

    @property
    def servers(self) -> frozenset[Server]:
        """The cluster's model servers that its stages query."""
        return frozenset(server for stage in self.stages if (server := server_of(stage)))


def batches(jobs: Mapping[str, Job], cluster: Cluster) -> list[Batch]:
    """The jobs in as few arrays as possible; an array comes after those it waits for.

    Raises SettingsError where no rule of the cluster fits a stage.
    """
    found: dict[tuple[Resources, frozenset[str], str, frozenset[Server]], list[tuple[tuple[str, ...], float]]] = {}
    for keys in _units(jobs):
        stages = {stage.key: stage for key in keys for stage in jobs[key].stages}
        job = Job(tuple(stages.values()), frozenset().union(*(jobs[key].needs for key in keys)))
        alike = (_resources(job, cluster), job.needs, _kind(job), job.servers)
        found.setdefault(alike, []).append((keys, sum(map(stage_seconds, job.stages))))
    result = []
    for (resources, needs, kind, servers), units in found.items():
        # only cells are packed: the jobs that need a shared stage would wait for all of its pack
        packed = _packed(units, 60 * cluster.pack_minutes) if kind == "cells" else [keys for keys, _ in units]
        result.append(Batch(tuple(packed), resources, needs, kind, servers))
    return _in_order(result)


def own_jobs(work: Work, done: Callable[[str], bool]) -> dict[str, Job]:
    """The jobs that make the stages which are not done, by the key of their target."""
    # Each answer is a look at the file system and every cell asks about the same stages. Kept, it is also the same for
    # the whole plan, though stages may be published meanwhile.
    done = cache(done)
    targets = {key: target for key, target in work.targets.items() if not done(key)}
    ancestry = {key: {stage.key: stage for stage in target.ancestry()} for key, target in targets.items()}
    stages = {key: stage for found in ancestry.values() for key, stage in found.items()}
    # `ancestry` may repeat a stage; the dicts let a target count as one user of it
    users = Counter(key for found in ancestry.values() for key in found)
    shared = (key for key, stage in stages.items() if users[key] > 1 and (stage.kind in DEAR or key in work.teachers))
    own = {key for key in (*shared, *targets) if not done(key)}
    return {key: _job(stages[key], own, done) for key in stages if key in own}


def check_batch_sizes(found: Sequence[Batch], jobs: Mapping[str, Job]) -> None:
    """Raise SettingsError where a training stage's rows do not divide among the processes of its job."""
    for batch in found:
        for stage in (stage for task in batch.tasks for key in task for stage in jobs[key].stages):
            if stage.kind in TOGETHER:
                batch.resources.check_batch(stage.settings["budget"]["batch_size"])


def _units(jobs: Mapping[str, Job]) -> list[tuple[str, ...]]:
    """Targets of one task: the evaluations of one model, quantised or not, that the task itself makes."""
    units: dict[str, list[str]] = {}
    for key, job in jobs.items():
        *before, target = job.stages
        made, together = {stage.key for stage in before}, key
        # Up from rounded weights to the student they were made of, as long as this job makes them: a student that is
        # scored in several formats is trained once, in one task.
        model = target.inputs.get("model") if target.kind == "evaluate" else None
        while model is not None and model.key in made:
            together, model = model.key, model.inputs.get("model")
        units.setdefault(together, []).append(key)
    return [tuple(keys) for keys in units.values()]


def _job(target: Stage, own: Collection[str], done: Callable[[str], bool]) -> Job:
    """The stages that a target's job makes itself, and the jobs it waits for."""
    mine: dict[str, Stage] = {}
    needs: set[str] = set()

    def visit(stage: Stage) -> None:
        if stage.key in mine or done(stage.key):
            return
        # nothing behind it is visited: its own job makes that, or waits for it
        if stage.key in own and stage is not target:
            needs.add(stage.key)
            return
        for upstream in stage.inputs.values():
            visit(upstream)
        mine[stage.key] = stage

    visit(target)
    return Job(tuple(mine.values()), frozenset(needs))


def _resources(job: Job, cluster: Cluster) -> Resources:
    """The resources of the most demanding of a job's stages, by GPUs, then processes, memory and time."""
    requested = [cluster.resources_for(stage.kind, stage.name, stage.largest_model) for stage in job.stages]
    most = max(requested, key=lambda one: (one.nodes * one.gpus, one.count, one.memory_gb or 0, one.minutes))
    # a job without training would leave all processes but rank 0 idle
    return most if any(stage.kind in TOGETHER for stage in job.stages) else replace(most, nodes=1, processes=1)


def _kind(job: Job) -> str:
    return "cells" if job.stages[-1].kind in ("evaluate", "overlap") else job.stages[-1].kind


def _packed(units: Sequence[tuple[tuple[str, ...], float]], seconds: float) -> list[tuple[str, ...]]:
    """Units in packs with an expected duration of about `seconds`; a pack has at least one unit."""
    packs: list[list[str]] = []
    filled = 0.0
    for keys, expected in units:
        if not packs or filled + expected > seconds:
            packs.append([])
            filled = 0.0
        packs[-1] += keys
        filled += expected
    return [tuple(pack) for pack in packs]


def _in_order(found: Sequence[Batch]) -> list[Batch]:
    """The batches in an order in which each comes after those it waits for."""
    maker = {key: batch for batch in found for task in batch.tasks for key in task}
    ordered: dict[int, Batch] = {}

    def visit(batch: Batch) -> None:
        if id(batch) in ordered:
            return
        # a need without a maker here is a stage that an earlier submission makes
        for key in sorted(batch.needs & maker.keys()):
            visit(maker[key])
        ordered[id(batch)] = batch

    for batch in found:
        visit(batch)
    return list(ordered.values())
