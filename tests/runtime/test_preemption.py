"""Preemption: who is told by a signal, and what an attempt writes down about it."""

import os
import signal

import pytest

from harness.config.machine import Machine
from harness.execution.attempt import attempt
from harness.plan.graph import Stage
from harness.runtime import preemption
from harness.runtime.preemption import Preempted
from harness.store.status import stage_state
from harness.store.store import Store


def tell(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


def make(settings, inputs, out, machine):
    """Is told to stop in the middle; a maker that polls goes on to its end."""
    (preemption.folder() / "step-1").mkdir(parents=True)
    if settings["polls"]:
        with preemption.polling():
            tell()
            assert preemption.stop_requested()
    else:
        tell()
    (out / "made").write_text("")
    return {"cost": {}}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_ends_what_does_not_poll_and_asks_what_does(tmp_path, number):
    with pytest.raises(Preempted, match=signal.Signals(number).name), preemption.stoppable(tmp_path):
        assert preemption.folder() == tmp_path and not preemption.stop_requested()
        tell(number)
    reached = []
    with pytest.raises(Preempted, match="stopped on request when the stage was done"), preemption.stoppable(tmp_path):
        with preemption.polling():
            tell(number)
            reached.append(preemption.stop_requested())
        reached.append("the end")
    assert reached == [True, "the end"]
    with preemption.stoppable(tmp_path):
        assert not preemption.stop_requested()
    assert preemption.folder() is None


def test_handlers_are_put_back_and_an_error_stays_the_error(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), preemption.stoppable(tmp_path), preemption.polling():
        tell()
        _ = 1 / 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_process_ends_with_the_code_that_means_run_it_again():
    assert Preempted("why").code == 75 and str(Preempted("why")) == "why"


def test_an_attempt_that_is_told_to_stop_is_written_down_as_preempted_and_keeps_its_checkpoints(tmp_path):
    store, stage = Store.open(tmp_path), Stage("train", "one", {"polls": False})
    with pytest.raises(Preempted):
        attempt(store, stage.spec(), "tests.runtime.test_preemption:make", Machine())
    page = store.attempts(stage.key)[-1]
    assert (page["outcome"], page["failure_class"]) == ("interrupted", "preempted")
    state = stage_state(store, stage.key)
    assert state.status == "interrupted" and "continues" in state.reason
    assert (store.checkpoints(stage.key) / "step-1").is_dir() and not store.claimed(stage.key)


def test_what_is_published_is_done_however_late_the_signal_and_its_checkpoints_are_gone(tmp_path):
    store, stage = Store.open(tmp_path), Stage("train", "two", {"polls": True})
    with pytest.raises(Preempted, match="stopped on request when the stage was done"):
        attempt(store, stage.spec(), "tests.runtime.test_preemption:make", Machine())
    assert store.done(stage.key) and store.attempts(stage.key)[-1]["outcome"] == "done"
    assert not store.checkpoints(stage.key).exists()
