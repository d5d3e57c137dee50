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

from harness.config.teacher_signal import Signal
from harness.models.logits import at_least_fp32, logsumexp_outside

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
    wide = at_least_fp32(logits.detach())
    kept, ids = wide.topk(top_k, dim=-1)
    rest = logsumexp_outside(wide, ids)
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
