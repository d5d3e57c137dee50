"""The train, labels and synthesize stages on a tiny world of bytes, from folders to folders."""

import json
import shutil

import numpy as np
import pytest
import torch
from datasets import load_from_disk

from harness.checks import SettingsError
from harness.models import load_model, load_tokenizer, tokenizer_hash
from harness.recipe import TrainStage
from harness.sequences import visits
from harness.stages import synthesize
from harness.stages.synthesize import make_synthesize
from harness.stages.teach import save_rows
from harness.stages.train import make_train
from tests.doubles import byte_tokenizer
from tests.stages.small_world import run

BUDGET = {"kind": "steps", "amount": 10, "batch_size": 4, "learning_rate": 1e-3}
TOKENIZER = byte_tokenizer()


def settings(stage, **changes):
    return {
        "stage": stage.identity(),
        "budget": BUDGET,
        "seed": 0,
        "index": 0,
        "loss_on": "assistant",
    } | changes


def steps_of(folder):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


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
    with pytest.raises(ValueError, match="'teacher'"):
        run(make_train, asked, {r: world[r] for r in ("subset", "start")}, tmp_path, "without")


@pytest.mark.parametrize(("sequences", "role"), [("teacher", "labels"), ("synthetic", "synthetic")])
def test_missing_text_of_the_teacher_is_an_error_and_never_gold(world, tmp_path, sequences, role):
    with pytest.raises(ValueError, match=f"'{role}'"):
        run(make_train, settings(TrainStage(sequences=sequences)), world, tmp_path, "without")


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


def test_the_subsets_validation_rows_reach_an_adaptive_share_and_a_cell_without_any_is_refused(world, tmp_path):
    stage = TrainStage(sequences="student", student_share=1.0, adaptive=True, divergence="forward_kl")
    asked = settings(stage, max_new_tokens=4)
    facts, folder = run(make_train, asked, world, tmp_path, "adaptive")
    first = json.loads((folder / "log.jsonl").read_text().splitlines()[0])
    assert first["phi"] == 0 and first["validation_nll"] > facts["metrics"]["validation_nll"]
    save_rows({name: [] for name in ("row", "id", "input_ids", "starts", "ends")}, tmp_path / "bare" / "validation")
    shutil.copytree(world["subset"] / "train", tmp_path / "bare" / "train")
    bare = world | {"subset": tmp_path / "bare"}
    with pytest.raises(SettingsError, match="no validation rows"):
        run(make_train, asked, bare, tmp_path, "refused")
    # such a cell is trained by every other method; a data set without rows could not be loaded again
    facts, _ = run(make_train, settings(TrainStage()), bare, tmp_path, "plain")
    assert "validation_nll" not in facts["metrics"]


def test_interleaved_text_is_trained_with_the_teacher_in_memory(world, tmp_path):
    stage = TrainStage(sequences="interleaved", divergence="forward_kl")
    facts, _ = run(make_train, settings(stage, max_new_tokens=4), world, tmp_path, "skd")
    assert facts["counts"]["student_steps"] == 10 and facts["cost"]["generated_tokens"] > 0
    assert facts["cost"]["teacher_tokens"] > facts["counts"]["read_tokens"]
