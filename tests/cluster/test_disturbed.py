"""What clusters do to jobs, and people to commands: the grid is completed, its numbers are those of an undisturbed run,
and nothing that was finished is made again.

Each test ends in `whole`, which compares checksums of models and scores, not rounded figures.
"""

import re
import signal
import subprocess
import sys
import time

import pytest

from tests.cluster.conftest import slurm, until


def whole(grid, undisturbed, before=()):
    """The grid is complete and as it would have been; what was there `before` was left alone."""
    grid.finished()
    assert grid.made() == undisturbed.made()
    now = grid.times()
    assert {key: now[key] for key in before} == dict(before)
    assert "g: 2 of 2 cells done" in grid.verb("status", "g")


def jobs(state="R"):
    """Ids of the jobs in a state."""
    return slurm("squeue", "-h", "-r", "-t", state, "-o", "%i").split()


def went_on(grid, key):
    """A stopped stage went on from its checkpoint: its attempts say so, and the last began beyond the first step."""
    outcomes = [page["outcome"] for page in grid.store.attempts(key)]
    assert outcomes[-1] == "done" and "interrupted" in outcomes
    assert grid.store.manifest(key)["facts"]["earlier_seconds"] > 0


def test_a_job_gives_way_to_a_higher_tier_and_goes_on(grid, undisturbed):
    before = grid.times()
    grid.run()
    key = grid.begun("sft")
    slurm("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 5")
    until("the preemption", lambda: grid.store.attempts(key)[-1]["outcome"] == "interrupted")
    assert grid.store.attempts(key)[-1]["failure_class"] == "preempted"
    whole(grid, undisturbed, before)
    went_on(grid, key)


def test_a_signal_before_the_end_keeps_what_was_done(grid, undisturbed):
    grid.run()
    key = grid.begun("sft")
    for job in jobs():
        slurm("scancel", "--signal=USR2", job)
    until("the stop", lambda: grid.store.attempts(key)[-1]["outcome"] == "interrupted")
    whole(grid, undisturbed)
    went_on(grid, key)


def test_a_node_dies(grid, undisturbed, cluster):
    before = grid.times()
    grid.run()
    key = grid.begun("sft")
    node = slurm("squeue", "-h", "-t", "R", "-o", "%N").split()[0]
    slurm("dev_cluster", "stop-node", node, str(cluster))
    try:
        until("Slurm to see it", lambda: "down" in slurm("sinfo", "-h", "-N", "-n", node, "-o", "%T"))
        whole(grid, undisturbed, before)
    finally:
        slurm("dev_cluster", "start-node", node, str(cluster))
    dead, *_, last = grid.store.attempts(key)
    assert (dead["outcome"], last["outcome"]) == ("running", "done") and dead["host"] != last["host"]
    assert grid.store.manifest(key)["facts"]["earlier_seconds"] > 0


def test_a_time_limit_shorter_than_a_stage(grid, undisturbed):
    """The job is told before its time is over, as often as it takes; only then does it write a checkpoint."""
    grid.settings[1:2] = ["method=sft"]
    grid.settings += ["budget.amount=3000", "machine.checkpoint_minutes=10"]
    grid.run("slurm.resources=[{cpus: 1, memory_gb: 2, minutes: 2}]", "slurm.notice_seconds=60")
    key = grid.training("sft")
    grid.finished(patience=600)
    went_on(grid, key)


def test_a_job_is_killed_for_memory_and_retried_with_more(grid, undisturbed):
    before = grid.times()
    grid.run("slurm.resources=[{cpus: 1, memory_gb: 0.5, minutes: 10}]")
    until("the jobs to end", lambda: not slurm("squeue", "-h"))
    status = grid.verb("status", "g")
    assert "oom_host" in status and "out of memory" in status
    for _ in range(3):
        grid.verb("retry", "g", "--class", "oom")
        until("the jobs to end", lambda: not slurm("squeue", "-h"))
        if "2 of 2" in grid.verb("status", "g"):
            break
    whole(grid, undisturbed, before)


def test_the_controller_is_away_while_a_grid_is_planned_and_watched(grid, undisturbed, cluster):
    watching = grid.start("wait=true")
    until("the submission", lambda: list(grid.store.root.glob("submissions/*/g.*.json")))
    grid.begun("sft")
    slurm("dev_cluster", "stop-controller", str(cluster))
    try:
        plan = [sys.executable, "-m", "harness.grid", "--store", str(grid.store.root), "plan", *grid.settings]
        assert "2 cells" in subprocess.run(plan, capture_output=True, text=True, check=True).stdout
        assert "g: " in grid.verb("status", "g")
        time.sleep(60)
    finally:
        slurm("dev_cluster", "start-controller", str(cluster))
    whole(grid, undisturbed)
    out, err = watching.communicate(timeout=60)
    assert watching.returncode == 0 and "sft" in out, out + err


@pytest.mark.parametrize("after", [0, 1])
def test_the_submitting_shell_is_killed(grid, undisturbed, after):
    """After so many calls of sbatch; the same command sends what is missing and no more."""
    process = grid.start("slurm.pack_minutes=0", "slurm.throttle=1")
    until(f"{after} calls", lambda: len(list(grid.store.root.glob("submissions/*/g.*.json"))) >= after and notes(grid))
    process.send_signal(signal.SIGKILL)
    process.wait()
    grid.run("slurm.pack_minutes=0", "slurm.throttle=1")
    whole(grid, undisturbed)
    assert {len(grid.store.attempts(key)) for key in grid.targets} <= {0, 1}


def notes(grid):
    folder = grid.store.root / "jobs"
    return folder.is_dir() and any(folder.iterdir())


def test_a_failed_teacher_fails_what_needs_it_and_nothing_else(grid, undisturbed):
    bad = "teacher.lessons.0.budget.learning_rate=1e9"
    grid.run(bad)
    until("the jobs to end", lambda: not slurm("squeue", "-h"))
    status = grid.verb("status", "g")
    assert "1 of 2 cells done, 1 failed" in status
    assert re.search(r"failed .*logit_kd.*diverged: train-teacher_weak", status), status
    assert "logit_kd" in grid.verb("results", "g")  # half a grid can be looked at
    assert "were not submitted" in grid.run(bad)


def test_two_people_send_overlapping_grids_at_the_same_moment(grid, undisturbed):
    both = [grid.start(), grid.start("method=sft,logit_kd,reverse_kd", name="h")]
    for process in both:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, out + err
    whole(grid, undisturbed)
    assert all(len(grid.store.attempts(key)) <= 1 for key in grid.plan.stages)


def test_a_grid_is_cancelled_and_goes_on(grid, undisturbed):
    grid.run()
    key = grid.begun("sft")
    assert "cancelled" in grid.verb("cancel", "g")
    until("the jobs to end", lambda: not slurm("squeue", "-h"))
    assert grid.store.attempts(key)[-1]["outcome"] == "interrupted"
    assert grid.store.attempts(key)[-1]["traceback"] in grid.verb("logs", key)
    grid.run()
    whole(grid, undisturbed)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["slurm.partition=hihg"], "slurm.partition='hihg'"),
        (["slurm.resources=[{gpus: 3}]"], "slurm.resources.gpus=3"),
    ],
)
def test_what_the_cluster_lacks_is_said_in_a_sentence_and_nothing_is_sent(grid, more, words):
    assert words in grid.run(*more, code=2)
    assert not slurm("squeue", "-h")
