"""Kinds of teacher signal: how much of a teacher's distribution is known, and which divergences it allows.

A `live` teacher gives whole distributions for any text. A cache holds the `top_k` log-probabilities of fixed
text, or tokens `sampled` from the teacher (Anshumann et al. 2025, arXiv 2503.16870). `SUPPORTED` is the one
table of what a divergence may be computed from; refusals are made from it. Nothing here needs
torch: `training/losses/sparse.py` computes, `teachers/logit_cache.py` stores, `teachers/signals.py` runs live teachers.

    check_signal(Signal(kind="sampled"), TrainingPhase(divergence="reverse_kl"))     # SettingsError, one sentence
"""

from dataclasses import dataclass
from typing import Any

from harness.config.checks import check_choice, refuse
from harness.config.recipe import TOKEN_DIVERGENCES, TrainingPhase

KINDS = ("live", "top_k", "sampled")
TAILS = ("tail", "renormalise", "zero")
MOST_SAMPLES = 255  # a token's count is stored in one byte
CACHED_TEXT = ("gold",)  # the one text whose rows every cell shares


@dataclass
class Signal:
    """The teacher's logits at each scored position; a value that the kind does not read is no identity."""

    kind: str = "live"
    """`live` (logits from the model while the student trains), `top_k` (a cache of its k most probable tokens per
    position) or `sampled` (a cache of unbiased draws)."""
    top_k: int = 64
    """Most probable tokens cached at each position; only read by `top_k`. 64 take about 270 bytes a token."""
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

    @property
    def column(self) -> str:
        """The signal's column in `SUPPORTED`."""
        return f"top_k[{self.tail}]" if self.kind == "top_k" else self.kind

    def identity(self) -> dict[str, Any]:
        """Every value that can change a number of training, as plain JSON types."""
        return self.stored() | ({"tail": self.tail} if self.kind == "top_k" else {})

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
_BOUND = Support(True, "a lower bound: the tokens outside the top k are one event; exact where all are kept")
_PART = Support(True, "biased: the mass of both models outside the top k is left out")
_IGNORED = Support(True, "biased, and can be negative: the teacher's missing mass is ignored")
_OPEN = Support(
    False, "it sums over the student's mass too, and would move that mass off every token outside the top k"
)
_UNBIASED = Support(True, "unbiased gradient; the value is a cross-entropy, above the KL by the teacher's entropy")
_NOISE = Support(False, "sampled tokens give unbiased sums over the teacher's distribution alone, linear in it")

SUPPORTED: dict[str, dict[str, Support]] = {
    "live": dict.fromkeys(TOKEN_DIVERGENCES, _EXACT),
    "top_k[tail]": dict.fromkeys(TOKEN_DIVERGENCES, _BOUND),
    "top_k[renormalise]": dict.fromkeys(TOKEN_DIVERGENCES, _PART),
    "top_k[zero]": dict.fromkeys(TOKEN_DIVERGENCES, _OPEN) | {"forward_kl": _IGNORED, "skew_forward_kl": _IGNORED},
    "sampled": dict.fromkeys(TOKEN_DIVERGENCES, _NOISE) | {"forward_kl": _UNBIASED},
}
"""Which signals a divergence of two distributions can be computed from: signal's column, then divergence."""

ANY_TEMPERATURE = ("live", "top_k[renormalise]")
"""Signals that allow temperatures other than 1: for the others the mass outside the top k is known at 1 alone."""


def check_signal(signal: Signal, phase: TrainingPhase) -> None:
    """Raise SettingsError unless the training phase can be run on this signal."""
    phase = phase.normal()
    if signal.kind == "live" or not phase.queries_teacher:
        return
    live = "use signal.kind=live"
    if phase.sequences not in CACHED_TEXT:
        why = f"a cache holds the teacher's logits on the data's own text, and this trains on {phase.sequences} text"
        raise refuse("signal.kind", signal.kind, why, live)
    if phase.control != "none":
        raise refuse("signal.kind", signal.kind, f"the control {phase.control} needs whole distributions", live)
    if phase.divergence not in TOKEN_DIVERGENCES:
        why = f"{phase.divergence} needs more of the teacher than its distributions over the student's tokens"
        raise refuse("signal.kind", signal.kind, why, live)
    support = SUPPORTED[signal.column][phase.divergence]
    if not support.works:
        able = [_typed(column) for column, row in SUPPORTED.items() if row[phase.divergence].works]
        why = f"not with {phase.divergence}: {support.why}"
        raise refuse("signal", signal.column, why, f"use {', or '.join(able)}")
    if phase.divergence_temperature != 1 and signal.column not in ANY_TEMPERATURE:
        raise refuse(
            "method.divergence_temperature",
            phase.divergence_temperature,
            f"signal {signal.column} knows the mass outside its tokens at temperature 1 only",
            f"use {', or '.join(map(_typed, ANY_TEMPERATURE))}",
        )


def _typed(column: str) -> str:
    """The settings, as on a command line, that choose a column of `SUPPORTED`."""
    kind, _, tail = column.rstrip("]").partition("[")
    return f"signal.kind={kind}" + (f" signal.tail={tail}" if tail else "")


def check_served(signal: Signal) -> None:
    """Raise SettingsError unless a teacher served over HTTP can give this signal."""
    if signal.kind == "sampled":
        why = "draws need whole distributions, and a server returns only top-k logits"
        raise refuse("signal.kind", signal.kind, why, "use signal.kind=top_k, or a teacher with weights here")
