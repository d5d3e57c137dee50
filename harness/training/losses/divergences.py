"""Divergences between teacher and student next-token distributions, and cross-entropy on given tokens.

Shapes: N scored positions, V vocabulary. Inputs are logits at the positions that predict a scored token
(`scored_positions` says which), so labels arrive shifted and masked and prompt logits are never made.
Each function returns a sum, a count and diagnostics; the trainer divides by one global count, and every
method shares it. Arithmetic is fp32 or wider. With P the teacher and Q the student, both at temperature T:

    forward_kl       T^2 sum P log(P/Q)     Hinton et al. 2015, arXiv 1503.02531 (T^2 keeps gradients' size)
    reverse_kl       T^2 sum Q log(Q/P)
    jsd              T^2 (b KL(P||M) + (1-b) KL(Q||M)), M = b P + (1-b) Q     Agarwal et al. 2024, arXiv 2306.13649
    tvd              T^2 sum |P - Q| / 2                                      Wen et al. 2023, arXiv 2307.15190
    skew_forward_kl  T^2 KL(P || a P + (1-a) Q)                               Ko et al. 2024, arXiv 2402.03898
    skew_reverse_kl  T^2 KL(Q || (1-a) P + a Q)

The T^2 multiplies value and gradient alike. JSD goes to 0 as b goes to 0 or 1 (JSD/b to the forward KL, JSD/(1-b) to
the reverse KL), so a b of 0 or 1 is refused: name the KL. A skew of 0 is the plain KL. A token that the teacher rules
out (logit -inf) makes no NaN; the plain reverse KL is then infinite, as it should be. The formulas stand once, in
`between`, over any set of exclusive events: `sparse.py` calls it with the top-k tokens. How far the two models agree is
measured in `agreement.py`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional

from harness.config.recipe import TrainingPhase
from harness.models.logits import at_least_fp32, ruled_out


@dataclass(frozen=True)
class Divergence:
    """A summed divergence (nats, with gradient), the number of positions in it, and detached sums."""

    sum: torch.Tensor
    count: int
    diagnostics: dict[str, torch.Tensor] = field(default_factory=dict)
    """Sums over positions, e.g. `student_nll` of the given tokens in nats."""


def cross_entropy(student_logits: torch.Tensor, tokens: torch.Tensor, label_smoothing: float = 0.0) -> Divergence:
    """Negative log-likelihood of `tokens` (N,) under `student_logits` (N, V).

    With `label_smoothing` s the target is (1 - s) on the token and s spread evenly over all V tokens
    (Szegedy et al. 2016, arXiv 1512.00567; torch's definition); `student_nll` stays that of the token.
    """
    assert 0 <= label_smoothing < 1
    logits = at_least_fp32(student_logits)
    total = functional.cross_entropy(logits, tokens, reduction="sum", label_smoothing=label_smoothing)
    nll = total.detach()
    if label_smoothing:
        with torch.no_grad():
            nll = functional.cross_entropy(logits, tokens, reduction="sum")
    return Divergence(total, len(tokens), {"student_nll": nll})


def compare(
    phase: TrainingPhase,
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor | None,
    tokens: torch.Tensor,
    outside: torch.Tensor | None = None,
) -> Divergence:
    """What a training phase minimises: its divergence, mixed with cross-entropy by its weight.

    `(1 - w) divergence + w cross-entropy`, w = `phase.cross_entropy_weight`. Both logits are (N, V), the teacher's
    without gradient; `tokens` (N,) are those to be predicted. Tokens that the teacher does not have, `outside` bool
    (V,), are left out of the divergence (the teacher's logits rule them out) and not of the cross-entropy. Raises
    ValueError where a divergence from a teacher gets no teacher logits.
    """
    phase = phase.normal()
    if phase.divergence == "cross_entropy":
        return cross_entropy(student_logits, tokens, phase.label_smoothing)
    if teacher_logits is None:
        raise ValueError(f"divergence {phase.divergence} needs the teacher's logits and got none")
    temperature, weight = phase.divergence_temperature, phase.cross_entropy_weight
    student, teacher = next_token_logprobs(ruled_out(student_logits, outside), teacher_logits, temperature)  # (N, V)
    total = between(phase, student, teacher) * temperature**2
    # the likelihood is reported under every objective; its graph is built only where it is part of the loss
    with torch.set_grad_enabled(torch.is_grad_enabled() and weight > 0):
        nll = cross_entropy(student_logits, tokens)
    if weight:
        total = (1 - weight) * total + weight * nll.sum
    return Divergence(total, len(tokens), nll.diagnostics)


def policy_gradient(student_logits: torch.Tensor, teacher_logprobs: torch.Tensor, tokens: torch.Tensor) -> Divergence:
    """A reverse KL whose gradient is estimated from tokens (N,) that the student sampled at temperature 1.

    A token's advantage is log P - log Q, without gradient, and the gradient is that of -advantage log Q: its mean over
    tokens drawn from Q is the gradient of KL(Q || P), since the mean of the gradient of log Q is 0 (Williams 1992; as a
    loss of distillation, Thinking Machines 2025). The value is the sum of log Q - log P, an estimate of the KL.
    `student_logits` (N, V); `teacher_logprobs` (N,), the teacher's log-probability of each token. A constant that is
    added to them at a position, as the mass of tokens that are not compared, moves the value and not the mean gradient.
    """
    own = cross_entropy(student_logits, tokens)
    logprobs = torch.log_softmax(at_least_fp32(student_logits), dim=-1).gather(1, tokens[:, None])[:, 0]  # (N,)
    advantage = teacher_logprobs.to(logprobs.dtype) - logprobs.detach()  # (N,)
    # log Q minus itself is 0 and has its gradient: the value stays the estimate of the KL
    total = -(advantage + advantage * (logprobs - logprobs.detach())).sum()
    return Divergence(total, len(tokens), {"student_nll": own.diagnostics["student_nll"]})


def next_token_logprobs(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (N, V) of student and teacher at one temperature, fp32 or wider; the teacher's detached."""
    assert student_logits.shape == teacher_logits.shape, "positions or vocabularies differ"
    assert temperature > 0
    pair = at_least_fp32(student_logits), at_least_fp32(teacher_logits.detach())
    student, teacher = (
        torch.log_softmax(logits if temperature == 1 else logits / temperature, dim=-1) for logits in pair
    )
    return student, teacher


def log_weights(weight: float) -> tuple[float, float]:
    """Logarithms of a mixture's two weights, `weight` and 1 - `weight`."""
    return math.log(weight), math.log1p(-weight)


def between(
    phase: TrainingPhase,
    student: torch.Tensor,
    teacher: torch.Tensor,
    log_weights: Callable[[float], tuple[float, float]] = log_weights,
) -> torch.Tensor:
    """A phase's divergence summed over N positions, in nats, from log-probabilities (N, E) of E exclusive events.

    The events are the V tokens of a vocabulary, or K tokens and all others as one (`sparse.py`). Nothing is
    normalised here, and temperatures are the caller's. `log_weights` gives the logarithms of a mixture's weights.
    The result has a gradient for every input that requires one.
    """
    if phase.divergence == "forward_kl":
        return kl(teacher, student)
    if phase.divergence == "reverse_kl":
        return kl(student, teacher)
    if phase.divergence == "tvd":
        return (teacher.exp() - student.exp()).abs().sum() / 2
    if phase.divergence == "skew_forward_kl":
        return kl(teacher, mixture(teacher, student, log_weights(phase.skew)))
    if phase.divergence == "skew_reverse_kl":
        return kl(student, mixture(student, teacher, log_weights(phase.skew)))
    assert phase.divergence == "jsd", phase.divergence
    weight = phase.jsd_teacher_weight
    assert 0 < weight < 1, "at 0 and 1 the generalised JSD is 0; name forward_kl or reverse_kl"
    middle = mixture(teacher, student, log_weights(weight))  # (N, E)
    return weight * kl(teacher, middle) + (1 - weight) * kl(student, middle)


def mixture(first: torch.Tensor, second: torch.Tensor, log_weights: tuple[float, float]) -> torch.Tensor:
    """Log-probabilities (N, E) of w x first + (1 - w) x second, from log w and log(1 - w)."""
    return torch.logaddexp(first + log_weights[0], second + log_weights[1])


def kl(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """KL(first || second) summed over (N, E) log-probabilities; infinite where only `second` rules an event out."""
    return _KullbackLeibler.apply(first, second)


class _KullbackLeibler(torch.autograd.Function):
    """The sum and its gradients in as few passes as possible: autograd's own graph takes 1.4 to 1.7 times as long."""

    @staticmethod
    def forward(ctx: Any, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        # an event of probability 0 adds 0: the mask stands before the product, since 0 x -inf would be NaN in the
        # value, and a mask after the product would leave that NaN in the gradient
        probability = first.exp()  # (N, E)
        difference = (first - second).masked_fill_(probability == 0, 0.0)  # (N, E)
        ctx.save_for_backward(probability, difference if ctx.needs_input_grad[0] else None)
        return (probability * difference).sum()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        probability, difference = ctx.saved_tensors
        scaled = probability * gradient  # (N, E)
        # d/d first of p (first - second) with p = exp(first): p (first - second) + p
        to_first = None if difference is None else difference.mul(gradient).mul_(probability).add_(scaled)
        return to_first, scaled.neg_() if ctx.needs_input_grad[1] else None
