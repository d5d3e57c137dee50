"""Objectives: what a training phase minimises on one micro-batch, from the model's forward to a summed loss.

`divergences.py` compares two distributions; an objective brings them there: it runs the student, asks the
teacher signal, and cuts both to the scored positions. An objective is one class with `compare`; one with
weights of its own (a projection) names them in `weights`; `trained_together` makes them a layer of the
student for the length of a fit, so they are no part of the exported model. Objectives that look inside the
models are in `hidden.py`.

    objective = objective_for(phase, teacher, vocabulary=len(tokenizer))
    objective.compare(model, batch).sum.backward()
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch

from harness.config.recipe import CROSS, HIDDEN, SHARP, TrainingPhase
from harness.config.teacher_signal import check_signal
from harness.models.fsdp import is_sharded
from harness.models.logits import agrees, logits_at, logits_from, scored_positions, scored_tokens, states_at
from harness.teachers.signals import LiveTeacher
from harness.teachers.sparse_logits import KeptTeacher
from harness.training.losses.agreement import agreement, end_of_turn_mass
from harness.training.losses.chunked import in_chunks, positions_at_once
from harness.training.losses.controls import giver
from harness.training.losses.cross_tokenizer import AcrossTokenizers, CrossTeacher
from harness.training.losses.divergences import Divergence, compare
from harness.training.losses.hidden import Features, Relations
from harness.training.losses.sparse import compare_kept

if TYPE_CHECKING:
    from harness.teachers.signals import TeacherSignal

Batch = dict[str, torch.Tensor]
Answer = Callable[[slice], torch.Tensor | None]
"""A teacher's logits (n, V) at a slice of the scored positions; None without a teacher."""


BESIDE = "objective_weights"  # the name of an objective's weights in the student while both are trained


class Objective(Protocol):
    """What the trainer asks of an objective."""

    weights: torch.nn.Module | None
    """Weights trained beside the student's, or None."""
    asks_teacher: bool
    """Whether a teacher reads the student's micro-batch."""
    teacher_seconds: float
    """Seconds spent so far in the teacher's forward passes, or in reading what is stored of them."""
    teacher_tokens: int
    """Tokens the teacher read so far that are not the student's micro-batches (a rendering of its own)."""
    diagnoses: bool
    """Set by the trainer for each step: whether diagnostics that cost something are wanted."""
    warnings: list[str]
    """What a reader of the fit's numbers should know."""

    def compare(self, model: Any, batch: Batch) -> Divergence:
        """The summed loss of a micro-batch (`collate`'s tensors) under `model`, maybe wrapped for several processes."""
        ...


def objective_for(
    phase: TrainingPhase,
    teacher: "TeacherSignal | None",
    vocabulary: int,
    *,
    student: Any = None,
    seed: int = 0,
    unigram: torch.Tensor | None = None,
    end_of_turn: int | None = None,
) -> Objective:
    """The objective of a training phase; a divergence without its teacher is an error, never a fallback.

    `student` is the model to be trained, for objectives that look inside it; `seed` is for projections and
    controls; `unigram` the log-probabilities (V,) that `control="unigram"` puts in the teacher's place;
    `end_of_turn` the id of the token whose probability under the teacher is watched. `uld` and `spans` need a
    `CrossTeacher`, which reads tokens of its own; every other divergence one that reads the student's.
    """
    phase = phase.normal()
    if phase.control == "unigram" and phase.divergence in SHARP:
        if unigram is None:
            raise ValueError("control unigram needs the counts of the phase's tokens and got none")
    elif phase.divergence != "cross_entropy" and teacher is None:
        raise ValueError(f"divergence {phase.divergence} needs a teacher and got none")
    if phase.divergence in CROSS:
        if not isinstance(teacher, CrossTeacher):
            raise ValueError(f"divergence {phase.divergence} needs a CrossTeacher, with its own rendering of the rows")
        return AcrossTokenizers(phase, teacher, vocabulary, seed)
    if isinstance(teacher, CrossTeacher):
        raise ValueError(f"divergence {phase.divergence} needs a teacher that reads the student's tokens")
    if phase.divergence in HIDDEN:
        kinds = {"features": Features, "relations": Relations}
        return kinds[phase.divergence](phase, teacher, vocabulary, student, seed)
    if phase.asks_teacher and isinstance(teacher, KeptTeacher):
        return KeptDistributions(phase, teacher, vocabulary)
    return Distributions(phase, teacher, vocabulary, seed=seed, unigram=unigram, end_of_turn=end_of_turn)


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
    """Cross-entropy or a divergence of next-token distributions at the scored positions.

    Where there are more positions than `chunk` (by default as many as `chunks.py` finds right for the device and
    the vocabulary), hidden states are kept and their logits compared a chunk at a time.
    """

    weights: torch.nn.Module | None = None
    teacher_tokens = 0

    def __init__(
        self,
        phase: TrainingPhase,
        teacher: "TeacherSignal | None",
        vocabulary: int,
        *,
        seed: int = 0,
        unigram: torch.Tensor | None = None,
        end_of_turn: int | None = None,
        chunk: int | None = None,
    ) -> None:
        self.phase, self.teacher, self.vocabulary = phase, teacher, vocabulary
        self.seed, self.unigram, self.end_of_turn = seed, unigram, end_of_turn
        self.asks_teacher = phase.divergence != "cross_entropy" and phase.control != "unigram"
        self.teacher_seconds, self.diagnoses = 0.0, False
        self.warnings: list[str] = []
        self._chunk = chunk
        self._agree: dict[str, bool] = {}

    def compare(self, model: Any, batch: Batch) -> Divergence:
        """See `Objective`."""
        input_ids, attention_mask, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]
        scored, tokens = scored_positions(labels), scored_tokens(labels)
        size = self._chunk or positions_at_once(labels.device, self.vocabulary)
        if is_sharded(model):
            self._splits("student", model)  # all processes try it in their first micro-batch, whatever its length
        teacher = self._teacher(batch, scored, len(tokens), whole=len(tokens) <= size)
        if len(tokens) <= size or not self._splits("student", model):
            logits = self._cut(logits_at(model, input_ids, attention_mask, scored))
            return self._compared(logits, teacher(slice(None)), tokens)

        def part(states: torch.Tensor, rows: slice) -> Divergence:
            return self._compared(self._cut(logits_from(model, states)), teacher(rows), tokens[rows])

        return in_chunks(states_at(model, input_ids, attention_mask, scored), size, part)

    def _teacher(self, batch: Batch, scored: torch.Tensor, count: int, whole: bool) -> Answer:
        """What the teacher, or the control in its place, says at the `count` scored positions."""
        if self.phase.divergence == "cross_entropy":
            return lambda rows: None
        if self.phase.control == "unigram":
            assert self.unigram is not None
            everywhere = self.unigram.to(scored.device).expand(count, -1)
            return lambda rows: everywhere[rows]
        teacher = self.teacher
        assert teacher is not None
        asked = time.perf_counter()
        taken: Any = slice(None)
        if self.phase.control == "shuffled":
            taken = giver(batch, count, self.seed)
        ids_and_mask = batch["input_ids"], batch["attention_mask"]
        if not whole and isinstance(teacher, LiveTeacher) and self._splits("teacher", teacher.model):
            states = teacher.states(*ids_and_mask, scored)[taken]
            answer: Answer = partial(self._from_states, teacher, states)
        else:
            logits = self._cut(teacher.logits(*ids_and_mask, scored))[taken]
            answer = logits.__getitem__
        self.teacher_seconds += time.perf_counter() - asked
        return answer

    def _from_states(self, teacher: LiveTeacher, states: torch.Tensor, rows: slice) -> torch.Tensor:
        asked = time.perf_counter()
        logits = self._cut(teacher.logits_from(states[rows]))
        self.teacher_seconds += time.perf_counter() - asked
        return logits

    def _cut(self, logits: torch.Tensor) -> torch.Tensor:
        # heads may be padded beyond the vocabulary, each by its own amount: no arm sees the padding
        return logits[:, : self.vocabulary]

    def _compared(
        self, student_logits: torch.Tensor, teacher_logits: torch.Tensor | None, tokens: torch.Tensor
    ) -> Divergence:
        found = compare(self.phase, student_logits, teacher_logits, tokens)
        if self.diagnoses and teacher_logits is not None:
            found.diagnostics.update(agreement(student_logits, teacher_logits))
            if self.end_of_turn is not None and self.phase.control == "none":
                found.diagnostics.update(end_of_turn_mass(teacher_logits, tokens, self.end_of_turn))
        return found

    def _splits(self, who: str, model: torch.nn.Module) -> bool:
        """Whether the model's logits can be made in chunks; tried once, and told where they cannot."""
        if who not in self._agree:
            self._agree[who] = agrees(model)
            if not self._agree[who]:
                self.warnings.append(
                    f"the {who}'s logits could not be made in chunks (its own forward says something else), "
                    "so those of all scored positions were held at once: the same numbers in more memory"
                )
        return self._agree[who]


class KeptDistributions(Distributions):
    """A divergence from a teacher that is known in part (`kept.py`): no teacher reads the micro-batch."""

    def __init__(
        self,
        phase: TrainingPhase,
        teacher: "TeacherSignal | KeptTeacher",
        vocabulary: int,
        *,
        chunk: int | None = None,
    ) -> None:
        """Raise SettingsError where the phase's divergence cannot be computed from the teacher's signal."""
        assert isinstance(teacher, KeptTeacher)
        check_signal(teacher.signal, phase)
        super().__init__(phase, None, vocabulary, chunk=chunk)
        self.known, self.asks_teacher = teacher, False

    def _teacher(self, batch: Batch, scored: torch.Tensor, count: int, whole: bool) -> Any:
        asked = time.perf_counter()
        kept = self.known.kept(batch).to(scored.device)
        self.teacher_seconds += time.perf_counter() - asked
        return kept.__getitem__

    def _compared(self, student_logits: torch.Tensor, kept: Any, tokens: torch.Tensor) -> Divergence:
        return compare_kept(self.phase, self.known.signal.tail, student_logits, kept, tokens)
