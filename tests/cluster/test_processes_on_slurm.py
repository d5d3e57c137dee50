"""One stage trained by two nodes with two processes each: the numbers of one process, stopped and killed or not."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness.plan.frozen import targets_of
from harness.store.store import Store
from tests.cluster.conftest import Sent, until

FOUR = "slurm.resources=[{nodes: 2, processes: 2, cpus: 1, memory_gb: 4, minutes: 10}]"
SHORT = ["method=sft", "budget.amount=60", "machine.checkpoint_minutes=0.005"]


@pytest.fixture
def pair(grid, tmp_path):
    """The grid's first cell, shorter, to be sent; and what one process makes of it."""
    names = [one.partition("=")[0] for one in SHORT]
    grid.settings = [one for one in grid.settings if one.partition("=")[0] not in names] + SHORT
    alone = Sent(Store.open(tmp_path / "alone"), grid.settings)
    shutil.copytree(grid.store.root / "objects", alone.store.root / "objects", dirs_exist_ok=True)
    alone.run(slurm=None)
    return grid, alone


def same(sent, alone):
    """Losses within 1e-4, parameters within 1e-3 and 1e-5, scores within 1e-3, at the same addresses."""
    sent.finished()
    assert sent.plan.stages.keys() == alone.plan.stages.keys()
    key = sent.training("sft")
    one, four = (found.store.folder(key) for found in (alone, sent))
    for mine, theirs in zip(*((folder / "log.jsonl").read_text().splitlines() for folder in (one, four)), strict=True):
        assert json.loads(theirs)["loss"] == pytest.approx(json.loads(mine)["loss"], rel=1e-4)
    weights = load_file(four / "model.safetensors")
    for name, weight in load_file(one / "model.safetensors").items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-3, atol=1e-5)
    for target in sent.targets:
        mine, theirs = (json.loads((s.store.folder(target) / "scores.json").read_text()) for s in (alone, sent))
        assert [score["score"] for score in theirs] == pytest.approx([score["score"] for score in mine], rel=1e-3)
    mine = next(targets_of(cell)[0] for cell in sent.plan.cells)
    assert len(sent.store.attempts(mine)) == 1 and sent.store.manifest(mine)["machine"]["processes"] == 1
    assert sent.store.manifest(key)["machine"]["processes"] == 4
    return sent.store.attempts(key)


def processes(rank, job):
    """Ids of a job's process of this rank."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment, command = (folder / "environ").read_bytes().split(b"\0"), (folder / "cmdline").read_bytes()
        except OSError:
            continue
        wanted = {f"SLURM_PROCID={rank}", f"SLURM_JOB_ID={job}", f"SLURM_CONF={os.environ['SLURM_CONF']}"}
        mine = {one.encode() for one in wanted} <= set(environment) and b"submitit.core._submit" in command
        if mine and not command.startswith(b"srun"):
            yield int(folder.name)


def test_one_of_four_processes_is_killed_and_the_same_command_goes_on(pair):
    sent, alone = pair
    sent.run(FOUR)
    key = sent.begun("sft")
    job = sent.store.attempts(key)[-1]["job"]
    for process in processes(3, job):
        os.kill(process, signal.SIGKILL)
    until("the attempt's end to be recorded", lambda: sent.store.attempts(key)[-1]["outcome"] != "running", patience=15)
    attempt = sent.store.attempts(key)[-1]
    assert attempt["failure_class"] == "killed" and attempt["reason"].startswith("process 3 of 4")
    until("the job to end", lambda: not subprocess.check_output(["squeue", "-h", "-j", job, "-t", "R,CG"]), patience=20)
    sent.run(FOUR)
    assert [one["outcome"] for one in same(sent, alone)] == ["interrupted", "done"]
    assert sent.store.manifest(key)["facts"]["earlier_seconds"] > 0


def test_four_processes_asked_to_stop_keep_a_checkpoint_and_are_queued_again(pair):
    sent, alone = pair
    sent.run(FOUR)
    key = sent.begun("sft")
    subprocess.run(["scancel", "--signal=USR2", sent.store.attempts(key)[-1]["job"]], check=True)
    attempts = same(sent, alone)
    assert [one["failure_class"] for one in attempts] == ["preempted", None]
