"""Divergences on kept tokens: what can be computed where a teacher's distribution is known in part.

`divergences.py` compares whole distributions; here the teacher's side is K tokens a position, its likeliest
(`top_k`) or tokens drawn from it (`sampled`). With P the teacher, Q the student and S the kept tokens:

    tail          K + 1 events, the tokens outside S being one; for a convex divergence at most the whole
                  one and at least 0 (data-processing inequality). Temperature 1, at which the tail is known.
    renormalise   P and Q each divided by their mass in S. Any temperature. Biased: Q outside S is not seen.
    zero          sum over S of P log(P/Q), P outside S ignored. Can be negative. Temperature 1.
    sampled       -sum (n/m) log Q for counts n of m tokens drawn from P with replacement: an unbiased estimate
                  of the cross-entropy -sum P log Q, whose gradient is the forward KL's (Random Sampling KD,
                  arXiv 2503.16870; with the teacher itself as the proposal the importance weights are 1, and
                  nothing needs to be normalised, which would bring a bias back).

    compare_kept(stage, "tail", student_logits, kept, tokens).sum.backward()
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch.nn import functional

from harness.config.recipe import TrainStage
from harness.config.teacher_signal import Signal, check_signal
from harness.divergences import Divergence

LEAST_TAIL = 2.0**-23
"""Mass that log-probabilities of 32 bits can still tell from none when what they leave of 1 is taken."""


@dataclass(frozen=True)
class Kept:
    """What is known of a teacher at N scored positions; no gradient."""

    kind: str
    """`top_k` or `sampled`."""
    ids: torch.Tensor
    """Kept tokens, int64 (N, K), all different in a row; of `sampled`, unused places have the id 0."""
    logprobs: torch.Tensor
    """`top_k`: log-probabilities at temperature 1. `sampled`: log of the token's share of the draws, -inf in
    unused places. (N, K)."""
    tail: torch.Tensor
    """`top_k`: log of the mass outside the kept tokens. `sampled`: -inf. (N,)."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, positions: slice) -> "Kept":
        """The same for some of the positions, for comparing in chunks: sums and counts add up."""
        return Kept(self.kind, self.ids[positions], self.logprobs[positions], self.tail[positions])

    @classmethod
    def of(cls, parts: "Sequence[Kept]") -> "Kept":
        """One after another, unused places added where fewer tokens were kept."""
        width = max(part.ids.shape[1] for part in parts)
        ids = [functional.pad(part.ids, (0, width - part.ids.shape[1])) for part in parts]
        logprobs = [functional.pad(part.logprobs, (0, width - part.ids.shape[1]), value=-torch.inf) for part in parts]
        return cls(parts[0].kind, torch.cat(ids), torch.cat(logprobs), torch.cat([part.tail for part in parts]))

    def to(self, device: torch.device | str) -> "Kept":
        """The same on another device."""
        return Kept(self.kind, self.ids.to(device), self.logprobs.to(device), self.tail.to(device))


@runtime_checkable
class KeptTeacher(Protocol):
    """A teacher signal that knows distributions in part: a cache, or a server that names its likeliest tokens."""

    signal: Signal
    """What is kept, and what the divergence makes of the rest."""

    def kept(self, batch: dict[str, torch.Tensor]) -> Kept:
        """What is kept at the scored positions of `collate`'s micro-batch, in the order logits are scored."""
        ...


def top_k_of(logits: torch.Tensor, top_k: int) -> Kept:
    """The `top_k` likeliest tokens of teacher logits (N, V), likeliest first; fp32 or wider, no gradient."""
    assert 1 <= top_k <= logits.shape[-1], "more tokens to keep than there are"
    wide = _wide(logits.detach())
    kept, ids = wide.topk(top_k, dim=-1)
    rest = _rest(wide, ids)
    # the normaliser from both parts: 1 - the kept mass would lose a small tail in rounding
    whole = torch.logaddexp(kept.logsumexp(-1), rest)
    return Kept("top_k", ids, kept - whole[:, None], rest - whole)


def top_k_named(ids: np.ndarray, logprobs: np.ndarray, vocabulary: int) -> Kept:
    """The likeliest tokens as a server names them: `ids` and fp32 `logprobs` (N, K), likeliest first.

    The tail is what their mass leaves of 1, at least `LEAST_TAIL` unless the whole vocabulary is named.
    """
    mass = np.exp(logprobs.astype(np.float64)).sum(-1)
    tail = np.log1p(-np.minimum(mass, 1 - LEAST_TAIL)) if ids.shape[1] < vocabulary else np.full(len(ids), -np.inf)
    return Kept(
        "top_k",
        torch.from_numpy(ids.astype(np.int64)),
        torch.from_numpy(logprobs),
        torch.from_numpy(tail.astype(np.float32)),
    )


def sampled_of(logits: torch.Tensor, uniforms: np.ndarray) -> Kept:
    """Tokens drawn from teacher logits (N, V) with replacement, one for each of `uniforms` (N, draws) in [0, 1).

    Each draw is the inverse of the cumulative distribution, in fp64: fp32 sums of a large vocabulary stop
    short of 1.
    """
    cumulative = torch.softmax(logits.detach().double(), dim=-1).cumsum(-1)
    targets = torch.from_numpy(uniforms).to(logits.device) * cumulative[:, -1:]
    drawn = torch.searchsorted(cumulative, targets, right=True).clamp(max=logits.shape[-1] - 1).sort(-1).values
    place = torch.zeros_like(drawn)  # equal tokens stand side by side and share a place
    place[:, 1:] = (drawn[:, 1:] != drawn[:, :-1]).cumsum(-1)
    width = int(place.max()) + 1 if place.numel() else 1
    counts = logits.new_zeros(len(drawn), width, dtype=torch.float32)
    counts.scatter_add_(1, place, torch.ones_like(place, dtype=torch.float32))
    ids = drawn.new_zeros(len(drawn), width).scatter_(1, place, drawn)
    nothing = logits.new_full((len(drawn),), -torch.inf, dtype=torch.float32)
    return Kept("sampled", ids, (counts / drawn.shape[-1]).log(), nothing)


def compare_kept(
    stage: TrainStage, tail: str, student_logits: torch.Tensor, kept: Kept, tokens: torch.Tensor
) -> Divergence:
    """What a training stage minimises, from kept tokens; the counterpart of `divergences.compare`.

    `student_logits` (N, V), `tokens` (N,) those to be predicted; `tail` is one of `signal_kinds.TAILS`, read for
    `top_k` only. Diagnostics, summed over positions: `student_nll`, `kept_student_mass`, and for `top_k`
    `kept_teacher_mass`.
    """
    stage, logits = stage.normal(), _wide(student_logits)
    assert len(kept) == len(logits) == len(tokens), "positions differ"
    check_signal(Signal(kind=kept.kind, tail=tail), stage)
    temperature, weight = stage.divergence_temperature, stage.cross_entropy_weight
    teacher = kept.logprobs.to(logits.dtype)
    at_kept = logits.gather(1, kept.ids)
    everything = kept.ids.shape[1] == logits.shape[1]  # then there is no tail
    in_tail = kept.kind == "top_k" and tail == "tail" and not everything
    if in_tail:
        rest = _rest(logits, kept.ids)
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
        total = between(stage, events, said.log_softmax(-1))  # stored in 16 bits they sum to 1 only nearly
    elif tail == "zero":
        total = between(stage, student, teacher)
    else:
        total = between(stage, (at_kept / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1))
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


def between(stage: TrainStage, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """A divergence summed over events, from log-probabilities (N, E) as they are: nothing is normalised.

    The definitions are those of `divergences.py`, at temperature 1.
    """
    if stage.divergence == "forward_kl":
        return _kl(teacher, student)
    if stage.divergence == "reverse_kl":
        return _kl(student, teacher)
    if stage.divergence == "tvd":
        return 0.5 * (student.exp() - teacher.exp()).abs().sum()
    if stage.divergence == "skew_forward_kl":
        return _kl(teacher, _mixture(teacher, student, stage.skew))
    if stage.divergence == "skew_reverse_kl":
        return _kl(student, _mixture(student, teacher, stage.skew))
    assert stage.divergence == "jsd", stage.divergence
    weight = stage.jsd_teacher_weight
    mixture = _mixture(teacher, student, weight)
    return weight * _kl(teacher, mixture) + (1 - weight) * _kl(student, mixture)


def _rest(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Log of the summed exponentials of all logits but those at `ids`; -inf where none is left."""
    return logits.scatter(1, ids, -torch.inf).logsumexp(-1)


def _wide(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _mixture(first: torch.Tensor, second: torch.Tensor, weight: float) -> torch.Tensor:
    """log(weight x first + (1 - weight) x second) from log-probabilities."""
    weights = first.new_tensor([weight, 1 - weight]).log()
    return torch.logaddexp(first + weights[0], second + weights[1])


def _kl(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Sum of first (log first - log second) from log-probabilities; 0 where first is 0 (not 0 x -inf)."""
    terms = first.exp() * (first - second)
    return terms.masked_fill(first == -torch.inf, 0.0).sum()
