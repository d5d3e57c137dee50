"""Sparse logits: a teacher's next-token distribution known in part, as its top-k tokens or as unbiased draws.

`divergences.py` compares whole distributions; here the teacher's side is K tokens a position, its K most probable
(`top_k`) or tokens drawn from it (`sampled`). With P the teacher, Q the student and S these tokens:

    tail          K + 1 events, the tokens outside S being one; for a convex divergence at most the whole
                  one and at least 0 (data-processing inequality). Temperature 1, at which the tail is known.
    renormalise   P and Q each divided by their mass in S. Any temperature. Biased: Q outside S is not seen.
    zero          sum over S of P log(P/Q), P outside S ignored. Can be negative. Temperature 1.
    sampled       -sum (n/m) log Q for counts n of m tokens drawn from P with replacement: an unbiased estimate
                  of the cross-entropy -sum P log Q, whose gradient is the forward KL's (Random Sampling KD,
                  arXiv 2503.16870; with the teacher itself as the proposal the importance weights are 1, and
                  nothing needs to be normalised, which would bring a bias back).

Shapes: N scored positions, V vocabulary, K tokens a position.

    compare_sparse(stage, "tail", student_logits, top_k_of(teacher_logits, 64), tokens).sum.backward()
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from harness.models.logits import at_least_fp32, logsumexp_outside

LEAST_TAIL = 2.0**-23
"""Mass that log-probabilities of 32 bits can still tell from none when what they leave of 1 is taken."""


@dataclass(frozen=True)
class SparseLogits:
    """What is known of a teacher at N scored positions; no gradient."""

    kind: str
    """`top_k` or `sampled`."""
    ids: torch.Tensor
    """Token ids, int64 (N, K), all different in a row but for unused places: `top_k` -1 there, `sampled` 0."""
    logprobs: torch.Tensor
    """`top_k`: log-probabilities at temperature 1. `sampled`: log of the token's share of the draws. -inf in unused
    places. (N, K)."""
    tail: torch.Tensor
    """`top_k`: log of the mass outside the K tokens. `sampled`: -inf. (N,)."""
    own: torch.Tensor | None = None
    """Log-probability (N,) of the text's own token; None where it is not known apart from the K tokens."""
    outside: torch.Tensor | None = None
    """Mass (N,) of tokens that the student does not have, already left out; None where there is none."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, positions: slice) -> "SparseLogits":
        """The same for some of the positions, for comparing in chunks: sums and counts add up."""
        return self._each(lambda values: values[positions])

    @classmethod
    def of(cls, parts: "Sequence[SparseLogits]") -> "SparseLogits":
        """The positions of all `parts` one after another, with unused places where a part has fewer tokens."""
        width = max(part.ids.shape[1] for part in parts)
        ids = [functional.pad(part.ids, (0, width - part.ids.shape[1])) for part in parts]  # (n, K) each
        logprobs = [functional.pad(part.logprobs, (0, width - part.ids.shape[1]), value=-torch.inf) for part in parts]
        return cls(parts[0].kind, torch.cat(ids), torch.cat(logprobs), torch.cat([part.tail for part in parts]))

    def to(self, device: torch.device | str) -> "SparseLogits":
        """The same on another device."""
        return self._each(lambda values: values.to(device))

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "SparseLogits":
        """The same with every tensor changed."""
        own, outside = (None if one is None else change(one) for one in (self.own, self.outside))
        return SparseLogits(self.kind, change(self.ids), change(self.logprobs), change(self.tail), own, outside)


def top_k_of(logits: torch.Tensor, top_k: int) -> SparseLogits:
    """The `top_k` most probable tokens of teacher logits (N, V), in descending order; fp32 or wider, no gradient."""
    assert 1 <= top_k <= logits.shape[-1], "top_k is larger than the vocabulary"
    wide = at_least_fp32(logits.detach())
    top, ids = wide.topk(top_k, dim=-1)  # (N, K), (N, K)
    rest = logsumexp_outside(wide, ids)  # (N,)
    # the normaliser from both parts: 1 - the mass of the top-k would lose a small tail in rounding
    whole = torch.logaddexp(top.logsumexp(-1), rest)  # (N,)
    return SparseLogits("top_k", ids, top - whole[:, None], rest - whole)


def top_k_named(ids: np.ndarray, logprobs: np.ndarray, vocabulary: int) -> SparseLogits:
    """The tokens that a server names: `ids` (-1 in unused places) and fp32 `logprobs` (N, K).

    The tail is what their mass leaves of 1, at least `LEAST_TAIL` unless the whole vocabulary is named.
    """
    mass = np.exp(logprobs.astype(np.float64)).sum(-1)  # (N,)
    everything = (ids >= 0).sum(-1) >= vocabulary  # (N,)
    tail = np.where(everything, -np.inf, np.log1p(-np.minimum(mass, 1 - LEAST_TAIL)))  # (N,)
    return SparseLogits(
        "top_k",
        torch.from_numpy(ids.astype(np.int64)),
        torch.from_numpy(logprobs),
        torch.from_numpy(tail.astype(np.float32)),
    )


def sampled_of(logits: torch.Tensor, uniforms: np.ndarray) -> SparseLogits:
    """Tokens drawn from teacher logits (N, V) with replacement, one for each of `uniforms` (N, draws) in [0, 1).

    Each draw is the inverse of the cumulative distribution, in fp64: fp32 sums of a large vocabulary stop
    short of 1.
    """
    cumulative = torch.softmax(logits.detach().double(), dim=-1).cumsum(-1)  # (N, V)
    targets = torch.from_numpy(uniforms).to(logits.device) * cumulative[:, -1:]  # (N, draws)
    # sorted, so that equal tokens stand side by side; each new token gets the next place of its row
    drawn = torch.searchsorted(cumulative, targets, right=True).clamp(max=logits.shape[-1] - 1).sort(-1).values
    place = torch.zeros_like(drawn)  # (N, draws)
    place[:, 1:] = (drawn[:, 1:] != drawn[:, :-1]).cumsum(-1)
    width = int(place.max()) + 1 if place.numel() else 1  # K, the most different tokens in one row
    counts = logits.new_zeros(len(drawn), width, dtype=torch.float32)
    counts.scatter_add_(1, place, torch.ones_like(place, dtype=torch.float32))
    ids = drawn.new_zeros(len(drawn), width).scatter_(1, place, drawn)  # (N, K)
    nothing = logits.new_full((len(drawn),), -torch.inf, dtype=torch.float32)
    return SparseLogits("sampled", ids, (counts / drawn.shape[-1]).log(), nothing)
