"""Sequence-level distillation (Kim and Rush 2016, arXiv 1606.07947): cross-entropy on the teacher's answers.

The teacher generates an answer to each row's prompt, and its text replaces the data's. Only text is needed, so this is
also distillation from a black box, and unlabelled prompts are enough (`corpus.answers=none`).
Answers cut by the length limit are kept without an end-of-turn target: the set of rows never differs from
`sft`. `logit_kd.py` with `answers=teacher` compares distributions on the same text.

    Method(teacher_temperature=0.7, samples_per_prompt=4, rationale="strip")
"""

from dataclasses import dataclass

from harness.config.recipe import TrainingPhase
from harness.methods._checks import check_written


@dataclass
class Method:
    """Teacher's answers x cross-entropy."""

    teacher_temperature: float = 0.0
    """Temperature at which the teacher answers; 0 is greedy, as in the paper's one-best variant."""
    samples_per_prompt: int = 1
    """Answers the teacher generates to each prompt; the n-th visit of a row trains on the n-th, in a cycle."""
    rationale: str = "keep"
    """`keep`, or `strip` the reasoning between `<think>` marks that a teacher generates before its answer."""
    shuffled: bool = False
    """Control: every row gets another row's answer, so only the style of the answers can be learnt."""

    def __post_init__(self) -> None:
        check_written(self.teacher_temperature, self.samples_per_prompt, self.rationale)

    def phases(self) -> tuple[TrainingPhase, ...]:
        """One phase."""
        return (
            TrainingPhase(
                sequences="teacher",
                sampling_temperature=self.teacher_temperature,
                samples_per_prompt=self.samples_per_prompt,
                rationale=self.rationale,
                control="shuffled" if self.shuffled else "none",
            ),
        )
