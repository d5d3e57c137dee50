"""Distillation from a teacher with another tokenizer, on the data's own answers.

Teacher and student read the same answer as different tokens, each in its own template. `spans` compares the
likelihoods of every piece of text that begins and ends a token on both sides (ALM, Minixhofer et al. 2025,
arXiv 2503.20083); `uld` compares the sorted probabilities of their next-token distributions there (Boizard et al. 2024,
arXiv 2402.12030). Both are added to cross-entropy. With one tokenizer for both, `logit_kd.py` learns more from
the same teacher, and `seq_kd.py` needs nothing but its text.

    Method(loss="uld", weight=1.5)              cross-entropy + 1.5 x ULD, as in that paper
    Method(loss="spans", cross_entropy_weight=0.0)       the teacher alone
"""

from dataclasses import dataclass

from harness.config.checks import check_at_least, check_choice, check_positive, refuse
from harness.config.recipe import CROSS, TrainingPhase
from harness.methods._checks import after_warmup, check_warmup


@dataclass
class Method:
    """Cross-entropy for the warm-up, then gold answers x (a divergence across tokenizers + cross-entropy)."""

    loss: str = "spans"
    """`spans` (likelihoods of shared pieces of text) or `uld` (sorted probabilities)."""
    weight: float = 1.5
    """Factor of the divergence across tokenizers; the default is ULD's."""
    cross_entropy_weight: float = 1.0
    """Factor of cross-entropy on the data's answers; 0 (only with `spans`): the teacher is the only target."""
    span_temperature: float = 100.0
    """Likelihoods are compared as p ** (1 / temperature); lower it to give likely, short pieces more weight. The
    default is ALM's; only read by `spans`."""
    warmup: float = 0.0
    """Share of the budget's steps spent on cross-entropy alone first, 0 to below 1."""
    shuffled: bool = False
    """Control, a permuted teacher: every row is compared with the teacher's output for another row."""

    def __post_init__(self) -> None:
        check_choice("method.loss", self.loss, CROSS)
        check_positive("method.weight", self.weight)
        check_at_least("method.cross_entropy_weight", self.cross_entropy_weight, 0)
        check_positive("method.span_temperature", self.span_temperature)
        if self.loss == "uld" and self.cross_entropy_weight == 0:
            raise refuse(
                "method.cross_entropy_weight",
                self.cross_entropy_weight,
                "sorted probabilities do not say which token is likely",
                "keep it above 0 or choose method.loss=spans",
            )
        check_warmup(self.warmup)

    def phases(self) -> tuple[TrainingPhase, ...]:
        """The warm-up, a phase that methods share, and the distillation."""
        return after_warmup(
            self.warmup,
            divergence=self.loss,
            control="shuffled" if self.shuffled else "none",
            cross_entropy_weight=self.cross_entropy_weight,
            cross_tokenizer_weight=self.weight,
            span_temperature=self.span_temperature,
        )
