"""Self-distillation, Born-Again networks (Furlanello et al. 2018, arXiv 1805.04770).

The teacher is the student that plain fine-tuning makes of the same cell: same rows, seed, size and budget,
so it knows nothing beyond the rows. A gain here comes from regularisation and not from knowledge, which makes this
a control for `logit_kd.py` too. The cell's own teacher is not used, so cells that differ only in it are one. The
teacher is the artifact of `method=sft` and costs nothing where that cell is run.
"""

from dataclasses import dataclass

from harness.config.recipe import TrainingPhase
from harness.methods._checks import check_mix


@dataclass
class Method:
    """Gold answers x forward KL from the cell's own fine-tuned student, trained anew from the base."""

    cross_entropy_weight: float = 0.0
    """Share of cross-entropy on the data's answers, 0 (only the teacher) to below 1."""
    divergence_temperature: float = 1.0
    """Temperature of both distributions inside the divergence; the divergence is multiplied by its square."""

    def __post_init__(self) -> None:
        check_mix(self.cross_entropy_weight, self.divergence_temperature)

    def phases(self) -> tuple[TrainingPhase, ...]:
        """One phase."""
        return (
            TrainingPhase(
                divergence="forward_kl",
                teacher="self",
                cross_entropy_weight=self.cross_entropy_weight,
                divergence_temperature=self.divergence_temperature,
            ),
        )
