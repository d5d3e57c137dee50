"""Finite weights: a model whose weights are numbers, and a refusal that names the first ones that are not.

Weights are looked at when a model is adopted (`stages/base.py`), after it was trained, and before it is scored or
asked. NaN spreads from one weight to every answer, and the largest of NaN logits is some token, so nothing would look
wrong.

    norm = check_weights(model, "the student after step 300 of 300")    # DivergedError: ... 2 of 26 tensors ...
"""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from harness.models.diverged import DivergedError
from harness.runtime import progress

EXPLODED = 5.0
"""Times the norm of the weights before training; beyond it a run warns."""


def check_weights(model: torch.nn.Module, whose: str, error: type[DivergedError] = DivergedError) -> float:
    """The Euclidean norm of a model's weights; raises `error`, which says `whose` they are, unless all are finite."""
    return _norm(((name, weight.detach()) for name, weight in model.named_parameters()), whose, error)


def check_weight_files(files: Iterable[Path], whose: str) -> float:
    """The same of .safetensors files, one tensor at a time. Raises DivergedError."""
    return _norm(_tensors(list(files)), whose, DivergedError)


def explosion_warnings(model: torch.nn.Module, before: float, after: float) -> list[str]:
    """A warning where training left weights that are numbers and no solution, by their norms before and after."""
    if after <= EXPLODED * before:
        return []
    largest = max(float(weight.detach().abs().max()) for weight in model.parameters())
    return [
        f"the weights exploded: their norm is {after:.3g} ({before:.3g} before training), the largest of them "
        f"{largest:.3g}; lower budget.learning_rate"
    ]


def _tensors(files: list[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors import safe_open

    for place, file in enumerate(files):
        progress.report(place, len(files), note="reading the weights")
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  # it is no dict
                yield name, opened.get_tensor(name)


def _norm(tensors: Iterable[tuple[str, torch.Tensor]], whose: str, error: type[DivergedError]) -> float:
    count, squares, bad = 0, 0.0, []
    for name, tensor in tensors:
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        count += 1
        norm = float(torch.linalg.vector_norm(tensor.flatten().float()))  # NaN and infinity spread to it
        if not math.isfinite(norm):
            if not bool(torch.isfinite(tensor).all()):
                bad.append(name)
                continue
            norm = float(torch.linalg.vector_norm(tensor.flatten().double()))  # the squares of fp32 overflow
        squares += norm**2
    if bad:
        listed = f"{len(bad)} of {count} tensors hold NaN or infinity, {bad[0]} first"
        raise error(f"the weights of {whose} are not numbers: {listed}")
    return math.sqrt(squares)
