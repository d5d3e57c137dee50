"""What a model takes to run: sizes that agree with its files, forced lengths, medians, memory that holds weights."""

import pytest
import torch

from harness.models.loading import load_model
from harness.stages import deployment
from harness.stages.deployment import make_measure, make_quantise, weight_bytes
from tests.doubles import byte_tokenizer, save_tiny, tiny_llama
from tests.stages.small_world import run

ASKED = {"format": "fp32", "prompt_tokens": 16, "new_tokens": 4, "batch_size": 2, "repeats": 2}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


def measured(model, tmp_path, **changes):
    return run(make_measure, ASKED | changes, {"model": model}, tmp_path, "measured")[0]


@pytest.mark.parametrize(("number_format", "bytes_each"), [("fp32", 4), ("bf16", 2)])
def test_parameters_and_bytes_are_those_of_the_shape(tiny, tmp_path, number_format, bytes_each):
    counts = measured(tiny, tmp_path, format=number_format)["counts"]
    # embeddings once (they are tied), 2 layers of attention, gated MLP and 2 norms, the last norm; all 32 wide
    parameters = 262 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32
    assert counts["parameters"] == parameters and counts["weight_bytes"] == bytes_each * parameters
    whole = (tiny / "model.safetensors").stat().st_size
    assert bytes_each * whole / 4 - 4096 < counts["weight_bytes"] < whole


@pytest.mark.parametrize("to", ["int8", "nf4"])
def test_rounded_weights_are_counted_as_their_file_holds_them(tiny, tmp_path, to):
    pytest.importorskip("bitsandbytes")
    _, folder = run(make_quantise, {"to": to}, {"model": tiny}, tmp_path, to)
    found = measured(folder, tmp_path, format=to, precision="fp32")
    size = (folder / "model.safetensors").stat().st_size
    header = 8 + int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")
    assert found["counts"]["weight_bytes"] == size - header
    assert found["counts"]["parameters"] == measured(tiny, tmp_path / to)["counts"]["parameters"]


def test_lengths_are_forced_whatever_the_model_would_say(tiny, tmp_path, monkeypatch):
    read = []

    def watched(folder, device, dtype):
        model = load_model(folder, device, dtype)
        model.generation_config.eos_token_id = list(range(262))  # every token would end an answer
        model.register_forward_pre_hook(lambda _, __, given: read.append(given["input_ids"].shape), with_kwargs=True)
        return model

    monkeypatch.setattr(deployment, "load_model", watched)
    measured(tiny, tmp_path)
    assert read == [(2, 16), *[(2, 1)] * 4] * 3  # a warm-up and two repeats


def test_speeds_are_medians_over_the_whole_batch_without_the_warm_up(tiny, tmp_path, monkeypatch):
    seconds = iter([(100.0, 100.0), (1.0, 2.0), (9.0, 9.0), (2.0, 4.0)])
    monkeypatch.setattr(deployment, "_prefill_and_decode", lambda *_: next(seconds))
    found = measured(tiny, tmp_path, repeats=3)
    assert found["metrics"] == {"prefill_tokens_per_second": 2 * 16 / 2, "decode_tokens_per_second": 2 * 4 / 4}
    assert found["measured_on"]["device"] == "cpu" and found["measured_on"]["threads"] == torch.get_num_threads()


def test_a_short_context_cuts_the_prompt_and_says_so(tiny, tmp_path):
    assert measured(tiny, tmp_path, prompt_tokens=600)["counts"]["prompt_tokens"] == 512 - 4


def test_peak_memory_holds_the_weights_and_not_much_more(tmp_path):
    model = tiny_llama(hidden_size=1024, layers=3)
    model.save_pretrained(tmp_path / "large")
    byte_tokenizer().save_pretrained(tmp_path / "large")
    size = weight_bytes(model)
    del model
    assert size > 100e6
    assert size < measured(tmp_path / "large", tmp_path, batch_size=1)["counts"]["peak_memory_bytes"] < 2.5 * size
