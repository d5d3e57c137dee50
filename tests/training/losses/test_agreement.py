"""Diagnostics of agreement: two cases worked by hand, and the entropies scipy computes."""

import math

import pytest
import torch
from scipy.stats import entropy

from harness.training.losses import agreement as module
from harness.training.losses.agreement import agreement, end_of_turn_mass


def found(student, teacher):
    return {name: total.item() for name, total in agreement(student, teacher).items()}


def test_a_case_worked_by_hand(monkeypatch):
    monkeypatch.setattr(module, "TOP", 2)
    teacher = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.4, 0.3, 0.2, 0.1]]).log()
    student = torch.tensor([[0.6, 0.1, 0.2, 0.1], [0.1, 0.05, 0.35, 0.5]]).log()
    sums = found(student, teacher)
    # the student's top two are {0, 2} and {3, 2}, the teacher's {0, 1} twice
    assert sums["teacher_mass"] == pytest.approx(0.65 + 0.3)
    assert sums["student_mass"] == pytest.approx(0.7 + 0.15)
    assert sums["overlap"] == pytest.approx(0.5 + 0.0)
    assert sums["argmax_agreement"] == 1.0


def test_entropies_are_scipys_and_a_token_that_is_ruled_out_adds_nothing():
    teacher, student = torch.randn(2, 3, 30, generator=torch.Generator().manual_seed(0))
    teacher[:, 4] = -torch.inf
    sums = found(student, teacher)
    assert sums["teacher_entropy"] == pytest.approx(entropy(teacher.softmax(-1).numpy(), axis=1).sum(), rel=1e-5)
    assert sums["student_entropy"] == pytest.approx(entropy(student.softmax(-1).numpy(), axis=1).sum(), rel=1e-5)


def test_equal_models_agree_wholly_on_a_vocabulary_smaller_than_the_top():
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    sums = found(logits, logits.clone())
    whole = ("teacher_mass", "student_mass", "overlap", "argmax_agreement")
    assert [sums[name] for name in whole] == pytest.approx([4.0] * 4)


def test_the_end_of_turn_is_watched_where_the_text_ends_and_nowhere_else():
    teacher = torch.tensor([[0.7, 0.3], [0.9, 0.1], [0.2, 0.8]]).log()
    sums = end_of_turn_mass(teacher, torch.tensor([1, 0, 1]), end_of_turn=1)
    assert (sums["teacher_end_mass"].item(), sums["ends"].item()) == (pytest.approx(0.3 + 0.8), 2)
    none = end_of_turn_mass(teacher, torch.tensor([0, 0, 0]), end_of_turn=1)
    assert (none["teacher_end_mass"].item(), none["ends"].item()) == (0.0, 0)
    assert math.isfinite(none["teacher_end_mass"])
