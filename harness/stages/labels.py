"""Stage `labels`: the teacher's answers to the prompts of a set of rows.

A row's answers depend on the row and the teacher alone: greedy by default, else sampled with a seed from the row's
id. In a conversation one turn is answered, drawn by the row's id too, after the gold history. So blocks of rows are
answered separately and shared by all cells; `answers.py` makes training rows of them. An answer cut by a length limit
is kept without an end-of-turn target and counted, so the rows do not differ between arms. A stopped stage continues
after its last complete part (`store/partial_output.py`). `synthesis/synthesize.py` generates new prompts too.

    labels/         data set: row, id, turn, sample, input_ids, starts, ends (prompt and answer), text, finished
    labels.json     counts, and how the teacher renders a conversation
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value, load_from_disk

from harness.config.budget import Budget
from harness.config.checks import refuse
from harness.config.machine import Machine
from harness.data.chat import end_of_turn_id
from harness.data.reasoning import opened_by, prompt_end
from harness.data.sequences import TURN, Rows, answered, conversation_of, draw_seed, visiting_order
from harness.models.flops import forward_flops
from harness.models.loading import device_of, load_tokenizer, rendering_hash, tokenizer_hash
from harness.runtime import progress
from harness.store.partial_output import PartialOutput, read_batch
from harness.store.store import write_json
from harness.teachers.teacher import GeneratingTeacher, open_teacher

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENS = {
    "row": Value("int64"),
    "id": Value("string"),
    "input_ids": List(Value("int32")),
    "starts": List(Value("int32")),
    "ends": List(Value("int32")),
}
FEATURES = Features(TOKENS)
"""Columns of rows to train on."""
LABELS = Features(
    TOKENS | {"turn": Value("int32"), "sample": Value("int32"), "text": Value("string"), "finished": Value("bool")}
)
ROWS_PER_PART = 1024  # a teacher in memory answers 256 of them at a time, those of like length together


def make_labels(settings: dict[str, Any], inputs: Mapping[str, Path], out: Path, machine: Machine) -> dict[str, Any]:
    """Answer the rows of `inputs["rows"]`, `samples_per_prompt` times each; writes `labels/`.

    `settings`: `sampling_temperature` (0 is greedy), `samples_per_prompt`, `max_new_tokens`, `max_length`
    (tokens of prompt and answer), `precision` of the teacher, and `visits` (`budget`, `span`, `seed`) where
    only the rows that a training stage visits are answered. `inputs`: `rows` (a subset rendered with the
    teacher's tokenizer), `teacher`. Raises SettingsError for rows in another tokenizer's ids, and Preempted when a
    stop is requested.
    """
    tokenizer = load_tokenizer(inputs["teacher"])
    rows = load_from_disk(inputs["rows"] / "train")
    chosen = np.arange(len(rows))  # indices of the rows to answer
    # the same call as in training, so that the answered rows are those that will be visited
    if "visits" in settings:
        visits = settings["visits"]
        chosen = np.unique(visiting_order(Rows(rows), Budget(**visits["budget"]), visits["seed"], visits["span"]))
    columns: dict[str, list[Any]] = {name: [] for name in LABELS}
    read = parameters = 0
    earlier_seconds = 0.0
    warnings = []
    # a block may hold no rows; then no teacher is loaded
    if len(chosen):
        if "teacher_reading" in inputs:  # the same rows in the teacher's own tokens and template
            rows, chosen = _as_the_teacher_reads(inputs["teacher_reading"], rows.select(chosen))
        else:
            _check_rendering(inputs["rows"], tokenizer)
        where = settings.get("where", {})
        url, access = where.get("teacher_url"), where.get("teacher_server")
        teacher = open_teacher(inputs["teacher"], device_of(machine), settings["precision"], url, access)
        partial_output = PartialOutput(settings, inputs, ROWS_PER_PART, teacher.spent)
        _answer(teacher, rows, chosen, settings, partial_output, columns)
        read, parameters, earlier_seconds = teacher.spent["read"], teacher.parameters, partial_output.earlier_seconds
        warnings += teacher.warnings
    save_rows(columns, out / "labels", LABELS)
    answers = len(columns["row"])
    written = sum(end[0] - start[0] for start, end in zip(columns["starts"], columns["ends"], strict=True))
    cut = answers - sum(columns["finished"])
    counts = {"rows": len(chosen), "answers": answers, "truncated_answers": cut, "response_tokens": written}
    write_json(out / "labels.json", {**counts, "rendering": rendering_hash(tokenizer)})
    cost = {
        "teacher_tokens": read,
        "generated_tokens": written,
        "flops": forward_flops(parameters, read + written),
    }
    earlier = {"earlier_seconds": earlier_seconds} if earlier_seconds else {}
    return {"cost": cost, "counts": counts, "warnings": warnings, **earlier}


def labelled_rows(subset: Dataset, labels: Dataset) -> np.ndarray:
    """The number of the labelled row (n,) that answers each row of a subset: the same number, as a rule.

    One rendering may have a row for each turn where the other has one for the conversation. Of the labels of several
    turns the conversation takes one, drawn by its id; several turns take the label of the one turn that was answered.
    """
    numbers = np.asarray(subset["row"], dtype=np.int64)  # (n,)
    answered_numbers = np.unique(np.asarray(labels["row"], dtype=np.int64))
    if np.isin(numbers, answered_numbers).all() and (answered_numbers < TURN).all():
        return numbers
    known, found = set(answered_numbers.tolist()), numbers.copy()  # (n,)
    for place, (number, id, starts) in enumerate(zip(numbers.tolist(), subset["id"], subset["starts"], strict=True)):
        drawn = number + draw_seed("turn", id) % len(starts) * TURN
        found[place] = next((one for one in (drawn, number) if one in known), conversation_of(number))
    return found


def _as_the_teacher_reads(folder: Path, subset: Dataset) -> tuple[Dataset, np.ndarray]:
    """The rows as the teacher's template renders them, and the places of those that stand for a subset's rows."""
    rows = load_from_disk(folder / "train")
    places = {number: place for place, number in enumerate(rows["row"])}
    numbers = labelled_rows(subset, rows).tolist()
    for number in numbers:
        if number not in places:
            reason = "the teacher's own rendering of it has no answer in it"
            raise refuse("corpus.max_length", f"row {number}", reason, "raise corpus.max_length")
    return rows, np.array(sorted({places[number] for number in numbers}))


def _check_rendering(rows: Path, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise SettingsError for prompts in ids of another tokenizer, which the teacher would misread."""
    rendered, own = json.loads((rows / "subset.json").read_text())["tokenizer_hash"], tokenizer_hash(tokenizer)
    if rendered != own:
        reason = f"the rows are in the student's tokens ({rendered[:12]}), and the teacher has others ({own[:12]})"
        raise refuse("teacher.label_rows", "visited", reason, "set teacher.label_rows=blocks")


def _answer(
    teacher: GeneratingTeacher,
    dataset: Dataset,
    chosen: np.ndarray,
    settings: dict[str, Any],
    partial_output: PartialOutput,
    columns: dict[str, list],
) -> None:
    """Fill the columns with answers to the chosen rows, part by part."""
    rows, numbers, ids = Rows(dataset), dataset["row"], dataset["id"]
    tokenizer = teacher.tokenizer
    end = end_of_turn_id(tokenizer)
    wanted = [(int(i), sample) for i in chosen for sample in range(settings["samples_per_prompt"])]

    def answers_to(block: list[tuple[int, int]]) -> pa.RecordBatch:
        # drawn from the row's id alone: a row is answered alike in every block, part and cell
        turns = [draw_seed("turn", ids[i]) % len(rows[i].starts) for i, _ in block]
        prompts = [
            rows[i].input_ids[: rows[i].starts[turn]].tolist() for (i, _), turn in zip(block, turns, strict=True)
        ]
        seeds = [draw_seed("answer", ids[i], sample) for i, sample in block]
        answers = teacher.answers(prompts, settings["max_new_tokens"], settings["sampling_temperature"], seeds, {end})
        found: dict[str, list[Any]] = {name: [] for name in LABELS}
        for (i, sample), turn, prompt, answer in zip(block, turns, prompts, answers, strict=True):
            answer = answer[: max(1, settings["max_length"] - len(prompt))]
            row, finished = answered(prompt, answer), end in answer[-1:]
            # without the end of turn, which another tokenizer writes with its own token
            text = str(tokenizer.decode(answer[:-1] if finished else answer))
            # where the prompt begins the reasoning, its mark is no part of what is generated
            if opened := opened_by(prompt_end(tokenizer, prompt)):
                text = f"{opened}\n{text}"
            values = (numbers[i], ids[i], row.input_ids, row.starts, row.ends, turn, sample, text, finished)
            for name, value in zip(LABELS, values, strict=True):
                found[name].append(value)
        return pa.record_batch(found, schema=LABELS.arrow_schema)

    for first in range(0, len(wanted), ROWS_PER_PART):
        block = wanted[first : first + ROWS_PER_PART]
        made = partial_output.made(f"{first // ROWS_PER_PART:05d}", partial(answers_to, block))
        for name, values in read_batch(made).to_pydict().items():
            columns[name] += values
        progress.report(first + len(block), len(wanted), note="teacher's answers")


def save_rows(columns: Mapping[str, list[Any]], folder: Path, features: Features = FEATURES) -> None:
    """Write rows as a data set with the columns of `features`, by default those of a subset."""
    table = pa.table(
        {name: pa.array(values, type=features.arrow_schema.field(name).type) for name, values in columns.items()}
    )
    # a data set without rows can be read only if one empty shard is written
    Dataset(table, fingerprint=folder.name).cast(features).save_to_disk(folder, num_shards=None if len(table) else 1)
