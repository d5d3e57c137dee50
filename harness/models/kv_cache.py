"""KV cache: keys and values of the tokens so far, appended in place during generation.

Transformers' cache makes a new tensor of all tokens so far for every new one; at the batch sizes of a training
step that copying takes a quarter of the time of generation. Here a layer has room for some tokens more, and a new
one is put into it. The model gets the same numbers in the same shapes, so the tokens are the same to the bit. Layers
that hold something else (a sliding window, a recurrent state) are left as they are.

    cache = with_room(model(prompts, use_cache=True).past_key_values)
"""

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

SHARE, LEAST = 4, 16
"""There is room for a quarter of the tokens so far, and at least for 16: memory for a long limit that no row reaches
is never allocated."""


def with_room(cache: Any) -> Any:
    """The cache itself, with its plain layers changed for ones that append in place; None stays None."""
    for index, layer in enumerate(getattr(cache, "layers", ())):
        if type(layer) is DynamicLayer and layer.is_initialized:
            cache.layers[index] = RoomyLayer(layer)
    return cache


class RoomyLayer(DynamicLayer):
    """A layer whose keys and values (B, heads, T, d) are the beginnings of tensors with room for more tokens."""

    def __init__(self, layer: DynamicLayer) -> None:
        super().__init__()
        assert layer.keys is not None and layer.values is not None
        self.lazy_initialization(layer.keys, layer.values)
        self.keys, self.values = layer.keys, layer.values
        self._rooms: tuple[torch.Tensor, ...] = (self.keys, self.values)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values (B, heads, t, d) of t tokens; returns those of all T tokens, (B, heads, T, d) each."""
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if end > self._rooms[0].shape[-2]:
            # a copy of everything, once for every quarter that the answers grow by
            self._rooms = tuple(_larger(part, end) for part in (self.keys, self.values))
        for room, states in zip(self._rooms, (key_states, value_states), strict=True):
            room[..., start:end, :] = states
        # views, so that attention never sees the unused room
        self.keys, self.values = (room[..., :end, :] for room in self._rooms)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Drop all rows but those at `indices`."""
        length = self.get_seq_length()
        self._rooms = tuple(room[indices] for room in self._rooms)
        self.keys, self.values = (room[..., :length, :] for room in self._rooms)


def _larger(part: torch.Tensor | None, end: int) -> torch.Tensor:
    assert part is not None
    room = part.new_empty((*part.shape[:-2], end + max(LEAST, end // SHARE), part.shape[-1]))
    room[..., : part.shape[-2], :] = part
    return room
