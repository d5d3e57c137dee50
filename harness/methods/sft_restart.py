"""Supervised fine-tuning in two phases: the control for a warm-up.

`kd.py` trains cross-entropy first and restarts optimizer and schedule for its second phase; this method
does the same with cross-entropy twice, so the restart itself is not mistaken for a gain. Its first
phase is the warm-up that `kd` starts from.
"""

from dataclasses import dataclass

from harness.config.checks import refuse
from harness.config.recipe import TrainingPhase


@dataclass
class Method:
    """Gold answers x cross-entropy, with a restart of optimizer and schedule after `warmup`."""

    warmup: float = 0.2
    """Share of the budget's steps before the restart, above 0 and below 1; match the compared method's."""

    def __post_init__(self) -> None:
        if not 0 < self.warmup < 1:
            raise refuse("method.warmup", self.warmup, "it lies above 0 and below 1", "or use method=sft")

    def phases(self) -> tuple[TrainingPhase, ...]:
        """Two phases that together train the budget once."""
        return (TrainingPhase(span=(0.0, self.warmup)), TrainingPhase(span=(self.warmup, 1.0)))
