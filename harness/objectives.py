"""Objectives: what a training stage minimises on one micro-batch, from the model's forward to a summed loss.

`divergences.py` compares two distributions; an objective brings them there: it runs the student, asks the
teacher signal, and cuts both to the scored positions. An objective is one class with `compare`; one with
weights of its own (a projection) names them in `weights`; `trained_together` makes them a layer of the
student for the length of a fit, so they are no part of the exported model. Objectives that look inside the
models are in `hidden.py`.

    objective = objective_for(stage, teacher, vocabulary=len(tokenizer))
    objective.compare(model, batch).sum.backward()
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch

from harness.cross import AcrossTokenizers, CrossTeacher
from harness.divergences import Divergence, compare, scored_positions, scored_tokens
from harness.hidden import Features, Relations
from harness.recipe import CROSS, HIDDEN, TrainStage
from harness.signals import logits_at

if TYPE_CHECKING:
    from harness.signals import TeacherSignal


BESIDE = "objective_weights"  # the name of an objective's weights in the student while both are trained


class Objective(Protocol):
    """What the trainer asks of an objective."""

    weights: torch.nn.Module | None
    """Weights trained beside the student's, or None."""
    asks_teacher: bool
    """Whether a teacher reads the student's micro-batch."""
    teacher_seconds: float
    """Seconds spent in the teacher's forward passes so far."""
    teacher_tokens: int
    """Tokens the teacher read so far that are not the student's micro-batches (a rendering of its own)."""

    def compare(self, model: Any, batch: dict[str, torch.Tensor]) -> Divergence:
        """The summed loss of a micro-batch (`collate`'s tensors) under `model`, maybe wrapped for several processes."""
        ...


def objective_for(
    stage: TrainStage,
    teacher: "TeacherSignal | None",
    vocabulary: int,
    student: Any = None,
    seed: int = 0,
) -> Objective:
    """The objective of a training stage; a divergence without its teacher is an error, never a fallback.

    `student` is the model to be trained and `seed` that of the stage; only objectives that look inside the
    models need them. `uld` and `spans` need a `CrossTeacher`, which reads tokens of its own; every other
    divergence one that reads the student's.
    """
    if stage.divergence != "cross_entropy" and teacher is None:
        raise ValueError(f"divergence {stage.divergence} needs a teacher and got none")
    if stage.divergence in CROSS:
        if not isinstance(teacher, CrossTeacher):
            raise ValueError(f"divergence {stage.divergence} needs a CrossTeacher, with its own rendering of the rows")
        return AcrossTokenizers(stage, teacher, vocabulary, seed)
    if isinstance(teacher, CrossTeacher):
        raise ValueError(f"divergence {stage.divergence} needs a teacher that reads the student's tokens")
    if stage.divergence in HIDDEN:
        kinds = {"features": Features, "relations": Relations}
        return kinds[stage.divergence](stage, teacher, vocabulary, student, seed)
    return Distributions(stage, teacher, vocabulary)


@contextmanager
def trained_together(model: torch.nn.Module, objective: Objective) -> Iterator[None]:
    """Make the objective's weights a layer of `model` under this context.

    One optimizer, learning rate and weight decay, one clipping of all gradients together and one average
    over processes then hold for both, and a checkpoint of the model has them. Afterwards the model is
    as it was: what is saved then is the student alone.
    """
    if objective.weights is None:
        yield
        return
    model.add_module(BESIDE, objective.weights)
    try:
        yield
    finally:
        delattr(model, BESIDE)


class Distributions:
    """Cross-entropy or a divergence of next-token distributions at the scored positions."""

    weights: torch.nn.Module | None = None
    teacher_tokens = 0

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
