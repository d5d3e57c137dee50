"""Divergences where only some of the teacher's probabilities are known: its top-k tokens, or unbiased draws."""

import torch

from harness.config.recipe import TrainingPhase
from harness.config.teacher_signal import Signal, check_signal
from harness.models.logits import at_least_fp32, logsumexp_outside
from harness.teachers.sparse_logits import Kept
from harness.training.losses.divergences import Divergence


def compare_kept(
    phase: TrainingPhase, tail: str, student_logits: torch.Tensor, kept: Kept, tokens: torch.Tensor
) -> Divergence:
    """What a training phase minimises, from kept tokens; the counterpart of `divergences.compare`.

    `student_logits` (N, V), `tokens` (N,) those to be predicted; `tail` is one of `signal_kinds.TAILS`, read for
    `top_k` only. Diagnostics, summed over positions: `student_nll`, `kept_student_mass`, and for `top_k`
    `kept_teacher_mass`.
    """
    phase, logits = phase.normal(), at_least_fp32(student_logits)
    assert len(kept) == len(logits) == len(tokens), "positions differ"
    check_signal(Signal(kind=kept.kind, tail=tail), phase)
    temperature, weight = phase.divergence_temperature, phase.cross_entropy_weight
    teacher = kept.logprobs.to(logits.dtype)
    at_kept = logits.gather(1, kept.ids)
    everything = kept.ids.shape[1] == logits.shape[1]  # then there is no tail
    in_tail = kept.kind == "top_k" and tail == "tail" and not everything
    if in_tail:
        rest = logsumexp_outside(logits, kept.ids)
        normaliser = torch.logaddexp(at_kept.logsumexp(-1), rest)
    else:
        normaliser = logits.logsumexp(-1)
    student = at_kept - normaliser[:, None]
    nll = (normaliser - logits.gather(1, tokens[:, None])[:, 0]).sum()

    if kept.kind == "sampled":
        total = -(teacher.exp() * student).sum()
    elif in_tail:
        events = torch.cat([student, (rest - normaliser)[:, None]], dim=1)
        said = torch.cat([teacher, kept.tail.to(logits.dtype)[:, None]], dim=1)
        total = between(phase, events, said.log_softmax(-1))  # stored in 16 bits they sum to 1 only nearly
    elif tail == "zero":
        total = between(phase, student, teacher)
    else:
        total = between(phase, (at_kept / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1))
    total = total * temperature**2
    if weight:
        total = (1 - weight) * total + weight * nll
    diagnostics = {"student_nll": nll.detach()}
    with torch.no_grad():
        # an unused place of `sampled` repeats the id 0: it is no token of the kept
        diagnostics["kept_student_mass"] = student.exp().masked_fill(teacher == -torch.inf, 0.0).sum()
        if kept.kind == "top_k":
            diagnostics["kept_teacher_mass"] = teacher.exp().sum()
    return Divergence(total, len(tokens), diagnostics)


def between(phase: TrainingPhase, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """A divergence summed over events, from log-probabilities (N, E) as they are: nothing is normalised.

    The definitions are those of `divergences.py`, at temperature 1.
    """
    if phase.divergence == "forward_kl":
        return _kl(teacher, student)
    if phase.divergence == "reverse_kl":
        return _kl(student, teacher)
    if phase.divergence == "tvd":
        return 0.5 * (student.exp() - teacher.exp()).abs().sum()
    if phase.divergence == "skew_forward_kl":
        return _kl(teacher, _mixture(teacher, student, phase.skew))
    if phase.divergence == "skew_reverse_kl":
        return _kl(student, _mixture(student, teacher, phase.skew))
    assert phase.divergence == "jsd", phase.divergence
    weight = phase.jsd_teacher_weight
    mixture = _mixture(teacher, student, weight)
    return weight * _kl(teacher, mixture) + (1 - weight) * _kl(student, mixture)


def _mixture(first: torch.Tensor, second: torch.Tensor, weight: float) -> torch.Tensor:
    """log(weight x first + (1 - weight) x second) from log-probabilities."""
    weights = first.new_tensor([weight, 1 - weight]).log()
    return torch.logaddexp(first + weights[0], second + weights[1])


def _kl(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Sum of first (log first - log second) from log-probabilities; 0 where first is 0 (not 0 x -inf)."""
    terms = first.exp() * (first - second)
    return terms.masked_fill(first == -torch.inf, 0.0).sum()
