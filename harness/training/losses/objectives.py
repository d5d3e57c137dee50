"""Objectives: what a training phase minimises on one micro-batch, from the model's forward to a summed loss.

`divergences.py` compares two distributions; an objective makes them: it runs the student, queries the teacher
signal, and cuts both to the scored positions. An objective is one class with `compare`; one with weights of its
own (a projection) names them in `weights`; `trained_together` makes them a layer of the student for the length
of a fit, so they are no part of the exported model. Objectives over hidden states are in `hidden.py`, across
tokenizers in `cross_tokenizer.py`.

    objective = objective_for(phase, teacher, vocabulary=len(tokenizer))
    objective.compare(model, batch).sum.backward()
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch

from harness.config.recipe import CROSS, HIDDEN, TOKEN_DIVERGENCES, TrainingPhase
from harness.config.teacher_signal import POLICY_GRADIENT, check_signal
from harness.models.fsdp import is_fsdp_sharded
from harness.models.logits import (
    agrees,
    logits_at,
    logits_from,
    ruled_out,
    scored_positions,
    scored_tokens,
    states_at,
)
from harness.teachers.served_signal import ServedSignal
from harness.teachers.several import MEMBER, SeveralTeachers
from harness.teachers.signals import DenseSignal, LiveTeacher, SparseSignal
from harness.training.losses.agreement import agreement, end_of_turn_mass
from harness.training.losses.chunked import in_chunks, positions_at_once
from harness.training.losses.controls import permutation
from harness.training.losses.cross_tokenizer import AcrossTokenizers, CrossTeacher
from harness.training.losses.divergences import Divergence, compare, next_token_logprobs, policy_gradient
from harness.training.losses.hidden import Features, Relations
from harness.training.losses.sparse import compare_sparse

TeacherSignal = DenseSignal | SparseSignal | CrossTeacher | SeveralTeachers
"""What a student is trained on: distributions at its own tokens, whole or in part, or at the teacher's tokens."""
Batch = dict[str, torch.Tensor]
TeacherAt = Callable[[slice], tuple[Any, torch.Tensor | None]]
"""What a teacher gives at a slice of the scored positions: logits (n, V), sparse logits, or None without a teacher;
and the probability (n,) that it gives tokens the student does not have, None where it is not known or there is none."""

BESIDE = "objective_weights"  # the name of an objective's weights in the student while both are trained


class Objective(Protocol):
    """What the trainer needs of an objective."""

    weights: torch.nn.Module | None
    """Weights trained beside the student's, or None."""
    queries_teacher: bool
    """Whether a teacher in memory runs on the student's micro-batch, which its FLOPs are counted by."""
    teacher_seconds: float
    """Seconds spent so far in the teacher's forward passes, or in reading a cache of them."""
    teacher_tokens: int
    """Tokens the teacher processed so far that are not the student's micro-batches (a rendering of its own)."""
    diagnoses: bool
    """Set by the trainer for each step: whether diagnostics that cost time are wanted."""
    warnings: list[str]
    """What a reader of the training report should know."""

    def compare(self, model: Any, batch: Batch) -> Divergence:
        """The summed loss of a micro-batch (`collate`'s tensors) under `model`, maybe wrapped for several processes."""
        ...


def objective_for(
    phase: TrainingPhase,
    teacher: TeacherSignal | None,
    vocabulary: int,
    *,
    student: Any = None,
    seed: int = 0,
    unigram: torch.Tensor | None = None,
    end_of_turn: int | None = None,
) -> Objective:
    """The objective of a training phase, by its divergence and by what the teacher gives.

    `student` is the model to be trained, for objectives over its hidden states; `seed` is for projections and
    controls; `unigram` the log-probabilities (V,) that `control="unigram"` puts in the teacher's place;
    `end_of_turn` the id of the token whose probability under the teacher is a diagnostic. Raises ValueError where
    the divergence has no teacher or one of another kind, SettingsError where it cannot be computed from the signal.
    """
    phase = phase.normal()
    if phase.control == "unigram" and phase.divergence in TOKEN_DIVERGENCES:
        if unigram is None:
            raise ValueError("control unigram needs the counts of the phase's tokens and got none")
    elif phase.divergence != "cross_entropy" and teacher is None:
        raise ValueError(f"divergence {phase.divergence} needs a teacher and got none")
    if phase.divergence in CROSS:
        if teacher is None or teacher.gives != "own_logits":
            raise ValueError(f"divergence {phase.divergence} needs a CrossTeacher, with its own rendering of the rows")
        return AcrossTokenizers(phase, teacher, vocabulary, seed)
    if teacher is not None and teacher.gives == "own_logits":
        raise ValueError(f"divergence {phase.divergence} needs a teacher that reads the student's tokens")
    if isinstance(teacher, SeveralTeachers) and phase.queries_teacher and phase.divergence not in HIDDEN:
        return SeveralDistributions(phase, teacher, vocabulary, seed=seed, end_of_turn=end_of_turn)
    if phase.divergence in HIDDEN:
        kinds = {"features": Features, "relations": Relations}  # both refuse a teacher that is no model in memory
        return kinds[phase.divergence](phase, teacher, vocabulary, student, seed)
    if teacher is not None and teacher.gives == "sparse_logits":
        if not phase.queries_teacher:  # cross-entropy, or a control that stands in the teacher's place
            return Distributions(phase, None, vocabulary, seed=seed, unigram=unigram, end_of_turn=end_of_turn)
        return SparseDistributions(phase, teacher, vocabulary)
    assert not isinstance(teacher, SeveralTeachers), "several teachers and a phase that queries none"
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
    """Cross-entropy, or a divergence from whole teacher distributions, at the N scored positions of a micro-batch.

    Where N is more than `chunk` (by default as many as `chunked.py` finds right for the device and the vocabulary),
    hidden states are stored and their logits compared a chunk at a time.
    """

    weights: torch.nn.Module | None = None
    teacher_tokens = 0

    def __init__(
        self,
        phase: TrainingPhase,
        teacher: DenseSignal | None,
        vocabulary: int,
        *,
        seed: int = 0,
        unigram: torch.Tensor | None = None,
        end_of_turn: int | None = None,
        chunk: int | None = None,
    ) -> None:
        """See `objective_for`; `vocabulary` is V, the size of the tokenizer's vocabulary."""
        self.phase, self.teacher, self.vocabulary = phase, teacher, vocabulary
        self.seed, self.unigram, self.end_of_turn = seed, unigram, end_of_turn
        self.queries_teacher = phase.divergence != "cross_entropy" and phase.control != "unigram"
        self.teacher_seconds, self.diagnoses = 0.0, False
        self.warnings: list[str] = []
        self._shared = None if teacher is None else teacher.reading.shared
        self._outside = None if self._shared is None else self._shared.outside  # (V,)
        self._chunk = chunk
        self._splittable: dict[str, bool] = {}

    def compare(self, model: Any, batch: Batch) -> Divergence:
        """See `Objective`."""
        input_ids, attention_mask, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]  # (B, T) each
        scored, tokens = scored_positions(labels), scored_tokens(labels)  # (B, T), (N,)
        size = self._chunk or positions_at_once(labels.device, self.vocabulary)
        if is_fsdp_sharded(model):
            # the trial gathers weights, which takes all processes: each makes it in its first micro-batch
            self._splits("student", model)
        teacher = self._teacher(batch, scored, len(tokens), whole=len(tokens) <= size)
        if len(tokens) <= size or not self._splits("student", model):
            logits = self._cut(logits_at(model, input_ids, attention_mask, scored))  # (N, V)
            return self._compared(logits, *teacher(slice(None)), tokens)

        def part(states: torch.Tensor, rows: slice) -> Divergence:
            logits = self._cut(logits_from(model, states))  # (n, V)
            return self._compared(logits, *teacher(rows), tokens[rows])

        return in_chunks(states_at(model, input_ids, attention_mask, scored), size, part)

    def _teacher(self, batch: Batch, scored: torch.Tensor, count: int, whole: bool) -> TeacherAt:
        """Logits of the teacher, or of the control in its place, at the `count` scored positions."""
        if self.phase.divergence == "cross_entropy":
            return lambda rows: (None, None)
        if self.phase.control == "unigram":
            assert self.unigram is not None
            everywhere = self.unigram.to(scored.device).expand(count, -1)  # (N, V)
            return lambda rows: (everywhere[rows], None)
        teacher = self.teacher
        assert teacher is not None
        started = time.perf_counter()
        order: Any = slice(None)
        if self.phase.control == "shuffled":
            order = permutation(batch, count, self.seed)  # (N,)
        ids_and_mask = batch["input_ids"], batch["attention_mask"]
        if "teacher_input_ids" in batch:  # the same answers in the teacher's own rendering
            ids_and_mask = batch["teacher_input_ids"], batch["teacher_attention_mask"]
            scored = scored_positions(batch["teacher_labels"])
            assert int(scored.sum()) == count, "the teacher's scored positions are not the student's"
        at: TeacherAt
        # only a model in memory can give hidden states first and the logits of a chunk later
        if not whole and isinstance(teacher, LiveTeacher) and self._splits("teacher", teacher.model):
            states = teacher.states(*ids_and_mask, scored)[order]  # (N, d)
            at = partial(self._from_states, teacher, states)
        else:
            logits, outside = self._of_teacher(teacher.logits(*ids_and_mask, scored)[order])  # (N, V), (N,)
            at = lambda rows: (logits[rows], None if outside is None else outside[rows])  # noqa: E731
        self.teacher_seconds += time.perf_counter() - started
        return at

    def _from_states(self, teacher: LiveTeacher, states: torch.Tensor, rows: slice) -> tuple[Any, torch.Tensor | None]:
        started = time.perf_counter()
        found = self._of_teacher(teacher.logits_from(states[rows]))  # (n, V), (n,)
        self.teacher_seconds += time.perf_counter() - started
        return found

    def _of_teacher(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The teacher's logits (n, V) of the student's tokens, and its mass (n,) outside them where it is diagnosed."""
        assert self._shared is not None
        return self._shared.of_teacher(logits), self._shared.mass_outside(logits) if self.diagnoses else None

    def _cut(self, logits: torch.Tensor) -> torch.Tensor:
        # heads may be padded beyond the vocabulary, each by its own amount: no arm sees the padding
        return logits[:, : self.vocabulary]

    def _compared(
        self, student_logits: torch.Tensor, teacher_logits: Any, outside: torch.Tensor | None, tokens: torch.Tensor
    ) -> Divergence:
        """The loss at n scored positions, from logits (n, V), the teacher's mass (n,) outside them, and tokens (n,)."""
        if self.phase.estimator == POLICY_GRADIENT:
            _, teacher_logprobs = next_token_logprobs(student_logits, teacher_logits)  # (n, V)
            own = teacher_logprobs.gather(1, tokens[:, None])[:, 0]  # (n,)
            found = policy_gradient(ruled_out(student_logits, self._outside), own, tokens)
        else:
            found = compare(self.phase, student_logits, teacher_logits, tokens, self._outside)
        if outside is not None:
            found.diagnostics["teacher_mass_outside"] = outside.sum()
        if self.diagnoses and teacher_logits is not None:
            found.diagnostics.update(agreement(ruled_out(student_logits, self._outside), teacher_logits))
            if self.end_of_turn is not None and self.phase.control == "none":
                found.diagnostics.update(end_of_turn_mass(teacher_logits, tokens, self.end_of_turn))
        return found

    def _splits(self, side: str, model: torch.nn.Module) -> bool:
        """Whether the model's logits can be made in chunks; tried once, with a warning where they cannot."""
        if side not in self._splittable:
            self._splittable[side] = agrees(model)
            if not self._splittable[side]:
                self.warnings.append(
                    f"the {side}'s logits could not be made in chunks (its own forward gives other numbers), "
                    "so those of all scored positions were held at once: the same numbers in more memory"
                )
        return self._splittable[side]


class SeveralDistributions(Distributions):
    """A divergence from several teachers in memory: at each position its own teacher's distribution, or their mean.

    `divergence_temperature` is that of the student and of what it is compared with: of the mean as a whole.
    """

    def __init__(
        self,
        phase: TrainingPhase,
        teachers: SeveralTeachers,
        vocabulary: int,
        *,
        seed: int = 0,
        end_of_turn: int | None = None,
        chunk: int | None = None,
    ) -> None:
        """See `objective_for`."""
        super().__init__(phase, None, vocabulary, seed=seed, end_of_turn=end_of_turn, chunk=chunk)
        self.teachers = teachers

    def _teacher(self, batch: Batch, scored: torch.Tensor, count: int, whole: bool) -> TeacherAt:
        started = time.perf_counter()
        gives = [self._member(batch, place, whole) for place in range(len(self.teachers.members))]
        order = torch.arange(count, device=scored.device)  # (N,)
        if self.phase.control == "shuffled":
            order = permutation(batch, count, self.seed)  # (N,)
        self.teacher_seconds += time.perf_counter() - started
        if not self.teachers.by_row:
            return partial(self._mean_at, gives, order)
        which = batch[MEMBER]  # (N,)
        assert len(which) == count, "the teachers' scored positions are not the student's"
        at = torch.empty_like(which)  # (N,) the position's place among those of its member
        for place in range(len(gives)):
            mine = which == place  # (N,)
            at[mine] = torch.arange(int(mine.sum()), device=which.device)
        return partial(self._own_at, gives, order, which, at)

    def _member(self, batch: Batch, place: int, whole: bool) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """Logits (n, W) of one member at some of its scored positions (n,); None where it reads no row of the batch."""
        names = (f"teacher{place}_{name}" for name in ("input_ids", "attention_mask", "labels"))
        ids, mask, labels = map(batch.get, names)  # (B, T) each
        if ids is None or mask is None or labels is None:
            return None
        teacher, scored = self.teachers.members[place], scored_positions(labels)  # (B, T)
        if not whole and self._splits(f"teacher {self.teachers.names[place]}", teacher.model):
            states = teacher.states(ids, mask, scored)  # (N_m, d)
            return lambda at: teacher.logits_from(states[at])
        logits = teacher.logits(ids, mask, scored)  # (N_m, W)
        return lambda at: logits[at]

    def _own_at(
        self, gives: list[Any], order: torch.Tensor, which: torch.Tensor, at: torch.Tensor, rows: slice
    ) -> tuple[Any, torch.Tensor | None]:
        started = time.perf_counter()
        asked = order[rows]  # (n,)
        members, places = which[asked], at[asked]  # (n,) each
        logits = [None if give is None else give(places[members == place]) for place, give in enumerate(gives)]
        found, mass, outside = self.teachers.own(logits, members, self.diagnoses)
        self.teacher_seconds += time.perf_counter() - started
        return (found, outside), mass

    def _mean_at(self, gives: list[Any], order: torch.Tensor, rows: slice) -> tuple[Any, torch.Tensor | None]:
        started = time.perf_counter()
        found, mass, outside = self.teachers.mean((give(order[rows]) for give in gives), self.diagnoses)
        self.teacher_seconds += time.perf_counter() - started
        return (found, outside), mass

    def _compared(
        self, student_logits: torch.Tensor, teacher_logits: Any, outside: torch.Tensor | None, tokens: torch.Tensor
    ) -> Divergence:
        # which tokens are compared may differ between positions, so it comes with their logits
        logits, self._outside = teacher_logits
        return super()._compared(student_logits, logits, outside, tokens)


class SparseDistributions(Distributions):
    """A divergence from a teacher's sparse logits (`sparse.py`): no teacher runs on the micro-batch."""

    def __init__(
        self,
        phase: TrainingPhase,
        teacher: SparseSignal,
        vocabulary: int,
        *,
        chunk: int | None = None,
    ) -> None:
        """Raises SettingsError where the phase's divergence cannot be computed from the teacher's signal."""
        served = isinstance(teacher, ServedSignal)
        check_signal(replace(teacher.signal, kind="live") if served else teacher.signal, phase, served)
        super().__init__(phase, None, vocabulary, chunk=chunk)
        # a server reads the text of each step; a cache was made of it before
        self.signal, self.queries_teacher = teacher, served
        self._outside = teacher.reading.shared.outside if isinstance(teacher, ServedSignal) else None

    def _teacher(self, batch: Batch, scored: torch.Tensor, count: int, whole: bool) -> TeacherAt:
        started = time.perf_counter()
        sparse = self.signal.sparse_logits(batch).to(scored.device)  # N positions, K tokens each
        self.teacher_seconds += time.perf_counter() - started
        return lambda rows: (sparse[rows], None if sparse.outside is None else sparse.outside[rows])

    def _compared(
        self, student_logits: torch.Tensor, teacher_logits: Any, outside: torch.Tensor | None, tokens: torch.Tensor
    ) -> Divergence:
        if self.phase.estimator == POLICY_GRADIENT:
            found = policy_gradient(ruled_out(student_logits, self._outside), teacher_logits.own, tokens)
        else:
            found = compare_sparse(
                self.phase, self.signal.signal.tail, student_logits, teacher_logits, tokens, self._outside
            )
        if outside is not None:
            found.diagnostics["teacher_mass_outside"] = outside.sum()
        return found
