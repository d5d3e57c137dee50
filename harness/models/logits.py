"""Logits: from a model to its next-token logits at scored positions, in one step or in two.

`logits_at` is the one step. The two steps, `states_at` and `logits_from`, keep the hidden states of all
scored positions and make logits for a part of them at a time, so that logits of every position at a
vocabulary of 128,000 never exist together (`training/losses/chunked.py`). What a model does to its logits after
the output layer (soft-capping in Gemma, scaling in Cohere and Granite) is left to the model's own forward.

Shapes: B sequences, T positions, N scored positions, d width, V vocabulary.

    states = states_at(model, input_ids, attention_mask, scored)      # (N, d)
    logits_from(model, states[:256])                                  # (256, V)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from harness.data.sequences import IGNORED
from harness.models.fsdp import layers_left_out

RULED_OUT = -1e6
"""Logit of a token that is left out: its probability is 0, and unlike -inf it leaves no NaN in a mixture's gradient."""
TOLERANCE = 1e-2
"""Two ways to the same logits may differ by this share of the largest: rounding of bf16, never a scale."""


def logits_at(
    model: torch.nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor, scored: torch.Tensor
) -> torch.Tensor:
    """The model's logits (N, V) at the True positions of `scored` (B, T), and only those.

    The hidden states are cut to the scored positions just before the output layer, inside the model's
    own forward, so logits of prompts and padding are never made. Works through DistributedDataParallel.
    """
    with _head_input(model, lambda states: states[scored][None]):
        output = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    return output.logits[0]


def states_at(
    model: torch.nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor, scored: torch.Tensor
) -> torch.Tensor:
    """The hidden states (N, d) that the output layer reads at the True positions of `scored` (B, T)."""
    kept: list[torch.Tensor] = []

    def keep(states: torch.Tensor) -> torch.Tensor:
        kept.append(states[scored])  # (N, d)
        # one position goes on: DistributedDataParallel takes weights its output does not reach for unused
        return states[:1, :1]

    with _head_input(model, keep):
        model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    assert len(kept) == 1, f"the output layer of {type(model).__name__} ran {len(kept)} times in one forward"
    return kept[0]


def logits_from(model: torch.nn.Module, states: torch.Tensor) -> torch.Tensor:
    """The logits (n, V) of hidden states (n, d) that `states_at` kept, gradients included.

    The model's own forward on one made-up token, with its layers left out and these states given to its
    output layer, so that everything after that layer happens as it always does. `agrees` tests whether this gives
    a model's plain logits.
    """
    inner = causal_model(model)
    token = torch.zeros(1, 1, dtype=torch.long, device=states.device)  # (B, T) = (1, 1)
    with _head_input(inner, lambda _: states[None]), _without_layers(inner, states[None]):
        # `forward` itself: a call would run FSDP's hooks, which gather weights from all processes
        return inner.forward(input_ids=token, use_cache=False).logits[0]


def agrees(model: torch.nn.Module) -> bool:
    """Whether `logits_from` makes the logits that the model's plain forward makes, tried on four tokens."""
    inner: Any = getattr(model, "module", model)  # DistributedDataParallel expects a backward pass after each forward
    device = next(inner.parameters()).device
    input_ids = torch.arange(4, device=device)[None]  # (1, 4)
    mask = torch.ones_like(input_ids)
    training = inner.training
    inner.eval()  # under dropout the two forwards would differ
    try:
        # under autocast, a weight first cast without gradient would stay without it for the whole step
        with torch.enable_grad():
            whole = inner(input_ids=input_ids, attention_mask=mask, use_cache=False).logits[0].detach().float()
            states = states_at(inner, input_ids, mask, mask.bool())
            with layers_left_out(inner):
                parts = logits_from(inner, states).detach().float()
    except Exception:  # an unknown architecture may fail in any way; its plain forward is used instead
        return False
    finally:
        inner.train(training)
    return whole.shape == parts.shape and bool((whole - parts).abs().max() <= TOLERANCE * whole.abs().max())


def causal_model(model: torch.nn.Module) -> Any:
    """The causal language model inside the wrappers of several processes and of adapters."""
    inner: Any = getattr(model, "module", model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


@contextmanager
def _head_input(model: torch.nn.Module, change: Any) -> Iterator[None]:
    """While the block runs the output layer gets `change(states)` in place of its own input `states` (B, T, d)."""
    head = causal_model(model).get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, args: (change(args[0]),))
    try:
        yield
    finally:
        hook.remove()


class _Output:
    """What a model's layers return, with nothing in it but hidden states (B, T, d)."""

    def __init__(self, states: torch.Tensor) -> None:
        self.last_hidden_state = states

    def __getattr__(self, name: str) -> None:
        return None  # caches, router logits and whatever else an architecture passes on

    def __getitem__(self, index: Any) -> Any:
        return (self.last_hidden_state,)[index]


@contextmanager
def _without_layers(inner: Any, states: torch.Tensor) -> Iterator[None]:
    """While the block runs the model under the output layer computes nothing and returns `states` (B, T, d).

    A model that calls its layers in another way runs them on the made-up token: slower, the same logits.
    """
    base = inner.base_model
    if base is inner:
        yield
        return
    own = base.__dict__.get("forward")
    base.forward = lambda *args, **named: _Output(states)
    try:
        yield
    finally:
        if own is None:
            del base.__dict__["forward"]
        else:
            base.forward = own


def scored_positions(labels: torch.Tensor) -> torch.Tensor:
    """Which positions' logits are scored: bool (B, T), True at t where token t + 1 has a label.

    Logits at t predict token t + 1, so the mask comes from labels[:, 1:]; taking labels[:, :-1] would
    drop the first answer token of every example. The last position predicts nothing.
    """
    mask = torch.zeros_like(labels, dtype=torch.bool)  # (B, T)
    mask[:, :-1] = labels[:, 1:] != IGNORED
    return mask


def scored_tokens(labels: torch.Tensor) -> torch.Tensor:
    """The tokens (N,) to be predicted, int64, in the order of `logits[scored_positions(labels)]`."""
    return labels[:, 1:][labels[:, 1:] != IGNORED]


def at_least_fp32(logits: torch.Tensor) -> torch.Tensor:
    """The logits in fp32, or wider where they are: sums over a vocabulary lose too much in 16 bits."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def ruled_out(logits: torch.Tensor, outside: torch.Tensor | None) -> torch.Tensor:
    """Logits (N, V) under which the tokens of `outside`, bool (V,), have probability 0; None: the logits themselves."""
    if outside is None:
        return logits
    return at_least_fp32(logits).masked_fill(outside.to(logits.device), RULED_OUT)


def logsumexp_outside(logits: torch.Tensor, ids: torch.Tensor, used: torch.Tensor | None = None) -> torch.Tensor:
    """Log of the summed exponentials of all logits (N, V) but those at `ids` (N, K); -inf where none is left. (N,).

    Where `used`, bool (N, K), is False the id is not left out.
    """
    if used is None:
        return logits.scatter(1, ids, -torch.inf).logsumexp(-1)
    # counted, because an unused place may repeat an id that another place uses
    named = torch.zeros_like(logits, dtype=torch.int8).scatter_add_(1, ids, used.to(torch.int8))  # (N, V)
    return logits.masked_fill(named > 0, -torch.inf).logsumexp(-1)
