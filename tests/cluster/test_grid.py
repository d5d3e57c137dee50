"""A grid on a real Slurm: the numbers of one machine, each stage once, and the truth about every cell."""

from harness.store.store import Store
from tests.cluster.conftest import Sent


def test_every_way_to_run_a_grid_makes_the_same_numbers(cluster, undisturbed, tmp_path):
    pool, sent = (Sent(Store.open(tmp_path / name)) for name in ("local", "slurm"))
    said = sent.run()
    assert "calls of sbatch" in said and "FLOPs" in said  # the plan with its cost comes first
    pool.run("launch.kind=local", "launch.workers=2", slurm=None)
    assert "0 targets submitted in 0 calls" in sent.run()  # all of it is in the queue
    sent.finished()
    assert pool.made() == sent.made() == undisturbed.made()
    assert "0 targets submitted in 0 calls" in sent.run()
    assert sent.verb("status", "g").startswith("g: 2 of 2 cells done\n")
    cost = sent.verb("cost", "g")
    assert "Slurm's accounts" in cost and "cells" in cost
    assert "sft" in sent.verb("results", "g")
