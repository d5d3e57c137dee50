"""A job of several processes: what the first makes alone, what all make, and how all end when one does.

The processes are forked from a server that has imported the job once; nothing here needs torch.
"""

import json
import os
import signal
import threading
import time

import pytest

from harness.config.machine import Machine
from harness.execution.distributed import coordinator
from harness.execution.distributed.process_group import Rank, own_rank
from harness.execution.slurm import task
from harness.plan.graph import Stage
from harness.runtime import preemption
from harness.store.status import stage_state
from harness.store.store import Store

COUNT = 3
GRACE = 5.0
ALONE, ALL = "subset", "train"


def make(settings, inputs, out, machine):
    """A stage that notes who makes it; what a process does besides is in `do`, by its rank."""
    rank = os.environ.get("RANK", "-")
    with open(settings["notes"], "a") as notes:
        notes.write(f"{settings['name']} {rank} of {os.environ.get('WORLD_SIZE', 1)}\n")
    do = settings.get("do", {}).get(rank)
    if do == "raise":
        raise RuntimeError("the weights caught fire")
    if do == "memory":
        raise MemoryError("none left")
    if do == "hang" or do == "poll":  # as in a collective operation that another process does not join
        while not (do == "poll" and preemption.stop_requested()):
            time.sleep(0.02)
        raise preemption.Preempted("stopped after step 3 of 9")
    return {"cost": {"flops": 1.0}}


@pytest.fixture(scope="module")
def server(forked):
    return forked("tests.execution.distributed.test_coordinator")


class Job:
    """Stages of a submission, and the processes that make them."""

    def __init__(self, server, root):
        self.server, self.root = server, root
        self.store = Store.open(root / "store")
        self.stages, self.processes = [], []

    def stage(self, name, kind=ALL, **settings):
        stage = Stage(kind, name, {"name": name, "notes": str(self.root / "notes"), **settings})
        self.stages.append(stage)
        return stage

    def start(self, count=COUNT):
        written = {
            "store": str(self.store.root),
            "machine": Machine().__dict__,
            "cluster": {"restarts": 0},
            "stages": {stage.key: stage.spec() for stage in self.stages},
            "jobs": {stage.key: [stage.key] for stage in self.stages},
        }
        file = self.root / "submission.json"
        file.write_text(json.dumps(written))
        keys = [stage.key for stage in self.stages]
        start = f"{self.root}.{time.time()}"
        self.processes = [self.server.Process(target=process, args=(rank, start, keys, file)) for rank in range(count)]
        for one in self.processes:
            one.start()

    def notes(self):
        file = self.root / "notes"
        return file.read_text().splitlines() if file.exists() else []

    def wait_for(self, lines):
        deadline = time.monotonic() + 30
        while len(self.notes()) < lines:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def ends(self, seconds=8 * GRACE):
        deadline = time.monotonic() + seconds
        for one in self.processes:
            one.join(max(0.0, deadline - time.monotonic()))
        codes = [one.exitcode for one in self.processes]
        for one in self.processes:
            one.kill()
        return codes


def process(rank, start, keys, file):
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": COUNT, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": start}
    os.environ.update({name: str(value) for name, value in names.items()} | {"PMI_SIZE": str(COUNT)})
    coordinator.GRACE_SECONDS = GRACE
    task.MAKERS = {kind: ("tests.execution.distributed.test_coordinator:make", 1) for kind in (ALONE, ALL)}
    os._exit(task.make(keys, file))


@pytest.fixture
def several(server, tmp_path):
    found = Job(server, tmp_path)
    yield found
    for one in found.processes:
        one.kill()


def test_the_first_process_makes_alone_what_does_not_train_and_all_make_what_does(several):
    before, both, after = several.stage("data", ALONE), several.stage("model"), several.stage("score", ALONE)
    again = several.stage("another model")
    several.start()
    assert several.ends() == [0, 0, 0]
    notes = several.notes()
    assert [line for line in notes if "model" not in line] == ["data - of 1", "score - of 1"]
    assert sorted(line for line in notes if line.startswith("model")) == [f"model {rank} of 3" for rank in range(3)]
    assert notes[0] == "data - of 1" and notes[4] == "score - of 1"
    for stage in (before, both, after, again):
        assert several.store.done(stage.key) and len(several.store.attempts(stage.key)) == 1
    assert several.store.manifest(both.key)["machine"]["processes"] == 3
    assert several.store.manifest(after.key)["machine"]["processes"] == 1
    assert not list((several.store.root / "tmp").iterdir())


def test_what_is_there_already_ends_all_processes_at_once(several):
    several.stage("model")
    several.start()
    assert several.ends() == [0, 0, 0]
    several.start()
    assert several.ends() == [0, 0, 0] and len(several.notes()) == 3


@pytest.mark.parametrize("killed", [0, 2])
def test_a_process_that_is_killed_ends_the_job_and_its_attempt_says_so(several, killed):
    stuck = {str(rank): "hang" for rank in range(COUNT)}
    stage, other = several.stage("model", do=stuck), several.stage("another")
    several.start()
    several.wait_for(COUNT)
    os.kill(several.processes[killed].pid, signal.SIGKILL)
    deadline = time.monotonic() + 3
    while several.store.attempts(stage.key)[-1]["outcome"] == "running":  # told before the processes are out
        assert time.monotonic() < deadline
        time.sleep(0.01)
    codes = several.ends()
    assert codes[killed] == -signal.SIGKILL and codes.count(1) == COUNT - 1
    state = stage_state(several.store, stage.key)
    assert (state.status, state.failure_class) == ("interrupted", "killed")
    assert state.reason.startswith(f"process {killed} of 3") and "is gone: it was killed" in state.reason
    assert several.store.claim(stage.key) is not None and not several.store.attempts(other.key)


def test_a_job_that_is_stopped_since_it_lost_a_process_records_the_loss(several):
    """Slurm sends SIGTERM to the rest of a step when one of its processes is killed."""
    stage = several.stage("model", do={str(rank): "hang" for rank in range(COUNT)})
    several.start()
    several.wait_for(COUNT)
    os.kill(several.processes[2].pid, signal.SIGKILL)
    deadline = time.monotonic() + 3
    while several.store.attempts(stage.key)[-1]["outcome"] == "running":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for one in several.processes[:2]:
        os.kill(one.pid, signal.SIGTERM)
    assert several.ends()[0] == 1
    state = stage_state(several.store, stage.key)
    assert (state.status, state.failure_class) == ("interrupted", "killed")
    assert state.reason.startswith("process 2 of 3")


@pytest.mark.parametrize("failing", [0, 1])
def test_a_failure_of_one_process_is_the_stages_and_the_next_one_is_made(several, failing):
    stage, after = several.stage("model", do={str(failing): "raise"}), several.stage("score", ALONE)
    another = several.stage("another")
    several.start()
    assert several.ends() == [1, 1, 1]
    state = stage_state(several.store, stage.key)
    assert (state.status, state.failure_class) == ("failed", "application")
    assert state.reason.endswith("RuntimeError: the weights caught fire")
    assert state.reason.startswith("process 1 of 3 on ") == (failing == 1)
    assert several.store.done(after.key) and several.store.done(another.key)


def test_a_rank_asked_to_leave_before_it_began_answers_and_makes_nothing(monkeypatch, tmp_path):
    """Else rank 0 waits for its answer until the whole job is ended."""
    messages = iter([{"stage": "model", "claim": "a1", "port": 9}, {"leave": True}, {"end": 0}, None])
    sent, heard = [], threading.Event()

    class Said:
        send = staticmethod(sent.append)

        def receive(self):
            message = next(messages)
            heard.set() if "end" in message else None
            return message

    class Slow(coordinator.Participant):
        def _make(self, message, follow):
            heard.wait()
            super()._make(message, follow)

    monkeypatch.setattr(coordinator, "connect", lambda rank, token: Said())
    slow = Slow(Rank(2, COUNT, 2, "127.0.0.1", "now"), "text", Store.open(tmp_path / "store"))
    assert slow.serve(lambda key: pytest.fail("made")) == 0
    assert sent == [{"left": None, "claim": "a1"}]


def test_the_class_of_a_failure_is_that_of_the_process_where_it_began(several):
    stage = several.stage("larger", do={"2": "memory"})
    several.start()
    several.ends()
    assert stage_state(several.store, stage.key).failure_class == "oom_host"


def test_processes_told_to_stop_stop_together_and_the_other_ranks_wait_for_rank_0(several):
    stage = several.stage("model", do={str(rank): "poll" for rank in range(COUNT)})
    several.start()
    several.wait_for(COUNT)
    for one in reversed(several.processes):
        os.kill(one.pid, signal.SIGTERM)
        time.sleep(0.1)
    assert several.ends() == [preemption.EXIT_CODE] * COUNT
    assert stage_state(several.store, stage.key).failure_class == "preempted"
    assert several.store.claim(stage.key) is not None


def test_a_rank_of_a_slurm_step_knows_the_address_of_rank_0(monkeypatch, tmp_path):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        '#!/bin/sh\n[ "$2" = hostnames ] && printf "n7\\nn8\\n" || echo "NodeName=$3 NodeAddr=10.0.0.7"\n'
    )
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    step = {"STEP_NUM_TASKS": "4", "PROCID": "3", "LOCALID": "1", "STEP_NODELIST": "n[7-8]"}
    for name, value in {**step, "JOB_ID": "12", "STEP_ID": "0", "RESTART_COUNT": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("PMI_RANK", "3")  # set by some srun; Accelerate would take the process for one of several
    assert own_rank() == Rank(3, 4, 1, "10.0.0.7", "12.0.2") and "PMI_RANK" not in os.environ
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert own_rank() is None
