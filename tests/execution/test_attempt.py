"""An attempt in a store that fails: what it reports, and what the next one finds."""

import errno
import os
import time

import pytest

import harness.execution.attempt as attempts
from harness.config.machine import Machine
from harness.execution.attempt import attempt
from harness.store.status import stage_state
from harness.store.store import Store
from tests.torture.cells import CHEAP_MAKERS, cheap_plan

MAKER = CHEAP_MAKERS["mixture"][0]


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store")


@pytest.fixture
def spec(monkeypatch):
    monkeypatch.setattr("harness.plan.graph.MAKERS", CHEAP_MAKERS)
    return {**cheap_plan().stages[0].spec(), "threads": 1}


def test_an_artifact_that_was_renamed_into_place_is_done_although_syncing_it_failed(store, spec, monkeypatch):
    def fsync(path):
        if path == store.folder(spec["key"]).parent:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("harness.store.store.fsync", fsync)
    outcome = attempt(store, spec, MAKER, Machine())
    assert outcome.status == "done" and store.done(spec["key"]) and "seconds" in outcome.facts


def test_the_loser_of_a_race_whose_files_are_gone_reports_the_artifact_of_the_winner(store, spec, monkeypatch):
    make = attempts._make

    def lose(*arguments):
        manifest = make(*arguments)
        with store.scratch(spec["key"]) as out:
            store.publish(spec["key"], out, manifest)
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "checkpoints/step-3")

    monkeypatch.setattr(attempts, "_make", lose)
    assert attempt(store, spec, MAKER, Machine()).status == "done"


@pytest.mark.parametrize(("number", "ends_run"), [(errno.ENOSPC, True), (errno.EROFS, True), (errno.EIO, False)])
def test_a_lease_that_cannot_be_written_is_a_failure_of_class_storage(store, spec, monkeypatch, number, ends_run):
    def link(source, target):
        raise OSError(number, os.strerror(number), str(target))

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", link)
        patch.setattr(attempts, "writable", lambda store: True)
        outcome = attempt(store, spec, MAKER, Machine())
    assert (outcome.status, outcome.failure_class, outcome.ends_run) == ("failed", "storage", ends_run)
    assert outcome.reason.startswith(f"store='{store.root}' failed: {os.strerror(number)} at claims/")
    assert stage_state(store, spec["key"]).failure_class == "storage"  # which the next run makes again
    assert attempt(store, spec, MAKER, Machine()).status == "done"


def test_a_heartbeat_that_a_full_disk_refuses_is_tried_again(store, spec, monkeypatch):
    monkeypatch.setattr(attempts, "HEARTBEAT_SECONDS", 0.02)
    write, beats = attempts.write_json, []

    def refuse_once(path, value):
        beats.append(value["outcome"])
        if len(beats) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, value)

    def slow(*arguments):
        while len(beats) < 5:
            time.sleep(0.01)
        return make(*arguments)

    make = attempts._make
    monkeypatch.setattr(attempts, "write_json", refuse_once)
    monkeypatch.setattr(attempts, "_make", slow)
    assert attempt(store, spec, MAKER, Machine()).status == "done"
    assert beats.count("running") >= 5
    assert store.attempts(spec["key"])[-1]["outcome"] == "done"


def test_a_page_that_cannot_be_written_at_the_end_loses_no_artifact(store, spec, monkeypatch):
    write = attempts.write_json

    def refuse_the_end(path, value):
        if value["outcome"] != "running":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, value)

    monkeypatch.setattr(attempts, "write_json", refuse_the_end)
    assert attempt(store, spec, MAKER, Machine()).status == "done"
