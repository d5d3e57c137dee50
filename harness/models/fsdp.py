"""Sharding: a student's weights, gradients and optimizer in parts, one for each process that trains it (FSDP).

PyTorch's `fully_shard` (Zhao et al. 2023, arXiv 2304.11277): a decoder layer is gathered for its forward pass,
dropped, and gathered again for its backward pass, after which every process keeps its part of the mean gradient.
What is not a layer (embeddings, output layer, an objective's weights) is one more unit, which stays gathered from
the forward pass to the end of the backward pass, so that objectives may read it there. Weights are gathered in
fp32 and cast by autocast, as they are without sharding: the arithmetic is the same.

Gathering takes all processes at once. Whoever reads a model at his own pace, to write text or to score rows, asks
for it whole (`gathered`).

    shard_with_fsdp(model, torch.device("cuda"))    # in place; an optimizer made after this is in parts too
    with gathered(model): ...             # every process has the whole model, and none waits for another
    full_tensors(model.state_dict())             # plain tensors, in the first process
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from harness.config.checks import refuse
from harness.config.machine import Machine
from harness.runtime.processes import process_count, process_rank


def uses_fsdp(machine: Machine) -> bool:
    """Whether the processes that train here share a model in parts; one process has all of it anyway."""
    return machine.shard and process_count() > 1


def shard_with_fsdp(model: Any, device: torch.device) -> None:
    """Leave this process its part of every weight, on `device`, unit by unit: the whole model is never there.

    Every process has to hold the same model. Raises SettingsError where the model does not say what its layers are.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    kinds = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in kinds]
    if not layers:
        reason = f"{type(model).__name__} does not say what its layers are, and they are its parts"
        raise refuse("machine.shard", True, reason, "set machine.shard=false")
    mesh = init_device_mesh(device.type, (process_count(),))
    for module in (*reversed(layers), model):  # what is inside another comes first
        fully_shard(module, mesh=mesh)


def is_fsdp_sharded(model: torch.nn.Module) -> bool:
    """Whether the model is in parts."""
    return bool(_units(model))


@contextmanager
def gathered(model: torch.nn.Module) -> Iterator[None]:
    """While the block runs every process has the whole model; all of them have to begin it."""
    units = _units(model)
    for unit in units:
        unit.unshard()
    for layer in units[1:]:  # the rest is kept after a forward pass anyway
        layer.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for layer in units[1:]:
            layer.set_reshard_after_forward(True, recurse=False)
        for unit in units:
            unit.reshard()


@contextmanager
def layers_left_out(model: torch.nn.Module) -> Iterator[None]:
    """While the block runs a forward pass through a layer that is in parts raises RuntimeError."""

    def leave_out(*_: Any) -> None:
        raise RuntimeError("a layer would be gathered as often as one process has use for it")

    hooks = [layer.register_forward_pre_hook(leave_out, prepend=True) for layer in _units(model)[1:]]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def full_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors with those in parts put together, on the CPU, in the first process; the others have to ask too,
    and get what is not in parts."""
    found = {}
    for name, tensor in tensors.items():
        if not hasattr(tensor, "full_tensor"):
            found[name] = tensor
            continue
        full = tensor.full_tensor()
        if process_rank() == 0:
            found[name] = full.cpu()
    return found


def local_shard(value: torch.Tensor, like: Any) -> torch.Tensor:
    """This process's part of a whole value where `like` is in parts and of the same shape; else the value."""
    if not hasattr(like, "full_tensor") or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def _units(model: torch.nn.Module) -> list[Any]:
    """What is gathered together, the model itself first; empty where it is not in parts."""
    if process_count() == 1:
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]
