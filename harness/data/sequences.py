"""Sequences: the order in which rows are visited, and the padded batches of a training step.

`chat.py` turns conversations into token ids; here ids are ordered, cut and padded. A row has token ids and the spans
that are scored (every assistant turn with its end-of-turn token). Logits at position t predict token t + 1, so a
span's first token is scored at the position before it.

    order = visits(num_rows=160, steps=300, batch_size=32, seed=0)      # (300, 32) row numbers
    batch = collate([rows[i] for i in order[0]], pad_id=0)              # input_ids, attention_mask, labels
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from harness.config.budget import Budget

if TYPE_CHECKING:
    import torch
    from datasets import Dataset

IGNORED = -100  # the label of a token that is processed and not scored (the value torch ignores)

Item = TypeVar("Item")
TURN = 1 << 32
"""What a row's number adds for each turn before its own, where a conversation is rendered as one row a turn."""
TOKENS_AT_ONCE = 1 << 14  # padded tokens of one batch that is scored or generated from


@dataclass(frozen=True)
class Row:
    """One training sequence: token ids (int32, length T) and its scored spans [starts[i], ends[i]).

    A prompt alone has one empty span at its end, where an answer will be put.
    """

    input_ids: np.ndarray
    starts: Sequence[int]
    ends: Sequence[int]
    number: int = -1
    """The row's number, the key of stored signals: that of its conversation in the mixture, with its turn in the upper
    32 bits where each turn has a row of its own; below 0 for synthetic rows, -1 for text generated during training."""
    turn: int = 0
    """Which of the assistant's turns in the row of this number the first span is."""
    source: int | None = None
    """Of text generated during training, the number of the row whose prompt it answers."""


def visits(num_rows: int, steps: int, batch_size: int, seed: int) -> np.ndarray:
    """Row numbers in the order they are trained, int64 of shape (steps, batch_size).

    Seeded permutations one after another, each epoch reshuffled: a shorter budget visits a prefix of what a longer one
    visits, and every row is visited n times before any row is visited n + 2 times.
    """
    assert num_rows > 0 and steps >= 0 and batch_size > 0
    return _stream(num_rows, steps * batch_size, seed).reshape(steps, batch_size)


def mixed_visits(
    synthetic_rows: int, human_rows: int, human_share: float, steps: int, batch_size: int, seed: int
) -> np.ndarray:
    """Positions among synthetic rows followed by human ones, int64 of shape (steps, batch_size).

    `human_share` 0 visits all rows equally often (natural mixing). Above 0, of the first n visits n x share are human,
    rounded at the end of each step: a batch has the share or is one row off, and the next batch makes up for it. Each
    kind is visited in seeded permutations of its own, one after another.
    """
    assert 0 <= human_share < 1 and min(synthetic_rows, human_rows) > 0
    if human_share == 0:
        return visits(synthetic_rows + human_rows, steps, batch_size, seed)
    # human rows up to each step; rounded as running totals, so that no error adds up over steps
    so_far = np.floor(np.arange(steps + 1) * batch_size * human_share + 0.5).astype(np.int64)  # (steps + 1,)
    is_human = np.arange(batch_size) < np.diff(so_far)[:, None]  # (steps, batch_size)
    order = np.empty((steps, batch_size), dtype=np.int64)  # (steps, batch_size)
    order[is_human] = synthetic_rows + _stream(human_rows, int(is_human.sum()), draw_seed(seed, "human"))
    order[~is_human] = _stream(synthetic_rows, int((~is_human).sum()), draw_seed(seed, "synthetic"))
    return order


def total_steps(budget: Budget, response_tokens: Sequence[int] | np.ndarray, seed: int) -> int:
    """Optimizer steps of a whole budget over rows with these many scored tokens each; at least 1 and `min_steps`.

    Not for a budget of FLOPs, whose steps depend on the models too (`training/flop_budget.py`).

    The kind `trained_tokens` walks the visiting order until that many gold response tokens are scored, so every
    arm on the same rows takes the same number of steps, whatever text it trains on.
    """
    num_rows, least = len(response_tokens), budget.min_steps or 1
    assert budget.kind != "flops", "the steps of a FLOP budget depend on the models"
    if budget.kind == "steps":
        return max(least, round(budget.amount))
    if budget.kind == "epochs":
        return max(least, round(budget.amount * num_rows / budget.batch_size))
    tokens = np.asarray(response_tokens, dtype=np.int64)  # (rows,)
    assert tokens.sum() > 0, "rows without a single scored token"
    # whole epochs score every row, so only the last one has to be walked
    whole_epochs = int(budget.amount // tokens.sum())
    left = budget.amount - whole_epochs * tokens.sum()
    reached = np.cumsum(tokens[_epoch(num_rows, whole_epochs, seed)])  # (rows,)
    rows = whole_epochs * num_rows + (int(np.searchsorted(reached, left)) + 1 if left > 0 else 0)
    return max(least, -(-rows // budget.batch_size))


def of_like_length(batches: np.ndarray, lengths: np.ndarray, seed: int, window: int = 25) -> np.ndarray:
    """The same visits with rows of similar length in one batch, (steps, batch_size), which computes less padding.

    Within every `window` steps rows are sorted by `lengths` (tokens, by row number) and cut into batches, whose order
    is then a seeded permutation. Only for pre-training: arms that are compared keep their plain order.
    """
    draw = np.random.default_rng(draw_seed(seed, "like length"))
    grouped = np.empty_like(batches)  # (steps, batch_size)
    # within windows, so that a visit moves by at most that many steps
    for start in range(0, len(batches), window):
        part = batches[start : start + window]
        by_length = part.ravel()[np.argsort(lengths[part.ravel()], kind="stable")].reshape(part.shape)
        grouped[start : start + window] = by_length[draw.permutation(len(part))]
    return grouped


def span_of(order: np.ndarray, span: Sequence[float]) -> np.ndarray:
    """The steps of `order` that a training stage with this span of the budget takes.

    Neighbouring spans share their border, so a warm-up (0, w) and the rest (w, 1) together visit exactly
    the batches of (0, 1).
    """
    start, end = (round(share * len(order)) for share in span)
    return order[start:end]


def visiting_order(rows: "Rows", budget: Budget, seed: int, span: Sequence[float]) -> np.ndarray:
    """Row numbers that a stage with this span of the budget visits, (steps, batch_size).

    Training and the stage that makes labels for it both call this, so that they agree on the rows.
    """
    steps = total_steps(budget, rows.response_tokens, seed)
    return span_of(visits(len(rows), steps, budget.batch_size, seed), span)


def steps_on(num_rows: int, budget: Budget, span: Sequence[float]) -> int:
    """Optimizer steps of a stage with this span of a budget that counts epochs of the stage's own rows."""
    assert budget.counts_own_rows
    # epochs are a number of rows, whatever their tokens
    return len(span_of(np.arange(total_steps(budget, np.ones(num_rows), seed=0)), span))


def draw_seed(*parts: int | str) -> int:
    """A 64-bit seed from the parts that name a draw, e.g. `draw_seed(train_seed, "coin", step)`."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def conversation_of(number: Any) -> Any:
    """The number in the mixture of the conversation that a row of this number (or an array of them) is a turn of."""
    return number % TURN


class Rows:
    """The rows of a dataset with columns `input_ids`, `starts`, `ends`, as views of its memory map."""

    def __init__(self, dataset: "Dataset", loss_on: str = "assistant") -> None:
        """`loss_on="all"` scores every token but the first instead of the assistant's spans."""
        missing = {"input_ids", "starts", "ends"} - set(dataset.column_names)
        assert not missing, f"columns {sorted(missing)} are missing"
        if dataset._indices is not None:  # a selection, whose table still has all rows
            dataset = dataset.flatten_indices()
        self._ids, self._offsets = _flat(dataset, "input_ids")
        numbered = "row" in dataset.column_names
        self._numbers = np.asarray(dataset.data.column("row")) if numbered else np.full(len(dataset), -1)
        turned = "turn" in dataset.column_names
        self._turns = np.asarray(dataset.data.column("turn")) if turned else np.zeros(len(dataset), dtype=np.int32)
        if loss_on == "all":
            lengths = np.diff(self._offsets)  # (rows,)
            self._span_offsets = np.arange(len(lengths) + 1)
            self._starts, self._ends = np.minimum(1, lengths), lengths
        else:
            self._starts, self._span_offsets = _flat(dataset, "starts")
            self._ends, end_offsets = _flat(dataset, "ends")
            assert np.array_equal(end_offsets, self._span_offsets), "a row has more starts than ends"

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(index)
        first, last = self._span_offsets[index], self._span_offsets[index + 1]
        return Row(
            input_ids=self._ids[self._offsets[index] : self._offsets[index + 1]],
            starts=self._starts[first:last].tolist(),
            ends=self._ends[first:last].tolist(),
            number=int(self._numbers[index]),
            turn=int(self._turns[index]),
        )

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))

    @property
    def numbers(self) -> np.ndarray:
        """The rows' numbers, int64 of shape (rows,)."""
        return self._numbers

    @property
    def mean_tokens(self) -> float:
        """Mean length of a row, prompts included."""
        return len(self._ids) / max(len(self), 1)

    @property
    def response_tokens(self) -> np.ndarray:
        """Scored tokens of each row, int64 of shape (rows,)."""
        # spans are stored end to end, so a row's scored tokens are a difference of two running totals
        lengths = np.concatenate([[0], np.cumsum(self._ends - self._starts, dtype=np.int64)])
        return lengths[self._span_offsets[1:]] - lengths[self._span_offsets[:-1]]


def prompt_of(row: Row, seed: int) -> list[int]:
    """The ids before one assistant turn of the row, gold history included; the turn is drawn by seed."""
    return row.input_ids[: row.starts[drawn_turn(row, seed)]].tolist()


def drawn_turn(row: Row, seed: int) -> int:
    """Which of the row's spans a seed draws."""
    assert row.starts, "a row without an assistant turn cannot be a prompt"
    return seed % len(row.starts)


def answered(prompt: Sequence[int], answer: Sequence[int], turn: int = 0, source: int | None = None) -> Row:
    """The row of a prompt and a generated answer, scored on the answer alone; see `Row` for `turn` and `source`."""
    ids = np.asarray([*prompt, *answer], dtype=np.int32)
    return Row(input_ids=ids, starts=[len(prompt)], ends=[len(ids)], turn=turn, source=source)


def collate(rows: Sequence[Row], pad_id: int) -> dict[str, "torch.Tensor"]:
    """Pad rows on the right to the longest: int64 `input_ids`, `attention_mask`, `labels`, each (B, T), and
    `rows` (B,), the rows' numbers.

    The mask comes from lengths, not from comparing ids, so a pad token that is also the end-of-turn token is scored
    where it ends a turn. Labels are unshifted; token 0 is never scored.
    """
    import torch

    shape = (len(rows), max(len(row.input_ids) for row in rows))
    input_ids = np.full(shape, pad_id, dtype=np.int64)  # (B, T)
    attention_mask = np.zeros(shape, dtype=np.int64)  # (B, T)
    labels = np.full(shape, IGNORED, dtype=np.int64)  # (B, T)
    for i, row in enumerate(rows):
        input_ids[i, : len(row.input_ids)] = row.input_ids
        attention_mask[i, : len(row.input_ids)] = 1
        for start, end in zip(row.starts, row.ends, strict=True):
            # nothing predicts token 0, as no logits stand before it
            labels[i, max(start, 1) : end] = row.input_ids[max(start, 1) : end]
    numbers = np.array([row.number for row in rows], dtype=np.int64)  # (B,)
    arrays = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels, "rows": numbers}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def sorted_by_length(groups: Sequence[Sequence[Row]]) -> list[list[Row]]:
    """The rows of one optimizer step, sorted from long to short and cut into micro-batches of the sizes of `groups`.

    It computes less padding and leaves the sum over the step's tokens. A single micro-batch keeps its order.
    """
    if len(groups) == 1:
        return [list(groups[0])]
    # a stable sort, so that rows of one length keep their order on every machine
    rows = iter(sorted((row for group in groups for row in group), key=lambda row: -len(row.input_ids)))
    return [[next(rows) for _ in group] for group in groups]


def longest_first(
    waiting: Iterable[Item], length: Callable[[Item], int], most_rows: int, new_tokens: int = 0
) -> Iterator[list[Item]]:
    """Batches of similar length with at most TOKENS_AT_ONCE padded tokens, `new_tokens` generated ones included.

    The longest come first, so that a batch that does not fit into memory fails at once.
    """
    left = sorted(waiting, key=length, reverse=True)
    while left:
        # the first row is the longest, so it sets the padded length of its batch
        size = max(1, min(most_rows, TOKENS_AT_ONCE // (length(left[0]) + new_tokens)))
        yield left[:size]
        left = left[size:]


def _stream(num_rows: int, count: int, seed: int) -> np.ndarray:
    epochs = (_epoch(num_rows, epoch, seed) for epoch in range(-(-count // num_rows)))
    return np.concatenate([*epochs, np.empty(0, dtype=np.int64)])[:count]


def _epoch(num_rows: int, epoch: int, seed: int) -> np.ndarray:
    return np.random.default_rng(draw_seed(seed, "visits", epoch)).permutation(num_rows)


def _flat(dataset: Any, column: str) -> tuple[np.ndarray, np.ndarray]:
    """One list column as its values end to end and the offset of each row, without a Python object per token."""
    chunks = dataset.data.column(column).chunks
    values = [np.asarray(chunk.flatten()) for chunk in chunks]
    counts = [np.diff(np.asarray(chunk.offsets)) for chunk in chunks]
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(counts or [np.empty(0, int)]), dtype=np.int64)])
    return (values[0] if len(values) == 1 else np.concatenate(values or [np.empty(0, np.int32)])), offsets
