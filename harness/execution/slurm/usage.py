"""Usage: hours of machines, CPUs and GPUs that a grid's stages took, failed attempts included.

They come from the cluster's accounts where it keeps them (every run, also those before a requeue), else from the
attempts in the store.

    source, table = ledger(store, frozen)
"""

from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd

from harness.config.checks import refuse
from harness.config.cluster import Cluster
from harness.execution.slurm.job_accounting import accounts
from harness.execution.slurm.submissions import arrays_of
from harness.plan.estimate import plan_rows
from harness.plan.frozen import FrozenPlan
from harness.plan.graph import Work
from harness.store.store import Store

HOUR = 3600.0


class Try(NamedTuple):
    """One attempt: `work` is a kind of stage, or `cells`."""

    work: str
    seconds: float
    cpus: int
    gpus: int
    lost: bool
    """Whether it ended without its artifact, or has none yet."""


def ledger(store: Store, frozen: FrozenPlan) -> tuple[str, pd.DataFrame]:
    """The source of the figures, and a row per kind of work and one for all: tries, hours of machines, CPUs and GPUs,
    and hours lost to attempts that left no artifact.

    Raises SettingsError where Slurm does not answer.
    """
    billed = list(_billed(store, frozen.grid))
    source = "Slurm's accounts" if billed else "this store's own attempts"
    tries = pd.DataFrame(billed or list(_attempted(store, frozen)), columns=Try._fields)
    hours = tries["seconds"] / HOUR
    table = pd.DataFrame(
        {
            "work": tries["work"],
            "tries": 1,
            "hours": hours,
            "CPU hours": hours * tries["cpus"],
            "GPU hours": hours * tries["gpus"],
            "hours lost": hours.where(tries["lost"], 0.0),
        }
    )
    table = table.groupby("work", sort=False).sum()
    table.loc["all"] = table.sum()
    # the sum over columns of two types has made floats of the counts
    return source, table.astype({"tries": int})


def check_gpu_hours(work: Work, store: Store, cluster: Cluster, grid: str) -> None:
    """Raise SettingsError where the GPU hours a grid has used and those its rest is expected to use exceed the limit
    `slurm.gpu_hours`."""
    if cluster.gpu_hours is None:
        return
    # no plan is frozen yet; the ledger reads keys and kinds alone
    _, took = ledger(store, FrozenPlan(grid, {stage.key: {"kind": stage.kind} for stage in work.stages}, ()))
    spent = took["GPU hours"]["all"]
    expected = sum(row["gpu_hours"] for row in plan_rows(work, store, cluster))
    if spent + expected > cluster.gpu_hours:
        raise refuse(
            "slurm.gpu_hours",
            cluster.gpu_hours,
            f"{grid} has used {spent:,.1f} GPU-hours and its rest is expected to use {expected:,.1f} more",
            "run the command again with a higher slurm.gpu_hours (null: no limit), or plan fewer cells",
        )


def _billed(store: Store, grid: str) -> Iterator[Try]:
    for one in accounts(arrays_of(store, grid), every_try=True):
        # an array is <grid>.<kind>.<hash>.<number>, and a grid's name may have dots of its own
        yield Try(one.array.rsplit(".", 3)[1], one.seconds, one.cpus, one.gpus, one.state != "COMPLETED")


def _attempted(store: Store, frozen: FrozenPlan) -> Iterator[Try]:
    for key, spec in frozen.stages.items():
        for entry in store.attempts(key):
            # An attempt that was killed has no end; its last heartbeat is the last sign of it. An entry without a
            # start was reserved and never written.
            if "started" in entry:
                ended = entry.get("ended") or entry.get("heartbeat") or entry["started"]
                lost = entry.get("outcome") != "done"
                # the wall clock of earlier versions, which may have been set back in between
                seconds = entry.get("seconds", max(0.0, ended - entry["started"]))
                yield Try(spec["kind"], seconds, entry.get("cpus", 1), entry.get("gpus", 0), lost)
