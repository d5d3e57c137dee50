"""The cache that appends in place against the one that makes everything anew: the same numbers to the bit."""

import pytest
import torch
from transformers import DynamicCache

from harness.models.kv_cache import LEAST, RoomyLayer, with_room
from tests.doubles import tiny_llama


def decode(roomy, steps=2 * LEAST + 9, keep=None):
    """Logits of every step for 4 rows that are fed a fixed text after 5 tokens; `keep` rows stay after 20 steps."""
    model = tiny_llama(seed=2)
    text = torch.randint(6, 262, (4, 5 + steps), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(text)
    mask[1, :3] = 0  # padded on the left
    cache, seen, found = None, 0, []
    with torch.no_grad():
        for end in range(5, 5 + steps):
            output = model(text[:, seen:end], attention_mask=mask[:, :end], past_key_values=cache, use_cache=True)
            cache, seen = output.past_key_values, end
            if roomy:
                cache = with_room(cache)
            found.append(output.logits[:, -1])
            if keep is not None and end == 25:
                rows = torch.tensor(keep)
                cache.batch_select_indices(rows)
                text, mask = text[rows], mask[rows]
    return found, cache


@pytest.mark.parametrize("keep", [None, [2, 0]])
def test_logits_are_the_same_to_the_bit_when_room_runs_out_and_when_rows_leave(keep):
    plain, _ = decode(roomy=False, keep=keep)
    ours, cache = decode(roomy=True, keep=keep)
    assert all(isinstance(layer, RoomyLayer) for layer in cache.layers)
    assert all(torch.equal(one, other) for one, other in zip(plain, ours, strict=True))


def test_a_token_is_appended_without_copying_those_before_it():
    _, cache = decode(roomy=True, steps=3)
    layer = cache.layers[0]
    before, length = layer.keys.data_ptr(), layer.get_seq_length()
    layer.update(layer.keys[..., :1, :], layer.values[..., :1, :])
    assert layer.keys.data_ptr() == before and layer.get_seq_length() == length + 1


def test_other_layers_and_no_cache_are_left_alone():
    class Other:
        pass

    cache = DynamicCache()
    cache.layers = [Other()]
    assert with_room(cache).layers[0].__class__ is Other and with_room(None) is None
