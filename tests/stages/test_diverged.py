"""Models whose numbers are not finite: every stage says whose they are, and none publishes them."""

import json
import math

import pytest
import torch
from datasets import load_from_disk
from safetensors.torch import load_file, save_file

from harness.config.machine import Machine
from harness.config.recipe import TrainingPhase
from harness.config.teacher_signal import Signal
from harness.execution.attempt import failure_class, one_line
from harness.models.diverged import DivergedError, TeacherDivergedError, check_facts
from harness.models.finite import check_weight_files, check_weights, explosion_warnings
from harness.models.generate import choose
from harness.results.arms import diverged
from harness.results.records import _blamed
from harness.stages.evaluate import make_evaluate
from harness.stages.labels import make_labels
from harness.stages.logit_cache import make_cache
from harness.stages.train import make_train
from harness.store.status import StageState
from tests.doubles import tiny_llama
from tests.invented_records import cell, frozen_cell
from tests.stages.small_world import run
from tests.stages.test_base import Model, make
from tests.stages.test_labels import label_settings
from tests.stages.test_train import BUDGET, settings

CPU = Machine(device="cpu")
FIRST = "model.layers.0.mlp.down_proj.weight"


def damage(folder, name=FIRST, value=math.nan):
    """One number of one tensor of a saved model replaced."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors[name].view(-1)[0] = value
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_no_numbers_are_named(value):
    model = tiny_llama()
    whole = math.sqrt(sum(weight.double().square().sum().item() for weight in model.parameters()))
    assert check_weights(model, "it") == pytest.approx(whole)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 3] = value
    said = (
        r"^the weights of the student are not numbers: 1 of \d+ tensors hold NaN or infinity, model\.layers\.1\.mlp\.up"
    )
    with pytest.raises(DivergedError, match=said):
        check_weights(model, "the student")


def test_large_weights_are_numbers_and_a_norm_that_grew_manyfold_is_warned_of():
    model = tiny_llama()
    before = check_weights(model, "it")
    assert explosion_warnings(model, before, 2 * before) == []
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e30  # its square is beyond fp32
    (said,) = explosion_warnings(model, before, check_weights(model, "it"))
    assert said.startswith("the weights exploded: their norm is 1e+30 (") and "the largest of them 1e+30" in said


def test_a_folder_of_nan_weights_is_not_adopted(world, tmp_path):
    folder = damage(world["start"])
    said = rf"^the weights of {folder} are not numbers: 1 of \d+ tensors hold NaN or infinity, {FIRST} first$"
    with pytest.raises(DivergedError, match=said):
        make(Model(name="s", kind="hf", path=str(folder)), tmp_path / "base")
    with pytest.raises(DivergedError, match="the weights of the hf model"):
        make(Model(name="s", kind="hf", path=str(folder), init="pruned", layers=2), tmp_path / "pruned")
    assert check_weight_files([world["teacher"] / "model.safetensors"], "it") > 0


def test_a_last_step_that_leaves_no_numbers_is_diverged_with_its_step(world, tmp_path):
    budget = BUDGET | {"amount": 1, "learning_rate": 3e38}
    # without validation rows nothing else would notice
    inputs = {"start": world["start"], "subset": world["subset"]}
    validation = load_from_disk(world["subset"] / "validation")
    inputs["subset"] = tmp_path / "bare"
    load_from_disk(world["subset"] / "train").save_to_disk(inputs["subset"] / "train")
    validation.select([]).save_to_disk(inputs["subset"] / "validation", num_shards=1)
    (inputs["subset"] / "subset.json").write_text((world["subset"] / "subset.json").read_text())
    with pytest.raises(DivergedError, match=r"^the weights of the student after step 1 of 1 are not numbers") as error:
        run(make_train, settings(TrainingPhase(), budget=budget), inputs, tmp_path, "t")
    assert failure_class(error.value) == "diverged"


def test_a_step_that_blows_the_weights_up_is_warned_of(world, tmp_path):
    budget = BUDGET | {"amount": 1, "learning_rate": 1e3}
    inputs = {"start": world["start"], "subset": world["subset"]}
    facts, _ = run(make_train, settings(TrainingPhase(), budget=budget), inputs, tmp_path, "t")
    assert any(warning.startswith("the weights exploded") for warning in facts["warnings"])
    assert json.dumps(facts, allow_nan=False)


@pytest.mark.parametrize(
    "stage",
    [
        TrainingPhase(divergence="forward_kl"),
        TrainingPhase(divergence="jsd"),
        TrainingPhase(sequences="interleaved", divergence="forward_kl"),
    ],
    ids=["logit_kd", "kd", "skd"],
)
def test_a_teacher_of_nan_weights_is_blamed_and_not_its_student(world, tmp_path, stage):
    damage(world["teacher"])
    with pytest.raises(TeacherDivergedError, match=r"^the weights of the teacher are not numbers") as error:
        run(make_train, settings(stage, max_new_tokens=4), world, tmp_path, "t")
    assert failure_class(error.value) == "diverged"
    reason = f"train-kd: {one_line(error.value)}"
    planned = frozen_cell(train=("t",), evaluations={"verified": "e"})
    assert _blamed(planned, StageState("failed", "diverged", reason, "t")) == "input"


def test_labels_and_caches_of_a_teacher_of_nan_weights_are_not_made(world, tmp_path):
    inputs = {"rows": world["subset"], "teacher": damage(world["teacher"])}
    with pytest.raises(TeacherDivergedError, match="the weights of the teacher"):
        run(make_labels, label_settings(), inputs, tmp_path, "labels")
    asked = {"signal": Signal(kind="top_k", top_k=5).stored(), "seed": 0, "max_length": 64}
    with pytest.raises(TeacherDivergedError, match="the weights of the teacher"):
        run(make_cache, asked, inputs, tmp_path, "cache")


@pytest.mark.parametrize("name", ["heldout", "verified"])
def test_a_model_that_cannot_be_scored_in_numbers_is_diverged(world, tmp_path, name):
    import pyarrow.parquet as pq

    rows = pq.read_table(world["mixture"] / "heldout.parquet")
    rows = rows.append_column("truth", [["hello"]])
    pq.write_table(rows, world["mixture"] / "heldout.parquet")
    asked = {"eval": name, "limit": None, "max_new_tokens": 3}
    inputs = {"model": world["start"], "mixture": world["mixture"]}
    # finite weights whose logits are not: the item is named, or what could not be generated
    damage(world["start"], "model.norm.weight", 3e38)
    words = {
        "heldout": r"^the model's nll of heldout item r0 \(add\) is nan$",
        "verified": "the logits of a next token",
    }
    with pytest.raises(DivergedError, match=words[name]):
        run(make_evaluate, asked, inputs, tmp_path, "overflow")
    damage(world["start"])
    with pytest.raises(DivergedError, match="the weights of the model that is scored"):
        run(make_evaluate, asked, inputs, tmp_path, "nan")


@pytest.mark.parametrize("uniforms", [None, [0.3, 0.3]])
def test_no_token_is_chosen_from_nan_logits(uniforms):
    import numpy as np

    logits = torch.tensor([[0.0, 1.0], [math.nan, 1.0]])
    drawn = None if uniforms is None else np.array(uniforms)
    assert choose(logits[:1], 1.0, None if drawn is None else drawn[:1]).shape == (1,)
    with pytest.raises(DivergedError, match="NaN"):
        choose(logits, 1.0, drawn)


def test_a_fact_that_is_no_number_is_named_before_it_is_written():
    check_facts({"metrics": {"nll": 1.0}, "warnings": [], "counts": {"rows": 3}})
    with pytest.raises(DivergedError, match=r"^metrics\.diagnostics\.entropy is nan$"):
        check_facts({"metrics": {"nll": 1.0, "diagnostics": {"entropy": math.nan}}})


def test_a_cell_counts_as_diverged_by_its_own_training_alone():
    planned = frozen_cell(train=("t",), evaluations={"verified": "e"})
    states = {key: StageState("failed", "diverged", "train: DivergedError: nan", key) for key in ("t", "e", "base")}
    assert [_blamed(planned, states[key]) for key in ("t", "e", "base")] == ["student", "student", "input"]
    assert _blamed(planned, StageState("done")) is None
    lost = {"status": "failed", "failure_class": "diverged"}
    assert diverged(cell("kd", 0.1, 0, **lost)) and diverged(cell("kd", 0.1, 0, **lost, blamed="student"))
    assert not diverged(cell("kd", 0.1, 0, **lost, blamed="input"))
