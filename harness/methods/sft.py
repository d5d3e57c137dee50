"""Supervised fine-tuning: cross-entropy on the data's own answers. Every gain is measured against it.

`sft_restart.py` spends the same steps in two phases, the control for methods with a warm-up.
"""

from dataclasses import dataclass

from harness.config.checks import refuse
from harness.config.recipe import TrainingPhase


@dataclass
class Method:
    """Gold answers x cross-entropy, the whole budget in one phase."""

    label_smoothing: float = 0.0
    """Share of each target spread evenly over the vocabulary, 0 to below 1 (Szegedy et al. 2016, arXiv
    1512.00567): the effect of a teacher without knowledge, a control for the gain of a real one."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise refuse(
                "method.label_smoothing",
                self.label_smoothing,
                "it is 0 or more and below 1",
                "0.1 is usual; at 1 nothing of the answer is left",
            )

    def phases(self) -> tuple[TrainingPhase, ...]:
        """One phase."""
        return (TrainingPhase(label_smoothing=self.label_smoothing),)
