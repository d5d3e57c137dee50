"""Hidden states: what a model computes on the way to its logits, caught from the modules that put it out, and compared.

Functions of models and tensors alone; `training/losses/hidden.py` decides which states are compared, and with what
weight. Shapes: B sequences, T positions, N scored positions, d width. States are caught by hooks on modules, inside
the one forward that makes the logits, so nothing is computed twice and a wrapper around the model (several
processes, adapters) does not matter.

    with caught(layers_of(model, "student")[:2], lambda states: states) as states:
        model(input_ids=input_ids)
    states[1].shape                      # (B, T, d): what the second layer put out
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from harness.config.checks import refuse

RELATION_ELEMENTS = 2**25
"""Elements (rows x heads x queries x keys) of relations made at once; where there are more, heads take turns and
are made again for their gradient, so memory does not grow with the batch."""


@contextmanager
def caught(
    modules: Sequence[torch.nn.Module], cut: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[list[torch.Tensor]]:
    """What each module puts out, (B, T, d) passed through `cut`, in the order of `modules`.

    The list fills while the model runs under this context; a module may be named twice. `cut` is applied at once,
    so that what it drops can be freed.
    """
    states: list[Any] = [None] * len(modules)

    def keep(place: int) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: Any, output: Any) -> None:
            # a decoder layer may return a tuple, whose first entry is the hidden states
            states[place] = cut(output if isinstance(output, torch.Tensor) else output[0])

        return hook

    hooks = [module.register_forward_hook(keep(place)) for place, module in enumerate(modules)]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


def layers_of(model: Any, side: str) -> torch.nn.ModuleList:
    """The decoder layers of a causal model. Raises SettingsError, naming `side`, where there are none to be found.

    `side` is `student` or `teacher`.
    """
    stack = getattr(model.get_decoder(), "layers", None)
    if not isinstance(stack, torch.nn.ModuleList):
        kind = type(model).__name__
        raise refuse(side, kind, f"no list of layers was found in {kind}", f"choose another {side}")
    return stack


def attention_projections(model: Any, layer: int, side: str) -> list[torch.nn.Module]:
    """The modules that put out queries, keys and values of layer `layer` (from 1).

    Raises SettingsError, naming `side`, where a model has no q_proj, k_proj and v_proj (one fused projection, or
    keys shared between layers).
    """
    parts = layers_of(model, side)[layer - 1].named_modules()
    found = {path.rsplit(".", 1)[-1]: module for path, module in parts}
    missing = [name for name in ("q_proj", "k_proj", "v_proj") if name not in found]
    if missing:
        raise refuse(
            side,
            type(model).__name__,
            f"its attention has no module {missing[0]}, so queries, keys and values cannot be told apart",
            "choose another, or method=feature_kd",
        )
    return [found["q_proj"], found["k_proj"], found["v_proj"]]


def attention_heads(model: Any) -> tuple[int, int]:
    """Heads of queries, and of keys and values (fewer under grouped-query attention)."""
    config = model.config.get_text_config()
    return config.num_attention_heads, getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def equally_wide(states: Sequence[torch.Tensor], heads: int, key_value_heads: int) -> list[torch.Tensor]:
    """Queries, keys and values (B, T, d) with each key and value head repeated for every query head it serves."""
    queries, *shared = states
    times = heads // key_value_heads
    return [
        queries,
        *(one.unflatten(-1, (key_value_heads, -1)).repeat_interleave(times, -2).flatten(-2) for one in shared),
    ]


def uniform_map(layers: int, teacher_layers: int) -> list[int]:
    """For each student layer l = 1..L_S the teacher layer l L_T / L_S, rounded up; the last meets the last.

    TinyBERT's uniform map (arXiv 1909.10351, section 3.1), also for depths that do not divide.
    """
    return [-(-layer * teacher_layers // layers) for layer in range(1, layers + 1)]


def relative_error(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Sum over positions of ||h_S - h_T||^2 / ||h_T||^2, both (N, d); 1 per position for h_S = 0."""
    teacher = teacher.detach().to(student.dtype)  # (N, d)
    return ((student - teacher).square().sum(-1) / teacher.square().sum(-1)).sum()


def relation_kl(
    student: torch.Tensor, teacher: torch.Tensor, heads: int, scored: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """Sum over scored positions t of mean over heads of KL(R_T[t] || R_S[t]), in nats; fp32 or wider.

    R[t] = softmax over keys s <= t (padding left out) of A_t . A_s / sqrt(d_r), MiniLMv2, arXiv 2012.15828,
    section 3.1. `student` (B, T, d_S) and `teacher` (B, T, d_T) are split into `heads` equal parts each;
    `scored` and `attention_mask` are (B, T).
    """
    assert student.shape[-1] % heads == teacher.shape[-1] % heads == 0, "heads do not divide a width"
    # every head of every row is a sequence of its own, (B * heads, T, d_r)
    split = [
        vectors.unflatten(-1, (heads, -1)).transpose(1, 2).flatten(0, 1) for vectors in (student, teacher.detach())
    ]
    masks = [mask.bool().repeat_interleave(heads, 0) for mask in (scored, attention_mask)]  # (B * heads, T) each
    at_once = max(1, RELATION_ELEMENTS // scored.shape[1] ** 2)
    parts = list(zip(*(whole.split(at_once) for whole in (*split, *masks)), strict=True))
    if len(parts) == 1:
        return _relation_kl(*parts[0]) / heads
    return torch.stack([checkpoint(_relation_kl, *part, use_reentrant=False) for part in parts]).sum() / heads


def _relation_kl(
    student: torch.Tensor, teacher: torch.Tensor, scored: torch.Tensor, real: torch.Tensor
) -> torch.Tensor:
    """The summed KL of some sequences (heads of rows), from vectors (sequences, T, d_r) and masks (sequences, T)."""
    queries = scored.any(dim=0).nonzero()[:, 0]  # positions scored in some sequence; the others need no query
    positions = torch.arange(scored.shape[1], device=scored.device)
    seen = (positions[None] <= queries[:, None])[None] & real[:, None]  # (sequences, queries, keys)
    mine, theirs = (_relations(vectors, queries, seen) for vectors in (student, teacher))  # (sequences, queries, keys)
    return (theirs.exp() * (theirs - mine)).sum(-1)[scored[:, queries]].sum()


def _relations(vectors: torch.Tensor, queries: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Log of R, (sequences, queries, keys), from vectors (sequences, T, d_r)."""
    wide = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    scores = wide[:, queries] @ wide.transpose(-1, -2) * wide.shape[-1] ** -0.5  # (sequences, queries, keys)
    # the lowest number and not -inf: unseen keys then add 0 to the divergence, where -inf would add NaN
    return scores.masked_fill(~seen, torch.finfo(scores.dtype).min).log_softmax(-1)
