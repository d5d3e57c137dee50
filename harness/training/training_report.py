"""The report of a fit: counts, costs, losses, diagnostics, and warnings a reader of its numbers should see.

`trainer.py` fills the report in; this file defines its fields and when a run is suspicious. Two of the warnings look
at the NLL of given rows, which means the same under every objective: a JSD of 0.6 that does not move looks like a
small loss, while its NLL of 5.7 nats shows that nothing was learnt.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

COLD_NLL = 3.0  # nats per token; above it the JSD of student and teacher has almost no gradient
MOVED = 0.98  # the NLL after a tenth of the steps must be below this share of the first
END_MASS = 1e-4  # mean probability of ending a turn; a teacher below it where rows end never lets a student stop
MUCH_OUTSIDE = 0.01  # mean probability that a teacher gives to tokens which the student does not have
SETTLED_NLL = 1.0  # nats per token; a student that starts below it need not move


@dataclass
class TrainingReport:
    """Counts, costs and losses of a fit."""

    steps: int = 0
    """Optimizer steps."""
    student_steps: int = 0
    """Of these, steps on sequences that the student generated, replayed ones too: the realised share."""
    trained_tokens: int = 0
    """Scored tokens, those the loss is a mean over."""
    read_tokens: int = 0
    """Tokens the student processed in training, prompts included, padding not."""
    generated_tokens: int = 0
    """Tokens the student generated, those a teacher then rejected included."""
    teacher_tokens: int = 0
    """Tokens the teacher processed: to score the student's rows, and in speculative KD."""
    seconds: float = 0.0
    """Wall time, set-up included, and that of earlier attempts up to the checkpoint that was continued."""
    earlier_seconds: float = 0.0
    """Of these, the earlier attempts'."""
    teacher_seconds: float = 0.0
    """Of these, time in the teacher's forward passes."""
    flops: float = 0.0
    """Estimate: 6 N per token trained (4 N where frozen), 2 N per token processed without gradient."""
    teacher_flops: float = 0.0
    """Of these, the teacher's."""
    first_loss: float = math.nan
    """Loss of the first step, nats per scored token (of the objective, so not comparable between them)."""
    last_loss: float = math.nan
    """Loss of the last step."""
    diagnostic_sums: dict[str, float] = field(default_factory=dict)
    """Diagnostics summed over the positions of the steps that had them."""
    diagnostic_counts: dict[str, float] = field(default_factory=dict)
    """How many positions each of these sums is over."""
    gold_end_mass: float | None = None
    """The teacher's mean probability of the end-of-turn token where given rows end a turn, at the first such step."""
    warnings: list[str] = field(default_factory=list)
    """What a reader of the report should know."""

    @property
    def diagnostics(self) -> dict[str, float]:
        """Each diagnostic's mean per position over the run."""
        return {name: total / self.diagnostic_counts[name] for name, total in self.diagnostic_sums.items()}

    def diagnose(self, sums: Mapping[str, float], positions: int, given: bool) -> dict[str, float]:
        """Take in one step's sums over its positions, on given rows or not; returns the step's means.

        `teacher_end_mass` is a mean over `ends`, the positions where a turn ends.
        """
        means = {}
        for name, total in sums.items():
            count = sums["ends"] if name == "teacher_end_mass" else positions
            if name == "ends" or not count:
                continue
            self.diagnostic_sums[name] = self.diagnostic_sums.get(name, 0.0) + total
            self.diagnostic_counts[name] = self.diagnostic_counts.get(name, 0.0) + count
            means[name] = total / count
        if given and self.gold_end_mass is None:
            self.gold_end_mass = means.get("teacher_end_mass")
        return means


def outside_warnings(diagnostics: Mapping[str, float]) -> list[str]:
    """A warning where the teacher gives more than `MUCH_OUTSIDE` of its mass to tokens that the student lacks."""
    mass = diagnostics.get("teacher_mass_outside", 0.0)
    if mass <= MUCH_OUTSIDE:
        return []
    return [
        f"the teacher gives {mass:.1%} of its probability to tokens that the student does not have; they are left out "
        "and the rest is renormalised, so the student learns another distribution than the teacher's"
    ]


def find_warnings(
    gold_nll: list[tuple[int, float]], steps: int, gold_end_mass: float | None = None, needs_warmup: bool = True
) -> list[str]:
    """Warnings: a teacher that never ends a turn, a cold start where a warm-up is needed, a loss that does not move.

    `gold_nll` has (step, nats per token) of the steps on given rows, `steps` is their number in the whole stage.
    """
    found = []
    if gold_end_mass is not None and gold_end_mass < END_MASS:
        found.append(
            f"no end of turn: where rows end, the teacher gives the end-of-turn token {gold_end_mass:.1e} on "
            "average, so the student learns not to stop; check that the teacher knows the chat template"
        )
    if not gold_nll:
        return found
    step, first = gold_nll[0]
    if needs_warmup and first > COLD_NLL:
        found.append(
            f"cold start: the student's NLL on its rows was {first:.2f} nats per token at step {step}; "
            "JSD, reverse KL and student-generated sequences need a warm-up there; set method.warmup, e.g. 0.2, "
            "where the method has this setting"
        )
    tenth = round(steps / 10)
    early = [nll for step, nll in gold_nll if step <= tenth]
    window = max(1, len(early) // 4)
    if tenth >= 5 and len(early) >= 2 and first > SETTLED_NLL:
        before, after = np.mean(early[:window]), np.mean(early[-window:])
        if after > MOVED * before:
            found.append(
                f"loss does not fall: the NLL was {before:.2f} nats per token at first, "
                f"and {after:.2f} after {tenth} of {steps} steps"
            )
    return found
