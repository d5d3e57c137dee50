"""Objectives: what a training stage minimises on one micro-batch, from the model's forward to a summed loss.

`divergences.py` compares two distributions; an objective brings them there: it runs the student, asks the
teacher signal, and cuts both to the scored positions. An objective is one class with `compare`; one with
weights of its own (a projection) names them in `weights`, and they are trained and saved beside the
student's but are no part of the exported model.

    objective = objective_for(stage, teacher, vocabulary=len(tokenizer))
    objective.compare(model, batch).sum.backward()
"""

import time
from typing import TYPE_CHECKING, Any, Protocol

import torch

from harness.divergences import Divergence, compare, scored_positions, scored_tokens
from harness.kept import KeptDistributions, KeptTeacher
from harness.recipe import TrainStage
from harness.signals import logits_at

if TYPE_CHECKING:
    from harness.signals import TeacherSignal


class Objective(Protocol):
    """What the trainer asks of an objective."""

    weights: torch.nn.Module | None
    """Weights trained beside the student's, or None."""
    asks_teacher: bool
    """Whether a teacher reads the student's micro-batch."""
    teacher_seconds: float
    """Seconds spent so far in the teacher's forward passes, or in reading what is stored of them."""

    def compare(self, model: Any, batch: dict[str, torch.Tensor]) -> Divergence:
        """The summed loss of a micro-batch (`collate`'s tensors) under `model`, maybe wrapped for several processes."""
        ...


def objective_for(stage: TrainStage, teacher: "TeacherSignal | None", vocabulary: int) -> Objective:
    """The objective of a training stage; a divergence without its teacher is an error, never a fallback."""
    if stage.divergence != "cross_entropy" and teacher is None:
        raise ValueError(f"divergence {stage.divergence} needs a teacher and got none")
    if stage.divergence != "cross_entropy" and isinstance(teacher, KeptTeacher):
        return KeptDistributions(stage, teacher, vocabulary)
    return Distributions(stage, teacher, vocabulary)


class Distributions:
    """Cross-entropy or a divergence of next-token distributions at the scored positions."""

    weights: torch.nn.Module | None = None

    def __init__(self, stage: TrainStage, teacher: "TeacherSignal | None", vocabulary: int) -> None:
        self.stage, self.teacher, self.vocabulary = stage, teacher, vocabulary
        self.asks_teacher, self.teacher_seconds = stage.divergence != "cross_entropy", 0.0

    def compare(self, model: Any, batch: dict[str, torch.Tensor]) -> Divergence:
        """See `Objective`."""
        input_ids, attention_mask, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]
        scored = scored_positions(labels)
        # heads may be padded beyond the vocabulary, each by its own amount: no arm sees the padding
        student_logits = logits_at(model, input_ids, attention_mask, scored)[:, : self.vocabulary]
        teacher_logits = None
        if self.asks_teacher:
            assert self.teacher is not None
            asked = time.perf_counter()
            teacher_logits = self.teacher.logits(input_ids, attention_mask, scored)[:, : self.vocabulary]
            self.teacher_seconds += time.perf_counter() - asked
        return compare(self.stage, student_logits, teacher_logits, scored_tokens(labels))
