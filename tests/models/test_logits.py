"""Heads: logits in one step or in two are those of the model's whole forward, for models that change them."""

import pytest
import torch

from harness.models.logits import agrees, causal_model, logits_at, logits_from, states_at
from tests.doubles import tiny_llama

IDS = torch.tensor([[10, 11, 12, 13, 14], [20, 21, 22, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
SCORED = torch.tensor([[False, True, True, False, False], [True, False, False, False, False]])

KINDS = {
    "Llama": {},
    "Gemma2": {"final_logit_softcapping": 0.05, "head_dim": 8},
    "Cohere": {"logit_scale": 0.25, "bos_token_id": 1, "eos_token_id": 2},
    "Granite": {"logits_scaling": 8.0},
    "MiniCPM3": {"num_key_value_heads": 2},
    "GPT2": {"n_embd": 16, "n_head": 2, "n_layer": 1},
    "OPT": {"ffn_dim": 32, "word_embed_proj_dim": 8},
}


def tiny(kind):
    """One layer of an architecture; Cohere, Gemma and Granite change their logits, MiniCPM its hidden states,
    OPT reaches its layers past its base model."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        **{
            "vocab_size": 64,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 64,
            **KINDS[kind],
        }
    )
    torch.manual_seed(0)
    name = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    return getattr(transformers, name)(config).eval()


def with_adapters(model):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj", "lm_head"], r=2, init_lora_weights=False)
    return peft.get_peft_model(model, config)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_in_one_step_or_two_are_those_of_the_whole_forward(kind):
    model = tiny(kind)
    with torch.no_grad():
        whole = model(input_ids=IDS, attention_mask=MASK).logits
        states = states_at(model, IDS, MASK, SCORED)
        torch.testing.assert_close(logits_at(model, IDS, MASK, SCORED), whole[SCORED])
        torch.testing.assert_close(logits_from(model, states), whole[SCORED])
        torch.testing.assert_close(logits_from(model, states[1:]), whole[SCORED][1:])
        assert torch.equal(model(input_ids=IDS, attention_mask=MASK).logits, whole), "hooks are gone afterwards"
    assert agrees(model) and not model.training


def test_adapters_are_part_of_the_logits():
    model = with_adapters(tiny("Llama"))
    with torch.no_grad():
        whole = model(input_ids=IDS, attention_mask=MASK).logits[SCORED]
        found = logits_from(model, states_at(model, IDS, MASK, SCORED))
    torch.testing.assert_close(found, whole)
    assert agrees(model) and type(causal_model(model)).__name__ == "LlamaForCausalLM"


def test_only_scored_positions_reach_the_output_layer():
    model = tiny_llama()
    shapes = []
    model.get_output_embeddings().register_forward_hook(lambda _, args, out: shapes.append(tuple(out.shape)))
    logits_at(model, IDS, MASK, SCORED)
    states = states_at(model, IDS, MASK, SCORED)
    assert shapes == [(1, 3, 262), (1, 1, 262)]
    assert states.shape == (3, 32)


def test_layers_do_not_run_again_for_logits_of_kept_states():
    model, ran = tiny_llama(), []
    states = states_at(model, IDS, MASK, SCORED)
    model.model.layers[0].register_forward_hook(lambda *_: ran.append(1))
    logits_from(model, states)
    assert not ran and "forward" not in model.model.__dict__


def test_a_model_whose_logits_depend_on_more_than_the_states_is_noticed():
    model = tiny_llama()
    plain = type(model).forward

    def forward(input_ids=None, **named):
        output = plain(model, input_ids=input_ids, **named)
        output.logits = output.logits + input_ids.float().mean()
        return output

    model.forward = forward
    assert not agrees(model)


def test_dropout_does_not_make_a_model_look_as_if_it_disagreed():
    model = tiny_llama(dropout=0.5).train()
    state = torch.get_rng_state()
    assert agrees(model) and model.training
    assert torch.equal(state, torch.get_rng_state()), "and no random number was drawn"
