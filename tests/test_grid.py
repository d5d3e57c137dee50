"""The verbs on a grid that failed in several ways: what the screen says, what retry does, what it all took."""

import json
import time
from dataclasses import replace

import pytest

import harness.execution.executor
import harness.plan.graph
from harness import grid
from harness.config.checks import SettingsError
from harness.config.cluster import Cluster
from harness.config.machine import Machine
from harness.execution.attempt import record_failure
from harness.execution.executor import execute
from harness.execution.retry import Failure, adjusted_cluster, failures, smaller_batches
from harness.execution.retry import retry as try_again
from harness.execution.slurm.usage import ledger
from harness.execution.status_screen import StatusSnapshot, screen
from harness.plan.frozen import FrozenPlan, keep_plan, targets_of, thaw
from harness.plan.graph import Stage
from harness.store.store import Store
from harness.teachers.discovery import address_file, write_address
from tests.execution.test_executor import MAKER, Watcher, settings
from tests.invented_records import frozen_cell


@pytest.fixture(autouse=True)
def cheap_makers(monkeypatch):
    makers = {kind: (MAKER, 1) for kind in ("mixture", "base", "train", "evaluate")}
    monkeypatch.setattr(harness.plan.graph, "MAKERS", makers)
    monkeypatch.setattr(harness.execution.executor, "MAKERS", makers)
    monkeypatch.setattr(harness.execution.executor, "stage_seconds", lambda stage: 1.0)


def cell(number, do=None):
    """mixture -> train -> evaluate, as a frozen plan has them."""
    mixture = Stage("mixture", "data", {})
    train = Stage(
        "train", f"kd{number}", {"number": number, "do": do, "budget": {"batch_size": 32}}, {"subset": mixture}
    )
    evaluate = Stage("evaluate", f"kd{number}", {"number": number}, {"model": train, "mixture": mixture})
    stages = {stage.key: stage.spec() for stage in (mixture, train, evaluate)}
    names = {"method": "kd", "data_frac": 0.1, "student": "mini", "teacher": "weak", "seed": number}
    keys = {
        "needs": tuple(stages),
        "train": (train.key,),
        "evaluations": {"verified": evaluate.key},
    }
    return stages, frozen_cell(**names, **keys)


def frozen_grid(store, *cells):
    specs = {key: spec for stages, _ in cells for key, spec in stages.items()}
    frozen = FrozenPlan("g", specs, tuple(one for _, one in cells))
    keep_plan(store, frozen)
    return frozen


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store")


def make(store, frozen, *numbers, **asked):
    targets = [key for number in numbers for key in targets_of(frozen.cells[number])]
    execute(thaw(frozen, targets), store, replace(settings(), **asked), Watcher())


def fail(store, frozen, number, kind, reason="it was too large"):
    record_failure(store, frozen.stages[frozen.cells[number].train[0]], kind, reason)


def test_the_screen_counts_cells_and_tells_every_failure_once(store):
    frozen = frozen_grid(store, *map(cell, range(6)))
    make(store, frozen, 0, 1)
    for number in (2, 3):
        fail(store, frozen, number, "oom_cuda", "OutOfMemoryError: 3 GB")
    fail(store, frozen, 4, "diverged", "DivergedError: the loss is nan")
    key = frozen.cells[5].train[0]
    assert store.claim(key)
    page = {"outcome": "running", "started": time.time() - 60, "heartbeat": time.time(), "host": "n1", "job": "7_3"}
    store.new_attempt(key).write_text(json.dumps({**page, "step": 100, "total": 300, "loss": 0.5}))
    lines = list(screen(store, frozen, StatusSnapshot.at(store, frozen)))
    assert lines[0] == "g: 2 of 6 cells done, 1 running, 3 failed"
    assert "100/300, loss 0.500, about 2 min left, n1 job 7_3" in lines[1]
    address = frozen.stages[frozen.cells[2].train[0]]["address"]
    assert lines[2].endswith(f"seed=2 and 1 more  oom_cuda: {address}: OutOfMemoryError: 3 GB")
    assert "diverged" in lines[3] and "seed=4" in lines[3]
    assert not StatusSnapshot.at(store, frozen_grid(store, cell(0))).moving


def test_the_screen_shows_the_server_of_the_grids_teacher(store):
    frozen = frozen_grid(store, cell(0))
    base = Stage("base", "served", {"kind": "http", "served_model": "org/large"})
    frozen.stages[base.key] = base.spec()
    for key, model, url in (("a", "org/large", "http://n1:8000"), ("b", "org/other", None)):
        write_address(address_file(store, key), name="s", job="12", model=model, ready_minutes=1, url=url)
    lines = list(screen(store, frozen, StatusSnapshot.at(store, frozen)))
    assert lines[1] == "  server      org/large  http://n1:8000, job 12"
    assert not any("org/other" in line for line in lines)


def test_looking_changes_nothing(store, capsys):
    frozen = frozen_grid(store, cell(0), cell(1))
    fail(store, frozen, 1, "application")
    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*")}
    for verb in (["status"], ["status", "g", "--cells"], ["watch", "g"], ["cost", "g"]):
        assert grid.main(["--store", str(store.root), *verb]) == 0
    assert {path: path.stat().st_mtime_ns for path in store.root.rglob("*")} == before
    said = capsys.readouterr().out
    assert said.count("g: 0 of 2 cells done, 1 missing, 1 failed") == 3


def test_retry_takes_the_class_that_is_named_and_leaves_the_rest(store):
    frozen = frozen_grid(store, *map(cell, range(3)))
    make(store, frozen, 0)
    fail(store, frozen, 1, "oom_host")
    fail(store, frozen, 2, "diverged")
    told = []
    try_again(store, frozen, "oom", Watcher(), told.append)
    done = [store.done(key) for one in frozen.cells for key in targets_of(one)]
    assert done == [True, True, False] and told == []
    with pytest.raises(SettingsError, match=r"--class='oom'.*allowed are diverged"):
        try_again(store, frozen, "oom", Watcher(), told.append)
    try_again(store, frozen, None, Watcher(), told.append)
    assert store.done(targets_of(frozen.cells[2])[0])


def test_cuda_memory_halves_the_micro_batch_and_the_batch_stays(store):
    frozen = frozen_grid(store, cell(0))
    fail(store, frozen, 0, "oom_cuda")
    key = frozen.cells[0].train[0]
    told = []
    _, failed = failures(store, frozen, "oom")
    assert rows_after(failed) == 16
    assert rows_after(failed, micro_batch_size=16) == 8
    assert rows_after(failed, processes=4) == 4 == rows_after(failed, processes=4, micro_batch_size=16)
    with pytest.raises(SettingsError, match="one row at a time"):
        rows_after(failed, micro_batch_size=1)
    try_again(store, frozen, "oom", Watcher(), told.append)
    assert store.manifest(key)["machine"]["micro_batch_size"] == 16
    assert store.manifest(key)["settings"]["budget"]["batch_size"] == 32
    said = "in micro-batches of 16 rows, after CUDA ran out of memory at 32"
    assert told == [f"{key} {said}"] and store.manifest(key)["facts"]["warnings"] == [f"made {said}"]


def rows_after(failed, processes=1, **machine):
    """The micro-batch of the next try where the last was with these settings."""
    (changes,) = smaller_batches([replace(failed[0], machine=machine, processes=processes)]).values()
    return changes["machine"]["micro_batch_size"]


def test_a_stage_that_is_tried_again_runs_as_it_did_and_the_others_as_always(store):
    frozen = frozen_grid(store, cell(0, do="out of memory"))
    make(store, frozen, 0, machine=Machine(micro_batch_size=6, checkpoint_minutes=3.0))
    key = frozen.cells[0].train[0]
    page = store.attempts(key)[-1]
    assert page["failure_class"] == "oom_cuda" and page["machine"]["micro_batch_size"] == 6 and page["processes"] == 1
    try_again(store, frozen, "oom", Watcher(), [].append)  # 6 does not divide 32, so there were 4
    assert store.attempts(key)[-1]["machine"] == page["machine"] | {"micro_batch_size": 2}


def test_host_memory_and_bad_nodes_change_what_the_cluster_is_asked_for(store):
    stage = Stage("train", "a", {"budget": {"batch_size": 8}})
    told = []
    cluster = Cluster.of({"name": "c", "exclude": "n7", "resources": [{"memory_gb": 16}]})
    assert adjusted_cluster(cluster, [Failure(stage, "timeout", "n1")], told.append) == cluster
    failed = [Failure(stage, "oom_host", "n1"), Failure(stage, "node_failure", "n2")]
    changed = adjusted_cluster(cluster, failed, told.append)
    assert (changed.resources[0].memory_gb, changed.exclude) == (24, "n7,n2")
    assert told == ["with 1.5 times the memory", "without n2"]


def test_a_stage_whose_code_has_changed_is_not_tried_again_under_its_old_name(store, monkeypatch):
    frozen = frozen_grid(store, cell(0))
    fail(store, frozen, 0, "application")
    monkeypatch.setitem(harness.plan.graph.MAKERS, "train", (MAKER, 2))
    with pytest.raises(SettingsError, match="the code that makes it has changed"):
        try_again(store, frozen, None, Watcher(), print)


def test_the_ledger_counts_lost_tries(store):
    frozen = frozen_grid(store, cell(0), cell(1))
    make(store, frozen, 0)
    for hours, outcome in ((1, "failed"), (2, "done")):
        page = {"started": 0.0, "ended": 3600.0 * hours, "outcome": outcome, "cpus": 8, "gpus": 4}
        store.new_attempt(frozen.cells[1].train[0]).write_text(json.dumps(page))
    source, table = ledger(store, frozen)
    assert source == "this store's own attempts"
    train = table.loc["train"]
    assert (train["tries"], round(train["GPU hours"], 2), round(train["hours lost"], 2)) == (3, 12, 1)
    assert round(train["CPU hours"], 1) == 24.0
    assert table.loc["all", "tries"] == 5


def test_logs_show_the_last_traceback(store, capsys):
    frozen = frozen_grid(store, cell(0, do="raise"))
    make(store, frozen, 0)
    key = frozen.cells[0].train[0]
    assert grid.main(["--store", str(store.root), "logs", key]) == 0
    said = capsys.readouterr().out
    assert "failed, RuntimeError: the weights caught fire" in said and "makers.py" in said
    assert grid.main(["--store", str(store.root), "logs", targets_of(frozen.cells[0])[0]]) == 0
    assert "has not been tried" in capsys.readouterr().out


def test_cancelling_needs_a_cluster_and_says_so(store, monkeypatch, capsys, tmp_path):
    frozen_grid(store, cell(0))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert grid.main(["--store", str(store.root), "cancel", "g"]) == 2
    assert "no sbatch on this machine" in capsys.readouterr().err
