"""Distillation on the data's own answers (Hinton et al. 2015, arXiv 1503.02531).

Minimises w CE(gold, Q) + (1 - w) T^2 KL(P_T || Q_T) with w the `cross_entropy_weight`. The default
(w = 0, T = 1) is the plain forward KL and has the address of `kd` without warm-up and student text;
Hinton's mix is `cross_entropy_weight=0.5 divergence_temperature=2`. Other divergences on the same answers:
`reverse_kd.py`, `jsd_kd.py`, `tvd_kd.py`.
"""

from dataclasses import dataclass

from harness.checks import check_choice
from harness.methods._checks import check_mix
from harness.recipe import CONTROLS, TrainStage


@dataclass
class Method:
    """Gold answers x forward KL from the teacher, cross-entropy mixed in by weight."""

    cross_entropy_weight: float = 0.0
    """Share of cross-entropy on the data's answers, 0 (only the teacher) to below 1; with noisy answers
    cross-entropy costs much of the gain."""
    divergence_temperature: float = 1.0
    """Temperature of both distributions inside the divergence; the loss carries its square."""
    control: str = "none"
    """`none`, or a teacher that must not help: `shuffled` (its distributions dealt to other positions) or `unigram`
    (the counts of the data's own answers everywhere, no teacher asked)."""

    def __post_init__(self) -> None:
        check_mix(self.cross_entropy_weight, self.divergence_temperature)
        check_choice("method.control", self.control, CONTROLS)

    def stages(self) -> tuple[TrainStage, ...]:
        """One stage."""
        return (
            TrainStage(
                divergence="forward_kl",
                cross_entropy_weight=self.cross_entropy_weight,
                divergence_temperature=self.divergence_temperature,
                control=self.control,
            ),
        )
