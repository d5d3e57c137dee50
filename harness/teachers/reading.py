"""Reading: how a teacher reads a student's rows, and what its distributions say about the student's tokens.

Both must share a vocabulary (`models/vocabulary.py`). Three things may still differ, and each is mended here alone:

    tokens     one side has added tokens, or a padded output layer: distributions are compared over the ids that mean
               the same, renormalised; the teacher's mass outside them is a diagnostic
    the end    each template ends a turn with a token of its own: the two tokens change places, in the ids that the
               teacher reads and in the distributions that it gives
    template   with `rendering="own"` the teacher reads the same conversation in its own template and system prompt.
               Answers are tokenised apart from their context, so every answer keeps the student's tokens and its
               scored positions stay one to one; with `rendering="student"` it reads the student's rendering

    reading = Reading(student_tokenizer, teacher_tokenizer, teachers_rendering)
    batch = collate(reading.rows(row), pad_id=0)      # scored positions in the order of the student's row
    reading.shared.of_teacher(logits_at(teacher, ...))    # (N, V): column i is about the student's token i
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from harness.config.checks import SettingsError, refuse
from harness.data.chat import Rendered, end_of_turn_id, render, render_rows
from harness.data.sequences import TURN, Row, Rows, collate, conversation_of
from harness.models.loading import PROBE, REASONED, tokenizer_hash, vocabulary_of
from harness.models.logits import at_least_fp32, ruled_out
from harness.teachers.sparse_logits import SparseLogits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBES = (
    PROBE,
    [{"role": "system", "content": "Be brief."}, *PROBE],
    [*PROBE, {"role": "user", "content": "Say no."}, {"role": "assistant", "content": "no"}],
    [*REASONED, *PROBE],
)
"""Conversations by which two chat templates are compared: alone, with a system turn, two answers, and reasoning."""


class SharedVocabulary:
    """The tokens that mean the same to a student and a teacher; columns are the student's token ids.

    Shapes: N positions, V tokens of the student's tokenizer, W columns of the teacher's output layer.
    """

    def __init__(self, student: "PreTrainedTokenizerBase", teacher: "PreTrainedTokenizerBase") -> None:
        """Raise SettingsError where the tokenizers share no vocabulary: equal ids would mean different tokens."""
        one, other = vocabulary_of(student), vocabulary_of(teacher)
        difference = one.difference(other)
        if difference:
            raise SettingsError(
                f"teacher {name_of(teacher)} cannot teach student {name_of(student)} token by token: {difference}; "
                "choose a teacher and a student with the same tokenizer, or method=cross_kd."
            )
        self.size = len(student)
        self.ends = end_of_turn_id(student), end_of_turn_id(teacher)
        """The end-of-turn tokens of student and teacher, each in its own ids."""
        self.missing = one.missing_from(other)
        """The student's added tokens that the teacher does not have, text by id."""
        self.foreign = other.missing_from(one)
        """The teacher's added tokens that the student does not have, text by id."""
        mine, theirs = self.ends
        teachers_size = len(teacher)
        columns = np.arange(self.size)  # (V,), the teacher's id of each of the student's
        outside = (columns >= teachers_size) | np.isin(columns, list(self.missing))  # (V,)
        if mine != theirs:
            # the student's other end of turn stands for the teacher's, if both have it
            if theirs < self.size and theirs not in self.foreign:
                outside[theirs] |= mine in self.missing or mine >= teachers_size
                columns[theirs] = mine
            columns[mine], outside[mine] = theirs, False
            self.missing = {number: text for number, text in self.missing.items() if number != mine}
        columns[outside] = 0  # any column that exists
        self.outside = torch.from_numpy(outside) if outside.any() else None
        """Which of the student's tokens are not compared, bool (V,); None where all are."""
        same = np.array_equal(columns, np.arange(self.size))
        self.columns = None if same else torch.from_numpy(columns)
        """The teacher's column of each of the student's tokens, int64 (V,); None where they are the first V."""
        back = np.full(max(teachers_size, self.size), -1)
        back[columns[~outside]] = np.flatnonzero(~outside)
        self.students_ids = torch.from_numpy(back)
        """The student's id of each of the teacher's tokens, int64; -1 where it has none."""

    @property
    def never_generated(self) -> list[int]:
        """The student's tokens that its own text may not have where this teacher scores it, by id."""
        return [] if self.outside is None else self.outside.nonzero()[:, 0].tolist()

    def exchanged(self, ids: np.ndarray) -> np.ndarray:
        """Ids with the two end-of-turn tokens in each other's place: from the student's to the teacher's, or back."""
        mine, theirs = self.ends
        if mine == theirs:
            return ids
        return np.where(ids == mine, theirs, np.where(ids == theirs, mine, ids)).astype(ids.dtype)

    def of_teacher(self, logits: torch.Tensor) -> torch.Tensor:
        """The teacher's logits (N, V) of the student's tokens, from those of its whole output layer (N, W)."""
        logits = logits[:, : self.size] if self.columns is None else logits[:, self.columns.to(logits.device)]
        return ruled_out(logits, self.outside)

    def mass_outside(self, logits: torch.Tensor) -> torch.Tensor | None:
        """The teacher's probability (N,) outside the compared tokens, padding of its output layer (N, W) included.

        None where every column is compared.
        """
        if self.columns is None and self.outside is None and logits.shape[1] <= self.size:
            return None
        whole, compared = at_least_fp32(logits), at_least_fp32(self.of_teacher(logits))  # (N, W), (N, V)
        return -torch.expm1((compared.logsumexp(-1) - whole.logsumexp(-1)).clamp(max=0.0))

    def of_sparse(self, sparse: SparseLogits) -> SparseLogits:
        """A teacher's top-k tokens in the student's ids, renormalised without those that the student does not have."""
        assert sparse.kind == "top_k", "draws are made from distributions over the student's tokens"
        ids = self.students_ids[sparse.ids.clamp(min=0)].masked_fill(sparse.ids < 0, -1)  # (N, K)
        gone = (ids < 0) & (sparse.ids >= 0)
        if not gone.any():
            return replace(sparse, ids=ids)
        mass = sparse.logprobs.exp().masked_fill(~gone, 0.0).sum(-1)  # (N,)
        left = torch.log1p(-mass.double().clamp(max=1.0)).to(mass.dtype)  # (N,)
        logprobs = (sparse.logprobs - left[:, None]).masked_fill(gone, -torch.inf)
        # unused places last, so that a column which no position uses falls away
        order = (ids < 0).to(torch.int8).argsort(dim=1, stable=True)[:, : int((ids >= 0).sum(1).max())]  # (N, K')
        ids, logprobs = ids.gather(1, order), logprobs.gather(1, order)
        return SparseLogits("top_k", ids, logprobs, sparse.tail - left, outside=mass)


class Reading:
    """The rows that a teacher reads in place of a student's."""

    def __init__(
        self,
        student: "PreTrainedTokenizerBase",
        teacher: "PreTrainedTokenizerBase",
        own_rows: Sequence[Rows] = (),
        rendering: str = "own",
    ) -> None:
        """`own_rows`: rows with their numbers as the teacher's tokenizer and template render them.

        They are read only where the templates differ and `rendering` is `own`. Raises SettingsError where the
        tokenizers share no vocabulary, or the templates differ and there are no such rows.
        """
        self.shared = SharedVocabulary(student, teacher)
        self._marks = _marks(teacher)
        self.alike = render_alike(student, teacher)
        """Whether both templates render a conversation as the same ids."""
        self.own = rendering == "own" and not self.alike
        """Whether the teacher reads its own rendering."""
        self._rows = list(own_rows) if self.own else []
        if self.own and not self._rows:
            raise SettingsError(
                f"teacher {name_of(teacher)} cannot teach student {name_of(student)} token by token: their chat "
                "templates differ and the rows were not rendered for the teacher; set teacher.rendering=student, or "
                "student.chat_template and teacher.chat_template to the same template, e.g. tulu."
            )
        self._before = self._before_answers(student, teacher) if self.own else np.array([], dtype=np.int32)
        self._numbers = [rows.numbers for rows in self._rows]
        self._order = [np.argsort(numbers, kind="stable") for numbers in self._numbers]

    @property
    def as_it_is(self) -> bool:
        """Whether the teacher reads exactly the student's ids."""
        return not self.own and self.shared.ends[0] == self.shared.ends[1]

    def rows(self, row: Row) -> list[Row]:
        """What the teacher reads for a student's row: scored tokens one to one, in order.

        More than one sequence where the teacher's template renders each turn of a conversation by itself. Raises
        SettingsError where the teacher's rendering lacks the row or one of its turns.
        """
        if self.as_it_is:
            return [row]
        answers = self.shared.exchanged(row.input_ids)
        if not self.own:
            return [Row(answers, row.starts, row.ends, row.number, row.turn, row.source)]
        pieces: list[tuple[list[np.ndarray], list[int], list[int]]] = []
        before: tuple[int, int] | None = None
        number = row.number if row.source is None else row.source
        conversation, first = (conversation_of(number), number // TURN) if number >= 0 else (number, 0)
        for turn, (start, end) in enumerate(zip(row.starts, row.ends, strict=True), first + row.turn):
            place, theirs, span = self._rendering(conversation, turn)
            if before == (place, span - 1):
                context = theirs.input_ids[theirs.ends[span - 1] : theirs.starts[span]]
            else:
                # a turn that the teacher reads by itself, with the history as its template renders it there
                ids, starts, ends = list[np.ndarray](), list[int](), list[int]()
                pieces.append((ids, starts, ends))
                context = theirs.input_ids[: theirs.starts[span]]
            before = place, span
            answer = answers[start:end]
            begun = np.array_equal(answer[: len(self._before)], self._before)
            context = context if begun else np.concatenate([context, self._before])
            ids += [context, answer]
            starts.append((ends[-1] if ends else 0) + len(context))
            ends.append(starts[-1] + end - start)
        return [
            Row(np.concatenate(ids), starts, ends, row.number, row.turn, row.source) for ids, starts, ends in pieces
        ]

    def tensors(self, rows: Iterable[Row], pad_id: int) -> dict[str, torch.Tensor]:
        """`collate`'s tensors of what the teacher reads for these rows, named `teacher_...`; none where it is the same.

        Raises as `rows`.
        """
        if self.as_it_is:
            return {}
        read = collate([one for row in rows for one in self.rows(row)], pad_id)
        return {f"teacher_{name}": read[name] for name in ("input_ids", "attention_mask", "labels")}

    def check(self, rows: Iterable[Row]) -> None:
        """Raise SettingsError for the first row that has a token only one side knows, or that cannot be read."""
        missing, foreign = np.array(list(self.shared.missing)), np.array(list(self.shared.foreign))
        for row in rows:
            if len(missing):
                # of a row in the teacher's own rendering only the answers are read
                spans = zip(row.starts, row.ends, strict=True)
                read = np.concatenate([row.input_ids[a:b] for a, b in spans]) if self.own else row.input_ids
                _refuse_token(row, read[np.isin(read, missing)], self.shared.missing, "student", "teacher")
            if self.own:
                for one in self.rows(row):
                    odd = one.input_ids[np.isin(one.input_ids, foreign) & ~np.isin(one.input_ids, self._marks)]
                    _refuse_token(row, odd, self.shared.foreign, "teacher", "student")

    def _before_answers(self, student: "PreTrainedTokenizerBase", teacher: "PreTrainedTokenizerBase") -> np.ndarray:
        """Ids that the teacher's template writes between its generation prompt and an answer without reasoning.

        Qwen 3 writes an empty block of reasoning there: a teacher that reads none expects its own reasoning to begin.
        """
        mine, theirs = (render(one, PROBE, 1000) for one in (student, teacher))
        answer = self.shared.exchanged(np.array(mine.input_ids[mine.starts[0] : mine.ends[0]], dtype=np.int32))
        own = np.array(theirs.input_ids[theirs.starts[0] : theirs.ends[0]], dtype=np.int32)
        ends_alike = len(own) > len(answer) and np.array_equal(own[len(own) - len(answer) :], answer)
        return own[: len(own) - len(answer)] if ends_alike else own[:0]

    def _rendering(self, conversation: int, turn: int) -> tuple[int, Row, int]:
        """The teacher's row that has this turn of a conversation: its place, the row, and which span the turn is."""
        for rows, numbers, order in zip(self._rows, self._numbers, self._order, strict=True):
            # the whole conversation in one row, or each turn in a row of its own
            for number, span in ((conversation, turn), (conversation + turn * TURN, 0)):
                at = int(np.searchsorted(numbers, number, sorter=order))
                if at < len(order) and numbers[order[at]] == number:
                    found = rows[int(order[at])]
                    if span < len(found.starts):
                        return at, found, span
        raise refuse(
            "corpus.max_length",
            f"row {conversation}",
            f"assistant turn {turn + 1} is not in the teacher's own rendering of it, which is cut before it",
            "raise corpus.max_length, or set teacher.rendering=student",
        )


def render_alike(one: "PreTrainedTokenizerBase", other: "PreTrainedTokenizerBase") -> bool:
    """Whether two tokenizers and their templates render the probes as the same ids; a refusal is a rendering too."""
    names = ("chat_template", "bos_token", "eos_token")
    same = all(getattr(one, name) == getattr(other, name) for name in names)
    if same and tokenizer_hash(one) == tokenizer_hash(other):
        return True
    return all(_rendered(one, probe) == _rendered(other, probe) for probe in PROBES)


def name_of(tokenizer: "PreTrainedTokenizerBase") -> str:
    """What a refusal calls a tokenizer: the folder or hub id it came from."""
    return repr(str(tokenizer.name_or_path or "in memory"))


def _rendered(tokenizer: "PreTrainedTokenizerBase", probe: list[dict[str, str]]) -> list[Rendered] | None:
    try:
        return render_rows(tokenizer, [probe], 1000)[0]
    except Exception:  # a template may reject a system turn, and a tokenizer of words has not every word
        return None


def _marks(tokenizer: "PreTrainedTokenizerBase") -> np.ndarray:
    """Ids that the template itself writes, those of the probes' plain words among them."""
    ids = {token for probe in PROBES for one in _rendered(tokenizer, probe) or [] for token in one.input_ids}
    return np.array(sorted(ids), dtype=np.int64)


def _refuse_token(row: Row, found: np.ndarray, texts: dict[int, str], side: str, other: str) -> None:
    if len(found):
        text = texts[int(found[0])]
        raise refuse(
            "corpus",
            f"row {row.number}",
            f"it has the token {text}, which the {side} has and the {other} has not",
            f"leave the row out, or use method=seq_kd, which trains on text; {text} may also be quoted text",
        )
