"""Distillation on fixed answers (Hinton et al. 2015, arXiv 1503.02531): the data's own, or the teacher's.

Minimises w CE(answer, Q) + (1 - w) T^2 KL(P_T || Q_T) with w the `cross_entropy_weight`. The default
(the data's answers, w = 0, T = 1) is the plain forward KL and has the address of `kd` without warm-up and
student text; Hinton's mix is `cross_entropy_weight=0.5 divergence_temperature=2`. With `answers=teacher` the
text is that of `seq_kd.py`, compared by distributions instead of tokens, and the data's answers are not read.
Other divergences on the data's answers: `reverse_kd.py`, `jsd_kd.py`, `tvd_kd.py`.

    Method(answers="teacher", teacher_temperature=1.0, samples_per_prompt=4)
"""

from dataclasses import dataclass

from harness.config.checks import check_choice
from harness.config.recipe import CONTROLS, TrainingPhase
from harness.methods._checks import check_mix, check_written


@dataclass
class Method:
    """Gold or teacher's answers x forward KL from the teacher, cross-entropy mixed in by weight."""

    answers: str = "data"
    """Answers on which distributions are compared: `data`, or `teacher`, which generates them first."""
    cross_entropy_weight: float = 0.0
    """Share of cross-entropy on these answers, 0 (only the teacher) to below 1; with noisy answers of the data
    cross-entropy costs much of the gain."""
    divergence_temperature: float = 1.0
    """Temperature of both distributions inside the divergence; the divergence is multiplied by its square."""
    control: str = "none"
    """`none`, or a control without the teacher's information: `shuffled` (a permuted teacher: its distributions belong
    to other positions) or `unigram` (the counts of the answers' own tokens everywhere; no teacher is run)."""
    teacher_temperature: float = 0.0
    """Temperature at which the teacher generates, 0 is greedy; this setting and the two below are read only with
    `answers=teacher`."""
    samples_per_prompt: int = 1
    """Answers the teacher generates to each prompt; the n-th visit of a row trains on the n-th, in a cycle."""
    rationale: str = "keep"
    """`keep`, or `strip` the reasoning between `<think>` marks that a teacher generates before its answer."""

    def __post_init__(self) -> None:
        check_choice("method.answers", self.answers, ("data", "teacher"))
        check_mix(self.cross_entropy_weight, self.divergence_temperature)
        check_choice("method.control", self.control, CONTROLS)
        check_written(self.teacher_temperature, self.samples_per_prompt, self.rationale)

    def phases(self) -> tuple[TrainingPhase, ...]:
        """One phase."""
        return (
            TrainingPhase(
                sequences="gold" if self.answers == "data" else "teacher",
                divergence="forward_kl",
                cross_entropy_weight=self.cross_entropy_weight,
                divergence_temperature=self.divergence_temperature,
                control=self.control,
                sampling_temperature=self.teacher_temperature,
                samples_per_prompt=self.samples_per_prompt,
                rationale=self.rationale,
            ),
        )
