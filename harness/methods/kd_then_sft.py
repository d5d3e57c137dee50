"""Distillation, then cross-entropy on the same human rows: distillation refined by human labels.

The last phase trains on the data's own answers without the teacher, with a smaller learning rate; optimizer and
schedule restart. `kd.py` and `logit_kd.py` are the distillation alone, and the warm-up phase is the one of `kd`, so it
is trained once for both. `two_stage.py` has other rows in its phases.

    Method(sft_share=0.2, learning_rate_scale=0.3)
"""

from dataclasses import dataclass, replace

from harness.config.checks import check_choice, check_positive, refuse
from harness.config.recipe import TrainingPhase
from harness.methods.kd import Method as Gkd


@dataclass
class Method:
    """Gold or student answers x a divergence from the teacher, then gold answers x cross-entropy."""

    sft_share: float = 0.2
    """Share of the budget's steps spent on cross-entropy at the end, above 0 and below 1; the default is our own."""
    learning_rate_scale: float = 0.3
    """Factor on the budget's learning rate in the last phase; a large one undoes the distillation; the default is
    our own."""
    first: str = "kd"
    """The distillation that comes first: `kd` (GKD with its warm-up) or `logit_kd` (forward KL on gold from the start,
    which reads none of the settings below)."""
    warmup: float = 0.2
    """Share of the whole budget spent on cross-entropy before GKD, 0 or more; see `kd`."""
    student_share: float = 0.5
    """Probability per optimizer step of GKD of training on student-generated sequences, 0 to 1."""
    divergence: str = "jsd"
    """Divergence of GKD: `jsd`, `forward_kl` or `reverse_kl`."""
    jsd_teacher_weight: float = 0.5
    """Weight of the teacher in the JSD's mixture, above 0 and below 1; only read by `jsd`."""

    def __post_init__(self) -> None:
        check_choice("method.first", self.first, ("kd", "logit_kd"))
        check_positive("method.learning_rate_scale", self.learning_rate_scale)
        if not 0 < self.sft_share < 1:
            raise refuse(
                "method.sft_share",
                self.sft_share,
                "it lies above 0 and below 1",
                "distillation alone is method=kd, cross-entropy alone method=sft",
            )
        if self.first == "kd" and self.warmup + self.sft_share >= 1:
            raise refuse(
                "method.warmup",
                self.warmup,
                f"with sft_share={self.sft_share:g} it leaves no budget to distil",
                "warm-up and sft_share together are below 1",
            )
        self._gkd()

    def phases(self) -> tuple[TrainingPhase, ...]:
        """The phases of the distillation, shortened, and the refinement."""
        border = 1 - self.sft_share
        *warmup, distillation = self._gkd().phases()
        refinement = TrainingPhase(span=(border, 1.0), learning_rate_scale=self.learning_rate_scale)
        return (*warmup, replace(distillation, span=(distillation.span[0], border)), refinement)

    def _gkd(self) -> Gkd:
        """The distillation as if it had the whole budget; it checks its own settings."""
        if self.first == "logit_kd":
            return Gkd(warmup=0.0, student_share=0.0, divergence="forward_kl")
        return Gkd(
            warmup=self.warmup,
            student_share=self.student_share,
            divergence=self.divergence,
            jsd_teacher_weight=self.jsd_teacher_weight,
        )
