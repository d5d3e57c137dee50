"""Hidden states and relations as functions: by hand, by autograd, and caught from a model without changing it."""

import math

import pytest
import torch
from torch.nn import functional

from harness.models.hidden_states import (
    attention_projections,
    caught,
    equally_wide,
    layers_of,
    relation_kl,
    relative_error,
    uniform_map,
)
from tests.doubles import tiny_llama


def draws(*shape, seed=0, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_layers_are_mapped_evenly_and_end_with_the_last():
    assert uniform_map(6, 24) == [4, 8, 12, 16, 20, 24]
    assert uniform_map(3, 4) == [2, 3, 4]
    assert uniform_map(3, 3) == [1, 2, 3]
    assert uniform_map(4, 2) == [1, 1, 2, 2]


def test_the_relative_error_by_hand():
    teacher = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    assert relative_error(torch.zeros(2, 2), teacher) == 2
    assert relative_error(torch.tensor([[3.0, 5.0], [2.0, 2.0]]), teacher) == pytest.approx(1 / 25 + 4 / 4)
    assert relative_error(10 * teacher + 10, 10 * teacher + 20) == relative_error(teacher + 1, teacher + 2)
    assert torch.autograd.gradcheck(
        lambda student: relative_error(student, draws(2, 3, seed=1)), draws(2, 3).requires_grad_()
    )


def test_one_relation_by_hand():
    # the second token sees both: scores 0 and 1 for the student, 0 and 0 for the teacher (d_r = 1, no scaling)
    student, teacher = torch.tensor([[[0.0], [1.0]]]), torch.tensor([[[1.0], [0.0]]])
    scored = torch.tensor([[False, True]])
    q = 1 / (1 + math.e)
    expected = 0.5 * math.log(0.5 / q) + 0.5 * math.log(0.5 / (1 - q))
    assert relation_kl(student, teacher, 1, scored, torch.ones(1, 2)).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("elements", [2**25, 1], ids=["at once", "one by one"])
def test_relations_are_attention_of_a_sequence_to_itself(elements, monkeypatch):
    # torch's own causal attention over unit values gives R; rows are padded on the left and on the right
    monkeypatch.setattr("harness.models.hidden_states.RELATION_ELEMENTS", elements)
    student, teacher = draws(2, 6, 4), draws(2, 6, 8, seed=1)
    real = torch.tensor([[1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1]])
    scored = torch.tensor([[0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1]]).bool()
    expected = 0
    for row in range(2):
        kept = real[row].bool()
        length = int(kept.sum())
        values = torch.eye(length, dtype=torch.float64).expand(2, -1, -1)
        r = []
        for vectors in (student, teacher):
            heads = torch.stack(vectors[row, kept].chunk(2, -1))
            r.append(functional.scaled_dot_product_attention(heads, heads, values, is_causal=True).log())
        kl = functional.kl_div(*r, log_target=True, reduction="none").nan_to_num(0).sum(-1).mean(0)
        expected = expected + kl[scored[row, kept]].sum()
    found = relation_kl(student, teacher, 2, scored, real)
    torch.testing.assert_close(found, expected)
    assert torch.autograd.gradcheck(lambda one: relation_kl(one, teacher, 2, scored, real), student.requires_grad_())


def test_what_is_padding_or_after_the_last_scored_position_has_no_part_in_a_relation():
    student, teacher = draws(2, 5, 4), draws(2, 5, 4, seed=1)
    real = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 0]])
    scored = torch.tensor([[0, 0, 1, 0, 0], [0, 0, 0, 1, 0]]).bool()
    plain = relation_kl(student, teacher, 2, scored, real)
    for row, position, looked_at in ((0, 0, True), (0, 3, False), (1, 0, False), (1, 2, True), (1, 4, False)):
        changed = student.clone()
        changed[row, position] += 1
        assert (relation_kl(changed, teacher, 2, scored, real) != plain) == looked_at


def test_a_batch_without_a_scored_position_has_no_relations_and_no_gradient():
    student = draws(2, 3, 4).requires_grad_()
    found = relation_kl(student, draws(2, 3, 4, seed=1), 2, torch.zeros(2, 3, dtype=torch.bool), torch.ones(2, 3))
    found.backward()
    assert found == 0 and not student.grad.any()


def test_huge_scores_give_no_nan():
    student = draws(1, 4, 4, scale=1e4).float().requires_grad_()
    found = relation_kl(student, draws(1, 4, 4, seed=1, scale=1e4), 2, torch.ones(1, 4).bool(), torch.ones(1, 4))
    found.backward()
    assert found.isfinite() and student.grad.isfinite().all()


def test_key_and_value_heads_stand_beside_every_query_head_they_serve():
    queries, keys = torch.arange(8.0)[None, None], torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    wide = equally_wide([queries, keys, -keys], heads=4, key_value_heads=2)
    assert wide[0] is queries
    assert wide[1].tolist() == [[[1, 2, 1, 2, 3, 4, 3, 4]]]
    assert torch.equal(wide[2], -wide[1])


def test_states_are_caught_as_the_model_itself_reports_them_and_nothing_stays_hooked():
    model, ids = tiny_llama(), torch.tensor([[7, 8, 9]])
    plain = model(input_ids=ids, output_hidden_states=True)
    hooked = [len(module._forward_hooks) for module in model.modules()]
    with caught([*layers_of(model, "student")[:1], model.get_decoder()], lambda states: states[:, 1:]) as states:
        again = model(input_ids=ids)
    assert torch.equal(again.logits, plain.logits)
    for found, expected in zip(states, plain.hidden_states[1:], strict=True):
        assert torch.equal(found, expected[:, 1:])
    with pytest.raises(ValueError), caught(attention_projections(model, 2, "student"), lambda states: states):
        raise ValueError
    assert [len(module._forward_hooks) for module in model.modules()] == hooked
