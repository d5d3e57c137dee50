"""Total variation distance on the data's own answers (Wen et al. 2023, arXiv 2307.15190).

Half the L1 distance of the two distributions: symmetric and at most 1 per position, so no single token
that the teacher finds improbable can dominate. Like the JSD (`jsd_kd.py`) it has little gradient where the two
hardly overlap, so a warm-up of cross-entropy, counted in the budget, comes first.

    Method(warmup=0.2)
"""

from dataclasses import dataclass

from harness.config.recipe import TrainingPhase
from harness.methods._checks import after_warmup, check_mix, check_warmup


@dataclass
class Method:
    """Cross-entropy for the warm-up, then gold answers x total variation distance from the teacher."""

    warmup: float = 0.2
    """Share of the budget's steps spent on cross-entropy first, 0 to below 1; 0 for a student that
    already answers in the data's form."""
    cross_entropy_weight: float = 0.0
    """Share of cross-entropy on the data's answers after the warm-up, 0 (only the teacher) to below 1."""
    divergence_temperature: float = 1.0
    """Temperature of both distributions inside the divergence; the divergence is multiplied by its square."""

    def __post_init__(self) -> None:
        check_warmup(self.warmup)
        check_mix(self.cross_entropy_weight, self.divergence_temperature)

    def phases(self) -> tuple[TrainingPhase, ...]:
        """The warm-up, a phase that methods share, and the distillation."""
        return after_warmup(
            self.warmup,
            divergence="tvd",
            cross_entropy_weight=self.cross_entropy_weight,
            divergence_temperature=self.divergence_temperature,
        )
