"""Threads: one for small models wherever they are made, and the caller's own number afterwards."""

import os
import subprocess
import sys

import torch

from harness.plan.cell_plan import Plan
from harness.plan.compose import compose
from harness.runtime.processes import node_address, threads


def test_the_block_alone_computes_with_so_many_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
        assert os.environ["OMP_NUM_THREADS"] == str(before + 1)  # for a torch that is imported in the block
    assert torch.get_num_threads() == before and os.environ["OMP_NUM_THREADS"] == "7"
    monkeypatch.delenv("OMP_NUM_THREADS")
    with threads(1):
        pass
    assert "OMP_NUM_THREADS" not in os.environ
    with threads(None):
        assert torch.get_num_threads() == before and "OMP_NUM_THREADS" not in os.environ


def test_a_torch_that_is_imported_in_the_block_computes_with_the_callers_threads_afterwards():
    source = (
        "from harness.runtime.processes import threads\n"
        "with threads(1):\n    import torch; inside = torch.get_num_threads()\n"
        "print(inside, torch.get_num_threads())"
    )
    found = subprocess.run(
        [sys.executable, "-c", source], env={**os.environ, "OMP_NUM_THREADS": "2"}, capture_output=True, check=True
    )
    assert found.stdout.split() == [b"1", b"2"]


def test_small_models_are_made_on_one_thread_and_large_ones_as_the_machine_says():
    mini = Plan.of(compose(["data_frac=0.1", "method=sft,kd"]).cells)
    assert {stage.spec()["threads"] for stage in mini.stages} == {1}
    large = Plan.of(compose(["data_frac=0.1", "student=llama_1b", "method=sft"]).cells)
    found = {stage.kind: stage.spec()["threads"] for stage in large.stages}
    assert found["train"] is None and found["mixture"] == 1


def test_a_nodes_address_is_read_from_what_slurm_prints_of_it():
    shown = "NodeName=n1 Arch=x86_64 CoresPerSocket=4\n   NodeAddr=10.0.0.7 NodeHostName=rack-1 Version=22.05.8\n"
    assert node_address("n1", shown) == "10.0.0.7"
    assert node_address("n1", "NodeName=n1 Arch=x86_64\n") == "n1"
