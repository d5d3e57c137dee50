"""Divergences on top-k tokens against dense formulas on whole distributions, hand-worked cases and Monte Carlo."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from harness.config.recipe import TOKEN_DIVERGENCES, TrainingPhase
from harness.config.teacher_signal import SUPPORTED, TAILS
from harness.teachers.sparse_logits import SparseLogits, sampled_of, top_k_of
from harness.training.losses.sparse import compare_sparse

TOKENS = torch.tensor([0, 1, 2, 3, 4])
PAIRS = [(tail, name) for tail in TAILS for name in TOKEN_DIVERGENCES if SUPPORTED[f"top_k[{tail}]"][name].works]


def random_pair(dtype=torch.float64, vocabulary=11, positions=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 2 * torch.randn(2, positions, vocabulary, generator=generator, dtype=dtype)
    return student.requires_grad_(), teacher


def stage_of(name, **changes):
    return TrainingPhase(divergence=name, jsd_teacher_weight=0.3, skew=0.2, **changes)


def dense(name, p, q):
    """The textbook formulas on probabilities, summed over positions."""

    def kl(a, b):
        return (a * (a / b).log()).sum()

    return {
        "forward_kl": lambda: kl(p, q),
        "reverse_kl": lambda: kl(q, p),
        "jsd": lambda: 0.3 * kl(p, 0.3 * p + 0.7 * q) + 0.7 * kl(q, 0.3 * p + 0.7 * q),
        "tvd": lambda: (p - q).abs().sum() / 2,
        "skew_forward_kl": lambda: kl(p, 0.2 * p + 0.8 * q),
        "skew_reverse_kl": lambda: kl(q, 0.8 * p + 0.2 * q),
    }[name]()


def gradient(value, student):
    return torch.autograd.grad(value, student)[0]


@pytest.mark.parametrize(("tail", "name"), PAIRS)
def test_all_tokens_stored_is_the_dense_divergence_in_value_and_gradient(tail, name):
    student, teacher = random_pair()
    ours = compare_sparse(stage_of(name), tail, student, top_k_of(teacher, 11), TOKENS).sum
    theirs = dense(name, teacher.softmax(-1), student.softmax(-1))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-10)
    torch.testing.assert_close(gradient(ours, student), gradient(theirs, student))


@pytest.mark.parametrize("name", TOKEN_DIVERGENCES)
def test_the_tail_is_one_event_and_the_bucketed_divergence_lies_between_zero_and_the_dense_one(name):
    for seed in range(20):
        student, teacher = random_pair(seed=seed)
        p, q = teacher.softmax(-1), student.softmax(-1)
        ours = compare_sparse(stage_of(name), "tail", student, top_k_of(teacher, 3), TOKENS).sum
        ids = teacher.topk(3).indices
        events = [torch.cat([one.gather(1, ids), 1 - one.gather(1, ids).sum(-1, keepdim=True)], 1) for one in (p, q)]
        by_hand = dense(name, *events)
        assert ours.item() == pytest.approx(by_hand.item(), rel=1e-9)
        torch.testing.assert_close(gradient(ours, student), gradient(by_hand, student), rtol=1e-6, atol=1e-9)
        assert 0 <= ours.item() <= dense(name, p, q).item() + 1e-12


@pytest.mark.parametrize("name", TOKEN_DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_renormalised_is_the_dense_divergence_of_the_two_distributions_on_the_kept_tokens(name, temperature):
    student, teacher = random_pair()
    stage = stage_of(name, divergence_temperature=temperature)
    ours = compare_sparse(stage, "renormalise", student, top_k_of(teacher, 4), TOKENS).sum
    ids = teacher.topk(4).indices
    p, q = ((one.gather(1, ids) / temperature).softmax(-1) for one in (teacher, student))
    theirs = temperature**2 * dense(name, p, q)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-9)
    torch.testing.assert_close(gradient(ours, student), gradient(theirs, student))


def test_zero_mode_can_be_negative():
    # P = (.5, .3, .2), Q = (.6, .2, .2), one token stored: .5 ln(.5/.6) = -.0912, while the KL is +.0305
    teacher, student = torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([[0.6, 0.2, 0.2]]).log()
    found = {
        tail: compare_sparse(stage_of("forward_kl"), tail, student, top_k_of(teacher, 1), TOKENS[:1]).sum.item()
        for tail in TAILS
    }
    assert found["zero"] == pytest.approx(0.5 * math.log(0.5 / 0.6), rel=1e-5)
    assert found["tail"] == pytest.approx(0.5 * math.log(0.5 / 0.6) + 0.5 * math.log(0.5 / 0.4), rel=1e-5)
    assert found["renormalise"] == 0


@pytest.mark.parametrize(("tail", "name"), PAIRS)
@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_gradients_pass_gradcheck(tail, name, weight):
    student, teacher = random_pair(positions=2, vocabulary=6)
    stage, sparse = stage_of(name, cross_entropy_weight=weight), top_k_of(teacher, 3)
    assert torch.autograd.gradcheck(lambda q: compare_sparse(stage, tail, q, sparse, TOKENS[:2]).sum, (student,))


def test_gradients_of_drawn_tokens_pass_gradcheck():
    student, teacher = random_pair(positions=2, vocabulary=6)
    sparse = sampled_of(teacher, np.random.default_rng(0).random((2, 5)))
    stage = stage_of("forward_kl", cross_entropy_weight=0.4)
    assert torch.autograd.gradcheck(lambda q: compare_sparse(stage, "tail", q, sparse, TOKENS[:2]).sum, (student,))


def test_equal_distributions_have_no_divergence_and_no_gradient():
    _, teacher = random_pair()
    for tail, name in PAIRS:
        student = teacher.clone().requires_grad_()
        value = compare_sparse(stage_of(name), tail, student, top_k_of(teacher, 4), TOKENS).sum
        assert value.item() == pytest.approx(0, abs=1e-12), (tail, name)
        # the TVD has a kink there; where P outside the top-k tokens is ignored, equality is no minimum
        if tail != "zero" and name != "tvd":
            assert gradient(value, student).abs().max() < 1e-12, (tail, name)


def one_position_many_times(times):
    """The same student and teacher at many positions, and the gradient of the dense forward KL at one of them."""
    student, teacher = random_pair(positions=1, vocabulary=8, seed=3)
    expected = gradient(dense("forward_kl", teacher.softmax(-1), student.softmax(-1)), student)[0]
    return student.detach().repeat(times, 1).requires_grad_(), teacher.repeat(times, 1), expected


def test_the_mean_gradient_of_drawn_tokens_is_the_dense_one():
    times = 20_000
    student, teacher, expected = one_position_many_times(times)
    sparse = sampled_of(teacher, np.random.default_rng(0).random((times, 6)))
    tokens = torch.zeros(times, dtype=torch.long)
    found = gradient(compare_sparse(stage_of("forward_kl"), "tail", student, sparse, tokens).sum, student)
    error = found.std(0) / math.sqrt(times)
    assert ((found.mean(0) - expected).abs() <= 3 * error).all()
    assert (error < 0.002).all(), "precise enough to see a bias"


@pytest.mark.parametrize("tail", TAILS)
def test_the_gradient_of_the_top_k_tokens_is_not_the_dense_one(tail):
    student, teacher, expected = one_position_many_times(1)
    value = compare_sparse(stage_of("forward_kl"), tail, student, top_k_of(teacher, 3), TOKENS[:1]).sum
    assert (gradient(value, student)[0] - expected).abs().max() > 0.02  # ten times what the drawn tokens' test sees


def test_the_value_of_drawn_tokens_is_a_cross_entropy_of_their_shares():
    student = torch.tensor([[0.6, 0.2, 0.2]]).log()
    teacher = torch.tensor([[0.5, 0.3, 0.2]]).log()
    sparse = sampled_of(teacher, np.array([[0.1, 0.6, 0.49, 0.999]]))  # the draws are 0, 1, 0, 2
    assert sparse.ids.tolist() == [[0, 1, 2]]
    assert sparse.logprobs.exp().tolist() == [pytest.approx([0.5, 0.25, 0.25])]
    found = compare_sparse(stage_of("forward_kl"), "tail", student, sparse, TOKENS[:1])
    assert found.sum.item() == pytest.approx(-0.5 * math.log(0.6) - 0.5 * math.log(0.2), rel=1e-5)
    assert found.diagnostics["kept_student_mass"].item() == pytest.approx(1)


def test_unused_places_of_drawn_tokens_have_no_mass_and_no_gradient():
    student, teacher = random_pair(positions=2)
    draws = np.array([[0.1, 0.5, 0.9], [0.999, 0.999, 0.999]])  # three different tokens, and three times the last
    sparse = sampled_of(teacher, draws)
    assert sparse.ids.shape == (2, 3) and sparse.logprobs[1].tolist() == [0, -math.inf, -math.inf]
    found = compare_sparse(stage_of("forward_kl"), "tail", student, sparse, TOKENS[:2])
    q = student.softmax(-1)
    by_hand = q[0, sparse.ids[0]].sum() + q[1, sparse.ids[1, 0]]
    assert found.diagnostics["kept_student_mass"].item() == pytest.approx(by_hand.item())
    expected = q[1].detach() - functional.one_hot(sparse.ids[1, 0], 11)
    torch.testing.assert_close(gradient(found.sum, student)[1], expected.double())


def test_log_probabilities_rounded_to_16_bits_still_have_a_divergence_of_at_least_zero():
    for seed in range(20):
        _, teacher = random_pair(torch.float32, seed=seed)
        sparse = top_k_of(teacher, 4)
        rounded = SparseLogits("top_k", sparse.ids, sparse.logprobs.half().float(), sparse.tail.half().float())
        for name in ("forward_kl", "reverse_kl"):
            value = compare_sparse(stage_of(name), "tail", teacher, rounded, TOKENS).sum.item()
            assert -1e-6 < value < 1e-5


def test_a_tail_far_below_the_kept_mass_is_not_lost_in_rounding():
    logits = torch.tensor([[30.0, 0.0, -1.0, 1.0]])
    sparse = top_k_of(logits, 1)
    assert sparse.ids.item() == 0 and sparse.logprobs.item() == 0
    assert sparse.tail.item() == pytest.approx(math.log(1 + math.exp(-1) + math.e) - 30, rel=1e-6)


@pytest.mark.parametrize(("tail", "name"), PAIRS)
def test_tokens_the_teacher_rules_out_make_no_nan(tail, name):
    student, teacher = random_pair(torch.float32)
    teacher[:, 4:] = -torch.inf
    for top_k in (3, 4, 5, 11):
        value = compare_sparse(stage_of(name), tail, student, top_k_of(teacher, top_k), TOKENS).sum
        if name == "reverse_kl" and top_k + (tail == "tail") > 4:
            assert value == torch.inf  # the student finds likely what the teacher rules out
            continue
        assert value.isfinite() and gradient(value, student).isfinite().all()


def test_bf16_logits_are_compared_in_fp32():
    student, teacher = random_pair(torch.float32)
    sparse, half = top_k_of(teacher, 4), student.detach().bfloat16()
    for tail, name in PAIRS:
        value = compare_sparse(stage_of(name), tail, half, sparse, TOKENS).sum
        assert value.dtype == torch.float32
        assert torch.equal(value, compare_sparse(stage_of(name), tail, half.float(), sparse, TOKENS).sum)


def test_chunks_of_positions_add_up_and_parts_of_unequal_width_join():
    student, teacher = random_pair()
    uniforms = np.random.default_rng(0).random((5, 6))
    for sparse in (top_k_of(teacher, 4), sampled_of(teacher, uniforms)):
        whole = compare_sparse(stage_of("forward_kl"), "tail", student, sparse, TOKENS)
        slices = [slice(0, 2), slice(2, 5)]
        parts = [compare_sparse(stage_of("forward_kl"), "tail", student[s], sparse[s], TOKENS[s]) for s in slices]
        assert sum(part.sum.item() for part in parts) == pytest.approx(whole.sum.item())
        assert sum(part.count for part in parts) == whole.count
    alone = SparseLogits.of([sampled_of(teacher[i : i + 1], uniforms[i : i + 1]) for i in range(5)])
    assert torch.equal(alone.ids, sparse.ids) and torch.equal(alone.logprobs, sparse.logprobs)


@pytest.mark.parametrize("tail", TAILS)
def test_diagnostics_are_the_nll_of_the_tokens_and_their_masses(tail):
    student, teacher = random_pair()
    found = compare_sparse(stage_of("forward_kl"), tail, student, top_k_of(teacher, 4), TOKENS).diagnostics
    ids = teacher.topk(4).indices
    nll = functional.cross_entropy(student, TOKENS, reduction="sum").item()
    assert found["student_nll"].item() == pytest.approx(nll)
    assert found["kept_teacher_mass"].item() == pytest.approx(teacher.softmax(-1).gather(1, ids).sum().item())
    if tail != "renormalise":
        assert found["kept_student_mass"].item() == pytest.approx(student.softmax(-1).gather(1, ids).sum().item())


def test_cross_entropy_on_the_tokens_is_mixed_in_by_its_weight():
    student, teacher = random_pair()
    sparse, stage = top_k_of(teacher, 4), stage_of("forward_kl")
    plain = compare_sparse(stage, "tail", student, sparse, TOKENS)
    mixed = compare_sparse(replace(stage, cross_entropy_weight=0.25), "tail", student, sparse, TOKENS)
    expected = 0.75 * plain.sum.item() + 0.25 * plain.diagnostics["student_nll"].item()
    assert mixed.sum.item() == pytest.approx(expected)


def test_no_scored_position_gives_zero_and_no_nan():
    none = torch.zeros(0, 6, requires_grad=True)
    for sparse in (top_k_of(torch.zeros(0, 6), 3), sampled_of(torch.zeros(0, 6), np.zeros((0, 4)))):
        found = compare_sparse(stage_of("forward_kl"), "tail", none, sparse, TOKENS[:0])
        assert (found.sum.item(), found.count) == (0.0, 0)
