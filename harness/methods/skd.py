"""Speculative knowledge distillation (SKD, Xu et al. 2024, arXiv 2410.11325): sequences that both models generate.

The student drafts tokens, the teacher replaces those it finds improbable, and the student learns the teacher's
distribution on the whole answer (`models/speculative.py`). With `accepted_top_k` of the whole vocabulary the text is
the student's own, as in `on_policy.py`; with 1 and a greedy teacher it is the teacher's, as in `seq_kd.py`.
The defaults are the authors' settings, the warm-up is ours: their student was fine-tuned beforehand.

    Method(warmup=0.2, proposed_tokens=5, accepted_top_k=25)
"""

from dataclasses import dataclass

from harness.config.checks import check_choice, check_positive, refuse
from harness.config.recipe import TrainingPhase
from harness.methods._checks import after_warmup, check_warmup


@dataclass
class Method:
    """Cross-entropy for the warm-up, then speculatively generated answers x a divergence from the teacher."""

    warmup: float = 0.2
    """Share of the budget's steps spent on cross-entropy first, 0 to below 1; 0 for a student that
    already answers in the data's form."""
    divergence: str = "forward_kl"
    """`forward_kl` (the paper's), `reverse_kl` or `jsd` (with the teacher's weight 0.5)."""
    divergence_temperature: float = 1.0
    """Temperature of both distributions inside the divergence; the divergence is multiplied by its square."""
    proposed_tokens: int = 5
    """Tokens the student drafts at a time; it changes the cost of each model, not the text."""
    accepted_top_k: int = 25
    """A drafted token is accepted if it is among the teacher's k most probable; a smaller k moves the text towards the
    teacher's."""
    sampling_temperature: float = 0.5
    """Temperature at which the student drafts; 0 is greedy."""
    sampling_top_p: float = 0.5
    """Nucleus (top-p) the student drafts from, above 0; 1 is the whole distribution."""
    teacher_temperature: float = 0.2
    """Temperature at which the teacher samples the token that replaces a rejected one; 0 is greedy."""
    teacher_top_p: float = 0.5
    """Nucleus (top-p) the teacher samples that token from, above 0; 1 is the whole distribution."""
    learning_rate_scale: float = 1.0
    """Multiplies the budget's learning rate after the warm-up."""

    def __post_init__(self) -> None:
        check_warmup(self.warmup)
        check_choice("method.divergence", self.divergence, ("forward_kl", "reverse_kl", "jsd"))
        for name in ("proposed_tokens", "accepted_top_k"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 1):
                raise refuse(f"method.{name}", value, "it is a whole number of at least 1")
        for name in ("sampling_temperature", "teacher_temperature"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise refuse(f"method.{name}", getattr(self, name), "it is 0 (greedy) or above")
        for name in ("sampling_top_p", "teacher_top_p"):
            if not 0 < getattr(self, name) <= 1:
                raise refuse(f"method.{name}", getattr(self, name), "it lies above 0 and at most at 1")
        check_positive("method.divergence_temperature", self.divergence_temperature)
        check_positive("method.learning_rate_scale", self.learning_rate_scale)

    def phases(self) -> tuple[TrainingPhase, ...]:
        """The warm-up, a phase that methods share, and the distillation."""
        return after_warmup(
            self.warmup,
            sequences="interleaved",
            divergence=self.divergence,
            divergence_temperature=self.divergence_temperature,
            proposed_tokens=self.proposed_tokens,
            accepted_top_k=self.accepted_top_k,
            sampling_temperature=self.sampling_temperature,
            sampling_top_p=self.sampling_top_p,
            teacher_temperature=self.teacher_temperature,
            teacher_top_p=self.teacher_top_p,
            learning_rate_scale=self.learning_rate_scale,
        )
