"""The ledger: what a grid's stages took on its machines, tries that came to nothing included.

From the cluster's accounts where it has them (every try, those before a requeue too), else from our own attempts.

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
    """One try at making something: `work` is a kind of stage, or `cells`."""

    work: str
    seconds: float
    cpus: int
    gpus: int
    lost: bool
    """Whether it ended, or runs still, without what it was to make."""


def ledger(store: Store, frozen: FrozenPlan) -> tuple[str, pd.DataFrame]:
    """Where the figures come from, and a row per kind of work and one for all: tries, hours of machines, CPUs and GPUs,
    and how many of the hours were lost."""
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
    return source, table.astype({"tries": int})


def check_gpu_hours(work: Work, store: Store, cluster: Cluster, grid: str) -> None:
    """Raise SettingsError where what a grid took and what its rest is expected to take exceed `slurm.gpu_hours`."""
    if cluster.gpu_hours is None:
        return
    _, took = ledger(store, FrozenPlan(grid, {stage.key: {"kind": stage.kind} for stage in work.stages}, ()))
    spent = took["GPU hours"]["all"]
    expected = sum(row["gpu_hours"] for row in plan_rows(work, store, cluster))
    if spent + expected > cluster.gpu_hours:
        raise refuse(
            "slurm.gpu_hours",
            cluster.gpu_hours,
            f"{grid} took {spent:,.1f} GPU-hours so far and its rest is expected to take {expected:,.1f} more",
            "run the command again with a higher slurm.gpu_hours (null: no limit), or ask for fewer cells",
        )


def _billed(store: Store, grid: str) -> Iterator[Try]:
    for one in accounts(arrays_of(store, grid), every_try=True):
        yield Try(one.array.rsplit(".", 3)[1], one.seconds, one.cpus, one.gpus, one.state != "COMPLETED")


def _attempted(store: Store, frozen: FrozenPlan) -> Iterator[Try]:
    for key, spec in frozen.stages.items():
        for page in store.attempts(key):
            if "started" in page:
                ended = page.get("ended") or page.get("heartbeat") or page["started"]
                lost = page.get("outcome") != "done"
                yield Try(spec["kind"], ended - page["started"], page.get("cpus", 1), page.get("gpus", 0), lost)
