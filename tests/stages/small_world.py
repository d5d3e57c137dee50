"""A world of a dozen rows in the store's shape, for tests of stages: folders in, folders out.

facts, folder = run(make_train, settings, world, tmp_path, "a")
"""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_from_disk

from harness.config.machine import Machine
from harness.data.chat import render
from harness.data.corpora._rows import prompt_hash
from harness.models.loading import tokenizer_hash
from harness.runtime import preemption
from harness.stages.labels import save_rows
from tests.doubles import byte_tokenizer, save_tiny

CPU = Machine(device="cpu")
TOKENIZER = byte_tokenizer()


def pair(prompt, answer):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def run(make, asked, inputs, tmp_path, name):
    (tmp_path / name).mkdir()
    return make(asked, inputs, tmp_path / name, CPU), tmp_path / name


def prompts_alone(world, tmp_path):
    """The world's subset without its answers, and without validation, as `corpus.answers=none` makes it."""
    rows = load_from_disk(world["subset"] / "train")
    columns = {"row": rows["row"], "id": rows["id"]}
    columns["input_ids"] = [row["input_ids"][: row["starts"][0]] for row in rows]
    columns["starts"] = columns["ends"] = [[len(ids)] for ids in columns["input_ids"]]
    folder = tmp_path / "prompts_alone"
    save_rows(columns, folder / "train")
    save_rows({name: [] for name in columns}, folder / "validation")
    (folder / "subset.json").write_text((world["subset"] / "subset.json").read_text())
    return folder


def small_world(tmp_path):
    """A start model, a teacher, a mixture of 14 rows and the subset of all of them, by role of input."""
    rows = [pair(f"Add {i} and {i}", str(2 * i)) for i in range(14)]
    (tmp_path / "mixture").mkdir()
    for name, messages in (("train", rows), ("heldout", [pair("Say hello", "hello")])):
        table = {
            "id": [f"r{i}" for i in range(len(messages))],
            "messages": messages,
            "source": ["add"] * len(messages),
            "prompt_hash": [prompt_hash(m) for m in messages],
        }
        pq.write_table(pa.table(table), tmp_path / "mixture" / f"{name}.parquet")
    rendered = [render(TOKENIZER, row, 64) for row in rows]
    for name, part in (("train", range(12)), ("validation", range(12, 14))):
        columns = {"row": list(part), "id": [f"r{i}" for i in part]}
        columns |= {key: [getattr(rendered[i], key) for i in part] for key in ("input_ids", "starts", "ends")}
        save_rows(columns, tmp_path / "subset" / name)
    (tmp_path / "subset" / "subset.json").write_text(
        json.dumps({"tokenizer_hash": tokenizer_hash(TOKENIZER), "max_length": 64})
    )
    return {
        "subset": tmp_path / "subset",
        "mixture": tmp_path / "mixture",
        "start": save_tiny(tmp_path / "start", seed=0),
        "teacher": save_tiny(tmp_path / "teacher", seed=1),
    }


def files(folder):
    """Every file beneath a folder, by its path there."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stopped(monkeypatch, checkpoints, after, make):
    """Attempts at a stage that are asked to stop after so many new shards each, then one that is let go; its result."""
    for number, shards in enumerate(after):
        asks = iter([False] * (2 * shards - 1) + [True])  # asked before and after each
        with monkeypatch.context() as patched:
            patched.setattr(preemption, "stop_requested", lambda asks=asks: next(asks))
            with pytest.raises(preemption.Preempted), preemption.stoppable(checkpoints):
                make(f"attempt-{number}")
    with preemption.stoppable(checkpoints):
        return make("last")
