"""DistiLLM (Ko et al. 2024, arXiv 2402.03898): skewed KL, with an adaptive share of student-generated sequences.

The share of steps on student-generated sequences starts at 0 and grows by 0.1 whenever the loss on the cell's
validation rows has risen by 0.1 nats; most such steps replay answers generated earlier (`training/distillm.py`). A
student that keeps gaining from the data's answers never generates: the run reports "never activated" and is a skewed
KL on gold. `kd.py` has a fixed share instead, and `on_policy.py` a share of 1.

    Method(warmup=0.2, divergence="skew_reverse_kl", skew=0.1)
"""

from dataclasses import dataclass

from harness.config.checks import check_choice, check_positive, refuse
from harness.config.recipe import TrainingPhase
from harness.methods._checks import after_warmup, check_warmup


@dataclass
class Method:
    """Cross-entropy for the warm-up, then gold, new or replayed answers x a skewed KL from the teacher."""

    warmup: float = 0.2
    """Share of the budget's steps spent on cross-entropy first, 0 to below 1; 0 for a student that
    already answers in the data's form."""
    divergence: str = "skew_reverse_kl"
    """`skew_reverse_kl` (the authors' default) or `skew_forward_kl`."""
    skew: float = 0.1
    """Weight of the other model in the skewed side of the divergence, above 0 and below 1."""
    student_share: float = 1.0
    """Largest share of steps on student-generated sequences, above 0 and at most 1."""
    replay_rows: int = 1000
    """Student-generated answers kept for replay, the latest ones."""
    divergence_temperature: float = 1.0
    """Temperature of both distributions inside the divergence; the divergence is multiplied by its square."""
    sampling_temperature: float = 1.0
    """Temperature at which the student generates; 0 is greedy."""
    learning_rate_scale: float = 1.0
    """Multiplies the budget's learning rate after the warm-up."""

    def __post_init__(self) -> None:
        check_warmup(self.warmup)
        check_choice("method.divergence", self.divergence, ("skew_reverse_kl", "skew_forward_kl"))
        if not 0 < self.skew < 1:
            raise refuse(
                "method.skew", self.skew, "it lies above 0 and below 1", "at 0 it is a plain KL: choose method=kd"
            )
        if not 0 < self.student_share <= 1:
            raise refuse(
                "method.student_share",
                self.student_share,
                "it lies above 0 and at most at 1",
                "training on gold alone is method=kd method.student_share=0",
            )
        if not (isinstance(self.replay_rows, int) and self.replay_rows >= 1):
            raise refuse("method.replay_rows", self.replay_rows, "it is a whole number of at least 1")
        check_positive("method.divergence_temperature", self.divergence_temperature)
        check_positive("method.learning_rate_scale", self.learning_rate_scale)
        if not 0 <= self.sampling_temperature < float("inf"):
            raise refuse("method.sampling_temperature", self.sampling_temperature, "it is 0 or above")

    def phases(self) -> tuple[TrainingPhase, ...]:
        """The warm-up, a phase that methods share, and the distillation."""
        return after_warmup(
            self.warmup,
            sequences="student",
            divergence=self.divergence,
            student_share=self.student_share,
            adaptive=True,
            replay_rows=self.replay_rows,
            skew=self.skew,
            divergence_temperature=self.divergence_temperature,
            sampling_temperature=self.sampling_temperature,
            learning_rate_scale=self.learning_rate_scale,
        )
