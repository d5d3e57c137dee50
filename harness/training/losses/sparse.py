"""Divergences where only some of the teacher's probabilities are known: its top-k tokens, or unbiased draws."""

from functools import partial

import torch

from harness.config.recipe import TrainStage
from harness.config.teacher_signal import Signal, check_signal
from harness.models.logits import at_least_fp32, logsumexp_outside
from harness.teachers.sparse_logits import Kept
from harness.training.losses.divergences import Divergence, between


def compare_kept(
    stage: TrainStage, tail: str, student_logits: torch.Tensor, kept: Kept, tokens: torch.Tensor
) -> Divergence:
    """What a training stage minimises, from kept tokens; the counterpart of `divergences.compare`.

    `student_logits` (N, V), `tokens` (N,) those to be predicted; `tail` is one of `signal_kinds.TAILS`, read for
    `top_k` only. Diagnostics, summed over positions: `student_nll`, `kept_student_mass`, and for `top_k`
    `kept_teacher_mass`.
    """
    stage, logits = stage.normal(), at_least_fp32(student_logits)
    assert len(kept) == len(logits) == len(tokens), "positions differ"
    check_signal(Signal(kind=kept.kind, tail=tail), stage)
    temperature, weight = stage.divergence_temperature, stage.cross_entropy_weight
    weights = partial(rounded_log_weights, like=logits)
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
        total = between(stage, events, said.log_softmax(-1), weights)  # stored in 16 bits they sum to 1 only nearly
    elif tail == "zero":
        total = between(stage, student, teacher, weights)
    else:
        pair = ((side / temperature).log_softmax(-1) for side in (at_kept, teacher))
        total = between(stage, *pair, weights)
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


def rounded_log_weights(weight: float, like: torch.Tensor) -> tuple[float, float]:
    """Logarithms of a mixture's two weights, each rounded to the dtype of `like` before the logarithm is taken.

    `divergences.log_weights` rounds after it; the two differ by about 3e-8 in fp32 where a weight is no power of two.
    Results on sparse logits are computed with these, and a change would move them in the last digits.
    """
    first, second = like.new_tensor([weight, 1 - weight]).log().tolist()
    return first, second
