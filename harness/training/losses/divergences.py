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

The T^2 multiplies value and gradient alike. JSD goes to 0 as b goes to 0 or 1 (JSD/b to the forward KL,
JSD/(1-b) to the reverse KL), so its endpoints are spelt as the KLs, never as b; a skew of 0 is the plain
KL and is spelt so too. A token the teacher rules out (logit -inf) makes no NaN; the plain reverse KL is
then infinite, as it should be. How much the two models agree is told by `agreement.py`, not here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch.nn import functional

from harness.config.recipe import TrainingPhase
from harness.models.logits import at_least_fp32


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


def forward_kl(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0) -> Divergence:
    """KL(teacher || student): covers all the teacher says. Both (N, V); the teacher's carry no gradient."""
    student, teacher = _logprobs(student_logits, teacher_logits, temperature)
    return _divergence(_kl(teacher, student), teacher, temperature)


def reverse_kl(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0) -> Divergence:
    """KL(student || teacher): seeks what the teacher finds likely; infinite where only the student is."""
    student, teacher = _logprobs(student_logits, teacher_logits, temperature)
    return _divergence(_kl(student, teacher), teacher, temperature)


def jsd(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    teacher_weight: float,
    temperature: float = 1.0,
) -> Divergence:
    """Generalised Jensen-Shannon divergence with the teacher's weight b in the mixture, 0 < b < 1."""
    assert 0 < teacher_weight < 1, "at 0 and 1 the generalised JSD is 0; name forward_kl or reverse_kl"
    student, teacher = _logprobs(student_logits, teacher_logits, temperature)
    mixture = _mixture(teacher, student, teacher_weight)
    value = teacher_weight * _kl(teacher, mixture) + (1 - teacher_weight) * _kl(student, mixture)
    return _divergence(value, teacher, temperature)


def tvd(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0) -> Divergence:
    """Total variation distance, half the L1 distance: at most 1 per position (times T^2), symmetric."""
    student, teacher = _logprobs(student_logits, teacher_logits, temperature)
    return _divergence((teacher.exp() - student.exp()).abs().sum() / 2, teacher, temperature)


def skew_forward_kl(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, skew: float, temperature: float = 1.0
) -> Divergence:
    """KL(teacher || skew x teacher + (1 - skew) x student), 0 < skew < 1: at most -log(skew) per position."""
    assert 0 < skew < 1, "a skew of 0 is forward_kl; at 1 nothing is compared"
    student, teacher = _logprobs(student_logits, teacher_logits, temperature)
    return _divergence(_kl(teacher, _mixture(teacher, student, skew)), teacher, temperature)


def skew_reverse_kl(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, skew: float, temperature: float = 1.0
) -> Divergence:
    """KL(student || (1 - skew) x teacher + skew x student), 0 < skew < 1: finite where reverse KL is not."""
    assert 0 < skew < 1, "a skew of 0 is reverse_kl; at 1 nothing is compared"
    student, teacher = _logprobs(student_logits, teacher_logits, temperature)
    return _divergence(_kl(student, _mixture(student, teacher, skew)), teacher, temperature)


def compare(
    phase: TrainingPhase, student_logits: torch.Tensor, teacher_logits: torch.Tensor | None, tokens: torch.Tensor
) -> Divergence:
    """What a training phase minimises: its divergence, mixed with cross-entropy by its weight.

    `(1 - w) divergence + w cross-entropy`, w = `phase.cross_entropy_weight`. A divergence from a teacher
    without teacher logits is an error, never a fallback.
    """
    phase = phase.normal()
    if phase.divergence == "cross_entropy":
        return cross_entropy(student_logits, tokens, phase.label_smoothing)
    if teacher_logits is None:
        raise ValueError(f"divergence {phase.divergence} needs the teacher's logits and got none")
    functions: dict[str, Callable[..., Divergence]] = {
        "forward_kl": forward_kl,
        "reverse_kl": reverse_kl,
        "jsd": partial(jsd, teacher_weight=phase.jsd_teacher_weight),
        "tvd": tvd,
        "skew_forward_kl": partial(skew_forward_kl, skew=phase.skew),
        "skew_reverse_kl": partial(skew_reverse_kl, skew=phase.skew),
    }
    weight = phase.cross_entropy_weight
    found = functions[phase.divergence](student_logits, teacher_logits, temperature=phase.divergence_temperature)
    with torch.set_grad_enabled(torch.is_grad_enabled() and weight > 0):
        tokens_nll = cross_entropy(student_logits, tokens)
    total = (1 - weight) * found.sum + weight * tokens_nll.sum if weight else found.sum
    return Divergence(total, found.count, {**found.diagnostics, **tokens_nll.diagnostics})


def _logprobs(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    assert student_logits.shape == teacher_logits.shape, "positions or vocabularies differ"
    assert temperature > 0
    pair = at_least_fp32(student_logits), at_least_fp32(teacher_logits.detach())
    student, teacher = (
        torch.log_softmax(logits if temperature == 1 else logits / temperature, dim=-1) for logits in pair
    )
    return student, teacher


def _mixture(first: torch.Tensor, second: torch.Tensor, weight: float) -> torch.Tensor:
    """Log-probabilities of weight x first + (1 - weight) x second."""
    return torch.logaddexp(first + math.log(weight), second + math.log1p(-weight))


def _kl(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Sum of first (log first - log second) from log-probabilities; 0 where first is 0 (not 0 x -inf)."""
    finite = first if first.requires_grad else first.clamp(min=torch.finfo(first.dtype).min)
    return (first.exp() * (finite - second)).sum()


def _divergence(total: torch.Tensor, teacher: torch.Tensor, temperature: float) -> Divergence:
    return Divergence(total * temperature**2, len(teacher))
