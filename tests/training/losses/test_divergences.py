"""Divergences against hand-worked values, TRL's generalised JSD and automatic differentiation."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from harness.config.recipe import TOKEN_DIVERGENCES, TrainingPhase
from harness.models.logits import scored_positions, scored_tokens
from harness.training.losses.divergences import compare, cross_entropy, kl, policy_gradient

TEACHER = torch.tensor([[0.5, 0.25, 0.25]])
STUDENT = torch.tensor([[0.25, 0.25, 0.5]])


def random_pair(dtype=torch.float64, vocabulary=7, positions=5):
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, positions, vocabulary, generator=generator, dtype=dtype)
    return student.requires_grad_(), teacher


def dense(name, student, teacher, temperature):
    """The textbook formula on probabilities, written apart from ours."""
    p, q = torch.softmax(teacher / temperature, -1), torch.softmax(student / temperature, -1)

    def kl(a, b):
        return (a * (a / b).log()).sum()

    value = {
        "forward_kl": lambda: kl(p, q),
        "reverse_kl": lambda: kl(q, p),
        "jsd": lambda: 0.3 * kl(p, 0.3 * p + 0.7 * q) + 0.7 * kl(q, 0.3 * p + 0.7 * q),
        "tvd": lambda: 0.5 * (p - q).abs().sum(),
        "skew_forward_kl": lambda: kl(p, 0.1 * p + 0.9 * q),
        "skew_reverse_kl": lambda: kl(q, 0.9 * p + 0.1 * q),
    }[name]()
    return temperature**2 * value


OURS = {name: TrainingPhase(divergence=name, jsd_teacher_weight=0.3, skew=0.1) for name in TOKEN_DIVERGENCES}
TOKENS = torch.zeros(5, dtype=torch.long)


def ours(name, student, teacher, temperature=1.0, **values):
    """The divergence of that name as a stage computes it, without cross-entropy."""
    stage = replace(OURS[name], divergence_temperature=temperature, **values)
    return compare(stage, student, teacher, TOKENS[: len(student)]).sum


def test_forward_kl_of_an_asymmetric_case_worked_by_hand():
    # .5 ln 2 + .25 ln 1 + .25 ln .5 = .25 ln 2
    assert ours("forward_kl", STUDENT.log(), TEACHER.log()).item() == pytest.approx(0.25 * math.log(2))


def test_forward_and_reverse_kl_are_told_apart_by_direction():
    teacher, student = torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([[0.1, 0.6, 0.3]])
    forward = 0.7 * math.log(7) + 0.2 * math.log(1 / 3) + 0.1 * math.log(1 / 3)
    reverse = 0.1 * math.log(1 / 7) + 0.6 * math.log(3) + 0.3 * math.log(3)
    assert ours("forward_kl", student.log(), teacher.log()).item() == pytest.approx(forward, rel=1e-5)
    assert ours("reverse_kl", student.log(), teacher.log()).item() == pytest.approx(reverse, rel=1e-5)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_value_and_gradient_equal_the_dense_formula_with_the_squared_temperature(name, temperature):
    student, teacher = random_pair()
    found = ours(name, student, teacher, temperature=temperature)
    theirs = dense(name, student, teacher, temperature)
    assert found.item() == pytest.approx(theirs.item(), rel=1e-10)
    ours_gradient, theirs_gradient = (torch.autograd.grad(value, student)[0] for value in (found, theirs))
    torch.testing.assert_close(ours_gradient, theirs_gradient)


@pytest.mark.parametrize("name", OURS)
def test_gradients_pass_gradcheck(name):
    student, teacher = random_pair(positions=2, vocabulary=4)
    assert torch.autograd.gradcheck(lambda q: ours(name, q, teacher, temperature=1.5), (student,))


@pytest.mark.parametrize("weight", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_trl_agrees_on_every_weight_of_the_teacher(weight):
    from trl.experimental.gkd import GKDTrainer

    student, teacher = random_pair(torch.float32)
    theirs = GKDTrainer.generalized_jsd_loss(student, teacher, beta=weight, reduction="sum")
    stage = TrainingPhase(divergence="jsd", jsd_teacher_weight=weight)
    ours = compare(stage, student, teacher, TOKENS).sum
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    ours_gradient, theirs_gradient = (torch.autograd.grad(value, student)[0] for value in (ours, theirs))
    torch.testing.assert_close(ours_gradient, theirs_gradient)


@pytest.mark.parametrize("name", OURS)
def test_equal_distributions_have_no_divergence_and_no_gradient(name):
    student, _ = random_pair()
    value = ours(name, student, student.detach().clone())
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert torch.autograd.grad(value, student)[0].abs().max() < 1e-12


@pytest.mark.parametrize("name", OURS)
def test_a_recipe_reaches_each_divergence_with_its_own_values(name):
    student, teacher = random_pair()
    stage = TrainingPhase(divergence=name, jsd_teacher_weight=0.3, skew=0.1, divergence_temperature=1.5)
    found = compare(stage, student, teacher, TOKENS)
    assert found.sum.item() == pytest.approx(dense(name, student, teacher, 1.5).item(), rel=1e-10)
    assert found.count == 5


def test_tvd_and_the_skews_of_an_asymmetric_case_worked_by_hand():
    # |.25| + 0 + |-.25| over 2; mixtures of .1: (.275, .25, .475) and (.475, .25, .275)
    assert ours("tvd", STUDENT.log(), TEACHER.log()).item() == pytest.approx(0.25)
    forward = 0.5 * math.log(0.5 / 0.275) + 0.25 * math.log(0.25 / 0.475)
    reverse = 0.25 * math.log(0.25 / 0.475) + 0.5 * math.log(0.5 / 0.275)
    assert ours("skew_forward_kl", STUDENT.log(), TEACHER.log(), skew=0.1).item() == pytest.approx(forward, rel=1e-5)
    assert ours("skew_reverse_kl", STUDENT.log(), TEACHER.log(), skew=0.1).item() == pytest.approx(reverse, rel=1e-5)


@pytest.mark.parametrize("plain", ["forward_kl", "reverse_kl"])
def test_a_vanishing_skew_is_the_plain_kl(plain):
    student, teacher = random_pair()
    expected = ours(plain, student, teacher).item()
    assert ours(f"skew_{plain}", student, teacher, skew=1e-9).item() == pytest.approx(expected, rel=1e-6)
    assert ours(f"skew_{plain}", student, teacher, skew=0.0).item() == expected


@pytest.mark.parametrize("name", OURS)
def test_the_temperature_changes_loss_and_gradient(name):
    student, teacher = random_pair()
    values = [ours(name, student, teacher, temperature=t) for t in (1.0, 2.0)]
    one, other = (torch.autograd.grad(value, student)[0] for value in values)
    assert abs(values[0] - values[1]) > 1e-3 and (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_trls_chunked_kernel_agrees_but_for_the_squared_temperature(weight, temperature):
    kernel = pytest.importorskip("trl.kernels.chunked_divergence").ChunkedDivergenceFunction
    generator = torch.Generator().manual_seed(0)
    states, wise = torch.randn(2, 5, 8, generator=generator)
    head, wise_head = torch.randn(2, 11, 8, generator=generator)
    states.requires_grad_()
    theirs = temperature**2 * kernel.apply(states, head, None, wise, wise_head, None, weight, temperature)[0].sum()
    stage = TrainingPhase(divergence="jsd", jsd_teacher_weight=weight, divergence_temperature=temperature)
    ours = compare(stage, states @ head.T, wise @ wise_head.T, TOKENS).sum
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    gradients = [torch.autograd.grad(value, states)[0] for value in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_jsd_over_its_weight_goes_to_the_kls_at_both_ends():
    student, teacher = random_pair()
    small = 1e-6
    assert (ours("jsd", student, teacher, jsd_teacher_weight=small) / small).item() == pytest.approx(
        ours("forward_kl", student, teacher).item(), rel=1e-4
    )
    assert (ours("jsd", student, teacher, jsd_teacher_weight=1 - small) / small).item() == pytest.approx(
        ours("reverse_kl", student, teacher).item(), rel=1e-4
    )


@pytest.mark.parametrize("name", [name for name in OURS if name != "reverse_kl"])
def test_a_token_the_teacher_rules_out_makes_no_nan(name):
    student, teacher = random_pair()
    teacher[:, 0] = -torch.inf
    value = ours(name, student, teacher)
    nearly = teacher.masked_fill(teacher == -torch.inf, -300.0)
    assert value.item() == pytest.approx(dense(name, student, nearly, 1.0).item(), rel=1e-10)
    expected = torch.autograd.grad(dense(name, student, nearly, 1.0), student)[0]
    torch.testing.assert_close(torch.autograd.grad(value, student)[0], expected)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "tvd"])
def test_a_token_that_both_models_rule_out_adds_nothing(name):
    """It used to be NaN: 0 x (-inf - -inf)."""
    student, teacher = random_pair()
    padded = [functional.pad(logits, (0, 2), value=-torch.inf) for logits in (student, teacher)]
    value, expected = ours(name, *padded), ours(name, student, teacher)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, student)[0], torch.autograd.grad(expected, student)[0])


def test_the_reverse_kl_to_a_teacher_that_rules_a_token_out_is_infinite():
    student, teacher = random_pair(torch.float32)
    teacher[:, 0] = -torch.inf
    assert ours("reverse_kl", student, teacher).item() == math.inf


def test_bf16_logits_are_compared_in_fp32():
    student, teacher = random_pair(torch.float32)
    student, teacher = student.detach().bfloat16(), teacher.bfloat16()
    for name in OURS:
        value = ours(name, student, teacher)
        assert value.dtype == torch.float32
        expected = dense(name, student.float(), teacher.float(), 1.0)
        assert value.item() == pytest.approx(expected.item(), rel=1e-5)


def test_cross_entropy_weight_mixes_with_the_squared_temperature_on_the_divergence_alone():
    student, teacher = random_pair()
    tokens = torch.tensor([0, 1, 2, 3, 4])
    stage = TrainingPhase(divergence="forward_kl", cross_entropy_weight=0.25, divergence_temperature=2.0)
    expected = 0.75 * dense("forward_kl", student, teacher, 2.0) + 0.25 * functional.cross_entropy(
        student, tokens, reduction="sum"
    )
    assert compare(stage, student, teacher, tokens).sum.item() == pytest.approx(expected.item(), rel=1e-10)


def test_the_first_and_the_last_answer_token_are_scored_from_the_position_before():
    labels = torch.tensor([[-100, -100, 7, 8, 9, -100], [-100, 5, -100, -100, 6, 4]])
    assert scored_positions(labels).tolist() == [
        [False, True, True, True, False, False],
        [True, False, False, True, True, False],
    ]
    assert scored_tokens(labels).tolist() == [7, 8, 9, 5, 6, 4]


def test_swapping_the_teacher_changes_the_loss():
    student, teacher = random_pair()
    stage = TrainingPhase(divergence="jsd", jsd_teacher_weight=0.5)
    one, other = (compare(stage, student, logits, TOKENS).sum.item() for logits in (teacher, -teacher))
    assert one != other


def test_a_divergence_without_a_teacher_is_an_error():
    student, _ = random_pair()
    with pytest.raises(ValueError, match="needs the teacher's logits"):
        compare(TrainingPhase(divergence="forward_kl"), student, None, TOKENS)


def test_no_scored_position_gives_zero_and_no_nan():
    found = cross_entropy(torch.zeros(0, 4, requires_grad=True), torch.zeros(0, dtype=torch.long))
    assert (found.sum.item(), found.count) == (0.0, 0)


def test_label_smoothing_is_torchs_and_the_reported_nll_is_not_smoothed():
    student, _ = random_pair()
    tokens = torch.tensor([0, 1, 2, 3, 4])
    found = compare(TrainingPhase(label_smoothing=0.2), student, None, tokens)
    logprobs = student.log_softmax(-1)
    nll = -logprobs[range(5), tokens].sum()
    assert found.sum.item() == pytest.approx((0.8 * nll - 0.2 * logprobs.mean(-1).sum()).item(), rel=1e-10)
    assert found.diagnostics["student_nll"].item() == pytest.approx(nll.item(), rel=1e-10)
    assert torch.autograd.gradcheck(lambda q: cross_entropy(q, tokens, 0.2).sum, (student,))


@pytest.mark.parametrize("sides", [(True, False), (False, True), (True, True)])
def test_the_gradient_of_the_kl_is_that_of_finite_differences(sides):
    pair = [torch.randn(3, 4, dtype=torch.float64).log_softmax(-1).requires_grad_(side) for side in sides]
    assert torch.autograd.gradcheck(kl, pair)


def test_an_event_that_the_first_rules_out_adds_nothing_to_value_and_gradient():
    first = torch.tensor([[0.5, 0.5, 0.0, 0.0]], dtype=torch.float64).log().requires_grad_()
    second = torch.tensor([[0.25, 0.5, 0.25, 0.0]], dtype=torch.float64).log().requires_grad_()
    value = kl(first, second)
    value.backward()
    assert value.item() == pytest.approx(0.5 * math.log(2))
    assert first.grad[0, 2:].tolist() == second.grad[0, 2:].tolist() == [0.0, 0.0]


def test_the_mean_of_the_policy_gradient_over_sampled_tokens_is_the_gradient_of_the_reverse_kl():
    student, teacher = random_pair()
    probabilities, teacher_logprobs = student.detach().softmax(-1), teacher.log_softmax(-1)
    phase = TrainingPhase(divergence="reverse_kl")
    (whole,) = torch.autograd.grad(compare(phase, student, teacher, torch.zeros(5, dtype=torch.long)).sum, student)

    def gradient(tokens, shift=0.0):
        own = teacher_logprobs.gather(1, tokens[:, None])[:, 0] + shift
        return torch.autograd.grad(policy_gradient(student, own, tokens).sum, student)[0]

    # every token in turn, weighted by the student's own probability of it: the exact mean
    mean = sum(probabilities[:, [v]] * gradient(torch.full((5,), v)) for v in range(7))
    torch.testing.assert_close(mean, whole)
    # a constant at a position, as mass that is not compared, moves single estimates and no mean
    shifted = sum(probabilities[:, [v]] * gradient(torch.full((5,), v), shift=3.0) for v in range(7))
    torch.testing.assert_close(shifted, whole)
    # and drawn tokens: the mean of 1,500 draws is within six of its own standard errors
    draws = torch.multinomial(probabilities, 1500, replacement=True, generator=torch.Generator().manual_seed(1))
    found = torch.stack([gradient(draws[:, n]) for n in range(1500)])  # (draws, N, V)
    error = found.std(0) / 1500**0.5
    assert ((found.mean(0) - whole).abs() <= 6 * error + 1e-12).all()
    # its value estimates the KL, and without gradient it is log Q - log P of the tokens
    tokens = draws[:, 0]
    value = policy_gradient(student, teacher_logprobs.gather(1, tokens[:, None])[:, 0], tokens).sum
    expected = (student.log_softmax(-1) - teacher_logprobs).gather(1, tokens[:, None]).sum()
    torch.testing.assert_close(value, expected)
