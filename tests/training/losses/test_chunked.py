"""Chunks: the same value and gradients as in one piece, and no more logits than a chunk at once."""

import pytest
import torch

from harness.config.recipe import TOKEN_DIVERGENCES, TrainingPhase
from harness.training.losses.chunked import in_chunks
from harness.training.losses.divergences import Divergence, compare

POSITIONS, WIDTH, VOCABULARY = 11, 6, 13
TOKENS = torch.arange(POSITIONS)


def parts(dtype=torch.float64):
    """Student's states, its head and bias; teacher's logits."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(POSITIONS, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,), (POSITIONS, VOCABULARY)]
    made = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
    return [tensor.requires_grad_() for tensor in made[:3]], made[3]


def compared(stage, size):
    """Loss, gradients and diagnostics of a soft-capped head, in chunks of `size`; 0: in one piece."""
    (states, head, bias), teacher = parts()

    def part(piece, rows):
        return compare(stage, torch.tanh(piece @ head.T + bias), teacher[rows], TOKENS[rows])

    found = in_chunks(states, size, part) if size else part(states, slice(None))
    (3 * found.sum).backward()
    return found, [states.grad, head.grad, bias.grad]


@pytest.mark.parametrize("divergence", ["cross_entropy", *TOKEN_DIVERGENCES])
@pytest.mark.parametrize("size", [1, 4, 11, 100])
def test_value_and_gradients_are_those_of_one_piece(divergence, size):
    stage = TrainingPhase(divergence=divergence, cross_entropy_weight=0.25, divergence_temperature=2.0)
    whole, gradients = compared(stage, 0)
    found, chunked = compared(stage, size)
    torch.testing.assert_close(found.sum.detach(), whole.sum.detach())
    torch.testing.assert_close(found.diagnostics["student_nll"], whole.diagnostics["student_nll"])
    torch.testing.assert_close(chunked, gradients)
    assert found.count == POSITIONS


def test_no_chunk_is_larger_than_asked_and_without_gradient_none_is_made():
    (states, head, _), _ = parts()
    seen = []

    def part(piece, rows):
        seen.append((rows.stop - rows.start, piece.requires_grad))
        return Divergence((piece @ head.T).sum(), len(piece))

    with torch.no_grad():
        found = in_chunks(states, 4, part)
    assert seen == [(4, True), (4, True), (3, True)] and not found.sum.requires_grad
    assert found.sum.item() == pytest.approx((states @ head.T).sum().item())


def test_a_frozen_head_gets_no_gradient_and_the_states_do():
    (states, head, _), _ = parts()
    frozen = head.detach()
    in_chunks(states, 4, lambda piece, rows: Divergence((piece @ frozen.T).sum(), len(piece))).sum.backward()
    torch.testing.assert_close(states.grad, frozen.sum(0).expand_as(states))


def test_a_second_backward_is_refused_rather_than_wrong():
    (states, head, _), _ = parts()
    loss = in_chunks(states, 4, lambda piece, rows: Divergence((piece @ head.T).sum(), len(piece))).sum
    loss.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="once"):
        loss.backward()
