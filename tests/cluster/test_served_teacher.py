"""A teacher served by a job of its own on a real Slurm: there when it is asked, gone afterwards, back when stopped."""

import os
import sys

import pytest
from transformers import LlamaConfig

from harness.data.miniature.sizes import llama_settings
from harness.data.miniature.tokenizer import load_mini_tokenizer
from harness.models.loading import random_model
from harness.store.store import Store
from harness.teachers.discovery import read_address
from tests.cluster.conftest import Sent, slurm, until

GRID = [
    "data_frac=0.02",
    "method=sft,seq_kd",
    "student=mini_tiny",
    "student.init=random",
    "teacher=served",
    "teacher.path=slurm",
    "budget.amount=20",
    "evals.limit=20",
]
SERVE = "resources: {cpus: 1, memory_gb: 2, minutes: 30}, ready_minutes: 4, look_seconds: 2"


@pytest.fixture
def grid(cluster, tmp_path):
    """A grid whose teacher, of random weights, the cluster is to serve; at the end nothing of it is in the queue."""
    folder = tmp_path / "Tiny-7B"
    random_model(LlamaConfig(**llama_settings("tiny")), seed=1).save_pretrained(folder)
    load_mini_tokenizer().save_pretrained(folder)
    store = Store.open(tmp_path / "store")
    yield Sent(store, [*GRID, f"teacher.served_model={folder}", f"teacher.tokenizer={folder}"])
    slurm("scancel", "--full", "-u", "root" if os.geteuid() == 0 else os.environ["USER"])
    until("an empty queue", lambda: not slurm("squeue", "-h"))


def serve(command):
    return f"slurm.serve={{command: '{command}', {SERVE}}}"


def tiny(seconds=0):
    """Served by tests/serve_tiny.py, each answer after so many seconds."""
    return serve(f"{sys.executable} -m tests.serve_tiny {{model}} {{port}} {seconds}")


def address_file(grid):
    return next(iter((grid.store.root / "servers").glob("*.json")), None)


def whole(grid):
    """Every cell is scored, and the server is gone by itself."""
    grid.finished()
    until("an empty queue", lambda: not slurm("squeue", "-h"))
    assert "g: 2 of 2 cells done" in grid.verb("status", "g") and address_file(grid) is None
    facts = [grid.store.manifest(key)["facts"] for key in grid.plan.stages if key.startswith("labels-")]
    assert sum(one["counts"]["answers"] for one in facts) > 0
    assert "seq_kd" in grid.verb("results", "g")


def servers():
    """States of the jobs that served, by Slurm's accounts."""
    lines = slurm("sacct", "-X", "-n", "-P", "-D", "-S", "now-1hours", "-o", "JobName,JobID,State").splitlines()
    return [line.split("|")[1:] for line in lines if ".serve." in line.split("|")[0]]


def test_a_teacher_is_served_while_it_is_asked(grid):
    before = servers()
    said = grid.run(tiny())
    assert ".serve." in said
    assert "0 targets submitted in 0 calls" in grid.run(tiny())
    until("the server", lambda: address_file(grid) and read_address(address_file(grid))["url"])
    whole(grid)
    (mine,) = [one for one in servers() if one not in before]
    assert mine[1] == "COMPLETED"
    assert "serve" in grid.verb("cost", "g")
    assert "0 targets submitted in 0 calls" in grid.run(tiny())


def test_a_server_that_is_stopped_is_started_anew_and_those_who_ask_wait(grid):
    grid.run(tiny(seconds=0.5))
    labels = [key for key in grid.plan.stages if key.startswith("labels-")]
    until("labels under way", lambda: any(map(grid.store.claimed, labels)))
    first = read_address(address_file(grid))
    slurm("scancel", "--signal=USR2", first["job"])
    until("the stop", lambda: read_address(address_file(grid))["url"] is None)
    whole(grid)
    assert [job for job, _ in servers()].count(first["job"]) == 2, "it was queued again"
    assert [[one["outcome"] for one in grid.store.attempts(key)] for key in labels] == [["done"]] * len(labels)


def test_a_server_that_cannot_start_fails_what_asks_it_with_its_own_line_and_no_more(grid):
    grid.run(serve(f"{sys.executable} -c \"raise SystemExit(\\'no kernel image\\')\" {{port}}"))
    until("the jobs to end", lambda: not slurm("squeue", "-h"))
    status = grid.verb("status", "g")
    assert "1 of 2 cells done, 1 failed" in status
    assert "server: base-served" in status and "no kernel image" in status
    grid.run(tiny())
    whole(grid)
