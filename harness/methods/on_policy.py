"""On-policy distillation: the student generates every answer and learns the teacher's logits on it by reverse KL.

GKD (Agarwal et al. 2024, arXiv 2306.13649) with student share 1 and the reverse KL over the whole vocabulary,
without gradient through the sampling; the same recipe as `kd.py` with these values, and so the same address.
It is not MiniLLM (arXiv 2306.08543), whose gradient is that of a policy over whole sequences.

    Method(warmup=0.2, sampling_temperature=1.0)
    Method(estimator="policy_gradient")
"""

from dataclasses import dataclass, replace

from harness.config.recipe import TrainingPhase
from harness.methods import kd


@dataclass
class Method:
    """Cross-entropy for the warm-up, then student answers x reverse KL from the teacher."""

    warmup: float = 0.2
    """Share of the budget's steps spent on cross-entropy first, 0 to below 1; 0 for a student that
    already answers in the data's form."""
    divergence_temperature: float = 1.0
    """Temperature of both distributions inside the divergence; the divergence is multiplied by its square."""
    sampling_temperature: float = 1.0
    """Temperature at which the student generates; 0 is greedy."""
    learning_rate_scale: float = 1.0
    """Multiplies the budget's learning rate after the warm-up."""
    estimator: str = "full"
    """`full`: the reverse KL over the vocabulary. `policy_gradient`: from the sampled token alone, whose advantage is
    the teacher's log-probability minus the student's (on-policy distillation, Thinking Machines 2025); a teacher needs
    to give one log-probability a token."""

    def __post_init__(self) -> None:
        self.phases()  # `kd` checks the values

    def phases(self) -> tuple[TrainingPhase, ...]:
        """The warm-up, a phase that methods share, and the distillation."""
        *warmup, distillation = kd.Method(
            warmup=self.warmup,
            student_share=1.0,
            divergence="reverse_kl",
            divergence_temperature=self.divergence_temperature,
            sampling_temperature=self.sampling_temperature,
            learning_rate_scale=self.learning_rate_scale,
        ).phases()
        return (*warmup, replace(distillation, estimator=self.estimator))
