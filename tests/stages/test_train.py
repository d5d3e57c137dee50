"""The train, labels and synthesize stages on a tiny world of bytes, from folders to folders."""

import json
import shutil

import numpy as np
import pytest
import torch
from datasets import load_from_disk

from harness.config.checks import SettingsError
from harness.config.recipe import TrainingPhase
from harness.data.chat import render
from harness.data.sequences import visits
from harness.models.loading import load_model, load_tokenizer, tokenizer_hash
from harness.stages.labels import make_labels, save_rows
from harness.stages.train import make_train
from harness.training.training_report import TrainingReport
from tests.doubles import bpe_tokenizer, byte_tokenizer, tiny_llama
from tests.stages.small_world import pair, run
from tests.stages.test_labels import label_settings

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
    facts, folder = run(
        make_train, settings(TrainingPhase()), {r: world[r] for r in ("subset", "start")}, tmp_path, "a"
    )
    model, start = load_model(folder), load_model(world["start"])
    assert not torch.equal(model.get_input_embeddings().weight, start.get_input_embeddings().weight)
    assert tokenizer_hash(load_tokenizer(folder)) == tokenizer_hash(TOKENIZER)
    assert facts["counts"]["steps"] == 10 and facts["metrics"]["validation_tokens"] == 2 * 3
    assert facts["metrics"]["validation_nll"] > 0 and json.dumps(facts, allow_nan=False)


def test_a_warm_up_and_its_sequel_see_the_batches_of_sft(world, tmp_path, monkeypatch):
    seen = []
    real = __import__("harness.stages.train", fromlist=["fit"]).fit
    monkeypatch.setattr(
        "harness.stages.train.fit", lambda *args, **named: (seen.append(args[2].batches), real(*args, **named))[1]
    )
    inputs = {role: world[role] for role in ("subset", "start")}
    for name, span in (("whole", (0.0, 1.0)), ("first", (0.0, 0.2)), ("second", (0.2, 1.0))):
        run(make_train, settings(TrainingPhase(span=span)), inputs, tmp_path, name)
    assert np.array_equal(seen[0], visits(12, 10, 4, seed=0))
    assert np.array_equal(seen[0], np.concatenate(seen[1:])) and len(seen[1]) == 2


def test_a_live_teacher_is_used_and_a_missing_one_is_an_error(world, tmp_path):
    asked = settings(TrainingPhase(divergence="forward_kl"))
    facts, _ = run(make_train, asked, world, tmp_path, "kd")
    assert facts["cost"]["teacher_tokens"] == facts["counts"]["read_tokens"] > 0
    assert facts["metrics"]["diagnostics"]["teacher_entropy"] > 0 and json.dumps(facts, allow_nan=False)
    with pytest.raises(ValueError, match="'teacher'"):
        run(make_train, asked, {r: world[r] for r in ("subset", "start")}, tmp_path, "without")


@pytest.fixture
def other(world, tmp_path):
    """The same world with a teacher of another tokenizer and its rendering of the training rows but the last."""
    tokenizer = bpe_tokenizer("byte-level")
    tiny_llama(len(tokenizer), seed=1).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    rendered = [render(tokenizer, pair(f"Add {i} and {i}", str(2 * i)), 64) for i in range(11)]
    columns = {"row": list(range(11)), "id": [f"r{i}" for i in range(11)]}
    columns |= {key: [getattr(one, key) for one in rendered] for key in ("input_ids", "starts", "ends")}
    save_rows(columns, tmp_path / "teacher_rows" / "train")
    return world | {"teacher": tmp_path / "other", "teacher_rows": tmp_path / "teacher_rows"}


@pytest.mark.parametrize("divergence", ["uld", "spans"])
def test_a_teacher_of_another_tokenizer_reads_its_own_rows_and_what_it_cannot_reach_is_told(
    other, tmp_path, divergence
):
    asked = settings(TrainingPhase(divergence=divergence, cross_entropy_weight=1.0))
    facts, folder = run(make_train, asked, other, tmp_path, "cross")
    assert steps_of(folder)[-1] < steps_of(folder)[0]
    assert facts["counts"]["rows_left_out"] == 1 and facts["counts"]["aligned_tokens"] == 5 * 2 + 6 * 3
    assert any("1 of 12 rows train by cross-entropy alone: 1 are not" in text for text in facts["warnings"])
    assert 0 < facts["cost"]["teacher_tokens"] < facts["counts"]["read_tokens"]
    with pytest.raises(ValueError, match="'teacher_rows'"):
        run(make_train, asked, {r: other[r] for r in ("subset", "start", "teacher")}, tmp_path, "without")


def test_a_teacher_that_spells_other_text_is_refused(other, tmp_path):
    rows = load_from_disk(other["teacher_rows"] / "train").to_dict()
    rows["row"] = rows["row"][::-1]  # as if the rendering belonged to another subset
    save_rows(rows, tmp_path / "wrong" / "train")
    with pytest.raises(SettingsError, match=r"same text as the student's at \d+% .*seq_kd"):
        run(
            make_train,
            settings(TrainingPhase(divergence="spans")),
            other | {"teacher_rows": tmp_path / "wrong"},
            tmp_path,
            "a",
        )


@pytest.mark.parametrize(
    ("sequences", "role"), [("teacher", "labels"), ("synthetic", "synthetic"), ("mixed", "synthetic")]
)
def test_missing_text_of_the_teacher_is_an_error_and_never_gold(world, tmp_path, sequences, role):
    with pytest.raises(ValueError, match=f"'{role}'"):
        run(make_train, settings(TrainingPhase(sequences=sequences)), world, tmp_path, "without")


def save_synthetic(folder, count):
    rendered = [render(TOKENIZER, pair(f"New {i}", str(i)), 64) for i in range(count)]
    columns = {"row": [-1 - i for i in range(count)], "id": [f"synthetic-{i}" for i in range(count)]}
    columns |= {key: [getattr(one, key) for one in rendered] for key in ("input_ids", "starts", "ends")}
    save_rows(columns, folder / "synthetic")
    return folder


@pytest.mark.parametrize(("sequences", "least", "steps"), [("synthetic", 1, 6), ("mixed", 1, 15), ("synthetic", 9, 9)])
def test_a_phase_that_counts_epochs_of_its_own_rows_visits_each_as_often(
    world, tmp_path, monkeypatch, sequences, least, steps
):
    seen = []
    real = __import__("harness.stages.train", fromlist=["fit"]).fit
    monkeypatch.setattr(
        "harness.stages.train.fit", lambda *args, **named: (seen.append(args[2].batches), real(*args, **named))[1]
    )
    budget = BUDGET | {"kind": "epochs", "amount": 3, "epochs_of": "phase", "min_steps": least}
    inputs = world | {"synthetic": save_synthetic(tmp_path / "s", 8)}  # beside 12 human rows, in batches of 4
    run(make_train, settings(TrainingPhase(sequences=sequences), budget=budget), inputs, tmp_path, "a")
    (batches,) = seen
    assert len(batches) == steps
    if least == 1:
        assert set(np.bincount(batches.ravel()).tolist()) == {3}


def test_synthetic_rows_train_a_student(world, tmp_path):
    stage = TrainingPhase(sequences="synthetic", span=(0.0, 0.5))
    inputs = world | {"synthetic": save_synthetic(tmp_path / "s", 4)}
    facts, _ = run(make_train, settings(stage), inputs, tmp_path, "t")
    assert facts["counts"]["steps"] == 5


def test_the_subsets_validation_rows_reach_an_adaptive_share_and_a_cell_without_any_is_refused(world, tmp_path):
    stage = TrainingPhase(sequences="student", student_share=1.0, adaptive=True, divergence="forward_kl")
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
    facts, _ = run(make_train, settings(TrainingPhase()), bare, tmp_path, "plain")
    assert "validation_nll" not in facts["metrics"]


def test_interleaved_text_is_trained_with_the_teacher_in_memory(world, tmp_path):
    stage = TrainingPhase(sequences="interleaved", divergence="forward_kl")
    facts, _ = run(make_train, settings(stage, max_new_tokens=4), world, tmp_path, "skd")
    assert facts["counts"]["student_steps"] == 10 and facts["cost"]["generated_tokens"] > 0
    assert facts["cost"]["teacher_tokens"] > facts["counts"]["read_tokens"]


@pytest.mark.parametrize(("share", "human_visits"), [(0.5, 20), (0.25, 10), (0.0, 24)])
def test_mixed_rows_are_the_synthetic_ones_and_then_the_cells_own(world, tmp_path, monkeypatch, share, human_visits):
    seen = []

    def fit(model, tokenizer, data, settings, **named):
        seen.append((data.dataset, data.batches))
        return TrainingReport()

    monkeypatch.setattr("harness.stages.train.fit", fit)
    inputs = world | {"synthetic": save_synthetic(tmp_path / "s", 8)}
    run(make_train, settings(TrainingPhase(sequences="mixed", human_share=share)), inputs, tmp_path, "t")
    ((dataset, batches),) = seen
    assert dataset["row"] == [*range(-1, -9, -1), *range(12)]
    gold = load_from_disk(world["subset"] / "train")
    assert dataset["input_ids"][8:] == gold["input_ids"][:] and dataset["starts"][8:] == gold["starts"][:]
    assert batches.shape == (10, 4)
    # 40 visits of 20 rows: all twice without a share, 12 of the rows are human
    assert (batches >= 8).sum() == human_visits


def test_equal_flops_give_an_arm_with_a_teacher_fewer_steps_and_charge_it_for_its_labels(world, tmp_path):
    def trained(name, stage, inputs, **changes):
        asked = settings(stage) | {"budget": BUDGET | {"kind": "flops", "amount": 2e8} | changes}
        facts, folder = run(make_train, asked, world | inputs, tmp_path, name)
        return facts, folder

    plain, _ = trained("sft", TrainingPhase(), {})
    taught, _ = trained("kd", TrainingPhase(divergence="forward_kl"), {})
    step = plain["cost"]["flops"] / plain["counts"]["steps"]
    assert taught["counts"]["steps"] == pytest.approx(plain["counts"]["steps"] * 6 / 8, rel=0.1)
    assert all(abs(facts["cost"]["flops"] - 2e8) < 2 * step for facts in (plain, taught))
    labels, _ = run(
        make_labels, label_settings(), {"rows": world["subset"], "teacher": world["teacher"]}, tmp_path, "l"
    )
    (tmp_path / "l" / "manifest.json").write_text(json.dumps({"facts": labels}))
    told, _ = trained("seq", TrainingPhase(sequences="teacher"), {"labels": tmp_path / "l"})
    assert told["counts"]["steps"] < plain["counts"]["steps"]
    assert abs(told["cost"]["flops"] + labels["cost"]["flops"] - 2e8) < 2 * step
