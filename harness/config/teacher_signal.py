"""Kinds of teacher signal: how much of a teacher's distribution is known, and which divergences it allows.

A `live` teacher gives whole distributions for any text; one that is served gives, live too, its top-k tokens, the
text's own token and the mass of all others. A cache holds the `top_k` log-probabilities of fixed text, or tokens
`sampled` from the teacher (Anshumann et al. 2025, arXiv 2503.16870). `SUPPORTED` and `TEXTS` are the one table of what
a divergence may be computed from, on which text; refusals are made from it. Nothing here needs torch:
`training/losses/sparse.py` computes, `teachers/logit_cache.py` stores, `teachers/signals.py` runs live teachers, and
`teachers/served_signal.py` asks servers.

    check_signal(Signal(kind="sampled"), TrainingPhase(divergence="reverse_kl"))     # SettingsError, one sentence
"""

from dataclasses import dataclass
from typing import Any

from harness.config.checks import check_choice, refuse
from harness.config.recipe import SEQUENCES, TOKEN_DIVERGENCES, TrainingPhase

KINDS = ("live", "top_k", "sampled")
TAILS = ("tail", "renormalise", "zero")
MOST_SAMPLES = 255  # a token's count is stored in one byte
POLICY_GRADIENT = "policy_gradient"
"""The reverse KL estimated from the sampled token alone, beside the divergences in `SUPPORTED`."""
TEXTS = {
    "live": SEQUENCES,
    "served": ("gold", "teacher", "synthetic", "mixed", "student"),
    "top_k": ("gold",),
    "sampled": ("gold",),
}
"""Texts that each kind of signal knows the teacher's distributions on: a cache those of the data's own text, whose rows
every cell shares, and a server those of any text but one that student and teacher write together, token by token."""


@dataclass
class Signal:
    """The teacher's logits at each scored position; a value that the kind does not read is no identity."""

    kind: str = "live"
    """`live` (logits from the model while the student trains; of a served teacher its top-k tokens), `top_k` (a cache
    of its k most probable tokens per position) or `sampled` (a cache of unbiased draws)."""
    top_k: int = 64
    """Most probable tokens known at each position; only read by `top_k` and by `live` where the teacher is served. 64
    take about 270 bytes a token in a cache."""
    tail: str = "tail"
    """How `top_k` treats all other tokens: `tail` (as one event; a lower bound), `renormalise` (they are left out of
    both distributions; biased) or `zero` (the teacher's missing mass is ignored; can be negative)."""
    samples: int = 50
    """Tokens sampled at each position, with replacement; only read by `sampled`. Raise it for less noise."""

    def __post_init__(self) -> None:
        check_choice("signal.kind", self.kind, KINDS)
        check_choice("signal.tail", self.tail, TAILS)
        if not (isinstance(self.top_k, int) and self.top_k >= 1):
            raise refuse("signal.top_k", self.top_k, "it must be a whole number of at least 1")
        if not (isinstance(self.samples, int) and 1 <= self.samples <= MOST_SAMPLES):
            raise refuse("signal.samples", self.samples, f"it must be a whole number from 1 to {MOST_SAMPLES}")

    def column(self, served: bool = False) -> str:
        """The signal's column in `SUPPORTED`; `served`: its teacher is behind a server."""
        if self.kind == "live" and served:
            return f"served[{self.tail}]"
        return f"top_k[{self.tail}]" if self.kind == "top_k" else self.kind

    def identity(self, phase: TrainingPhase, served: bool = False) -> dict[str, Any] | None:
        """Every value that can change a number of a phase's training, as plain JSON types; None where there is none.

        `served`: the teacher is behind a server, which names the top k tokens for a live signal too.
        """
        if not phase.queries_teacher or (self.kind == "live" and not served):
            return None
        values = self.stored() | ({"top_k": self.top_k} if self.kind == "live" else {})
        if phase.estimator == POLICY_GRADIENT:
            return {"kind": self.kind}  # it reads the sampled token's probability alone
        return values | ({"tail": self.tail} if "top_k" in values else {})

    def stored(self) -> dict[str, Any]:
        """Every value that can change what a cache holds: the tail is read from the same cache in each way."""
        return {"kind": self.kind} | {name: getattr(self, name) for name in _STORED[self.kind]}


_STORED: dict[str, tuple[str, ...]] = {"live": (), "top_k": ("top_k",), "sampled": ("samples",)}


@dataclass(frozen=True)
class Support:
    """Whether a divergence may be computed from a signal, and why or why not."""

    works: bool
    """Whether the divergence is computed from this signal, or refused."""
    why: str
    """How exact it is, or the reason of the refusal."""


_EXACT = Support(True, "exact")
_ESTIMATE = Support(True, "an unbiased gradient of the reverse KL on text that the student samples at temperature 1")
_NO_SAMPLE = Support(False, "it needs the teacher's log-probability of a token that the student has just sampled")
_BOUND = Support(True, "a lower bound: the tokens outside the top k are one event; exact where all are kept")
_PART = Support(True, "biased: the mass of both models outside the top k is left out")
_IGNORED = Support(True, "biased, and can be negative: the teacher's missing mass is ignored")
_OPEN = Support(
    False, "it sums over the student's mass too, and would move that mass off every token outside the top k"
)
_SERVED = Support(
    True,
    "a lower bound: tokens that are neither in the top k nor the text's own are one event; exact for the whole "
    "vocabulary",
)
_REVERSED = " (its gradient is biased, arXiv 2605.11182)"
_UNBIASED = Support(True, "unbiased gradient; the value is a cross-entropy, above the KL by the teacher's entropy")
_NOISE = Support(False, "sampled tokens give unbiased sums over the teacher's distribution alone, linear in it")


def _some(tail: Support, gradient: Support) -> dict[str, dict[str, Support]]:
    """The columns of a signal of which some tokens are known, by how it treats the others."""
    whole = dict.fromkeys(TOKEN_DIVERGENCES, tail) | {"reverse_kl": Support(True, tail.why + _REVERSED)}
    part = dict.fromkeys(TOKEN_DIVERGENCES, _PART)
    zero = dict.fromkeys(TOKEN_DIVERGENCES, _OPEN) | {"forward_kl": _IGNORED, "skew_forward_kl": _IGNORED}
    columns = {"tail": whole, "renormalise": part, "zero": zero}
    return {name: column | {POLICY_GRADIENT: gradient} for name, column in columns.items()}


SUPPORTED: dict[str, dict[str, Support]] = {
    "live": dict.fromkeys(TOKEN_DIVERGENCES, _EXACT) | {POLICY_GRADIENT: _ESTIMATE},
    **{f"served[{tail}]": column for tail, column in _some(_SERVED, _ESTIMATE).items()},
    **{f"top_k[{tail}]": column for tail, column in _some(_BOUND, _NO_SAMPLE).items()},
    "sampled": dict.fromkeys(TOKEN_DIVERGENCES, _NOISE) | {"forward_kl": _UNBIASED, POLICY_GRADIENT: _NO_SAMPLE},
}
"""Which signals a divergence of two distributions can be computed from: signal's column, then divergence."""

ANY_TEMPERATURE = ("live", "served[renormalise]", "top_k[renormalise]")
"""Signals that allow temperatures other than 1: for the others the mass outside the top k is known at 1 alone."""


def check_signal(signal: Signal, phase: TrainingPhase, served: bool = False) -> None:
    """Raise SettingsError unless the training phase can be run on this signal; `served`: its teacher is at a server."""
    phase = phase.normal()
    if not phase.queries_teacher or (signal.kind == "live" and not served):
        return
    column = signal.column(served)
    kind = column.partition("[")[0]
    way_out = "use a teacher with weights here" if kind == "served" else "use signal.kind=live"
    name, value = ("teacher.kind", "http") if kind == "served" else ("signal.kind", signal.kind)
    if phase.sequences not in TEXTS[kind]:
        why = f"a cache holds the teacher's logits on the data's own text, and this trains on {phase.sequences} text"
        if kind == "served":
            why = "a server scores text that is there, and in speculative KD the teacher takes part in writing it"
        raise refuse(name, value, why, way_out)
    if phase.control != "none":
        raise refuse(name, value, f"the control {phase.control} needs whole distributions", way_out)
    if phase.divergence not in TOKEN_DIVERGENCES:
        why = f"{phase.divergence} needs more of the teacher than its distributions over the student's tokens"
        raise refuse(name, value, why, way_out)
    wanted = POLICY_GRADIENT if phase.estimator == POLICY_GRADIENT else phase.divergence
    support = SUPPORTED[column][wanted]
    if not support.works:
        # served teachers are named where the teacher is one
        able = [_typed(other) for other, row in SUPPORTED.items() if row[wanted].works and _of(other, served)]
        raise refuse("signal", column, f"not with {wanted}: {support.why}", f"use {', or '.join(able)}")
    if phase.divergence_temperature != 1 and column not in ANY_TEMPERATURE:
        able = [_typed(other) for other in ANY_TEMPERATURE if _of(other, served)]
        raise refuse(
            "method.divergence_temperature",
            phase.divergence_temperature,
            f"signal {column} knows the mass outside its tokens at temperature 1 only",
            f"use {', or '.join(able)}",
        )


def _of(column: str, served: bool) -> bool:
    """Whether a column can be had from a teacher behind a server, or from one with weights here."""
    return column not in ("live", "sampled") if served else not column.startswith("served")


def _typed(column: str) -> str:
    """The settings, as on a command line, that choose a column of `SUPPORTED`."""
    kind, _, tail = column.rstrip("]").partition("[")
    return f"signal.kind={'live' if kind == 'served' else kind}" + (f" signal.tail={tail}" if tail else "")


def check_served(signal: Signal) -> None:
    """Raise SettingsError unless a teacher served over HTTP can give this signal."""
    if signal.kind == "sampled":
        why = "draws need whole distributions, and a server returns only top-k logits"
        raise refuse("signal.kind", signal.kind, why, "use signal.kind=top_k, or a teacher with weights here")
