"""Loading, saving, pruning and fresh weights, on tiny random Llamas."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.config.checks import SettingsError
from harness.config.machine import Machine
from harness.data.chat import fix_template, render, set_template
from harness.models.files import tokenizer_fingerprint_of_folder
from harness.models.loading import (
    PROBE,
    count_parameters,
    device_of,
    kept_layers,
    load_config,
    load_model,
    load_shape,
    load_tokenizer,
    prune_layers,
    random_model,
    rendering_hash,
    save_model,
    tokenizer_hash,
)
from harness.store.fingerprint import fingerprint
from harness.store.store import write_json
from tests.doubles import byte_tokenizer, save_tiny, tiny_llama
from tests.thinking import family_tokenizer

IDS = torch.tensor([[3, 110, 111, 4, 112, 5]])


def test_a_saved_model_loads_with_the_same_logits_and_tokenizer(tmp_path):
    model, tokenizer = tiny_llama(seed=3), byte_tokenizer()
    save_model(model, tokenizer, tmp_path)
    loaded = load_model(tmp_path)
    assert not loaded.training and torch.equal(loaded(IDS).logits, model(IDS).logits)
    again = load_tokenizer(tmp_path)
    assert tokenizer_hash(again) == tokenizer_hash(tokenizer) == tokenizer_fingerprint_of_folder(tmp_path)
    assert again.chat_template == tokenizer.chat_template
    assert load_model(tmp_path, dtype="bf16").dtype == torch.bfloat16


def test_a_saved_folder_tells_other_programs_to_stop_at_the_end_of_a_turn(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = "<bos>"  # the template ends turns with <|end|>, which is id 5
    save_model(tiny_llama(), tokenizer, tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == 5


def test_a_pointer_is_followed_and_its_own_tokenizer_wins(tmp_path):
    there, here = save_tiny(tmp_path / "there"), tmp_path / "here"
    here.mkdir()
    write_json(here / "model.json", {"path": str(there), "revision": None})
    assert torch.equal(load_model(here)(IDS).logits, tiny_llama()(IDS).logits)
    assert load_tokenizer(here).chat_template == byte_tokenizer().chat_template
    tokenizer = byte_tokenizer()
    set_template(tokenizer, "tulu")
    tokenizer.save_pretrained(here)
    assert load_tokenizer(here).chat_template == tokenizer.chat_template != byte_tokenizer().chat_template


def test_a_tokenizer_without_padding_pads_with_its_end_of_sequence(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    save_model(tiny_llama(), tokenizer, tmp_path)
    assert load_tokenizer(tmp_path).pad_token_id == 5


def test_fresh_weights_follow_their_seed_and_leave_the_random_state_alone():
    config = tiny_llama().config
    before = torch.random.get_rng_state()
    one, same, other = random_model(config, 1), random_model(config, 1), random_model(config, 2)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(one(IDS).logits, same(IDS).logits)
    assert not torch.equal(one(IDS).logits, other(IDS).logits)
    assert one.dtype == torch.float32


@pytest.mark.parametrize(
    ("present", "layers", "kept"),
    [(5, 3, [0, 2, 4]), (4, 2, [0, 3]), (4, 4, [0, 1, 2, 3]), (7, 4, [0, 2, 4, 6])],
)
def test_pruning_keeps_evenly_spaced_layers_and_both_ends(present, layers, kept):
    assert kept_layers(present, layers) == kept


@pytest.mark.parametrize("layers", [0, 1, 6])
def test_pruning_to_too_few_or_too_many_layers_is_refused(layers):
    with pytest.raises(SettingsError, match="2 to 5"):
        kept_layers(5, layers)


def test_a_pruned_model_is_the_kept_layers_in_order_and_survives_saving(tmp_path):
    whole = tiny_llama(layers=5)
    by_hand = tiny_llama(layers=3, seed=9)
    state = whole.state_dict()
    mine = {name: tensor for name, tensor in state.items() if ".layers." not in name}
    for new, old in enumerate([0, 2, 4]):
        start = f"model.layers.{old}."
        mine |= {f"model.layers.{new}." + name[len(start) :]: t for name, t in state.items() if name.startswith(start)}
    by_hand.load_state_dict(mine)
    pruned = prune_layers(whole, 3)
    assert pruned.config.num_hidden_layers == 3
    assert torch.equal(pruned(IDS).logits, by_hand(IDS).logits)
    cached = pruned.generate(IDS, max_new_tokens=5, do_sample=False, eos_token_id=None)
    plain = pruned.generate(IDS, max_new_tokens=5, do_sample=False, eos_token_id=None, use_cache=False)
    assert torch.equal(cached, plain)  # layer_idx addresses the cache
    save_model(pruned, byte_tokenizer(), tmp_path)
    assert torch.equal(load_model(tmp_path)(IDS).logits, by_hand(IDS).logits)


def test_tied_weights_are_counted_once():
    model = tiny_llama()
    assert count_parameters(model) == 262 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of(Machine(device="auto")) == "cpu"
    with pytest.raises(SettingsError, match="cuda"):
        device_of(Machine(device="cuda"))


WRONG = {
    "wrapped": (lambda kept: {f"_orig_mod.{name}": one for name, one in kept.items()}, "the model has no _orig_mod"),
    "a layer short": (lambda kept: {name: one for name, one in kept.items() if ".1." not in name}, "lack .*layers.1."),
    "one too many": (lambda kept: kept | {"model.extra.weight": torch.ones(2)}, "the model has no model.extra.weight"),
    "another head": (lambda kept: kept | {"lm_head.weight": torch.ones(7, 3)}, "of another size are lm_head.weight"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_weights_that_are_not_the_models_are_refused_by_name(tmp_path, kind):
    """transformers would start such a model from random values and go on."""
    change, names = WRONG[kind]
    save_model(tiny_llama(), byte_tokenizer(), tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})
    with pytest.raises(SettingsError, match=names):
        load_model(tmp_path)


def test_two_renderings_that_differ_in_thinking_or_in_earlier_turns_alone_are_not_alike():
    found = {}
    for name, settings in {"own": {}, "off": {"thinking": False}, "on": {"thinking": True}}.items():
        tokenizer = family_tokenizer("qwen3")
        fix_template(tokenizer, **settings)
        found[name] = rendering_hash(tokenizer)
    training = family_tokenizer("qwen3")
    set_template(training, "trl")
    assert found["own"] == found["on"]
    assert len({found["own"], found["off"], rendering_hash(training)}) == 3
    # of a template that knows nothing of reasoning it is what it was
    plain = byte_tokenizer()
    assert rendering_hash(plain) == fingerprint([tokenizer_hash(plain), render(plain, PROBE, 1000).input_ids])


NESTED = ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")


def nest(folder, names=NESTED):
    """Move sizes of a saved flat config under `text_config`; what the class computes from them stays outside."""
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] = {name: config.pop(name) for name in names}
    write_json(folder / "config.json", config)
    return folder


def test_sizes_under_text_config_are_those_of_the_decoder(tmp_path):
    folder = nest(save_tiny(tmp_path))
    model = load_model(folder)
    assert torch.equal(model(IDS).logits, tiny_llama()(IDS).logits)
    assert count_parameters(load_shape(folder)) == count_parameters(model) == count_parameters(tiny_llama())
    assert load_model(folder, dtype="bf16").dtype == torch.bfloat16


def test_a_head_size_that_follows_from_nested_sizes_is_not_that_of_the_class_default(tmp_path):
    folder = nest(save_tiny(tmp_path))
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {key: value for key, value in config.items() if key != "head_dim"})
    assert load_config(folder).head_dim == 32 // 2


def test_a_model_with_nested_sizes_is_saved_with_a_flat_config_and_loads_again(tmp_path):
    from transformers import AutoModelForCausalLM

    model = load_model(nest(save_tiny(tmp_path / "nested", layers=4), NESTED[:3]))
    save_model(prune_layers(model, 2), byte_tokenizer(), tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (saved["hidden_size"], saved["num_hidden_layers"]) == (32, 2) and "text_config" not in saved
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(again(IDS).logits, load_model(tmp_path / "saved")(IDS).logits)
    assert torch.equal(again(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("family", ["gemma3", "qwen3_5"])
def test_the_decoder_of_a_multimodal_family_loads_from_the_familys_config(family, tmp_path):
    """Gemma 3's class of the family is multimodal, Qwen 3.5's is the decoder: both configs nest the decoder's sizes."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": 262, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 16}
    more = linear | {"linear_value_head_dim": 16} if family == "qwen3_5" else {}
    text = AutoConfig.for_model(f"{family}_text", **sizes, **heads, **more)
    model = random_model(text, 0)
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    flat = json.loads((tmp_path / "config.json").read_text())
    family_config = {"model_type": family, "architectures": flat["architectures"], "text_config": flat}
    write_json(tmp_path / "config.json", family_config)
    loaded = load_model(tmp_path)
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    save_model(loaded, byte_tokenizer(), tmp_path / "saved")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "bert", "architectures": ["BertModel"]}, None),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "T5ForConditionalGeneration is not"),
        ({"model_type": "clip"}, "architecture clip is not a causal language model"),
        ({"model_type": "of_tomorrow", "architectures": ["TomorrowForCausalLM"]}, "no model for its config.json"),
    ],
)
def test_what_is_no_causal_language_model_is_refused_by_its_architecture(config, reason, tmp_path):
    write_json(tmp_path / "config.json", config)
    if reason is None:  # some encoders can be made decoders; their weights are then looked at
        assert load_config(tmp_path).model_type == "bert"
        return
    with pytest.raises(SettingsError, match=reason) as refusal:
        load_config(tmp_path)
    assert "\n" not in str(refusal.value)
