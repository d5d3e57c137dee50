"""Chunks: a divergence summed over positions without the logits of all of them at once.

Positions are taken a chunk at a time: logits, divergence and at once its gradients, which are small (of the hidden
states and of the output layer), so the logits are freed before the next chunk. This is what Liger's fused losses do
(Hsu et al. 2024, arXiv 2410.10989), here for any divergence and any output layer that autograd differentiates;
checkpointing each chunk would make the logits of both models twice.

Shapes: N scored positions, n of them in a chunk, d width, V vocabulary.

    found = in_chunks(states, 128, lambda piece, rows: compare(stage, head(piece), teacher[rows], tokens[rows]))
    found.sum.backward()
"""

from collections.abc import Callable
from typing import Any

import torch

from harness.training.losses.divergences import Divergence

CHUNK_ELEMENTS = {"cpu": 2**24, "cuda": 2**27}
"""Logits of one model made at a time, positions x vocabulary, by kind of device; fewer are compared in one
piece. About eight tensors of that size live at once. On a CPU 64 MiB in fp32: half of it is faster, but blocks
below 32 MiB stay in the allocator's heap and take almost three times the memory (benchmarks/objective_memory.py).
On a GPU 512 MiB, an estimate: about a thousand positions at a vocabulary of 128,000; with fewer, reading
the head costs more than multiplying by it."""


def positions_at_once(device: torch.device, vocabulary: int) -> int:
    """Positions in one chunk, at least 1, for a kind of device and a vocabulary of V tokens."""
    return max(1, CHUNK_ELEMENTS.get(device.type, CHUNK_ELEMENTS["cuda"]) // vocabulary)


def in_chunks(states: torch.Tensor, size: int, compare: Callable[[torch.Tensor, slice], Divergence]) -> Divergence:
    """The sum of `compare(states[rows], rows)` over slices of `size` of the N hidden states (N, d).

    `compare` gets a chunk's states (n, d) and its slice of the N positions. Gradients reach the states and every
    weight that `compare` uses. They are made here, so the sum can be differentiated once, and not twice in a row.
    """
    assert size > 0 and len(states) > 0
    slices = [slice(start, min(start + size, len(states))) for start in range(0, len(states), size)]
    if not torch.is_grad_enabled():
        return _total([compare(states[rows], rows) for rows in slices])
    parts: list[Divergence] = []
    weights: list[torch.Tensor] = []
    gradients: list[torch.Tensor] = []
    state_gradients = torch.empty_like(states)  # (N, d)
    for rows in slices:
        # cut off from the student's graph: its backward pass runs once, after the last chunk
        piece = states[rows].detach().requires_grad_()  # (n, d)
        part = compare(piece, rows)
        if not parts:
            # which weights take part shows only once the first chunk has been compared
            weights = [weight for weight in _leaves(part.sum) if weight is not piece]
            gradients = [torch.zeros_like(weight, dtype=_wide(weight)) for weight in weights]
        state_gradients[rows], *found = torch.autograd.grad(part.sum, [piece, *weights])
        # summed in fp32 or wider: many small gradients of 16 bits would be rounded away one by one
        for gradient, more in zip(gradients, found, strict=True):
            gradient += more
        parts.append(Divergence(part.sum.detach(), part.count, part.diagnostics))
    total = _total(parts)
    known = _Known.apply(total.sum, [state_gradients, *gradients], states, *weights)
    return Divergence(known, total.count, total.diagnostics)


class _Known(torch.autograd.Function):
    """A value whose gradients are known already; backward scales them by the upstream gradient, in place."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, gradients: list[torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> Any:
        gradients, ctx.gradients = ctx.gradients, None
        assert gradients is not None, "a sum over chunks is differentiated once"
        return None, None, *(gradient.mul_(upstream[0]) for gradient in gradients)


def _total(parts: list[Divergence]) -> Divergence:
    names = parts[0].diagnostics
    return Divergence(
        torch.stack([part.sum for part in parts]).sum(),
        sum(part.count for part in parts),
        {name: torch.stack([part.diagnostics[name] for part in parts]).sum() for name in names},
    )


def _leaves(value: torch.Tensor) -> list[torch.Tensor]:
    """The leaf tensors in the graph of a value that require a gradient."""
    found, seen, waiting = [], set(), [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # the node of a leaf, which accumulates its gradient
            found.append(node.variable)
        waiting += [following for following, _ in node.next_functions]
    return found


def _wide(weight: torch.Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)
