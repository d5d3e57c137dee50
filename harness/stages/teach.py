"""Stage `labels`: the teacher's answers to the prompts that a training stage will visit.

Greedy by default, one answer a row, to the prompt before the row's last assistant turn. An answer cut by
a length limit is kept without an end-of-turn target and counted: the rows never differ between arms.
`synthesize.py` lets the teacher write the prompts too.

    labels/         data set: row, id, input_ids, starts, ends (prompt and teacher's answer)
    labels.json     counts
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value, load_from_disk

from harness import track
from harness.chat import end_of_turn_id, render
from harness.config import Budget, Machine, SettingsError
from harness.cost import forward_flops
from harness.generate import generate
from harness.models import count_parameters, device_of, load_model, load_tokenizer, tokenizer_hash
from harness.sequences import Rows, answered, draw_seed, prompt_of
from harness.stages.subset import read_batches
from harness.stages.train import visiting_order
from harness.store import write_json

FEATURES = Features(
    {
        "row": Value("int64"),
        "id": Value("string"),
        "input_ids": List(Value("int32")),
        "starts": List(Value("int32")),
        "ends": List(Value("int32")),
    }
)
ROWS_AT_ONCE = 256  # rows are answered in blocks; each row's draws depend on its id alone


def make_labels(settings: dict[str, Any], inputs: Mapping[str, Path], out: Path, machine: Machine) -> dict[str, Any]:
    """Answer every row that the span of the budget visits; writes `labels/`.

    `settings`: `budget`, `span`, `seed` (of the visiting order), `sampling_temperature` (0 is greedy),
    `max_new_tokens`, `max_length` (tokens of prompt and answer). `inputs`: `subset`, `teacher`. Raises
    SettingsError where the teacher's tokenizer is not the one the rows were rendered with.
    """
    budget = Budget(**settings["budget"])
    device = device_of(machine)
    tokenizer = load_tokenizer(inputs["teacher"])
    check_tokenizer(inputs["subset"], inputs["mixture"], tokenizer, "a teacher's answers")
    model = load_model(inputs["teacher"], device=device, dtype=budget.precision)
    subset = load_from_disk(inputs["subset"] / "train")
    visited = np.unique(visiting_order(subset, budget, settings["seed"], settings["span"]))
    rows, ids = Rows(subset), subset["id"]
    numbers = subset["row"]
    seeds = [draw_seed(settings["seed"], "labels", ids[i]) for i in visited]
    # of a row of several turns one is answered, drawn by the row's own seed, with gold history before it
    prompts = [prompt_of(rows[i], seed) for i, seed in zip(visited, seeds, strict=True)]
    end = end_of_turn_id(tokenizer)

    columns: dict[str, list[Any]] = {name: [] for name in FEATURES}
    written = truncated = 0
    for first in range(0, len(visited), ROWS_AT_ONCE):
        block = slice(first, first + ROWS_AT_ONCE)
        answers = generate(
            model,
            tokenizer,
            prompts[block],
            settings["max_new_tokens"],
            settings["sampling_temperature"],
            seeds[block],
            batch_size=ROWS_AT_ONCE,
            stop_ids={end},
        )
        for i, prompt, answer in zip(visited[block], prompts[block], answers, strict=True):
            answer = answer[: max(1, settings["max_length"] - len(prompt))]
            row = answered(prompt, answer)
            for name, value in zip(
                FEATURES, (numbers[int(i)], ids[int(i)], row.input_ids, row.starts, row.ends), strict=True
            ):
                columns[name].append(value)
            written += len(answer)
            truncated += end not in answer[-1:]
        track.report(min(first + ROWS_AT_ONCE, len(visited)), len(visited), note="teacher's answers")
    save_rows(columns, out / "labels")
    counts = {"rows": len(visited), "truncated_answers": truncated, "response_tokens": written}
    write_json(out / "labels.json", counts)
    read = sum(map(len, prompts))
    cost = {
        "teacher_tokens": read,
        "generated_tokens": written,
        "flops": forward_flops(count_parameters(model), read + written),
    }
    warnings = []
    if truncated > 0.05 * len(visited):
        warnings.append(
            f"{truncated} of {len(visited)} teacher's answers were cut by the length limit; "
            "they are trained without an end of turn"
        )
    return {"cost": cost, "counts": counts, "warnings": warnings}


def check_tokenizer(subset: Path, mixture: Path, tokenizer: Any, what: str) -> None:
    """Raise SettingsError unless the teacher's tokenizer and chat template render the subset's rows as they are."""
    rendered_with = json.loads((subset / "subset.json").read_text())["tokenizer_hash"]
    own = tokenizer_hash(tokenizer)
    if rendered_with != own:
        raise SettingsError(
            f"{what} cannot be used: the rows were rendered with tokenizer {rendered_with[:12]} and the "
            f"teacher has {own[:12]}; choose a teacher and a student with the same tokenizer."
        )
    first = load_from_disk(subset / "train")[0]
    _, _, messages = next(read_batches(mixture / "train.parquet", np.array([first["row"]])))
    if render(tokenizer, messages[0], len(first["input_ids"])).input_ids != first["input_ids"]:
        raise SettingsError(
            f"{what} cannot be used: the teacher's chat template renders the rows differently from the student's; "
            "set student.chat_template and teacher.chat_template to the same template, e.g. tulu."
        )


def save_rows(columns: Mapping[str, list[Any]], folder: Path) -> None:
    """Write rows in the subset's shape (`row`, `id`, `input_ids`, `starts`, `ends`)."""
    table = pa.table(
        {name: pa.array(values, type=FEATURES.arrow_schema.field(name).type) for name, values in columns.items()}
    )
    Dataset(table, fingerprint=folder.name).cast(FEATURES).save_to_disk(folder)
