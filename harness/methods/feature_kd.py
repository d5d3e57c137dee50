"""Feature distillation: the student's hidden states, through a learned projection, become the teacher's.

FitNets' hints (Romero et al. 2015, arXiv 1412.6550) at every layer, relative to the teacher's norm, added to
the forward KL on the data's own answers; `training/losses/hidden.py` has the equation. The two arms to compare are

    Method()                                                    KL + features
    Method(forward_kl_weight=0.0, cross_entropy_weight=1.0)     cross-entropy + features

KL is the default because cross-entropy on noisy answers costs much of the gain. `relational_kd.py` needs no
projection; `logit_kd.py` is the KL alone.
"""

from dataclasses import dataclass

from harness.config.recipe import TrainingPhase
from harness.methods._checks import check_beside


@dataclass
class Method:
    """Gold answers x forward KL or cross-entropy, and hidden states of all layers."""

    hidden_weight: float = 1.0
    """Factor of the hidden term, the mean over layers of the squared error relative to the teacher's norm
    (1 for a student whose hidden states are 0); above 0. The default is ours."""
    forward_kl_weight: float = 1.0
    """Factor of the forward KL from the teacher, in nats per token; 0 or above."""
    cross_entropy_weight: float = 0.0
    """Factor of cross-entropy on the data's answers, in nats per token; 0 or above."""

    def __post_init__(self) -> None:
        check_beside("hidden states", self.hidden_weight, self.forward_kl_weight, self.cross_entropy_weight)

    def phases(self) -> tuple[TrainingPhase, ...]:
        """One phase."""
        return (
            TrainingPhase(
                divergence="features",
                hidden_weight=self.hidden_weight,
                forward_kl_weight=self.forward_kl_weight,
                cross_entropy_weight=self.cross_entropy_weight,
            ),
        )
