"""Adapters: they start as nothing, are all that is trained, and leave a plain model."""

import json

import pytest
import torch

from harness.config.checks import SettingsError
from harness.config.model import Student
from harness.config.recipe import TrainingPhase
from harness.data.sequences import Rows
from harness.models.generate import generate
from harness.models.loading import load_model
from harness.models.lora import merged, with_adapters
from harness.plan.model_stages import lora_of
from harness.stages.train import make_train
from harness.training.trainer import mean_nll
from tests.doubles import tiny_llama
from tests.stages.small_world import run, small_world
from tests.stages.test_train import settings
from tests.training.test_trainer import FORWARD, STUDENT, TOKENIZER, dataset, parameters, train

LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.0}


@pytest.fixture
def world(tmp_path):
    return small_world(tmp_path)


def adapted(seed=0, **changes):
    return with_adapters(tiny_llama(), LORA | changes, seed)


def trained(model):
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([[7, 8, 9]])).logits


def test_a_student_with_fresh_adapters_is_the_student():
    assert torch.equal(logits(adapted()), logits(tiny_llama()))
    assert torch.equal(parameters(merged(adapted())), parameters(tiny_llama()))


def test_only_adapters_of_every_inner_linear_layer_are_trained_and_their_seed_is_their_own():
    weights = trained(adapted())
    assert all("lora_" in name for name in weights) and len(weights) == 2 * 2 * 7  # A and B, layers, linear layers
    assert {min(weight.shape) for weight in weights.values()} == {4}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again, other = trained(adapted()), trained(adapted(seed=1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert any(not torch.equal(weights[name], other[name]) for name in weights)


@pytest.mark.parametrize("objective", [TrainingPhase(), FORWARD, STUDENT])
def test_a_fit_trains_adapters_alone_and_merging_them_is_the_sum_written_out(tmp_path, objective):
    model = adapted()
    train(tmp_path, objective, model=model, max_new_tokens=4)
    start = dict(tiny_llama().named_parameters())
    expected = {name: weight.detach().clone() for name, weight in start.items()}
    found = dict(model.named_parameters())
    for name, weight in start.items():
        place = f"base_model.model.{name}".removesuffix(".weight")
        frozen = found.get(f"{place}.base_layer.weight", found.get(f"{place}.weight"))
        assert torch.equal(frozen, weight)
        if f"{place}.lora_A.default.weight" in found:
            a, b = (found[f"{place}.lora_{which}.default.weight"] for which in "AB")
            assert b.abs().max() > 0
            expected[name] += 8 / 4 * (b @ a)
    before, nll, text = logits(model), mean_nll(model, Rows(dataset())), generate(model, TOKENIZER, [[7, 8]], 5)
    plain = merged(model)
    assert type(plain) is type(tiny_llama()) and plain.state_dict().keys() == tiny_llama().state_dict().keys()
    for name, weight in plain.named_parameters():
        torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits(plain), before, rtol=1e-4, atol=1e-5)
    assert mean_nll(plain, Rows(dataset()))[0] == pytest.approx(nll[0], rel=1e-5)
    assert generate(plain, TOKENIZER, [[7, 8]], 5) == text
    assert "forward" not in plain.__dict__


def test_frozen_weights_spare_a_third_of_the_flops(tmp_path):
    model = adapted()
    report, _ = train(tmp_path, model=model)
    own = sum(weight.numel() for weight in trained(model).values())
    frozen = sum(weight.numel() for weight in model.parameters()) - own
    assert report.flops == pytest.approx((4 * frozen + 6 * own) * report.read_tokens)


def test_a_stage_with_adapters_leaves_a_plain_folder_that_its_sequel_starts_from(world, tmp_path):
    inputs = {role: world[role] for role in ("subset", "start")}
    facts, first = run(make_train, settings(TrainingPhase(), lora=LORA), inputs, tmp_path, "first")
    assert {path.name for path in first.iterdir()} >= {"model.safetensors", "config.json", "tokenizer.json"}
    assert not list(first.glob("adapter*")) and facts["metrics"]["last_loss"] < facts["metrics"]["first_loss"]
    model = load_model(first)
    assert not torch.equal(parameters(model), parameters(load_model(world["start"])))
    assert facts["metrics"]["validation_nll"] > 0
    _, second = run(make_train, settings(FORWARD, lora=LORA, index=1), world | {"start": first}, tmp_path, "second")
    assert not torch.equal(parameters(load_model(second)), parameters(model))
    assert json.loads((second / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_adapters_are_identity_only_where_they_are_set():
    assert lora_of(Student(name="mini")) is None
    assert lora_of(Student(name="mini", lora_rank=8)) == {"rank": 8, "alpha": 16.0, "dropout": 0.0}
    asked = Student(name="mini", lora_rank=8, lora_alpha=4, lora_dropout=0.1)
    assert lora_of(asked) == {"rank": 8, "alpha": 4.0, "dropout": 0.1}


@pytest.mark.parametrize(
    "wrong",
    [{"lora_rank": 0}, {"lora_rank": 8, "lora_dropout": 1.0}, {"lora_rank": 8, "lora_alpha": 0}, {"lora_alpha": 8}],
)
def test_adapters_that_cannot_be_are_refused(wrong):
    with pytest.raises(SettingsError, match=r"student\.lora"):
        Student(name="mini", **wrong)
