"""Whether the process behind a claim or a file still runs, where clocks, containers and signals disturb it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid

import pytest

from harness.store import liveness
from harness.store.liveness import LOST_SECONDS, owner, owner_runs, runs, seen_silent, this_process
from harness.store.store import Store, write_json

KEY = "train-" + "ab" * 16


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store")


@pytest.fixture
def clock(monkeypatch):
    """The monotonic clock of this process, moved by hand."""
    now = [time.monotonic()]
    monkeypatch.setattr(liveness.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def sleeper():
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; print('on', flush=True); time.sleep(60)"], stdout=-1
    )
    process.stdout.read(2)
    yield process
    process.kill()
    process.wait()


def note_of(pid):
    state_and_ticks = liveness._state_and_ticks(pid)
    return {**this_process(), "pid": pid, "ticks": state_and_ticks[1]}


def age(path, seconds):
    then = time.time() - seconds
    os.utime(path, (then, then))


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def claim_of(store, note):
    write_json(store.root / "claims" / KEY, {**note, "nonce": uuid.uuid4().hex})
    return store.root / "claims" / KEY


def test_a_process_runs_until_it_is_killed_and_its_id_alone_is_not_it(sleeper):
    note = note_of(sleeper.pid)
    assert runs(this_process()) is True and runs(note) is True
    assert runs({**note, "ticks": note["ticks"] - 1}) is False  # the id was given to another process
    sleeper.kill()
    until(lambda: runs(note) is False)  # a zombie until it is waited for
    sleeper.wait()
    assert runs(note) is False


def test_a_step_of_the_clock_ends_no_process(monkeypatch):
    note = this_process()
    note["process_started"] += 3600  # psutil's time of creation moves with the clock
    assert runs(note) is True


@pytest.mark.parametrize("other", [{"pid_space": "pid:[1]"}, {"boot": "another"}, {"host": "elsewhere"}])
def test_what_cannot_be_looked_up_is_judged_by_its_heartbeat(store, clock, other):
    note = {**this_process(), "pid": 2**22 + 1, **other}  # an id that this machine does not have
    assert runs(note) is None
    path = claim_of(store, note)
    assert store.claimed(KEY)
    age(path, 700)
    assert not store.claimed(KEY)


def test_a_claim_that_another_process_sees_silent_for_a_minute_is_nobodys(store, clock):
    path = claim_of(store, {**this_process(), "host": "elsewhere"})
    assert store.claimed(KEY)
    clock[0] += LOST_SECONDS - 1
    assert store.claimed(KEY)
    clock[0] += 2
    assert not store.claimed(KEY)
    path.touch()  # it beats again
    assert store.claimed(KEY)
    assert LOST_SECONDS <= 60


def test_a_live_claim_outlives_a_step_of_the_clock_by_a_day(store, monkeypatch):
    lease = store.claim(KEY)
    age(lease.path, 86_400)  # as if the clock had been set
    assert store.claimed(KEY)
    age(lease.path, -86_400)
    assert store.claimed(KEY)


def test_a_stopped_process_loses_its_claim(store, sleeper):
    path = claim_of(store, note_of(sleeper.pid))
    os.kill(sleeper.pid, signal.SIGSTOP)
    until(lambda: liveness.is_stopped(sleeper.pid))
    assert store.claimed(KEY)  # it has just beaten
    age(path, LOST_SECONDS + 1)
    assert not store.claimed(KEY)
    os.kill(sleeper.pid, signal.SIGCONT)
    until(lambda: not liveness.is_stopped(sleeper.pid))
    assert store.claimed(KEY)


def test_claims_of_earlier_versions_are_read(store, sleeper):
    old = {name: this_process()[name] for name in ("host", "pid", "process_started")}
    claim_of(store, old)
    assert store.claimed(KEY)
    path = claim_of(store, {**old, "process_started": old["process_started"] - 3600})  # the clock was set since
    assert store.claimed(KEY)
    age(path, LOST_SECONDS + 1)
    assert not store.claimed(KEY)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", "null", '{"host": 1}', json.dumps({"host": socket.gethostname()})]
)
def test_a_claim_that_cannot_be_read_is_judged_by_its_age(store, text):
    path = store.root / "claims" / KEY
    path.write_text(text)
    assert store.claimed(KEY)
    age(path, 700)
    assert not store.claimed(KEY)
    assert store.claim(KEY) is not None


def test_a_claim_that_was_taken_over_is_not_beaten_by_its_first_holder(store):
    first = store.claim(KEY)
    write_json(first.path, {**json.loads(first.path.read_text()), "nonce": "of another process"})
    age(first.path, 100)
    first.beat()
    assert time.time() - first.path.stat().st_mtime > 90


def test_a_file_says_whether_its_writer_runs(sleeper):
    assert owner_runs(f"train-x.1234.{owner()}") is True
    mark = liveness._owner.__wrapped__(sleeper.pid)
    assert owner_runs(f".plan.json.1234.{mark}") is True
    sleeper.kill()
    sleeper.wait()
    assert owner_runs(f".plan.json.1234.{mark}") is False
    assert owner_runs("train-x.1234") is None
    assert owner_runs(f"x.{mark[:-1]}{'0' if mark[-1] != '0' else '1'}") is None  # of another machine


def test_silence_is_counted_from_the_first_look(tmp_path, clock):
    path = tmp_path / "claim"
    assert seen_silent(path, 1) == 0
    clock[0] += 30
    assert seen_silent(path, 1) == pytest.approx(30)
    assert seen_silent(path, 2) == 0
