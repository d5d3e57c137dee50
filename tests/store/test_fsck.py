"""Fsck and gc: what is wrong in a store is named, mended once, and nothing that a process needs is touched."""

import json
import os
import subprocess
import sys
import time

import pytest

from harness import grid
from harness.config import file_hash
from harness.execution.garbage import garbage
from harness.plan.frozen import FrozenPlan, frozen_plan, grid_names, keep_plan
from harness.store import liveness
from harness.store.fsck import findings, leftovers
from harness.store.store import DamagedError, Store, write_json
from harness.store.whole_checkpoint import read_checkpoint, sealed_state
from tests.invented_records import frozen_cell

BASE, TRAIN = "base-" + "aa" * 16, "train-" + "bb" * 16


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store")


@pytest.fixture(scope="module")
def dead():
    """The mark of a process of this machine that has ended."""
    code = "from harness.store.liveness import owner; print(owner())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def publish(store, key, **manifest):
    with store.scratch(key) as out:
        (out / "weights").write_text("0123456789")
        return store.publish(key, out, {"facts": {}, "published": time.time(), **manifest})


def plan(store, name, *keys):
    specs = {key: {"key": key, "address": key, "kind": "train", "settings": {}, "inputs": {}} for key in keys}
    names = {"method": "sft", "data_frac": 0.1, "student": "mini", "seed": 0}
    keep_plan(store, FrozenPlan(name, specs, (frozen_cell(**names, needs=keys, train=keys[-1:], evaluations={}),)))


def old(path, seconds=3600):
    then = time.time() - seconds
    for one in [*path.rglob("*"), path] if path.is_dir() else [path]:
        os.utime(one, (then, then))


def problems(store, **named):
    file_hash._contents.clear()
    return [(one.part, one.problem) for one in findings(store, **named)]


def verb(store, *words):
    return grid.main(["--store", str(store.root), *words])


def checkpoint(store, key=TRAIN, step=3):
    folder = store.checkpoints(key) / f"step-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"0123456789")
    (folder / "state.json").write_text(sealed_state({"step": step, "belongs": "x"}, folder))
    return folder


def test_a_whole_store_has_no_findings(store):
    publish(store, BASE)
    plan(store, "g", BASE, TRAIN)
    checkpoint(store)
    store.new_attempt(TRAIN)
    assert problems(store) == [] and verb(store, "fsck") == 0


SPOILED = {
    "objects": lambda store: (store.folder(BASE) / "weights").write_text("012345678x"),
    "an object cut": lambda store: os.truncate(store.folder(BASE) / "weights", 3),
    "an object without manifest": lambda store: (store.folder(BASE) / "manifest.json").unlink(),
    "a manifest emptied": lambda store: os.truncate(store.folder(BASE) / "manifest.json", 0),
    "a stray file in objects": lambda store: (store.root / "objects" / "notes.txt").write_text("x"),
    "a stray attempt": lambda store: (store.root / "attempts" / BASE / "notanumber.json").write_text("{}"),
    "an attempt emptied": lambda store: os.truncate(store.new_attempt(BASE), 0),
    "a stray file in attempts": lambda store: (store.root / "attempts" / "README").write_text("x"),
    "a checkpoint changed": lambda store: (store.checkpoints(TRAIN) / "step-3/model.safetensors").write_text(
        "012345678x"
    ),
    "a checkpoint's state changed": lambda store: (store.checkpoints(TRAIN) / "step-3/state.json").write_text(
        (store.checkpoints(TRAIN) / "step-3/state.json").read_text().replace('"step": 3', '"step": 4')
    ),
    "a plan emptied": lambda store: os.truncate(store.grid_folder("g") / "plan.json", 0),
    "a plan that is a list": lambda store: (store.grid_folder("g") / "plan.json").write_text("[]"),
    "claims cut": lambda store: (store.grid_folder("g") / "claims.json").write_text('[{"cl'),
    "claims that are a mapping": lambda store: (store.grid_folder("g") / "claims.json").write_text('{"a": 1}'),
    "a submission cut": lambda store: (
        write_json(store.root / "submissions/s/submission.json", {})
        or os.truncate(store.root / "submissions/s/submission.json", 1)
    ),
}


@pytest.mark.parametrize("what", SPOILED)
def test_each_damage_is_named_changes_nothing_and_is_mended_once(store, what, capsys):
    publish(store, BASE)
    plan(store, "g", BASE, TRAIN)
    checkpoint(store)
    store.new_attempt(BASE)
    (store.root / "submissions" / "s").mkdir(parents=True)
    SPOILED[what](store)
    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*")}
    file_hash._contents.clear()
    assert verb(store, "fsck") == 1
    assert {path: path.stat().st_mtime_ns for path in store.root.rglob("*")} == before
    assert "1 found; add --repair" in capsys.readouterr().out
    assert verb(store, "fsck", "--repair") == 0
    said = capsys.readouterr().out
    assert "1 found, 0 left" in said and "set aside as" in said
    assert len(store.quarantine()) == 1
    assert verb(store, "fsck") == 0


def test_leftovers_of_ended_processes_are_cleared_and_those_of_live_ones_stay(store, dead):
    mine = liveness.owner()
    (store.root / "grids" / "g").mkdir()
    (store.root / "attempts" / TRAIN).mkdir()
    gone = [
        store.root / "tmp" / f"{TRAIN}.{'0' * 32}.{dead}",
        store.root / "tmp" / f"probe-{'0' * 32}",  # of an earlier version, an hour old
        store.root / "grids" / "g" / f".plan.json.{'0' * 32}.{dead}",
        store.root / "grids" / "g" / f".plan.json.{'1' * 32}",
        store.root / "grids" / "g" / ".results.4711.parquet",
        store.root / "attempts" / TRAIN / f".1.json.{'0' * 32}.{dead}",
        store.root / "claims" / f"{TRAIN}.{'0' * 32}",
    ]
    stay = [
        store.root / "tmp" / f"{TRAIN}.{'2' * 32}.{mine}",
        store.root / "tmp" / f"{TRAIN}.{'3' * 32}",  # of another machine, just touched
        store.root / "grids" / "g" / f".plan.json.{'2' * 32}.{mine}",
        store.root / "grids" / "g" / ".hidden",
        store.root / "attempts" / TRAIN / "1.json",
    ]
    for path in gone + stay:
        path.write_text("x")
        if dead not in path.name and path in gone:
            old(path)
    assert set(leftovers(store)) == set(gone)
    assert set(garbage(store).leftovers) == set(gone)
    assert verb(store, "gc", "--yes") == 0
    assert not any(path.exists() for path in gone) and all(path.exists() for path in stay)


def test_a_dead_claim_is_a_leftover_and_a_live_one_is_not(store):
    lease = store.claim(BASE)
    write_json(store.root / "claims" / TRAIN, {**liveness.this_process(), "ticks": 1, "nonce": "x"})
    assert list(leftovers(store)) == [store.root / "claims" / TRAIN]
    lease.release()


def test_gc_keeps_the_scratch_and_the_inputs_of_a_live_claim(store):
    publish(store, BASE)
    lease = store.claim(TRAIN)
    store.new_attempt(TRAIN).write_text(json.dumps({"inputs": [BASE], "outcome": "running"}))
    with store.scratch(TRAIN) as out:
        old(out)
        found = garbage(store)
        assert (found.artifacts, found.leftovers) == ([], [])
    lease.release()
    assert garbage(store).artifacts == [store.folder(BASE)]


def test_gc_keeps_what_queued_jobs_need(store, monkeypatch, tmp_path):
    publish(store, BASE)
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm here: every job may be in the queue
    (store.root / "submissions" / "s").mkdir(parents=True)
    (store.root / "jobs").mkdir()
    write_json(store.root / "submissions" / "s" / "submission.json", {"stages": {BASE: {}, TRAIN: {}}})
    write_json(store.root / "jobs" / TRAIN, {"submission": "s", "array": "g.train.0.0", "task": 0})
    assert garbage(store).artifacts == []
    publish(store, TRAIN)
    assert garbage(store).artifacts == [store.folder(BASE), store.folder(TRAIN)]


def test_grids_in_subfolders_are_seen(store):
    plan(store, "x/y", BASE)
    publish(store, BASE)
    assert grid_names(store) == ["x/y"] and frozen_plan(store, "x/y").grid == "x/y"
    assert garbage(store).artifacts == []


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"grid": "bad", "cells": [1], "stages": {}}'])
def test_one_broken_plan_hides_no_other_grid_and_stops_gc(store, capsys, text):
    publish(store, BASE)
    plan(store, "good", TRAIN)
    plan(store, "bad", BASE)
    (store.grid_folder("bad") / "plan.json").write_text(text)
    with pytest.raises(DamagedError, match=r"bad/plan.json cannot be read.*run its grid's command again"):
        frozen_plan(store, "bad")
    assert verb(store, "status") == 0
    said = capsys.readouterr().out
    assert "good: 0 of 1 cells done" in said and "bad: " in said and "plan.json cannot be read" in said
    assert verb(store, "status", "bad") == 2
    capsys.readouterr()
    assert verb(store, "gc", "--yes") == 0
    said = capsys.readouterr()
    assert "0 folders and files" in said.out and "that grid may need any of them" in said.err and store.done(BASE)


def test_a_folder_that_is_no_store_is_refused_and_one_of_an_earlier_version_is_marked(store, tmp_path, capsys):
    for name, words in (("home", ["gc"]), ("home", ["fsck", "--repair"]), ("home", ["status"]), ("none", ["gc"])):
        (tmp_path / "home" / "tmp").mkdir(parents=True, exist_ok=True)
        (tmp_path / "home" / "tmp" / "letter").write_text("dear")
        assert grid.main(["--store", str(tmp_path / name), *words]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert (tmp_path / "home" / "tmp" / "letter").exists()
    (store.root / "store.json").unlink()
    assert verb(store, "gc") == 0 and not (store.root / "store.json").exists()
    assert verb(store, "fsck", "--repair") == 0 and (store.root / "store.json").exists()


def test_an_artifact_is_set_aside_by_hand(store, capsys):
    publish(store, BASE, kind="base", version=1, settings={}, inputs={})
    assert verb(store, "fsck", "--set-aside", BASE) == 0
    assert not store.done(BASE) and "set aside as quarantine/base-" in capsys.readouterr().out
    assert verb(store, "fsck", "--set-aside", BASE) == 2


def test_stray_files_among_attempts_are_ignored(store):
    first = store.new_attempt(BASE)
    write_json(first, {"outcome": "failed"})
    for name in ("notanumber.json", "2.txt", ".3.json"):
        (first.parent / name).write_text("{}")
    (first.parent / "7.json").write_text("null")
    assert store.attempts(BASE) == [{"outcome": "failed"}, {}]
    assert store.new_attempt(BASE).name == "8.json"


def test_a_checkpoint_with_a_changed_byte_of_the_right_size_is_not_whole(store):
    folder = checkpoint(store)
    assert read_checkpoint(folder)["step"] == 3
    (folder / "model.safetensors").write_bytes(b"\0" * 10)
    assert read_checkpoint(folder) == {} and read_checkpoint(folder, content=False)["step"] == 3
    second = checkpoint(store, step=4)
    state = json.loads((second / "state.json").read_text())
    (second / "state.json").write_text(json.dumps({**state, "step": 5}))
    assert read_checkpoint(second) == {}
    del state["seal"], state["sha256"]  # of an earlier version
    (second / "state.json").write_text(json.dumps(state))
    assert read_checkpoint(second)["step"] == 4
