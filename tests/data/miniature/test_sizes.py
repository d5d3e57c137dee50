"""Sizes of the mini models: what the shapes add up to."""

import pytest

from harness.config.checks import SettingsError
from harness.config.model import MINI_SIZES
from harness.data.miniature.sizes import PRETRAINING, SIZES, llama_settings
from harness.data.miniature.tokenizer import vocabulary


@pytest.mark.parametrize("family", ["words", "letters"])
@pytest.mark.parametrize(
    ("size", "hidden", "layers", "mlp"), [("tiny", 64, 3, 168), ("small", 96, 3, 256), ("large", 128, 4, 336)]
)
def test_parameters_are_the_sum_of_the_shapes(family: str, size: str, hidden: int, layers: int, mlp: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**llama_settings(size, family)))
    block = 4 * hidden**2 + 3 * hidden * mlp + 2 * hidden  # attention, gated MLP, two norms
    assert model.num_parameters() == len(vocabulary(family)) * hidden + layers * block + hidden
    assert model.config.rope_parameters["rope_theta"] == 1000.0
    assert (model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id) == (1, 4, 0)


def test_every_size_has_a_pretraining_budget() -> None:
    assert set(SIZES) == set(PRETRAINING)


def test_an_unknown_size_is_refused_with_the_real_ones() -> None:
    with pytest.raises(SettingsError, match="tiny, small, large"):
        llama_settings("huge")


def test_settings_name_the_sizes_there_are():
    assert tuple(SIZES) == MINI_SIZES
