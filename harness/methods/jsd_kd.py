"""Generalised Jensen-Shannon divergence on the data's own answers (Agarwal et al. 2024, arXiv 2306.13649).

b KL(P || M) + (1 - b) KL(Q || M) with M = b P + (1 - b) Q, P the teacher and Q the student: between the
forward and the reverse KL and bounded. This is `kd.py` with `student_share=0`. From a cold start the JSD
has almost no gradient, so a warm-up of cross-entropy, counted in the budget, comes first.

    Method(warmup=0.2, jsd_teacher_weight=0.5)
"""

from dataclasses import dataclass

from harness.config.checks import refuse
from harness.config.recipe import TrainingPhase
from harness.methods._checks import after_warmup, check_mix, check_warmup


@dataclass
class Method:
    """Cross-entropy for the warm-up, then gold answers x JSD from the teacher."""

    warmup: float = 0.2
    """Share of the budget's steps spent on cross-entropy first, 0 to below 1; 0 for a student that
    already answers in the data's form."""
    jsd_teacher_weight: float = 0.5
    """Weight of the teacher in the mixture, above 0 and below 1 (GKD's beta; the default is ours)."""
    cross_entropy_weight: float = 0.0
    """Share of cross-entropy on the data's answers after the warm-up, 0 (only the teacher) to below 1."""
    divergence_temperature: float = 1.0
    """Temperature of both distributions inside the divergence; the divergence is multiplied by its square."""

    def __post_init__(self) -> None:
        check_warmup(self.warmup)
        check_mix(self.cross_entropy_weight, self.divergence_temperature)
        if not 0 < self.jsd_teacher_weight < 1:
            raise refuse(
                "method.jsd_teacher_weight",
                self.jsd_teacher_weight,
                "it lies above 0 and below 1",
                "the JSD is 0 at both ends: choose method=logit_kd or method=reverse_kd",
            )

    def phases(self) -> tuple[TrainingPhase, ...]:
        """The warm-up, a phase that methods share, and the distillation."""
        return after_warmup(
            self.warmup,
            divergence="jsd",
            jsd_teacher_weight=self.jsd_teacher_weight,
            cross_entropy_weight=self.cross_entropy_weight,
            divergence_temperature=self.divergence_temperature,
        )
