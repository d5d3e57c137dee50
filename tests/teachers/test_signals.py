"""Teacher signals: what a frozen teacher answers, and which pairs are refused."""

import pytest
import torch

from harness.config.checks import SettingsError
from harness.teachers.signals import LiveTeacher
from tests.doubles import bpe_tokenizer, byte_tokenizer, tiny_llama

IDS = torch.tensor([[10, 11, 12, 13, 14], [20, 21, 22, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
SCORED = torch.tensor([[False, True, True, False, False], [True, False, False, False, False]])


def test_a_teacher_is_frozen_and_its_dropout_changes_nothing():
    model = tiny_llama(dropout=0.9)
    model.train()
    teacher = LiveTeacher(model, byte_tokenizer(), byte_tokenizer())
    first = teacher.logits(IDS, MASK, SCORED)
    model.train()  # as a caller who shares the module might
    assert torch.equal(first, teacher.logits(IDS, MASK, SCORED))
    assert not first.requires_grad and not any(weight.requires_grad for weight in model.parameters())
    model.train()
    states = teacher.states(IDS, MASK, SCORED)
    torch.testing.assert_close(teacher.logits_from(states), first)
    assert not teacher.logits_from(states).requires_grad and not model.training


def test_a_teacher_with_another_tokenizer_is_refused_and_both_are_named():
    other = bpe_tokenizer("byte-level")
    other.name_or_path, student = "the-teacher", byte_tokenizer()
    student.name_or_path = "the-student"
    with pytest.raises(SettingsError, match=r"the-teacher.*the-student.*method=cross_kd"):
        LiveTeacher(tiny_llama(), other, student)
