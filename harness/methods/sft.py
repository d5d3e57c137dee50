"""Supervised fine-tuning: cross-entropy on the data's own answers. Every gain is measured against it.

`sft_restart.py` spends the same steps in two phases, the control for methods with a warm-up.
"""

from dataclasses import dataclass

from harness.recipe import TrainStage


@dataclass
class Method:
    """Gold answers x cross-entropy, the whole budget in one stage."""

    def stages(self) -> tuple[TrainStage, ...]:
        """One stage."""
        return (TrainStage(),)
