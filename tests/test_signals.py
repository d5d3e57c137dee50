"""Teacher signals: which positions are answered, and which pairs are refused."""

import pytest
import torch

from harness.checks import SettingsError
from harness.signals import LiveTeacher, logits_at
from tests.doubles import byte_tokenizer, tiny_llama

IDS = torch.tensor([[10, 11, 12, 13, 14], [20, 21, 22, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
SCORED = torch.tensor([[False, True, True, False, False], [True, False, False, False, False]])


def test_logits_at_scored_positions_are_those_of_the_whole_forward():
    model = tiny_llama()
    with torch.no_grad():
        whole = model(input_ids=IDS, attention_mask=MASK).logits
        torch.testing.assert_close(logits_at(model, IDS, MASK, SCORED), whole[SCORED])
        assert model(input_ids=IDS).logits.shape[:2] == (2, 5), "the hook is gone afterwards"


def test_only_scored_positions_reach_the_output_layer():
    model = tiny_llama()
    shapes = []
    model.get_output_embeddings().register_forward_hook(lambda _, args, out: shapes.append(tuple(out.shape)))
    logits_at(model, IDS, MASK, SCORED)
    assert shapes == [(1, 3, model.config.vocab_size)]


def test_a_soft_capped_model_is_asked_through_its_own_forward():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    model = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            final_logit_softcapping=0.01,
        )
    ).eval()
    with torch.no_grad():
        found = logits_at(model, IDS, MASK, SCORED)
        torch.testing.assert_close(found, model(input_ids=IDS, attention_mask=MASK).logits[SCORED])
    assert found.abs().max() <= 0.01


def test_a_teacher_is_frozen_and_its_dropout_changes_nothing():
    model = tiny_llama(dropout=0.9)
    model.train()
    teacher = LiveTeacher(model, byte_tokenizer(), byte_tokenizer())
    first = teacher.logits(IDS, MASK, SCORED)
    model.train()  # as a caller who shares the module might
    assert torch.equal(first, teacher.logits(IDS, MASK, SCORED))
    assert not first.requires_grad and not any(weight.requires_grad for weight in model.parameters())


def test_a_teacher_with_another_tokenizer_is_refused_and_both_are_named():
    other = byte_tokenizer()
    other.add_tokens(["<|extra|>"])
    other.name_or_path, student = "the-teacher", byte_tokenizer()
    student.name_or_path = "the-student"
    with pytest.raises(SettingsError, match=r"the-teacher.*the-student.*method=cross_kd"):
        LiveTeacher(tiny_llama(), other, student)
