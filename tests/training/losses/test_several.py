"""Losses of several teachers: each row's is that of its teacher alone, in value and gradient, in chunks or not."""

import numpy as np
import pytest
import torch

from harness.config.recipe import TrainingPhase
from harness.data.sequences import collate
from harness.teachers.several import Assignment, SeveralTeachers
from harness.training.losses.objectives import Distributions, SeveralDistributions, objective_for
from tests.doubles import tiny_llama
from tests.teachers.test_several import HALVES, live, mixture, rendered

FORWARD = TrainingPhase(divergence="forward_kl")
PHASES = (
    FORWARD,
    TrainingPhase(divergence="jsd", cross_entropy_weight=0.3),
    TrainingPhase(divergence="reverse_kl", divergence_temperature=2.0),
)


def loss(objective, batch):
    """The loss and the student's gradients."""
    model = tiny_llama(seed=0)
    found = objective.compare(model, batch)
    found.sum.backward()
    return found, torch.cat([weight.grad.ravel() for weight in model.parameters()])


def several(teachers, rows, phase=FORWARD, chunk=None, diagnoses=True):
    objective = SeveralDistributions(phase.normal(), teachers, 262, end_of_turn=5, chunk=chunk)
    objective.diagnoses = diagnoses
    return loss(objective, collate(rows, 0) | teachers.reading.tensors(rows, 0))


def single(member, rows, phase=FORWARD):
    objective = Distributions(phase.normal(), member, 262, end_of_turn=5)
    objective.diagnoses = True
    return loss(objective, collate(rows, 0) | member.reading.tensors(rows, 0))


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.divergence)
def test_by_row_is_the_sum_of_each_teacher_alone_on_its_rows(tmp_path, phase):
    teaches = Assignment(HALVES, mixture(tmp_path))
    members, rows = [live(1), live(2)], rendered(8)
    which = teaches.of([row.number for row in rows])
    found, gradient = several(SeveralTeachers(members, ["a", "b"], [0.5, 0.5], teaches), rows, phase)
    parts = [
        single(member, [rows[i] for i in np.flatnonzero(which == place)], phase) for place, member in enumerate(members)
    ]
    torch.testing.assert_close(found.sum, sum(part.sum for part, _ in parts), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(gradient, sum(part for _, part in parts), atol=1e-4, rtol=1e-4)
    assert found.count == sum(part.count for part, _ in parts)
    for name, total in found.diagnostics.items():
        torch.testing.assert_close(
            total.float(), sum(part.diagnostics[name].float() for part, _ in parts), atol=1e-3, rtol=1e-4
        )


def test_the_mean_of_a_teacher_and_itself_is_that_teacher():
    rows = rendered(4)
    found, gradient = several(SeveralTeachers([live(1), live(1)], ["a", "b"], [0.3, 0.7]), rows)
    alone, expected = single(live(1), rows)
    torch.testing.assert_close(found.sum, alone.sum, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-4)
    other, _ = several(SeveralTeachers([live(1), live(2)], ["a", "b"], [0.3, 0.7]), rows)
    assert not torch.isclose(other.sum, alone.sum, rtol=1e-2)


@pytest.mark.parametrize("control", ["none", "shuffled"])
@pytest.mark.parametrize("by_row", [True, False])
def test_chunks_change_no_number(tmp_path, by_row, control):
    teaches = Assignment(HALVES, mixture(tmp_path)) if by_row else None
    phase, rows = TrainingPhase(divergence="forward_kl", control=control), rendered(6)
    teachers = SeveralTeachers([live(1), live(2)], ["a", "b"], [0.5, 0.5], teaches)
    whole, gradient = several(teachers, rows, phase)
    parts, chunked = several(teachers, rows, phase, chunk=4)
    torch.testing.assert_close(parts.sum, whole.sum, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(chunked, gradient, atol=1e-4, rtol=1e-4)
    assert parts.diagnostics.keys() == whole.diagnostics.keys()


def test_a_micro_batch_of_one_members_rows_needs_no_other(tmp_path):
    teaches = Assignment([{"sources": ["add"]}, {"sources": ["say"]}], mixture(tmp_path))
    members, rows = [live(1), live(2)], rendered(6)[::2]
    teachers = SeveralTeachers(members, ["a", "b"], [0.5, 0.5], teaches)
    found, gradient = several(teachers, rows)
    alone, expected = single(members[0], rows)
    assert torch.equal(found.sum, alone.sum) and torch.equal(gradient, expected)


def test_the_objective_follows_from_the_teachers_and_hidden_states_are_refused(tmp_path):
    teachers = SeveralTeachers([live(1), live(2)], ["a", "b"], [0.5, 0.5])
    assert isinstance(objective_for(FORWARD, teachers, 262), SeveralDistributions)
    with pytest.raises(ValueError, match="hidden states"):
        objective_for(TrainingPhase(divergence="features"), teachers, 262, student=tiny_llama())
