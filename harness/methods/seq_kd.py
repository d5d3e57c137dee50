"""Sequence-level distillation (Kim and Rush 2016, arXiv 1606.07947): cross-entropy on the teacher's answers.

The teacher answers each row's prompt once and its text replaces the data's; nothing but text is asked of
it, so this is also distillation from a black box. Answers cut by the length limit are kept without an
end-of-turn target: the set of rows never differs from `sft`.
"""

from dataclasses import dataclass

from harness.checks import refuse
from harness.recipe import TrainStage


@dataclass
class Method:
    """Teacher's answers x cross-entropy."""

    teacher_temperature: float = 0.0
    """Temperature at which the teacher answers; 0 is greedy, as in the paper's one-best variant."""
    shuffled: bool = False
    """Control: every row gets another row's answer, so only the answers' style can teach."""

    def __post_init__(self) -> None:
        if not 0 <= self.teacher_temperature < float("inf"):
            raise refuse("method.teacher_temperature", self.teacher_temperature, "it is 0 (greedy) or above")

    def stages(self) -> tuple[TrainStage, ...]:
        """One stage."""
        return (
            TrainStage(
                sequences="teacher",
                sampling_temperature=self.teacher_temperature,
                control="shuffled" if self.shuffled else "none",
            ),
        )
