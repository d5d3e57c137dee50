"""A thousand and ten thousand cells sent to a real Slurm: calls of sbatch, and seconds to plan, send and look.

    python benchmarks/cluster_submission.py [--cells 1000 10000]

Starts slurm/dev_cluster in a temporary folder, closes its partition so that nothing runs, sends the grid, sends it
again, asks for its status, cancels it, and stops the cluster. Beside it: one call of sbatch for each cell, measured on
20 of them and scaled, as a launcher without arrays sends them. Prints one JSON object per size.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.config.cluster import Cluster
from harness.config.machine import Machine
from harness.execution.slurm.squeue import Queue
from harness.execution.slurm.submissions import arrays_of
from harness.execution.slurm.submit import submit
from harness.execution.status_screen import Look
from harness.plan.cell_plan import Plan
from harness.plan.compose import compose
from harness.plan.frozen import freeze, keep_plan
from harness.store.store import Store

DEV_CLUSTER = Path(__file__).parents[1] / "slurm" / "dev_cluster"


def measured(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that a call takes, and what it returns."""
    started = time.perf_counter()
    found = call()
    return round(time.perf_counter() - started, 2), found


def one_by_one(cells: int, some: int = 20) -> float:
    """Seconds to send each cell in a call of its own."""
    started = time.perf_counter()
    for _ in range(some):
        subprocess.run(["sbatch", "--wrap=true", "--output=/dev/null"], check=True, capture_output=True)
    return round((time.perf_counter() - started) / some * cells, 1)


def measure(cells: int, folder: Path) -> dict[str, Any]:
    """The figures of one grid; its jobs are cancelled."""
    methods = "sft,kd,logit_kd,reverse_kd"
    sweep = ["data_frac=0.01,0.03,0.1,0.3,1.0", f"method={methods}", f"seed=range({cells // 20})"]
    store = Store.open(folder / f"store-{cells}")
    cluster = Cluster.of({"name": "dev", "pack_minutes": 0, "resources": [{"cpus": 1, "memory_gb": 1}]})
    planning, plan = measured(lambda: Plan.of(compose(sweep).cells))
    freezing, frozen = measured(lambda: freeze(plan, "g"))
    keep_plan(store, frozen)
    sending, sent = measured(lambda: submit(plan, store, Machine(), cluster, "g"))
    again, second = measured(lambda: submit(plan, store, Machine(), cluster, "g"))
    looking, look = measured(lambda: Look.at(store, frozen))
    queue, arrays = Queue.read(), arrays_of(store, "g")
    assert len(second.arrays) == 0 and look.counts["pending"] == len(plan.cells)
    tasks = sum(name in arrays for name, _ in queue.jobs)
    subprocess.run(["scancel", *{job.partition("_")[0] for job in queue.jobs.values()}], check=True)
    return {
        "cells": len(plan.cells),
        "stages": len(plan.stages),
        "calls_of_sbatch": len(sent.arrays),
        "tasks": tasks,
        "seconds_to_plan": planning,
        "seconds_to_freeze": freezing,
        "seconds_to_send": sending,
        "seconds_to_send_nothing_again": again,
        "seconds_of_status": looking,
        "seconds_to_send_one_by_one": one_by_one(cells),
    }


def main() -> None:
    """Measure every size on one cluster."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[1000, 10000])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        cluster = Path(name) / "cluster"
        subprocess.run([DEV_CLUSTER, "start", cluster], check=True)
        os.environ["SLURM_CONF"] = str(cluster / "etc" / "slurm.conf")
        try:
            subprocess.run(["scontrol", "update", "PartitionName=low", "State=DOWN"], check=True)
            for cells in given.cells:
                print(json.dumps(measure(cells, Path(name)), indent=1), flush=True)
        finally:
            subprocess.run([DEV_CLUSTER, "stop", cluster], check=True)


if __name__ == "__main__":
    main()
