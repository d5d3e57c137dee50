"""A quantised teacher: an ordinary folder with rounded weights, scored and asked as it is; the student never is."""

import pytest
import torch

from harness.config.checks import SettingsError
from harness.config.teacher_signal import Signal
from harness.execution.preflight import preflight
from harness.models.loading import count_parameters, load_model, load_tokenizer
from harness.plan.cell_plan import Plan, plan_cell
from harness.plan.compose import compose
from harness.stages.deployment import make_quantise
from harness.stages.labels import make_labels
from harness.stages.logit_cache import make_cache
from harness.stages.train import make_train
from tests.stages.small_world import run, small_world
from tests.stages.test_train import settings
from tests.training.test_trainer import FORWARD

pytest.importorskip("bitsandbytes")

IDS = torch.tensor([[3, 110, 111, 4, 112, 5]])
KINDS = ("int8", "nf4")


@pytest.fixture
def world(tmp_path):
    return small_world(tmp_path)


def rounded(world, tmp_path, to):
    return run(make_quantise, {"to": to}, {"model": world["teacher"]}, tmp_path, to)


def log_probabilities(folder):
    with torch.no_grad():
        return load_model(folder)(IDS).logits.log_softmax(-1)


@pytest.mark.parametrize(("to", "off"), [("int8", 0.01), ("nf4", 0.3)])
def test_rounded_weights_change_the_model_a_little_and_every_load_alike(world, tmp_path, to, off):
    facts, folder = rounded(world, tmp_path, to)
    before, after = log_probabilities(world["teacher"]), log_probabilities(folder)
    assert 0 < (before.exp() * (before - after)).sum(-1).mean() < off
    assert torch.equal(after, log_probabilities(folder))
    whole = load_model(world["teacher"])
    assert facts["counts"]["parameters"] == count_parameters(load_model(folder)) == count_parameters(whole)
    assert facts["counts"]["bytes"] < 0.8 * whole.get_memory_footprint()  # embeddings are not rounded
    assert load_tokenizer(folder).chat_template == load_tokenizer(world["teacher"]).chat_template


def test_four_bits_are_further_off_than_eight_and_take_less(world, tmp_path):
    found = {to: rounded(world, tmp_path, to) for to in KINDS}
    before = log_probabilities(world["teacher"])
    off = {to: (before - log_probabilities(folder)).abs().mean() for to, (_, folder) in found.items()}
    assert off["nf4"] > off["int8"]
    assert found["nf4"][0]["counts"]["bytes"] < found["int8"][0]["counts"]["bytes"]


@pytest.mark.parametrize("to", KINDS)
def test_whoever_asks_the_teacher_asks_the_rounded_one(world, tmp_path, to):
    asked = world | {"teacher": rounded(world, tmp_path, to)[1]}
    whole, _ = run(make_train, settings(FORWARD), world, tmp_path, "whole")
    taught, _ = run(make_train, settings(FORWARD), asked, tmp_path, "taught")
    assert taught["metrics"]["first_loss"] != whole["metrics"]["first_loss"]
    assert taught["metrics"]["first_loss"] == pytest.approx(whole["metrics"]["first_loss"], rel=0.05)

    inputs = {"rows": world["subset"], "teacher": asked["teacher"]}
    stored = {"signal": Signal(kind="top_k", top_k=5).stored(), "seed": 0, "max_length": 64}
    assert run(make_cache, stored, inputs, tmp_path, "cache")[0]["counts"]["rows"] == 12
    words = {"sampling_temperature": 0.0, "samples_per_prompt": 1, "max_new_tokens": 4, "max_length": 64}
    assert run(make_labels, words | {"precision": "fp32"}, inputs, tmp_path, "labels")[0]["counts"]["answers"] == 12


def cell(*overrides):
    (found,) = compose(list(overrides)).cells
    return found


def test_only_what_asks_or_scores_the_teacher_is_renamed():
    plain, eight = (
        plan_cell(cell("method=logit_kd", "data_frac=0.1", *more)) for more in ([], ["teacher.quantise=int8"])
    )
    assert eight.teacher.kind == "quantise" and eight.teacher.inputs["model"].key == plain.teacher.key
    assert eight.train[0].inputs["teacher"] is eight.teacher
    assert eight.train[0].inputs["start"].key == plain.train[0].inputs["start"].key
    assert all(stage.inputs["model"] is eight.teacher for stage in eight.references["teacher"].values())
    of_base = [[stage.key for stage in one.references["base"].values()] for one in (eight, plain)]
    assert of_base[0] == of_base[1]
    sft = [plan_cell(cell("method=sft", *more)).fingerprint for more in ([], ["teacher.quantise=int8"])]
    assert sft[0] == sft[1]


def test_its_labels_and_caches_are_of_the_same_blocks_of_rows():
    for more in (["method=seq_kd"], ["method=logit_kd", "signal.kind=top_k"]):
        plain, four = (plan_cell(cell("data_frac=0.1", *more, *asked)) for asked in ([], ["teacher.quantise=nf4"]))
        assert [stage.inputs["rows"].key for stage in four.teaching] == [
            stage.inputs["rows"].key for stage in plain.teaching
        ]
        assert not {stage.key for stage in four.teaching} & {stage.key for stage in plain.teaching}


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["teacher.quantise=int3"], r"teacher\.quantise='int3'.*int8, nf4"),
        (["teacher=served", "teacher.quantise=int8"], r"teacher\.quantise='int8'.*served teacher"),
    ],
)
def test_what_cannot_be_rounded_is_refused_in_a_sentence(overrides, sentence):
    with pytest.raises(SettingsError, match=sentence):
        preflight(Plan.of([cell("method=seq_kd", *overrides)]))


def test_a_missing_package_is_named_before_anything_runs(monkeypatch):
    plan = Plan.of([cell("method=kd", "teacher.quantise=int8")])
    preflight(plan)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"bitsandbytes.*harness\[quantise\]"):
        preflight(plan)
