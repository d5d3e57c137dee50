"""Execution: order, reuse, failure, death and interruption, with makers that cost nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest

import harness.execution.executor
import harness.execution.launchers.local
import harness.plan.graph
from harness.config import file_hash
from harness.config.cell import Settings
from harness.config.checks import SettingsError
from harness.config.machine import Launch, Machine
from harness.execution.attempt import attempt
from harness.execution.executor import execute
from harness.execution.launchers.local import WorkerPool
from harness.plan.cell_plan import CellPlan, Plan
from harness.plan.graph import Stage
from harness.store import integrity
from harness.store.status import cell_state, stage_state
from harness.store.store import Store

MAKER = "tests.makers:make"


class Watcher:
    """Remembers every change of state."""

    def __init__(self):
        self.changes, self.progress, self.warnings = [], [], []

    def changed(self, stage, state):
        self.changes.append((stage.name, state.status))

    def progressed(self, stage, progress):
        self.progress.append((stage.name, progress.step))

    def warn(self, text):
        self.warnings.append(text)

    def tick(self):
        pass

    def expect(self, seconds):
        self.expected = dict(seconds)


@pytest.fixture(autouse=True)
def cheap_makers(monkeypatch):
    makers = {kind: (MAKER, 1) for kind in ("mixture", "base", "train", "evaluate")}
    monkeypatch.setattr(harness.plan.graph, "MAKERS", makers)
    monkeypatch.setattr(harness.execution.executor, "MAKERS", makers)
    monkeypatch.setattr(harness.execution.executor, "stage_seconds", lambda stage: 1.0)


def chain(number, do=None, data=None):
    """mixture -> train -> evaluate; the mixture is shared by all chains."""
    mixture = Stage("mixture", "data", {"do": data})
    train = Stage("train", f"train{number}", {"number": number, "do": do}, {"subset": mixture})
    evaluate = Stage("evaluate", f"evaluate{number}", {"number": number}, {"model": train, "mixture": mixture})
    return CellPlan(None, (train,), {"verified": evaluate}, (), None, None, {})


def plan_of(*cells):
    stages = {stage.key: stage for cell in cells for stage in cell.stages()}
    return Plan(cells, tuple(stages.values()))


def settings(kind="inline", workers=2, retry=False):
    return Settings(method=None, corpus=None, launch=Launch(kind=kind, workers=workers), retry=retry)


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store")


@pytest.mark.parametrize("kind", ["inline", "local"])
def test_everything_is_made_once_inputs_first(store, kind):
    plan, watcher = plan_of(chain(1), chain(2)), Watcher()
    states = execute(plan, store, settings(kind), watcher)
    assert {state.status for state in states.values()} == {"done"}
    assert all(store.done(stage.key) for stage in plan.stages)
    started = [name for name, status in watcher.changes if status == "running"]
    assert sorted(started) == ["data", "evaluate1", "evaluate2", "train1", "train2"]
    assert started[0] == "data"


def test_running_again_makes_nothing(store):
    plan = plan_of(chain(1))
    execute(plan, store, settings(), Watcher())
    again = Watcher()
    execute(plan, store, settings(), again)
    assert [name for name, status in again.changes if status == "running"] == []


def test_what_a_finished_cell_needed_is_not_made_again(store):
    plan = plan_of(chain(1))
    execute(plan, store, settings(), Watcher())
    train = plan.cells[0].train[0]
    os.rename(store.folder(train.key), store.root / "tmp" / "gone")
    execute(plan, store, settings(), Watcher())
    assert not store.done(train.key)


@pytest.mark.parametrize("kind", ["inline", "local"])
def test_a_failing_stage_blocks_its_own_cell_and_the_others_finish(store, kind):
    bad, good = chain(1, do="raise"), chain(2)
    states = execute(plan_of(bad, good), store, settings(kind), Watcher())
    assert states[good.targets[0].key].status == "done"
    assert states[bad.train[0].key].status == "failed"
    assert states[bad.targets[0].key].status == "blocked"
    assert "the weights caught fire" in states[bad.targets[0].key].reason
    assert "second line" not in states[bad.targets[0].key].reason
    written = store.attempts(bad.train[0].key)[-1]
    assert written["failure_class"] == "application" and "makers.py" in written["traceback"]
    addresses = {stage.key: stage.address for stage in bad.targets[0].ancestry()}
    assert cell_state(lambda key: stage_state(store, key), addresses, [bad.targets[0].key]).status == "failed"


def test_a_failed_stage_is_run_again_only_when_asked(store):
    plan = plan_of(chain(1, do="raise"))
    for retry, attempts in ((False, 1), (False, 1), (True, 2)):
        execute(plan, store, settings(retry=retry), Watcher())
        assert len(store.attempts(plan.cells[0].train[0].key)) == attempts


def test_bad_data_is_refused_before_anything_is_trained(store):
    watcher = Watcher()
    with pytest.raises(SettingsError, match="no such file"):
        execute(plan_of(chain(1, data="refuse")), store, settings("local"), watcher)
    assert ("train1", "running") not in watcher.changes


def test_bad_data_is_refused_again_when_nothing_was_mended_and_read_again_when_it_was(store):
    plan = plan_of(chain(1, data="refuse"))
    for _ in range(2):
        watcher = Watcher()
        with pytest.raises(SettingsError, match="no such file"):
            execute(plan, store, settings(), watcher)
        assert ("train1", "running") not in watcher.changes


def test_what_only_doomed_cells_need_is_not_made(store):
    mixture = Stage("mixture", "data", {"do": "raise"})
    base = Stage("base", "base", {})
    train = Stage("train", "train", {}, {"subset": mixture, "start": base})
    evaluate = Stage("evaluate", "evaluate", {}, {"model": train, "mixture": mixture})
    states = execute(
        plan_of(CellPlan(None, (train,), {"verified": evaluate}, (), None, None, {})), store, settings(), Watcher()
    )
    assert states[base.key].status == "blocked" and not store.done(base.key)


def test_a_killed_worker_costs_one_attempt_and_the_rest_goes_on(store):
    bad, good = chain(1, do="die"), chain(2)
    states = execute(plan_of(bad, good), store, settings("local", workers=1), Watcher())
    assert states[bad.train[0].key].failure_class == "killed" and "SIGKILL" in states[bad.train[0].key].reason
    assert states[good.targets[0].key].status == "done"
    # the next run starts it again by itself: nobody can say that it would fail twice
    assert stage_state(store, bad.train[0].key).status == "interrupted"


def test_a_worker_told_to_stop_is_preempted_and_the_next_run_takes_its_stage_up_again(store):
    pool, stage = WorkerPool(store, Machine(), 1, lambda key, progress: None), Stage("mixture", "slow", {"do": "wait"})
    try:
        pool.submit(stage.spec(), MAKER)
        _until(lambda: store.attempts(stage.key))
        os.kill(json.loads((store.root / "claims" / stage.key).read_text())["pid"], signal.SIGTERM)
        (outcome,) = _first(pool)
    finally:
        pool.close()
    assert (outcome.status, outcome.failure_class) == ("failed", "preempted")
    assert stage_state(store, stage.key).status == "interrupted" and not store.claimed(stage.key)


def _first(pool):
    for _ in range(400):
        if found := list(pool.events(0.2)):
            return found
    return []


def test_a_stage_that_another_run_makes_is_waited_for(store):
    plan = plan_of(chain(1))
    execute(plan_of(CellPlan(None, (plan.stages[0],), {}, (), None, None, {})), store, settings(), Watcher())
    train = plan.cells[0].train[0]
    claim = store.claim(train.key)
    assert attempt(store, train.spec(), MAKER, Machine()).status == "busy"
    claim.release()
    assert attempt(store, train.spec(), MAKER, Machine()).status == "done"


def test_an_input_missing_from_the_store_is_named(store):
    train = chain(1).train[0]
    outcome = attempt(store, train.spec(), MAKER, Machine())
    assert outcome.status == "failed" and train.inputs["subset"].key in outcome.reason


RUN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell starts us with Ctrl-C ignored
import tests.execution.test_executor as t
from harness.store.store import Store
import harness.plan.graph, harness.execution.executor
for module in (harness.plan.graph, harness.execution.executor):
    module.MAKERS = {kind: (t.MAKER, 1) for kind in ("mixture", "base", "train", "evaluate")}
harness.execution.executor.stage_seconds = lambda stage: 1.0
if __name__ == "__main__":
    t.execute(t.plan_of(t.chain(1, do="wait")), Store.open(sys.argv[1]), t.settings("local"), t.Watcher())
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent_and_leave_no_claim_behind(store, tmp_path, sent):
    script = tmp_path / "run.py"
    script.write_text(RUN)
    running = subprocess.Popen(
        [sys.executable, str(script), str(store.root)],
        start_new_session=True,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    key = chain(1, do="wait").train[0].key
    _until(lambda: store.claimed(key))
    worker = json.loads((store.root / "claims" / key).read_text())["pid"]
    running.send_signal(sent)
    running.wait(120)
    _until(lambda: not _alive(worker))
    assert not store.claimed(key) and not store.done(key)
    assert store.claim(key) is not None


def _alive(pid):
    try:
        return "zombie" not in open(f"/proc/{pid}/status").read()
    except FileNotFoundError:
        return False


def _until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def test_the_pool_is_bounded(store, monkeypatch):
    before = set(psutil.Process().children())  # of another test's pool, still on their way out
    pool = WorkerPool(store, Machine(), 2, lambda key, progress: None)
    try:
        for number in range(6):
            pool.submit(Stage("mixture", f"m{number}", {"number": number}).spec(), MAKER)
        assert len(set(psutil.Process().children()) - before) == 2
        done = []
        while len(done) < 6:
            done += pool.events(0.2)
        assert {outcome.status for outcome in done} == {"done"}
    finally:
        pool.close()


def _damage(store, key, forget=True):
    (store.folder(key) / "made.json").write_text("x")
    if forget:  # another process has hashed nothing yet
        file_hash._contents.clear()


@pytest.mark.parametrize("kind", ["inline", "local"])
def test_a_damaged_input_is_named_set_aside_and_made_again_and_nothing_else_is(store, kind):
    first, second = chain(1), chain(2)
    execute(plan_of(first), store, settings(kind), Watcher())
    train = first.train[0]
    _damage(store, train.inputs["subset"].key)
    watcher = Watcher()
    states = execute(plan_of(first, second), store, settings(kind), watcher)
    assert states[second.targets[0].key].status == "done"
    started = [name for name, status in watcher.changes if status == "running"]
    assert sorted(set(started)) == ["data", "evaluate2", "train2"]
    (said,) = watcher.warnings
    assert "mixture-" in said and "made.json has 1 bytes" in said and "quarantine/" in said
    assert integrity.damage(store, train.inputs["subset"].key) is None


@pytest.mark.parametrize("kind", ["inline", "local"])
def test_a_damage_that_a_stage_finds_in_mid_grid_is_repaired(store, kind, monkeypatch):
    # before the run only the size is looked at, as of a large file
    monkeypatch.setattr(integrity, "SMALL", -1)
    first, second = chain(1), chain(2)
    execute(plan_of(first), store, settings(kind), Watcher())
    data = first.train[0].inputs["subset"].key
    path = store.folder(data) / "made.json"
    path.write_bytes(path.read_bytes()[::-1])
    file_hash._contents.clear()
    watcher = Watcher()
    states = execute(plan_of(first, second), store, settings(kind), watcher)
    assert {states[stage.key].status for stage in second.stages()} == {"done"}
    assert any("another content" in said and data in said for said in watcher.warnings)
    assert integrity.damage(store, data) is None and len(store.quarantine()) == 1
    failed = store.attempts(second.train[0].key)[0]
    assert (failed["failure_class"], store.attempts(second.train[0].key)[-1]["outcome"]) == ("input", "done")


def test_an_input_that_another_process_removed_in_mid_grid_is_made_again(store):
    first, second = chain(1), chain(2)

    class Remover(Watcher):
        def changed(self, stage, state):
            super().changed(stage, state)
            if (stage.name, state.status) == ("train1", "done") and not self.warnings:
                store.set_aside(first.train[0].inputs["subset"].key, "test")

    watcher = Remover()
    states = execute(plan_of(first, second), store, settings(), watcher)
    assert {state.status for state in states.values()} == {"done"}
    assert any("is not in the store" in said for said in watcher.warnings)


def test_a_disk_that_damages_an_input_again_and_again_ends_the_stage(store):
    first = chain(1)
    data = first.train[0].inputs["subset"].key

    class Spoiler(Watcher):
        def changed(self, stage, state):
            super().changed(stage, state)
            if (stage.name, state.status) == ("data", "done"):
                _damage(store, data)

    watcher = Spoiler()
    states = execute(plan_of(first), store, settings(), watcher)
    assert states[first.train[0].key].failure_class == "input"
    assert states[first.targets[0].key].status == "blocked"
    assert len(store.quarantine()) == 3 and len(watcher.warnings) == 2
    states = execute(plan_of(first), store, settings(), Watcher())  # the next run tries again by itself
    assert states[first.targets[0].key].status == "done"


def test_a_finished_model_that_is_cut_is_named_at_every_run_and_made_again_on_request(store):
    plan = plan_of(chain(1))
    execute(plan, store, settings(), Watcher())
    train = plan.cells[0].train[0]
    _damage(store, train.key)
    for number in range(2):
        watcher = Watcher()
        execute(plan, store, settings(), watcher)
        assert [name for name, status in watcher.changes if status == "running"] == []
        assert train.address in watcher.warnings[-1] and "retry=true makes it again" in watcher.warnings[-1]
        assert len(watcher.warnings) == 2 - number
    again = Watcher()
    execute(plan, store, settings(retry=True), again)
    assert [name for name, status in again.changes if status == "running"] == ["train1"]
    assert integrity.damage(store, train.key) is None
    last = Watcher()
    execute(plan, store, settings(), last)
    assert last.warnings == []


def test_a_damaged_evaluation_is_made_again_without_being_asked(store):
    plan = plan_of(chain(1))
    execute(plan, store, settings(), Watcher())
    target = plan.cells[0].targets[0]
    os.truncate(store.folder(target.key) / "manifest.json", 20)
    watcher = Watcher()
    execute(plan, store, settings(), watcher)
    assert [name for name, status in watcher.changes if status == "running"] == ["evaluate1"]
    assert "manifest.json is cut off" in watcher.warnings[0]


def test_size_alone_is_compared_where_it_was_asked_for(store):
    first, second = chain(1), chain(2)
    execute(plan_of(first), store, settings(), Watcher())
    data = first.train[0].inputs["subset"].key
    path = store.folder(data) / "made.json"
    path.write_bytes(path.read_bytes()[::-1])
    file_hash._contents.clear()
    watcher = Watcher()
    execute(plan_of(first, second), store, replace(settings(), verify="size"), watcher)
    assert watcher.warnings == [] and store.done(second.targets[0].key)
    assert store.manifest(second.targets[0].key)["verify"] == "size"  # the record says how its inputs were verified
    with pytest.raises(SettingsError, match=r"verify='no'.*full, size"):
        replace(settings(), verify="no")


def test_a_stopped_worker_is_ended_and_another_takes_its_stage_up(store, monkeypatch):
    monkeypatch.setattr(harness.execution.launchers.local, "LOST_SECONDS", 0.5)
    monkeypatch.setattr(harness.execution.launchers.local, "CHECK_SECONDS", 0.1)
    pool, stage = WorkerPool(store, Machine(), 1, lambda key, progress: None), Stage("mixture", "slow", {"do": "wait"})
    try:
        pool.submit(stage.spec(), MAKER)
        _until(lambda: store.attempts(stage.key))
        first = json.loads((store.root / "claims" / stage.key).read_text())["pid"]
        os.kill(first, signal.SIGSTOP)
        _until(lambda: list(pool.events(0.1)) or len(store.attempts(stage.key)) == 2)
        assert not _alive(first)
        assert "stopped" in store.attempts(stage.key)[0]["reason"]
        second = json.loads((store.root / "claims" / stage.key).read_text())["pid"]
        os.kill(second, signal.SIGSTOP)  # a stage is taken up once
        (outcome,) = _first(pool)
    finally:
        pool.close()
    assert (outcome.status, outcome.failure_class) == ("failed", "killed")


def test_the_seconds_of_a_stage_follow_no_step_of_the_clock(store, monkeypatch):
    real = time.time
    steps = iter([0.0])
    monkeypatch.setattr(time, "time", lambda: real() - 86_400 * (0 if next(steps, None) is not None else 1))
    stage = Stage("mixture", "data", {})
    attempt(store, stage.spec(), MAKER, Machine())
    monkeypatch.undo()
    assert 0 <= store.manifest(stage.key)["facts"]["seconds"] < 60
    assert 0 <= store.attempts(stage.key)[-1]["seconds"] < 60
