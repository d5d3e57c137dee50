"""Teacher's answers as training rows: the labels that `labels.py` made, joined to a cell's rows and visits.

Where student and teacher render conversations alike, the labelled rows are trained as they are, from their memory
map. Otherwise the teacher's text follows the student's own prompt, so a teacher with another tokenizer, or one behind
a server, can be distilled by its text. Reasoning is stripped here and not in the labels, so `keep` and `strip` share
them; where the student's generation prompt begins reasoning, a stripped answer ends it, as gold answers do.

    dataset, batches = answered_rows(phase, subset, order, folders, tokenizer, max_length=512, seed=0)
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Value, concatenate_datasets, load_from_disk
from transformers import PreTrainedTokenizerBase

from harness.config.checks import SettingsError, refuse
from harness.config.recipe import TrainingPhase
from harness.data.chat import answer_ids_many
from harness.data.reasoning import answer_of
from harness.data.sequences import TURN, Row, Rows, answered, conversation_of, draw_seed
from harness.models.loading import rendering_hash
from harness.stages.labels import FEATURES, labelled_rows

ANSWERED = Features(FEATURES | {"turn": Value("int32")})
"""Columns of rows to train on, and which of its conversation's turns each answers."""
ROWS_AT_ONCE = 1000
MANY_CUT = 0.05  # share of answers cut by the length limit above which there is a warning


def answered_rows(
    phase: TrainingPhase,
    subset: Dataset,
    order: np.ndarray,
    folders: Sequence[Path],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    seed: int,
    answered_by: Callable[[Path, np.ndarray], np.ndarray] | None = None,
) -> tuple[Dataset, np.ndarray]:
    """Rows with the teacher's answers and, for each visit of `order` (steps, batch_size), which of them it trains.

    `folders` are published label stages that together answer every visited row; a row's n-th visit gets its n-th
    sample, cyclically. Under the control `shuffled` with cross-entropy, the answers are permuted over the rows in one
    seeded cycle, so no row keeps its own; with a divergence, the teacher's signal is permuted instead (in training).
    `answered_by` says which rows, by their numbers (n,), a folder's answers are taken for, bool (n,); None: for all.
    Raises SettingsError where one row alone is to be permuted, or a prompt is cut in the student's rendering.
    """
    labels = concatenate_datasets([_labels_of(folder, answered_by) for folder in folders])
    numbers = labelled_rows(subset, labels)[order]  # (steps, batch_size)
    places = _places(labels, numbers, phase.samples_per_prompt)  # (steps, batch_size)
    alike = {_rendering(folder) for folder in folders} == {rendering_hash(tokenizer)}
    # nothing has to be changed, so the labels are trained from their memory map
    if alike and phase.control == "none" and phase.rationale == "keep":
        return labels.select_columns([*FEATURES, "turn"]), places
    # only visited answers are joined; `batches` then counts among these
    used, batches = np.unique(places, return_inverse=True)  # (U,) visited answers, (steps * batch_size,)
    chosen = labels.select(used)
    permuted = phase.control == "shuffled" and phase.divergence == "cross_entropy"
    permutation = _cycle(len(used), seed) if permuted else np.arange(len(used))  # (U,)
    position = {row: index for index, row in enumerate(subset["row"])}
    prompts = _prompts(chosen, Rows(subset), position)
    given = chosen.select(permutation)
    answers = _ids(given) if alike and phase.rationale == "keep" else _encoded(given, phase.rationale, tokenizer)
    rows = (
        # at least one token, so that a long prompt leaves no row without a scored token
        answered(prompt, answer[: max(1, max_length - len(prompt))])
        for prompt, answer in zip(prompts, answers, strict=True)
    )
    return _as_dataset(rows, chosen), batches.reshape(order.shape)


def _labels_of(folder: Path, answered_by: Callable[[Path, np.ndarray], np.ndarray] | None) -> Dataset:
    labels = load_from_disk(folder / "labels")
    if answered_by is None or not len(labels):
        return labels
    return labels.select(np.flatnonzero(answered_by(folder, np.asarray(labels["row"], dtype=np.int64))))


def cut_answers(dataset: Dataset, batches: np.ndarray, end_of_turn: int) -> list[str]:
    """A warning where more than `MANY_CUT` of the visited answers do not end with `end_of_turn`."""
    rows, visited = Rows(dataset), np.unique(batches)
    cut = sum(int(rows[int(place)].input_ids[-1]) != end_of_turn for place in visited)
    if cut <= MANY_CUT * len(visited):
        return []
    return [
        f"{cut} of {len(visited)} teacher's answers were cut by the length limit; they are trained without an end of "
        "turn, so the student may not learn to stop; raise corpus.max_new_tokens"
    ]


def without_rationale(text: str) -> str:
    """An answer without the reasoning at its head; empty where the reasoning was begun and not ended."""
    answer = answer_of(text) or ""
    return answer if answer == text else answer.lstrip()


def _places(labels: Dataset, numbers: np.ndarray, samples: int) -> np.ndarray:
    """Index in `labels` of the answer that each visit of a row number gets, same shape as `numbers`."""
    # row and sample as one number, which a binary search finds
    keys = np.asarray(labels["row"], dtype=np.int64) * samples + np.asarray(labels["sample"], dtype=np.int64)  # (L,)
    by_key = np.argsort(keys)  # (L,)
    nth: defaultdict[int, int] = defaultdict(int)
    wanted = np.empty(numbers.size, dtype=np.int64)  # (visits,)
    for visit, number in enumerate(numbers.ravel().tolist()):
        wanted[visit] = number * samples + nth[number] % samples
        nth[number] += 1
    found = np.minimum(np.searchsorted(keys[by_key], wanted), len(keys) - 1)
    lost = wanted // samples if not len(keys) else wanted[keys[by_key[found]] != wanted] // samples
    if len(lost):
        without, all_rows = len(np.unique(conversation_of(lost))), len(np.unique(conversation_of(numbers)))
        raise SettingsError(
            f"{without} of {all_rows} rows to train on have no teacher's answer: in its tokens no answer begins within "
            "corpus.max_length, or its chat template rejects them; raise corpus.max_length, or leave these rows out of "
            "the data, so that every arm trains on the same ones."
        )
    return by_key[found].reshape(numbers.shape)


def _cycle(count: int, seed: int) -> np.ndarray:
    """The row (n,) whose answer each row gets: a permutation of one seeded cycle, so no row keeps its own."""
    if count < 2:
        raise refuse(
            "method.shuffled", True, "one row has no other row to swap answers with", "take a larger data_frac"
        )
    cycle = np.random.default_rng(draw_seed(seed, "shuffled")).permutation(count)
    permutation = np.empty_like(cycle)
    # each row gets the answer of the row before it in the cycle
    permutation[cycle] = np.roll(cycle, 1)
    return permutation


def _prompts(chosen: Dataset, rows: Rows, position: dict[int, int]) -> Iterator[list[int]]:
    """The student's own rendering of the prompt that each label answers."""
    for number, turn in zip(chosen["row"], chosen["turn"], strict=True):
        whole, at = conversation_of(number), number // TURN + turn
        alone = position.get(whole + at * TURN)
        # the turn has a row of its own, or is a turn of its conversation's row
        place, span = (position.get(whole), at) if alone is None else (alone, 0)
        row = None if place is None else rows[place]
        if row is None or span >= len(row.starts):
            raise refuse(
                "corpus.max_length",
                0 if row is None else len(row.input_ids),
                f"the student's rendering of row {whole} is cut before the turn its teacher answered",
                "raise corpus.max_length",
            )
        yield row.input_ids[: row.starts[span]].tolist()


def _ids(labels: Dataset) -> Iterator[list[int]]:
    """The answers' own token ids."""
    for row in Rows(labels):
        yield row.input_ids[row.starts[0] : row.ends[0]].tolist()


def _encoded(labels: Dataset, rationale: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """The answers' texts as another tokenizer's ids."""
    for part in _parts(zip(labels["text"], labels["finished"], strict=True), ROWS_AT_ONCE):
        texts = [without_rationale(text) if rationale == "strip" else text for text, _ in part]
        yield from answer_ids_many(tokenizer, texts, [done for _, done in part])


def _as_dataset(rows: Iterator[Row], chosen: Dataset) -> Dataset:
    tables = []
    for part in _parts(zip(rows, chosen["row"], chosen["id"], chosen["turn"], strict=True), ROWS_AT_ONCE):
        values = {
            "row": [number for _, number, _, _ in part],
            "id": [name for _, _, name, _ in part],
            "input_ids": [row.input_ids for row, *_ in part],
            "starts": [list(row.starts) for row, *_ in part],
            "ends": [list(row.ends) for row, *_ in part],
            "turn": [turn for *_, turn in part],
        }
        tables.append(pa.table(values, schema=ANSWERED.arrow_schema))
    return Dataset(pa.concat_tables(tables), fingerprint="answers").cast(ANSWERED)


def _parts(values: Iterable, size: int) -> Iterator[list]:
    """The values in lists of at most `size`."""
    left = iter(values)
    while part := list(islice(left, size)):
        yield part


def _rendering(folder: Path) -> str:
    return json.loads((folder / "labels.json").read_text())["rendering"]
