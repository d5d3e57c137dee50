"""On-policy distillation, GKD (Agarwal et al. 2024, arXiv 2306.13649): the main distillation method.

Each optimizer step draws its sequences: with probability `student_share` (the paper's lambda) the student
generates the answers and the teacher scores them, else the teacher scores the data's answers. A warm-up of
cross-entropy, counted in the budget, comes first: from a cold start the JSD has almost no gradient, and the text of a
student that cannot answer yet gives no useful signal. Without warm-up and student-generated sequences this is
`logit_kd.py`; the warm-up's control is `sft_restart.py`.

    Method(warmup=0.2, student_share=0.5, divergence="jsd", jsd_teacher_weight=0.5)
"""

from dataclasses import dataclass

from harness.config.checks import check_choice, check_positive, refuse
from harness.config.recipe import TrainingPhase
from harness.methods._checks import after_warmup, check_warmup


@dataclass
class Method:
    """Cross-entropy for the warm-up, then student or gold answers x a divergence from the teacher."""

    warmup: float = 0.2
    """Share of the budget's steps spent on cross-entropy first, 0 to below 1; 0 for a student that
    already answers in the data's form."""
    student_share: float = 0.5
    """Probability per optimizer step of training on student-generated sequences, 0 to 1 (GKD's lambda; the
    default is ours)."""
    divergence: str = "jsd"
    """`jsd`, `forward_kl` (covers the teacher) or `reverse_kl` (seeks its peaks)."""
    jsd_teacher_weight: float = 0.5
    """Weight of the teacher in the JSD's mixture, above 0 and below 1 (GKD's beta; the default is ours);
    only read by `jsd`."""
    divergence_temperature: float = 1.0
    """Temperature of both distributions inside the divergence; the divergence is multiplied by its square."""
    sampling_temperature: float = 1.0
    """Temperature at which the student generates; 0 is greedy. Only read where `student_share` is above 0."""
    learning_rate_scale: float = 1.0
    """Multiplies the budget's learning rate after the warm-up."""

    def __post_init__(self) -> None:
        check_warmup(self.warmup)
        if not 0 <= self.student_share <= 1:
            raise refuse("method.student_share", self.student_share, "a probability lies between 0 and 1")
        check_choice("method.divergence", self.divergence, ("jsd", "forward_kl", "reverse_kl"))
        if not 0 < self.jsd_teacher_weight < 1:
            raise refuse(
                "method.jsd_teacher_weight",
                self.jsd_teacher_weight,
                "it lies above 0 and below 1",
                "the JSD is 0 at both ends: choose divergence=forward_kl or divergence=reverse_kl",
            )
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
            jsd_teacher_weight=self.jsd_teacher_weight,
            divergence_temperature=self.divergence_temperature,
            sampling_temperature=self.sampling_temperature,
            learning_rate_scale=self.learning_rate_scale,
        )
