"""Divergences where only some of the teacher's probabilities are known: its top-k tokens, or unbiased draws.

The formulas are those of `divergences.py`, over fewer events; `teachers/sparse_logits.py` has the definitions of
`tail`, `renormalise`, `zero` and `sampled`, and their limits. Shapes: N scored positions, V vocabulary, K tokens.
"""

from functools import partial

import torch

from harness.config.checks import refuse
from harness.config.recipe import TrainingPhase
from harness.config.teacher_signal import SUPPORTED, Signal
from harness.models.logits import RULED_OUT, at_least_fp32, logsumexp_outside, ruled_out
from harness.teachers.sparse_logits import SparseLogits
from harness.training.losses.divergences import Divergence, between


def compare_sparse(
    phase: TrainingPhase,
    tail: str,
    student_logits: torch.Tensor,
    sparse: SparseLogits,
    tokens: torch.Tensor,
    outside: torch.Tensor | None = None,
) -> Divergence:
    """What a training phase minimises, from a teacher's sparse logits; the counterpart of `divergences.compare`.

    `student_logits` (N, V), `sparse` of N positions and K tokens, `tokens` (N,) those to be predicted; `tail` is one
    of `teacher_signal.TAILS` and read for `top_k` only; `outside` as in `divergences.compare`. Diagnostics, summed
    over positions: `student_nll`, `kept_student_mass`, and for `top_k` `kept_teacher_mass`. Raises SettingsError where
    the stage's divergence cannot be computed from this kind of logits.
    """
    phase, own = phase.normal(), at_least_fp32(student_logits)  # (N, V)
    logits = ruled_out(own, outside)  # (N, V), of the tokens that the teacher has
    assert len(sparse) == len(logits) == len(tokens), "positions differ"
    support = SUPPORTED[Signal(kind=sparse.kind, tail=tail).column()][phase.divergence]
    if not support.works:
        raise refuse("signal", sparse.kind, f"not with {phase.divergence}: {support.why}")
    temperature, weight = phase.divergence_temperature, phase.cross_entropy_weight
    weights = partial(rounded_log_weights, like=logits)
    teacher = sparse.logprobs.to(logits.dtype)  # (N, K)
    ids = sparse.ids.clamp(min=0)  # (N, K)
    chosen = logits.gather(1, ids)  # (N, K), the student's logits of the same tokens
    unused = sparse.ids < 0 if sparse.kind == "top_k" else teacher == -torch.inf  # (N, K)
    gaps = sparse.kind == "top_k" and bool(unused.any())
    if gaps:  # finite, so that two events of probability 0 leave no NaN in a mixture
        chosen, teacher = chosen.masked_fill(unused, RULED_OUT), teacher.masked_fill(unused, RULED_OUT)
    everything = sparse.ids.shape[1] == logits.shape[1] and not gaps  # then there is no tail
    in_tail = sparse.kind == "top_k" and tail == "tail" and not everything
    if in_tail:
        # the tail's logit from the tokens themselves: 1 - the mass of the K would lose a small tail in rounding
        rest = logsumexp_outside(logits, ids, ~unused if gaps else None)  # (N,)
        rest = rest.clamp(min=RULED_OUT) if gaps else rest  # finite also where every token is named
        normaliser = torch.logaddexp(chosen.logsumexp(-1), rest)  # (N,)
    else:
        normaliser = logits.logsumexp(-1)  # (N,)
    student = chosen - normaliser[:, None]  # (N, K) log-probabilities over the whole vocabulary
    likelihood = normaliser if outside is None else own.logsumexp(-1)  # (N,)
    nll = (likelihood - own.gather(1, tokens[:, None])[:, 0]).sum()

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
        # an unused place has the id of another token, whose mass must not be counted for it
        diagnostics["kept_student_mass"] = student.exp().masked_fill(unused, 0.0).sum()
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
