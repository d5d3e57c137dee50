"""Batches: the jobs that make what a plan lacks, few in number, each with what it waits for.

Only what several cells share and what is dear (mixture, base, teacher, labels, caches, synthetic rows) is a
job of its own; everything else of a cell is one task, which makes its private stages in order. Tasks that ask
for the same and wait for the same are one array. Nothing here talks to a scheduler.

    for batch in batches(plan, done, cluster): batch.tasks, batch.needs, batch.resources
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from harness.cluster import Cluster, Resources
from harness.estimate import model_parameters, stage_seconds
from harness.plan import Plan
from harness.stage import Stage

DEAR = ("mixture", "base", "labels", "cache", "synthesize")
"""Kinds that are jobs of their own where several cells share them; so are trained teachers."""


class Task(NamedTuple):
    """What one job, or one task of an array, makes: these stages, with all that only they need."""

    targets: tuple[str, ...]
    """Keys; several where short cells share a job."""


@dataclass(frozen=True)
class Batch:
    """Tasks that ask for the same and wait for the same."""

    tasks: tuple[Task, ...]
    resources: Resources
    needs: frozenset[str]
    """Keys of the stages, made by earlier batches, that every task waits for."""
    kind: str
    """Of what the tasks make, for a job's name."""


def batches(plan: Plan, done: Callable[[str], bool], cluster: Cluster) -> list[Batch]:
    """Every batch that is needed, those that others wait for first."""
    jobs = own_jobs(plan, done)
    found: dict[tuple[Resources, frozenset[str], str], list[tuple[str, float]]] = {}
    for target, stages in jobs.items():
        needs = frozenset(key for key in _direct_needs(stages[-1], jobs, done) if key != target)
        asked = _resources(stages, cluster)
        seconds = sum(map(stage_seconds, stages))
        found.setdefault((asked, needs, _kind(stages)), []).append((target, seconds))
    result = []
    for (resources, needs, kind), targets in found.items():
        packed = _packed(targets, 60 * cluster.pack_minutes) if kind == "cells" else [(key,) for key, _ in targets]
        result.append(Batch(tuple(Task(keys) for keys in packed), resources, needs, kind))
    return _in_order(result)


def own_jobs(plan: Plan, done: Callable[[str], bool]) -> Mapping[str, list[Stage]]:
    """Targets of jobs, by key: the stages a job makes, its target last; those that others need come first."""
    stages = {stage.key: stage for stage in plan.stages}
    targets = {stage.key: stage for cell in plan.cells for stage in cell.targets}
    users = Counter(key for target in targets.values() for key in {stage.key for stage in target.ancestry()})
    teachers = {cell.teacher.key for cell in plan.cells if cell.taught_by == "given" and cell.teacher is not None}
    shared = {
        key: stage
        for key, stage in stages.items()
        if users[key] > 1 and (stage.kind in DEAR or key in teachers) and not done(key)
    }
    own = {**shared, **{key: stage for key, stage in targets.items() if not done(key)}}
    return {key: _private(stage, own, done) for key, stage in own.items()}


def _private(target: Stage, own: Mapping[str, Stage], done: Callable[[str], bool]) -> list[Stage]:
    """Unfinished stages that the target's job makes itself, inputs first."""
    found: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        if stage.key in found or done(stage.key) or (stage.key in own and stage is not target):
            return
        for upstream in stage.inputs.values():
            visit(upstream)
        found[stage.key] = stage

    visit(target)
    return list(found.values())


def _direct_needs(target: Stage, jobs: Mapping[str, Sequence[Stage]], done: Callable[[str], bool]) -> set[str]:
    """Keys of other jobs that the target's job waits for."""
    mine = {stage.key for stage in jobs[target.key]}
    inputs = {upstream.key for stage in jobs[target.key] for upstream in stage.inputs.values()}
    return {key for key in inputs - mine if not done(key)}


def _resources(stages: Sequence[Stage], cluster: Cluster) -> Resources:
    """What the most demanding of a job's stages asks for, by GPUs, then memory, then time."""
    asked = [cluster.resources_for(stage.kind, model_parameters(stage)) for stage in stages]
    return max(asked, key=lambda one: (one.nodes * one.gpus, one.memory_gb, one.minutes))


def _kind(stages: Sequence[Stage]) -> str:
    return "cells" if stages[-1].kind == "evaluate" else stages[-1].kind


def _packed(targets: Sequence[tuple[str, float]], seconds: float) -> list[tuple[str, ...]]:
    """Targets in packs that are expected to take about `seconds`, at least one each."""
    packs: list[list[str]] = []
    filled = 0.0
    for key, expected in targets:
        if not packs or filled + expected > seconds:
            packs.append([])
            filled = 0.0
        packs[-1].append(key)
        filled += expected
    return [tuple(pack) for pack in packs]


def _in_order(found: Sequence[Batch]) -> list[Batch]:
    """Batches after those they wait for."""
    maker = {key: batch for batch in found for task in batch.tasks for key in task.targets}
    ordered: dict[int, Batch] = {}

    def visit(batch: Batch) -> None:
        if id(batch) in ordered:
            return
        for key in sorted(batch.needs & maker.keys()):
            visit(maker[key])
        ordered[id(batch)] = batch

    for batch in found:
        visit(batch)
    return list(ordered.values())
