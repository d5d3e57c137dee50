"""Distillation across tokenizers: losses between two models that tokenise one text differently, and the objective.

`objectives.py` compares both models at the same positions over one vocabulary. Here the teacher scores its own
rendering of the row, and `alignment.py` aligns its tokens with the student's, in chunks. P is the teacher, Q the
student.

    uld      sum over chunks  sum_i |sort(P)_i - sort(Q)_i|, both at the chunk's first token, the shorter
             vocabulary padded with zeros                    Boizard et al. 2024, arXiv 2402.12030, lambda 1.5
    spans    tau x sum over chunks  KL(Bernoulli(P(c)^(1/tau)) || Bernoulli(Q(c)^(1/tau))), P(c) the product
             over a chunk's tokens                           ALM, Minixhofer et al. 2025, arXiv 2503.20083

ULD's authors pair the k-th tokens of both sides and cut the longer; the starts of chunks are the positions at
which both sides have processed the same text. Of ALM this is the objective over all chunks with f = KL: without its
debiasing (chunks merged until the teacher finds a word border likelier than a threshold) and without hidden
states. The factor tau is ours, as T^2 is Hinton's: without it the loss shrinks as 1/tau.

A phase minimises cross_tokenizer_weight x (one of these) + cross_entropy_weight x cross-entropy, all sums over
chunks or tokens that the trainer divides by the student's scored tokens.
"""

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.nn import functional

from harness.config.checks import refuse
from harness.config.recipe import TrainingPhase
from harness.data.sequences import IGNORED, TURN, Row, Rows, collate, conversation_of, draw_seed
from harness.models.loading import count_parameters
from harness.models.logits import at_least_fp32, logits_at, scored_positions, scored_tokens
from harness.training.losses.alignment import Coverage, align, coverage, num_scored, spelling
from harness.training.losses.divergences import Divergence

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CERTAIN = 1e-6
"""Nats: every chunk's log-likelihood is lowered by it, so that 1 - p has a logarithm where p rounds to 1."""


def uld(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> Divergence:
    """L1 distance of sorted probabilities at C aligned positions: (C, V student), (C, V teacher).

    The Wasserstein distance under a cost that is the same between any two tokens (ULD, section 3). It does not
    depend on which token is probable, only on how probability is spread.
    """
    shared = min(student_logits.shape[1], teacher_logits.shape[1])
    (student, student_rest), (teacher, teacher_rest) = (
        _largest(torch.softmax(at_least_fp32(logits), dim=-1), shared)
        for logits in (student_logits, teacher_logits.detach())
    )
    # beyond the shorter vocabulary one side is 0 and the other is what is left of it, which needs no order
    return Divergence((student - teacher).abs().sum() + (student_rest + teacher_rest).sum(), len(student))


def spans(student_logprobs: torch.Tensor, teacher_logprobs: torch.Tensor, temperature: float = 1.0) -> Divergence:
    """Binary KL(teacher || student) of C chunks' log-likelihoods, both (C,), at ALM's temperature tau, times tau.

    A higher temperature gives unlikely (long) chunks more weight; at 1 a chunk the teacher finds unlikely
    hardly counts.
    """
    assert temperature > 0
    # fp64, in which CERTAIN is not rounded away beside the log-likelihood of a long chunk
    student, teacher = (
        (logprobs.double() - CERTAIN) / temperature for logprobs in (student_logprobs, teacher_logprobs.detach())
    )
    # the two events of each Bernoulli distribution, (C,) each: the chunk, and anything else
    yes = teacher.exp() * (teacher - student)
    no = -torch.expm1(teacher) * (_log_complement(teacher) - _log_complement(student))
    return Divergence((temperature * (yes + no)).sum().to(at_least_fp32(student_logprobs).dtype), len(student))


def token_logprobs(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probability (N,) of each token (N,) under logits (N, V)."""
    return -functional.cross_entropy(at_least_fp32(logits), tokens, reduction="none")


class CrossTeacher:
    """A model in memory with a tokenizer of its own, and its rendering of the student's rows."""

    gives: Literal["own_logits"] = "own_logits"
    """Tells it from signals that score the student's tokens (`teachers/signals.py`)."""

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        student_tokenizer: "PreTrainedTokenizerBase",
        rows: Rows,
        device: torch.device | str = "cpu",
    ) -> None:
        """`rows` are the mixture's rows as this teacher's tokenizer and template render them, found by number.

        Raises ValueError where a row has no number, or two have the same.
        """
        self.model = model.to(device).eval().requires_grad_(False)  # type: ignore[arg-type]
        self.parameters = count_parameters(model)
        self.vocabulary = len(tokenizer)
        self.spellings = spelling(student_tokenizer), spelling(tokenizer)
        self.rows = rows
        self.numbers = [row.number for row in rows]
        self.places = {number: place for place, number in enumerate(self.numbers)}
        if min(self.numbers, default=0) < 0 or len(self.places) < len(self.numbers):
            raise ValueError("the teacher's rows need numbers of their own to be found by")

    def logits(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
        """Logits (N, V teacher) of the teacher's own ids at the N True positions of `scored`, without gradient."""
        self.model.eval()  # a caller may have put a shared module back into train mode
        with torch.no_grad():
            return logits_at(self.model, input_ids, attention_mask, scored)[:, : self.vocabulary]

    def rendering(self, number: int) -> Row | None:
        """The row of that number as the teacher's tokenizer renders it; None where it is not among `rows`.

        Where the student has a row for each turn and the teacher one for the conversation, it is that up to the turn.
        """
        place, turn = self.place(number), number // TURN
        if place is None or number in self.places:
            return None if place is None else self.rows[place]
        row = self.rows[place]
        if turn >= len(row.starts):
            return None
        end = row.ends[turn]
        return Row(row.input_ids[:end], [row.starts[turn]], [end], number)

    def place(self, number: int) -> int | None:
        """The place among `rows` of the row of that number, or of the conversation that it is a turn of."""
        return self.places.get(number, self.places.get(conversation_of(number)))

    def coverage(self, student_rows: Iterable[Row]) -> Coverage:
        """How much of the student's rows is aligned with the teacher's tokens."""
        return coverage(((row, self.rendering(row.number)) for row in student_rows), self.spellings)


class AcrossTokenizers:
    """`uld` or `spans` from a teacher with a tokenizer of its own, beside cross-entropy, on gold text."""

    weights: torch.nn.Module | None = None
    queries_teacher = False  # it never runs on the student's tokens; the tokens of its own are counted here

    def __init__(self, phase: TrainingPhase, teacher: CrossTeacher, vocabulary: int, seed: int = 0) -> None:
        """Raises SettingsError for sequences that are not gold, and for a control that has no meaning here.

        With `phase.control == "shuffled"` the teacher is permuted: a seeded cycle over its rows gives each row the
        distributions of another, scored token by scored token (repeated where the row is longer). No row keeps its
        own, and which row it gets does not depend on its batch.
        """
        if phase.sequences != "gold":
            raise refuse(
                "sequences",
                phase.sequences,
                f"{phase.divergence} compares gold text, which both tokenizers have rendered before",
                "set sequences=gold",
            )
        if phase.control not in ("none", "shuffled"):
            raise refuse("control", phase.control, f"{phase.divergence} knows the controls none and shuffled")
        self.phase, self.teacher, self.vocabulary = phase, teacher, vocabulary
        self.teacher_seconds, self.teacher_tokens, self.rows_left_out = 0.0, 0, 0
        self.diagnoses, self.warnings = False, list[str]()
        self.permutation = np.arange(len(teacher.numbers))
        if phase.control == "shuffled":
            if len(teacher.numbers) < 2:
                raise refuse("control", "shuffled", "one row has no other row to swap with", "take a larger data_frac")
            cycle = np.random.default_rng(draw_seed(seed, "shuffled")).permutation(len(self.permutation))
            self.permutation[cycle] = np.roll(cycle, 1)

    def compare(self, model: Any, batch: dict[str, torch.Tensor]) -> Divergence:
        """See `Objective`. `batch["rows"]` names the rows; text without a number raises ValueError."""
        phase, labels = self.phase, batch["labels"]
        student, teacher, read = self._matched(batch)
        logits = logits_at(model, batch["input_ids"], batch["attention_mask"], scored_positions(labels))
        logits, tokens = logits[:, : self.vocabulary], scored_tokens(labels)  # (N, V student), (N,)
        logprobs = token_logprobs(logits, tokens)  # (N,)
        total = -phase.cross_entropy_weight * logprobs.sum()
        if read:
            teacher_logits, teacher_tokens = self._score(read, labels.device)  # (M, V teacher), (M,)
            if phase.divergence == "uld":
                found = uld(logits[student.first], teacher_logits[teacher.first])
            else:
                likelihoods = teacher.sums(token_logprobs(teacher_logits, teacher_tokens))  # (C,)
                found = spans(student.sums(logprobs), likelihoods, phase.span_temperature)
            total = total + phase.cross_tokenizer_weight * found.sum
        return Divergence(
            total, len(tokens), {"student_nll": -logprobs.detach().sum(), "chunks": total.new_tensor(len(student))}
        )

    def _matched(self, batch: dict[str, torch.Tensor]) -> tuple["_Side", "_Side", list[Row]]:
        """The aligned chunks of student and teacher, among each side's scored tokens, and the teacher's rows.

        Both sides have the same number of chunks in the same order. Under the permuted control the rows are the
        permuted ones, while chunks keep their lengths.
        """
        student, teacher = _Side(), _Side()
        read: list[Row] = []
        for row in rows_of(batch):
            if row.number < 0:
                raise ValueError("a row without a number has no rendering by the teacher's tokenizer")
            own = self.teacher.rendering(row.number)
            chunks = align(row, own, self.teacher.spellings) if own is not None else None
            if own is not None and chunks is not None and len(chunks):
                # the row itself, or under the permuted control another one, with the same chunk lengths
                place = self.teacher.place(row.number)
                assert place is not None, "it has a rendering"
                other = int(self.permutation[place])
                given = own if other == place else self.teacher.rows[other]
                student.add(_ordinals(row, chunks.student), num_scored(row))
                teacher.add(_ordinals(own, chunks.teacher), num_scored(given))
                read.append(given)
            else:
                self.rows_left_out += 1
                student.skip(num_scored(row))
        device = batch["labels"].device
        return student.on(device), teacher.on(device), read

    def _score(self, rows: list[Row], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """The teacher's logits (M, V teacher) at all scored tokens of its rows, and these tokens (M,)."""
        started = time.perf_counter()
        batch = {name: tensor.to(device) for name, tensor in collate(rows, pad_id=0).items()}
        logits = self.teacher.logits(batch["input_ids"], batch["attention_mask"], scored_positions(batch["labels"]))
        self.teacher_tokens += sum(len(row.input_ids) for row in rows)
        self.teacher_seconds += time.perf_counter() - started
        return logits, scored_tokens(batch["labels"])


class _Side:
    """One side's chunks among the scored tokens of a micro-batch, rows end to end."""

    def __init__(self) -> None:
        self.scored = self.chunks = 0
        self.tokens: list[np.ndarray] = []
        self.chunk: list[np.ndarray] = []
        self.starts: list[np.ndarray] = []

    def __len__(self) -> int:
        return self.chunks

    def skip(self, scored: int) -> None:
        """A row of this many scored tokens and no chunk."""
        self.scored += scored

    def add(self, ordinals: np.ndarray, scored: int) -> None:
        """A row's chunks, ranges (C, 2) of its scored tokens; beyond the last of these it begins again."""
        lengths = ordinals[:, 1] - ordinals[:, 0]  # (C,)
        first = np.cumsum(lengths) - lengths  # (C,), tokens in the chunks before
        # each chunk's range written out, (tokens in chunks,)
        places = np.repeat(ordinals[:, 0] - first, lengths) + np.arange(lengths.sum())
        self.tokens.append(self.scored + places % scored)
        self.chunk.append(self.chunks + np.repeat(np.arange(len(lengths)), lengths))
        self.starts.append(self.scored + ordinals[:, 0] % scored)
        self.chunks += len(lengths)
        self.scored += scored

    def on(self, device: torch.device) -> "_Side":
        """The same as tensors on a device; places count the scored tokens of the micro-batch.

        `first` (C,) is the place of each chunk's first token, `place` that of every token in a chunk, `of` its chunk.
        """
        self.first, self.place, self.of = (
            torch.from_numpy(np.concatenate([*parts, np.empty(0, np.int64)])).to(device)
            for parts in (self.starts, self.tokens, self.chunk)
        )
        return self

    def sums(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of `values`, one for each scored token, over the tokens of each chunk: (C,)."""
        return values.new_zeros(self.chunks).index_add(0, self.of, values[self.place])


def rows_of(batch: dict[str, torch.Tensor]) -> list[Row]:
    """The rows a batch was collated from; a span ends where the next token is not scored."""
    lengths = batch["attention_mask"].sum(1).tolist()
    found = []
    for ids, labels, length, number in zip(
        batch["input_ids"].cpu().numpy(), batch["labels"].cpu().numpy(), lengths, batch["rows"].tolist(), strict=True
    ):
        steps = np.diff(np.concatenate([[False], labels[:length] != IGNORED, [False]]).astype(np.int8))
        starts, ends = np.flatnonzero(steps == 1).tolist(), np.flatnonzero(steps == -1).tolist()
        found.append(Row(ids[:length], starts, ends, number))
    return found


def _ordinals(row: Row, ranges: np.ndarray) -> np.ndarray:
    """Ranges of the row's tokens as ranges of its scored tokens."""
    scored = np.zeros(len(row.input_ids), dtype=np.int64)
    for start, end in zip(row.starts, row.ends, strict=True):
        scored[max(start, 1) : end] = 1
    return np.append(0, np.cumsum(scored))[ranges]


def _largest(probabilities: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` largest of each row, in descending order, and the sum (C,) of the others."""
    if count == probabilities.shape[1]:
        return probabilities.sort(dim=-1, descending=True).values, probabilities.new_zeros(len(probabilities))
    found = probabilities.topk(count, dim=-1).values
    return found, (1 - found.sum(-1)).clamp(min=0)


def _log_complement(logprobs: torch.Tensor) -> torch.Tensor:
    """log(1 - p) from log p < 0, exact at both ends."""
    half = float(np.log(0.5))
    near_one = torch.log(-torch.expm1(logprobs.clamp(min=half)))
    return torch.where(logprobs > half, near_one, torch.log1p(-logprobs.clamp(max=half).exp()))
