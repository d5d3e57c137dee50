"""Retry: make a grid's failed cells again, with changes that depend on the class of the failure.

oom_host      1.5 times the memory; the arithmetic is the same
oom_cuda      half the micro-batch; the global batch stays. Sums are taken in another order, so scores agree only
              up to rounding, and the model's record notes the change
node_failure  the failed node is excluded
any other     no change; a stage that was stopped continues from its checkpoint

retry(store, frozen, "oom", view, print)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from harness.config.cell import Settings
from harness.config.checks import refuse
from harness.config.cluster import Cluster
from harness.config.machine import Machine
from harness.execution.executor import View, execute
from harness.execution.slurm.job_accounting import latest
from harness.execution.slurm.submissions import read_submission
from harness.execution.status_screen import StatusSnapshot
from harness.plan.frozen import FrozenPlan, Part, targets_of, thaw
from harness.plan.graph import Again, Stage
from harness.runtime.processes import equal_part
from harness.store.status import StageState
from harness.store.store import Store

MORE_MEMORY = 1.5


@dataclass(frozen=True)
class Failure:
    """A failed stage, the class of its failure, and the node it ran on where that is known."""

    stage: Stage
    failure_class: str | None
    node: str | None
    machine: Mapping[str, Any] = field(default_factory=dict)
    """Machine settings it ran with, as its attempt recorded them."""
    processes: int = 1
    """Processes that made it together."""


def retry(store: Store, frozen: FrozenPlan, failure_class: str | None, view: View, log: Callable[[str], None]) -> None:
    """Submit the failed cells to the cluster that they were submitted to, or make them on this machine.

    `failure_class`: retry failures of this class alone; `oom` means every `oom_...`. `log` receives a line for every
    change. Raises SettingsError where no cell failed in this class, where there is no batch to halve, where the code
    of a stage has changed since, and as `execute` or `submit` does.
    """
    part, failed = failures(store, frozen, failure_class)
    before = next(filter(None, (read_submission(store, key) for key in part.targets)), None)
    # with the machine settings of the failed attempt: a batch that an earlier retry halved stays small, or is halved
    # again
    again: Again = {one.stage.key: {"machine": one.machine} for one in failed} | smaller_batches(failed)
    for key, changes in again.items():
        if "retried" in changes:
            log(f"{key} {changes['retried']}")
    if before is None:
        grid, track = frozen.grid, frozen.track or "none"
        settings = Settings(method=None, corpus=None, store=str(store.root), retry=True, grid=grid, track=track)
        execute(part, store, settings, view, again)
        return

    from harness.execution.slurm.submit import submit

    cluster = adjusted_cluster(Cluster.of(before["cluster"]), failed, log)
    machine, track = Machine(**before["machine"]), frozen.track or "none"
    log(submit(part, store, machine, cluster, frozen.grid, again, track).describe())


def failures(store: Store, frozen: FrozenPlan, failure_class: str | None) -> tuple[Part, list[Failure]]:
    """The part of a grid that makes its failed cells of a class, and the stages at which they failed.

    Raises SettingsError where no cell failed in this class.
    """
    snapshot = StatusSnapshot.at(store, frozen)
    failed = [(cell, state) for cell, state in snapshot.cells if state.status == "failed"]
    wanted = [(cell, state) for cell, state in failed if _is(state, failure_class)]
    if not wanted:
        if not failed:
            raise refuse("grid", frozen.grid, "no cell of it failed", "see `grid status`")
        have = sorted({state.failure_class or "unknown" for _, state in failed})
        raise refuse("--class", failure_class, f"allowed are {', '.join(have)}")
    models = [model for cell, _ in wanted for model in (cell, *cell.references.values())]
    part = thaw(frozen, [key for model in models for key in targets_of(model)])
    at = {state.stage: state.failure_class for _, state in wanted if state.stage is not None}
    # one call to Slurm for all failed stages
    jobs = latest(store, at)
    stages = {stage.key: stage for stage in part.stages}
    found = []
    for key, kind in at.items():
        last = (store.attempts(key) or [{}])[-1]
        # Slurm's account first: an attempt whose node failed may not have recorded where it ran
        node = jobs[key].nodes if key in jobs else last.get("host")
        found.append(Failure(stages[key], kind, node, last.get("machine", {}), last.get("processes", 1)))
    return part, found


def smaller_batches(failed: Sequence[Failure]) -> dict[str, dict[str, Any]]:
    """By key, the changes for stages that ran out of GPU memory (`plan.graph.Again`): half the micro-batch.

    Raises SettingsError for a stage that trains nothing, or whose micro-batch is one row already.
    """
    found = {}
    for one in failed:
        if one.failure_class == "oom_cuda":
            own = _batch_size(one.stage) // one.processes
            rows = equal_part(own, one.machine.get("micro_batch_size") or own)
            if rows == 1:
                way_out = "set machine.gradient_checkpointing=true, or take a GPU with more memory"
                raise refuse("--class", "oom_cuda", f"{one.stage.address} ran with one row at a time", way_out)
            # a divisor of the rows of a process, so that all micro-batches are of one size
            smaller = equal_part(own, rows // 2)
            found[one.stage.key] = {
                "machine": {**one.machine, "micro_batch_size": smaller},
                "retried": f"in micro-batches of {smaller} rows, after CUDA ran out of memory at {rows}",
            }
    return found


def adjusted_cluster(cluster: Cluster, failed: Sequence[Failure], log: Callable[[str], None]) -> Cluster:
    """The cluster with more memory where stages ran out of it, and without the nodes that failed; `log` names both."""
    if any(one.failure_class == "oom_host" for one in failed):
        log(f"with {MORE_MEMORY:g} times the memory")
        if any(rule.memory_gb is None for rule in cluster.resources):
            log("a rule with memory_gb=null keeps its memory; raise mem-per-cpu in its `extra`")
        rules = [
            rule if rule.memory_gb is None else replace(rule, memory_gb=rule.memory_gb * MORE_MEMORY)
            for rule in cluster.resources
        ]
        cluster = replace(cluster, resources=rules)
    bad = sorted({one.node for one in failed if one.failure_class == "node_failure" and one.node})
    if bad:
        log(f"without {', '.join(bad)}")
        # in addition to the nodes that the cluster's file excludes
        cluster = replace(cluster, exclude=",".join(filter(None, (cluster.exclude, *bad))))
    return cluster


def _batch_size(stage: Stage) -> int:
    if stage.kind != "train":
        way_out = "take a GPU with more memory"
        raise refuse("--class", "oom_cuda", f"{stage.address} trains nothing, so it has no batch to halve", way_out)
    return stage.settings["budget"]["batch_size"]


def _is(state: StageState, failure_class: str | None) -> bool:
    found = state.failure_class or "unknown"
    return failure_class in (None, found) or found.startswith(f"{failure_class}_")
