"""Divergences where only some of the teacher's probabilities are known: its top-k tokens, or unbiased draws.

The formulas are those of `divergences.py`, over fewer events; `teachers/sparse_logits.py` has the definitions of
`tail`, `renormalise`, `zero` and `sampled`, and their limits. Shapes: N scored positions, V vocabulary, K tokens.
"""

from functools import partial

import torch

from harness.config.recipe import TrainingPhase
from harness.config.teacher_signal import Signal, check_signal
from harness.models.logits import at_least_fp32, logsumexp_outside
from harness.teachers.sparse_logits import SparseLogits
from harness.training.losses.divergences import Divergence, between


def compare_sparse(
    phase: TrainingPhase, tail: str, student_logits: torch.Tensor, sparse: SparseLogits, tokens: torch.Tensor
) -> Divergence:
    """What a training phase minimises, from a teacher's sparse logits; the counterpart of `divergences.compare`.

    `student_logits` (N, V), `sparse` of N positions and K tokens, `tokens` (N,) those to be predicted; `tail` is one
    of `teacher_signal.TAILS` and read for `top_k` only. Diagnostics, summed over positions: `student_nll`,
    `kept_student_mass`, and for `top_k` `kept_teacher_mass`. Raises SettingsError where the stage's divergence cannot
    be computed from this kind of logits.
    """
    phase, logits = phase.normal(), at_least_fp32(student_logits)  # (N, V)
    assert len(sparse) == len(logits) == len(tokens), "positions differ"
    check_signal(Signal(kind=sparse.kind, tail=tail), phase)
    temperature, weight = phase.divergence_temperature, phase.cross_entropy_weight
    weights = partial(rounded_log_weights, like=logits)
    teacher = sparse.logprobs.to(logits.dtype)  # (N, K)
    chosen = logits.gather(1, sparse.ids)  # (N, K), the student's logits of the same tokens
    everything = sparse.ids.shape[1] == logits.shape[1]  # then there is no tail
    in_tail = sparse.kind == "top_k" and tail == "tail" and not everything
    if in_tail:
        # the tail's logit from the tokens themselves: 1 - the mass of the K would lose a small tail in rounding
        rest = logsumexp_outside(logits, sparse.ids)  # (N,)
        normaliser = torch.logaddexp(chosen.logsumexp(-1), rest)  # (N,)
    else:
        normaliser = logits.logsumexp(-1)  # (N,)
    student = chosen - normaliser[:, None]  # (N, K) log-probabilities over the whole vocabulary
    nll = (normaliser - logits.gather(1, tokens[:, None])[:, 0]).sum()

    if sparse.kind == "sampled":
        total = -(teacher.exp() * student).sum()
    elif in_tail:
        student_events = torch.cat([student, (rest - normaliser)[:, None]], dim=1)  # (N, K + 1)
        teacher_events = torch.cat([teacher, sparse.tail.to(logits.dtype)[:, None]], dim=1)  # (N, K + 1)
        # log-probabilities stored in 16 bits sum to 1 only nearly
        total = between(phase, student_events, teacher_events.log_softmax(-1), weights)
    elif tail == "zero":
        total = between(phase, student, teacher, weights)
    else:
        student_share, teacher_share = ((side / temperature).log_softmax(-1) for side in (chosen, teacher))  # (N, K)
        total = between(phase, student_share, teacher_share, weights)
    total = total * temperature**2
    if weight:
        total = (1 - weight) * total + weight * nll
    diagnostics = {"student_nll": nll.detach()}
    with torch.no_grad():
        # an unused place of `sampled` repeats the id 0, whose mass must not be counted for it
        diagnostics["kept_student_mass"] = student.exp().masked_fill(teacher == -torch.inf, 0.0).sum()
        if sparse.kind == "top_k":
            diagnostics["kept_teacher_mass"] = teacher.exp().sum()
    return Divergence(total, len(tokens), diagnostics)


def rounded_log_weights(weight: float, like: torch.Tensor) -> tuple[float, float]:
    """Logarithms of a mixture's two weights, each rounded to the dtype of `like` before the logarithm is taken.

    `divergences.log_weights` rounds after it; the two differ by about 3e-8 in fp32 where a weight is no power of two.
    Results on sparse logits are computed with these, and a change would move them in the last digits.
    """
    first, second = like.new_tensor([weight, 1 - weight]).log().tolist()
    return first, second
