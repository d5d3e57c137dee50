"""Parts of unfinished output: whole or made again, of one stage only, with what earlier attempts spent.

A stage that is killed at any point keeps the parts it had finished.
"""

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from harness.config.machine import Machine
from harness.execution.attempt import attempt
from harness.plan.graph import Stage
from harness.runtime import preemption
from harness.store import partial_output
from harness.store.partial_output import PartialOutput, read_batch
from harness.store.store import Store

SETTINGS = {"seed": 0, "where": {"teacher_url": "http://here:1"}}
INPUTS = {"rows": Path("/store/subset-1")}


def batch(number):
    return pa.record_batch({"value": [number, number + 1]})


def make_all(count=3, settings=SETTINGS, inputs=INPUTS, size=2, before=lambda number: None):
    """Parts 0, 1, ... of a stage; returns their values, which were made now, and the object."""
    found, made = PartialOutput(settings, inputs, size, Counter()), []

    def make(number):
        before(number)
        made.append(number)
        found.tally.update(read=10 + number)
        return batch(number)

    paths = [found.made(f"{number:05d}", lambda number=number: make(number)) for number in range(count)]
    return [read_batch(path)["value"].to_pylist() for path in paths], made, found


@pytest.fixture
def kept(tmp_path):
    """An attempt that made two parts; the folder they lie in."""
    with preemption.stoppable(tmp_path / "kept"):
        make_all(2)
    return tmp_path / "kept"


def go_on(folder, **changes):
    with preemption.stoppable(folder):
        return make_all(**changes)


def test_complete_parts_are_used_again_with_what_they_counted_and_the_seconds_they_took(kept):
    values, made, found = go_on(kept)
    assert values == [[0, 1], [1, 2], [2, 3]] and made == [2]
    assert found.tally == {"read": 33} and found.earlier_seconds > 0
    assert go_on(kept)[1] == []


@pytest.mark.parametrize("harm", ["shorter", "missing", "no summary", "half a summary", "unfinished"])
def test_an_incomplete_part_is_made_again(kept, harm):
    file, summary = kept / "00001.arrow", kept / "00001.json"
    if harm == "shorter":
        file.write_bytes(file.read_bytes()[:-20])
    if harm == "missing":
        file.unlink()
    if harm == "no summary":
        summary.unlink()
    if harm == "half a summary":
        summary.write_text(summary.read_text()[:30])
    if harm == "unfinished":  # killed before the last rename
        file.rename(kept / ".00001.arrow.0123")
    values, made, found = go_on(kept)
    assert values == [[0, 1], [1, 2], [2, 3]] and made == [1, 2] and found.tally == {"read": 33}


@pytest.mark.parametrize(
    ("changes", "made"),
    [
        ({"settings": {"seed": 1}}, [0, 1, 2]),
        ({"inputs": {"rows": Path("/store/subset-2")}}, [0, 1, 2]),
        ({"size": 3}, [0, 1, 2]),
        ({"settings": {"seed": 0, "where": {"teacher_url": "http://moved:2"}}}, [2]),
        ({"inputs": {"rows": Path("/elsewhere/subset-1")}}, [2]),
    ],
)
def test_parts_belong_to_settings_inputs_and_size_and_not_to_where_things_are(kept, changes, made):
    assert go_on(kept, **changes)[1] == made


@pytest.mark.parametrize("polls", range(1, 7))
def test_the_flag_is_read_before_and_after_every_part(tmp_path, monkeypatch, polls):
    asks = iter([False] * (polls - 1) + [True])
    monkeypatch.setattr(preemption, "stop_requested", lambda: next(asks))
    with pytest.raises(preemption.Preempted) as stopped:
        go_on(tmp_path / "kept")
    assert stopped.value.code == preemption.EXIT_CODE == 75
    assert len(list((tmp_path / "kept").glob("*.json"))) == polls // 2


def tell(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


def test_a_signal_ends_what_is_being_made_and_waits_for_what_is_being_written(tmp_path, monkeypatch):
    with pytest.raises(preemption.Preempted, match="SIGTERM"):
        go_on(tmp_path / "made", before=lambda number: tell() if number == 1 else None)
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["00000.arrow", "00000.json"]
    write = partial_output._write
    monkeypatch.setattr(partial_output, "_write", lambda *args: (tell(), write(*args))[1])
    with pytest.raises(preemption.Preempted, match="after part 00000"):
        go_on(tmp_path / "written")
    assert sorted(path.name for path in (tmp_path / "written").iterdir()) == ["00000.arrow", "00000.json"]


KILLED = """
import os, signal, sys
from tests.store.test_partial_output import Path, go_on, partial_output
def die(*args, **named): os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "making":
    go_on(Path(sys.argv[1]), before=lambda number: die() if number == 1 else None)
go_on(Path(sys.argv[1]), count=1)
if sys.argv[2] == "writing":
    os.replace = die
if sys.argv[2] == "before the summary":
    partial_output.write_json = die
go_on(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("when", ["making", "writing", "before the summary"])
def test_killed_at_any_point_it_leaves_complete_parts_and_goes_on(tmp_path, when):
    root = Path(__file__).resolve().parents[2]
    died = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "kept"), when], capture_output=True, cwd=root)
    assert died.returncode == -signal.SIGKILL, died.stderr
    values, made, _ = go_on(tmp_path / "kept")
    assert values == [[0, 1], [1, 2], [2, 3]] and made == [1, 2]


def make(settings, inputs, out, machine):
    """A stage of three parts that is asked to stop in its second, once."""

    def told_once(number):
        mark = preemption.folder() / "told"
        if number == 1 and not mark.exists():
            mark.touch()
            tell()

    values, made, found = make_all(settings=settings, inputs=inputs, before=told_once)
    (out / "values").write_text(str(values))
    return {"cost": dict(found.tally), "made": made, "earlier_seconds": found.earlier_seconds}


def test_an_attempt_goes_on_where_the_last_one_was_stopped_and_leaves_no_part_behind(tmp_path):
    store, stage = Store.open(tmp_path), Stage("labels", "one", {"seed": 0})
    with pytest.raises(preemption.Preempted):
        attempt(store, stage.spec(), "tests.store.test_partial_output:make", Machine())
    assert store.attempts(stage.key)[-1]["failure_class"] == "preempted"
    outcome = attempt(store, stage.spec(), "tests.store.test_partial_output:make", Machine())
    assert outcome.status == "done" and outcome.facts["made"] == [1, 2] and outcome.facts["cost"] == {"read": 33}
    assert outcome.facts["seconds"] > outcome.facts["earlier_seconds"] > 0
    assert not store.checkpoints(stage.key).exists()


def test_outside_an_attempt_nothing_is_left(tmp_path):
    values, made, found = make_all()
    assert values == [[0, 1], [1, 2], [2, 3]] and made == [0, 1, 2] and found.earlier_seconds == 0
    folder = found.folder
    assert folder.is_dir()
    del found
    assert not folder.exists()
