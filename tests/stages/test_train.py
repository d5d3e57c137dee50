"""The train, labels and synthesize stages on a tiny world of bytes, from folders to folders."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, load_from_disk

from harness.chat import render
from harness.config import Machine, SettingsError
from harness.corpora._rows import prompt_hash
from harness.generate import generate
from harness.models import load_model, load_tokenizer, tokenizer_hash
from harness.recipe import TrainStage
from harness.sequences import visits
from harness.stages import synthesize
from harness.stages.synthesize import make_synthesize
from harness.stages.teach import FEATURES, make_labels, save_rows
from harness.stages.train import dealt, make_train
from tests.doubles import byte_tokenizer, save_tiny

CPU = Machine(device="cpu")
BUDGET = {"kind": "steps", "amount": 10, "batch_size": 4, "learning_rate": 1e-3}
TOKENIZER = byte_tokenizer()


def pair(prompt, answer):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


@pytest.fixture
def world(tmp_path):
    """A start model, a teacher, a mixture of 14 rows and the subset of all of them."""
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
    (tmp_path / "subset" / "subset.json").write_text(json.dumps({"tokenizer_hash": tokenizer_hash(TOKENIZER)}))
    return {
        "subset": tmp_path / "subset",
        "mixture": tmp_path / "mixture",
        "start": save_tiny(tmp_path / "start", seed=0),
        "teacher": save_tiny(tmp_path / "teacher", seed=1),
    }


def settings(stage, **changes):
    return {
        "stage": stage.identity(),
        "budget": BUDGET,
        "seed": 0,
        "index": 0,
        "loss_on": "assistant",
    } | changes


def run(make, asked, inputs, tmp_path, name):
    (tmp_path / name).mkdir()
    return make(asked, inputs, tmp_path / name, CPU), tmp_path / name


def steps_of(folder):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def label_settings(**changes):
    return {
        "budget": BUDGET,
        "span": [0.0, 1.0],
        "seed": 0,
        "sampling_temperature": 0.0,
        "max_new_tokens": 5,
        "max_length": 64,
    } | changes


def test_a_trained_model_is_a_folder_that_loads_with_its_tokenizer_and_has_moved(world, tmp_path):
    facts, folder = run(make_train, settings(TrainStage()), {r: world[r] for r in ("subset", "start")}, tmp_path, "a")
    model, start = load_model(folder), load_model(world["start"])
    assert not torch.equal(model.get_input_embeddings().weight, start.get_input_embeddings().weight)
    assert tokenizer_hash(load_tokenizer(folder)) == tokenizer_hash(TOKENIZER)
    assert facts["counts"]["steps"] == 10 and facts["metrics"]["validation_tokens"] == 2 * 3
    assert facts["metrics"]["validation_nll"] > 0 and json.dumps(facts, allow_nan=False)


def test_a_warm_up_and_its_sequel_see_the_batches_of_sft(world, tmp_path, monkeypatch):
    seen = []
    real = __import__("harness.stages.train", fromlist=["fit"]).fit
    monkeypatch.setattr(
        "harness.stages.train.fit", lambda *args, **named: (seen.append(args[3]), real(*args, **named))[1]
    )
    inputs = {role: world[role] for role in ("subset", "start")}
    for name, span in (("whole", (0.0, 1.0)), ("first", (0.0, 0.2)), ("second", (0.2, 1.0))):
        run(make_train, settings(TrainStage(span=span)), inputs, tmp_path, name)
    assert np.array_equal(seen[0], visits(12, 10, 4, seed=0))
    assert np.array_equal(seen[0], np.concatenate(seen[1:])) and len(seen[1]) == 2


def test_a_live_teacher_is_used_and_a_missing_one_is_an_error(world, tmp_path):
    asked = settings(TrainStage(divergence="forward_kl"))
    facts, _ = run(make_train, asked, world, tmp_path, "kd")
    assert facts["cost"]["teacher_tokens"] == facts["counts"]["read_tokens"] > 0
    assert facts["metrics"]["diagnostics"]["teacher_entropy"] > 0 and json.dumps(facts, allow_nan=False)
    with pytest.raises(ValueError, match="'teacher'"):
        run(make_train, asked, {r: world[r] for r in ("subset", "start")}, tmp_path, "without")


@pytest.mark.parametrize(("sequences", "role"), [("teacher", "labels"), ("synthetic", "synthetic")])
def test_missing_text_of_the_teacher_is_an_error_and_never_gold(world, tmp_path, sequences, role):
    with pytest.raises(ValueError, match=f"'{role}'"):
        run(make_train, settings(TrainStage(sequences=sequences)), world, tmp_path, "without")


def test_labels_are_the_teachers_own_greedy_answers_to_the_visited_prompts(world, tmp_path):
    facts, folder = run(make_labels, label_settings(), world, tmp_path, "labels")
    labels, subset = load_from_disk(folder / "labels"), load_from_disk(world["subset"] / "train")
    model = load_model(world["teacher"])
    assert labels["row"] == sorted(set(visits(12, 10, 4, seed=0).ravel().tolist()))
    for label in labels:
        gold = subset[label["row"]]
        prompt = gold["input_ids"][: gold["starts"][-1]]
        assert label["input_ids"][: label["starts"][0]] == prompt and label["id"] == gold["id"]
        assert label["input_ids"][label["starts"][0] :] == generate(model, TOKENIZER, [prompt], 5)[0]
    cut = sum(label["input_ids"][-1] != TOKENIZER.eos_token_id for label in labels)
    assert facts["counts"]["truncated_answers"] == cut
    assert facts["cost"]["generated_tokens"] == sum(
        e[0] - s[0] for s, e in zip(labels["starts"], labels["ends"], strict=True)
    )


def test_labels_of_a_part_of_the_budget_answer_only_the_rows_it_visits(world, tmp_path):
    _, folder = run(make_labels, label_settings(span=[0.0, 0.1]), world, tmp_path, "labels")
    visited = set(visits(12, 10, 4, seed=0)[:1].ravel().tolist())
    assert set(load_from_disk(folder / "labels")["row"]) == visited


def test_sampled_labels_depend_on_a_rows_id_and_not_on_what_else_is_answered(world, tmp_path):
    answers = []
    for name, span in (("all", [0.0, 1.0]), ("some", [0.0, 0.1])):
        _, folder = run(make_labels, label_settings(span=span, sampling_temperature=1.0), world, tmp_path, name)
        labels = load_from_disk(folder / "labels")
        answers.append(dict(zip(labels["id"], labels["input_ids"], strict=True)))
    assert all(answers[0][id] == ids for id, ids in answers[1].items())


def test_labels_train_the_student_and_the_shuffled_control_trains_others(world, tmp_path):
    _, labels = run(make_labels, label_settings(), world, tmp_path, "labels")
    losses = []
    for name, stage in (
        ("plain", TrainStage(sequences="teacher")),
        ("dealt", TrainStage(sequences="teacher", control="shuffled")),
        ("gold", TrainStage()),
    ):
        _, folder = run(make_train, settings(stage), world | {"labels": labels}, tmp_path, name)
        losses.append(steps_of(folder))
    assert losses[0][0] != losses[1][0] != losses[2][0]


def test_dealing_keeps_prompts_and_gives_no_row_its_own_answer():
    rows = {
        "row": [3, 5, 8, 9],
        "id": list("abcd"),
        "input_ids": [[1, 2, 30 + i] for i in range(4)],
        "starts": [[2]] * 4,
        "ends": [[3]] * 4,
    }
    found = dealt(Dataset.from_dict(rows, features=FEATURES), seed=0)
    answers = [ids[2] for ids in found["input_ids"]]
    assert sorted(answers) == [30, 31, 32, 33] and all(answer != 30 + i for i, answer in enumerate(answers))
    assert found["row"] == [3, 5, 8, 9] and all(ids[:2] == [1, 2] for ids in found["input_ids"])


def test_a_teacher_with_another_tokenizer_writes_no_labels(world, tmp_path):
    (world["subset"] / "subset.json").write_text(json.dumps({"tokenizer_hash": "f" * 64}))
    with pytest.raises(SettingsError, match="same tokenizer"):
        run(make_labels, label_settings(), world, tmp_path, "labels")


def synthesis(**changes):
    return {
        "synthetic_rows": 4,
        "examples_in_context": 2,
        "seed": 0,
        "sampling_temperature": 1.0,
        "max_new_tokens": 8,
        "max_length": 40,
    } | changes


def scripted(monkeypatch, prompts, answers):
    """A teacher that writes these texts in turn; returns the prompts it was shown."""
    shown, said = [], {"prompt": iter(prompts), "answer": iter(answers)}

    def write(model, tokenizer, ids, limit, temperature, seeds, batch_size, stop_ids):
        shown.extend(tokenizer.decode(one) for one in ids)
        what = "answer" if stop_ids == {tokenizer.eos_token_id} else "prompt"
        return [tokenizer(next(said[what]), add_special_tokens=False)["input_ids"] for _ in ids]

    monkeypatch.setattr(synthesize, "generate", write)
    monkeypatch.setattr(synthesize, "ROWS_AT_ONCE", 8)
    return shown


def test_synthetic_rows_are_new_well_formed_and_never_scored_prompts(world, tmp_path, monkeypatch):
    user, end = "<|assistant|>", "<|end|>"
    shown = scripted(
        monkeypatch,
        prompts=[
            "One" + user,
            "no end",
            "say  HELLO" + user,
            "Add 3 and 3" + user,
            "Two" + user,
            "One" + user,
            "x" * 60 + user,
            "Three" + user,
            *["Four" + user] * 8,
        ],
        answers=["1" + end, "h" + end, "6" + end, "cut", "1" + end, "0" + end, "3" + end, *["4" + end] * 8],
    )
    facts, folder = run(make_synthesize, synthesis(synthetic_rows=3), world, tmp_path, "s")
    rows = [TOKENIZER.decode(ids) for ids in load_from_disk(folder / "synthetic")["input_ids"]]
    assert rows == [f"<|user|>{p}<|assistant|>{a}<|end|>" for p, a in (("One", 1), ("Three", 3), ("Four", 4))]
    assert facts["counts"] == {
        "asked": 9,
        "kept": 3,
        "wanted": 3,
        "malformed prompt": 1,
        "malformed answer": 1,
        "held-out prompt": 1,
        "copy of a human row": 1,
        "repeat": 1,
        "too long": 1,
    }
    assert shown[0].count("<|user|>Add ") == 2 and shown[0].endswith("<|end|><|user|>")
    written = json.loads((folder / "synthetic.json").read_text())
    assert written["rejected"]["repeat"] == 1 and written["distinct_share"] == 1.0


def test_synthetic_rows_train_a_student(world, tmp_path, monkeypatch):
    scripted(monkeypatch, [f"Row {i}<|assistant|>" for i in range(8)], [f"{i}<|end|>" for i in range(8)])
    _, synthetic = run(make_synthesize, synthesis(), world, tmp_path, "s")
    stage = TrainStage(sequences="synthetic", span=(0.0, 0.5))
    facts, _ = run(make_train, settings(stage), world | {"synthetic": synthetic}, tmp_path, "t")
    assert facts["counts"]["steps"] == 5


def test_a_teacher_that_cannot_write_prompts_is_refused_after_bounded_tries(world, tmp_path):
    # a random model ends a turn now and then, but writes no text that decodes and is answered in 8 tokens
    with pytest.raises(SettingsError, match=r"synthetic_rows=4 cannot be reached: of 16 rows"):
        run(make_synthesize, synthesis(), world, tmp_path, "s")
