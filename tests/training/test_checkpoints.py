"""Checkpoints: a fit that was stopped and goes on is, number for number, the fit that was not."""

import errno
import json
import random
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from harness.config.budget import Budget
from harness.config.machine import Machine
from harness.config.recipe import TrainingPhase
from harness.data.sequences import visits
from harness.runtime import preemption
from harness.runtime import progress as track
from harness.teachers.several import Assignment, SeveralTeachers
from harness.teachers.signals import LiveTeacher
from harness.training.checkpoints import random_state, set_random_state
from harness.training.losses.divergences import Divergence
from harness.training.losses.objectives import Distributions
from harness.training.student_text import GivenSequences
from tests.doubles import tiny_llama
from tests.teachers.test_several import HALVES, live, mixture
from tests.training.losses import test_cross_tokenizer as cross
from tests.training.test_trainer import CPU, FORWARD, parameters, train

STEPS = 5
BUDGET = Budget(batch_size=4, learning_rate=1e-2, warmup_ratio=0.3)  # the learning rate of no two steps is the same
HALF = TrainingPhase(sequences="student", student_share=0.5, divergence="forward_kl")
IN_TWO = Machine(device="cpu", micro_batch_size=2)
SECONDS = ("seconds", "earlier_seconds", "teacher_seconds")


def batches():
    return visits(12, STEPS, 4, seed=0)


def run(out, objective=None, **changes):
    """One fit in a folder of its own: its numbers, parameters and log."""
    out.mkdir()
    report, model = train(
        out, objective, batches(), **({"model": dropping(), "max_new_tokens": 4, "budget": BUDGET} | changes)
    )
    numbers = {name: value for name, value in asdict(report).items() if name not in SECONDS}
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return numbers, parameters(model), [{k: v for k, v in line.items() if k != "seconds"} for line in log]


def attempt(tmp_path, monkeypatch, name, objective=None, steps=None, **changes):
    """The same inside an attempt that is asked to stop after so many steps of its own, if any."""
    asks = iter([False] * (steps - 1) + [True] if steps else [False] * STEPS)
    monkeypatch.setattr(preemption, "stop_requested", lambda: next(asks))
    torch.manual_seed(int.from_bytes(name.encode(), "little"))  # random states are the checkpoint's, not the process's
    with preemption.stoppable(tmp_path / "checkpoints"):
        if steps is None:
            result = run(tmp_path / name, objective, **changes)
            monkeypatch.setattr(preemption, "stop_requested", lambda: False)
            return result
        with pytest.raises(preemption.Preempted, match=f"of {STEPS}"):
            run(tmp_path / name, objective, **changes)


def stopped(tmp_path, monkeypatch, objective=None, after=(), **changes):
    """A fit in several attempts, stopped after so many steps of each and then let go to its end."""
    for number, steps in enumerate(after):
        attempt(tmp_path, monkeypatch, f"a{number}", objective, steps, **changes)
    return attempt(tmp_path, monkeypatch, "last", objective, **changes)


def dropping():
    return tiny_llama(dropout=0.1)


def assert_equal(one, other):
    assert one[0] == other[0] and one[2] == other[2]
    assert torch.equal(one[1], other[1])


@pytest.mark.parametrize(
    ("objective", "machine", "after"),
    [
        (TrainingPhase(), CPU, (1,)),
        (TrainingPhase(), IN_TWO, (2, 1)),
        (FORWARD, IN_TWO, (4,)),
        (HALF, CPU, (1, 1, 1, 1)),
        (HALF, IN_TWO, (STEPS,)),
    ],
)
def test_a_stopped_fit_goes_on_number_for_number(tmp_path, monkeypatch, objective, machine, after):
    expected = run(tmp_path / "whole", objective, machine=machine)
    assert_equal(stopped(tmp_path, monkeypatch, objective, after, machine=machine), expected)
    assert [line["step"] for line in expected[2]] == list(range(1, STEPS + 1))
    if objective == HALF:
        assert {line["sequences"] for line in expected[2]} == {"given", "student"}


@pytest.mark.parametrize("broken", ["tensors", "text", "rename"])
def test_a_checkpoint_that_cannot_be_written_is_a_warning_and_the_fit_goes_on(tmp_path, monkeypatch, broken):
    expected = run(tmp_path / "whole")

    def full(*_, **__):
        error = "Error while serializing: I/O error: No space left on device (os error 28)"
        raise SafetensorError(error) if broken == "tensors" else OSError(errno.ENOSPC, "No space left on device")

    place = {"tensors": "save_file", "text": "fsync_tree", "rename": "os.rename"}[broken]
    monkeypatch.setattr(f"harness.training.checkpoints.{place}", full)
    timed = replace(CPU, checkpoint_minutes=1e-9)  # after every step
    numbers, weights, log = attempt(tmp_path, monkeypatch, "full", machine=timed)
    (warning,) = numbers.pop("warnings")
    assert warning.startswith("no checkpoint: the checkpoint of step 1 could not be written: ")
    assert "No space left on device" in warning and "MB)" in warning
    assert expected[0].pop("warnings") == []
    assert_equal((numbers, weights, log), expected)
    assert list((tmp_path / "checkpoints").iterdir()) == []  # no torn folder stays


def test_a_checkpoint_that_cannot_be_written_before_a_stop_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("harness.training.checkpoints.fsync_tree", full)
    monkeypatch.setattr(preemption, "stop_requested", lambda: True)
    with preemption.stoppable(tmp_path / "checkpoints"), pytest.raises(preemption.Preempted) as stopped:
        run(tmp_path / "one")
    assert "after step 1 of 5; the checkpoint of step 1 could not be written" in str(stopped.value)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_who_listens_to_the_log_hears_every_line_once_in_each_attempt(tmp_path, monkeypatch):
    attempt(tmp_path, monkeypatch, "one", steps=2)
    heard = []
    with track.listen(lambda progress: None, heard.append):
        *_, log = attempt(tmp_path, monkeypatch, "last")
    assert [{k: v for k, v in line.items() if k != "seconds"} for line in heard] == log


def test_what_a_teacher_with_a_rendering_of_its_own_read_before_the_stop_stays_counted(tmp_path, monkeypatch):
    # a cross_kd cell that had been stopped said it had cost a third of what its neighbours cost
    numbered, wise = cross.dataset(cross.BYTES, cross.ANSWERS * 2), cross.dataset(cross.BPE, cross.ANSWERS * 2)
    changes = {"rows": numbered, "teacher": cross.teacher(rows=wise)}
    expected = run(tmp_path / "whole", cross.SPANS, **changes)
    assert expected[0]["teacher_tokens"] > 0
    assert_equal(stopped(tmp_path, monkeypatch, cross.SPANS, after=(2, 1), **changes), expected)


def test_what_each_of_several_teachers_read_before_the_stop_stays_counted(tmp_path, monkeypatch):
    numbered = cross.dataset(cross.BYTES, cross.ANSWERS * 2)
    teaches = Assignment(HALVES, mixture(tmp_path, 200))
    members = [live(1), LiveTeacher(tiny_llama(seed=2, layers=3), cross.BYTES, cross.BYTES)]
    changes = {"rows": numbered, "teacher": SeveralTeachers(members, ["a", "b"], [0.5, 0.5], teaches)}
    expected = run(tmp_path / "whole", FORWARD, **changes)
    sizes, read = [one.parameters for one in members], expected[0]["teacher_tokens"]
    assert 2 * min(sizes) * read < expected[0]["teacher_flops"] < 2 * max(sizes) * read
    assert_equal(stopped(tmp_path, monkeypatch, FORWARD, after=(2, 1), **changes), expected)


def test_weights_of_the_objective_and_the_state_of_texts_go_on_too(tmp_path, monkeypatch):
    class Growing(Distributions):
        """Cross-entropy times the number of times it was asked, kept in a module."""

        def __init__(self, stage, teacher, vocabulary, **_):
            super().__init__(stage, teacher, vocabulary)
            self.weights = torch.nn.Module()
            self.weights.register_buffer("asked", torch.zeros(()))

        def compare(self, model, batch):
            self.weights.asked += 1
            found = super().compare(model, batch)
            return Divergence(found.sum * self.weights.asked, found.count, found.diagnostics)

    class Fewer(GivenSequences):
        """One row less each step."""

        def __init__(self):
            self.dropped = 0

        def rows(self, step, groups):
            self.dropped += 1
            return super().rows(step, [group[min(self.dropped, 3) :] for group in groups])

        def state(self):
            return {"dropped": self.dropped}

        def restore(self, state):
            self.dropped = state["dropped"]

    monkeypatch.setattr("harness.training.trainer.objective_for", Growing)
    monkeypatch.setattr("harness.training.trainer.sequences_for", lambda *args: Fewer())
    assert_equal(stopped(tmp_path, monkeypatch, after=(2,)), run(tmp_path / "whole"))


def test_only_what_is_trained_is_kept_and_nothing_is_a_pickle(tmp_path, monkeypatch):
    stopped(tmp_path, monkeypatch, FORWARD, after=(1, 1))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-1", "step-2"]
    files = {path.name for path in (tmp_path / "checkpoints" / "step-2").iterdir()}
    assert files == {"model.safetensors", "optimizer.safetensors", "state.json", "trainer_state.json", "log.jsonl"}
    kept = load_file(tmp_path / "checkpoints" / "step-2" / "model.safetensors")
    assert kept.keys() == {name for name, _ in dropping().named_parameters()}


@pytest.mark.parametrize("harm", ["shorter", "missing", "unreadable", "unfinished", "zeros", "moments", "schedule"])
def test_a_torn_checkpoint_is_passed_over_for_the_one_before(tmp_path, monkeypatch, harm):
    def tear(folder):
        if harm == "shorter":
            with open(folder / "model.safetensors", "r+b") as file:
                file.truncate(100)
        if harm == "missing":
            (folder / "optimizer.safetensors").unlink()
        if harm == "unreadable":
            (folder / "state.json").write_text('{"step": 3,')
        if harm in ("zeros", "moments"):  # of the right size
            path = folder / ("model.safetensors" if harm == "zeros" else "optimizer.safetensors")
            content = bytearray(path.read_bytes())
            content[-64:] = bytes(64)
            path.write_bytes(content)
        if harm == "schedule":
            state = json.loads((folder / "state.json").read_text())
            state["schedule"]["last_epoch"] += 1
            (folder / "state.json").write_text(json.dumps(state))
        if harm == "unfinished":  # killed before its last rename
            folder.rename(folder.with_name(".0123"))

    attempt(tmp_path, monkeypatch, "one", steps=1)
    attempt(tmp_path, monkeypatch, "two", steps=2)
    tear(tmp_path / "checkpoints" / "step-3")
    attempt(tmp_path, monkeypatch, "three", steps=1)  # from step 1, so it ends after step 2
    assert (tmp_path / "checkpoints" / "step-2").is_dir()
    assert_equal(attempt(tmp_path, monkeypatch, "last"), run(tmp_path / "whole"))


def test_a_checkpoint_of_another_fit_is_not_used(tmp_path, monkeypatch):
    attempt(tmp_path, monkeypatch, "one", steps=2)
    assert_equal(attempt(tmp_path, monkeypatch, "other", seed=1), run(tmp_path / "whole", seed=1))


@pytest.mark.parametrize(("minutes", "kept"), [(1e-9, ["step-4", "step-5"]), (60.0, []), (0.0, [])])
def test_the_clock_keeps_the_two_newest_and_zero_is_no_clock(tmp_path, minutes, kept):
    with preemption.stoppable(tmp_path / "checkpoints"):
        train(tmp_path, None, batches(), Machine(device="cpu", checkpoint_minutes=minutes))
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("*")) == kept


def test_seconds_of_earlier_attempts_are_counted(tmp_path, monkeypatch):
    attempt(tmp_path, monkeypatch, "one", steps=1)
    state = tmp_path / "checkpoints" / "step-1" / "state.json"
    changed = json.loads(state.read_text()) | {"seconds": 1000.0}
    del changed["seal"]  # else the change would be found
    state.write_text(json.dumps(changed))
    (tmp_path / "two").mkdir()
    monkeypatch.setattr(preemption, "stop_requested", lambda: False)
    with preemption.stoppable(tmp_path / "checkpoints"):
        report, _ = train(tmp_path / "two", None, batches(), max_new_tokens=4, budget=BUDGET)
    assert report.earlier_seconds == 1000 and 1000 < report.seconds < 1200
    lines = [json.loads(line) for line in (tmp_path / "two" / "log.jsonl").read_text().splitlines()]
    assert lines[0]["seconds"] < 900 < 1000 < lines[1]["seconds"]


def test_random_states_are_plain_json_and_bring_back_the_same_draws():
    def draw():
        return (
            torch.rand(3).tolist(),
            np.random.rand(3).tolist(),
            np.random.randn(),
            random.random(),
            random.gauss(0, 1),
        )

    draw()
    state = json.loads(json.dumps(random_state()))
    expected = draw()
    draw()
    set_random_state(state)
    assert draw() == expected
