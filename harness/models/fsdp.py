"""FSDP: a student's weights, gradients and optimizer state sharded over the processes that train it.

PyTorch's `fully_shard` (Zhao et al. 2023, arXiv 2304.11277): a decoder layer is gathered for its forward pass,
dropped, and gathered again for its backward pass, after which every process keeps its shard of the mean gradient.
What is not a layer (embeddings, output layer, an objective's weights) is one more unit, which stays gathered from
the forward pass to the end of the backward pass, so that objectives may read it there. Weights are gathered in
fp32 and cast by autocast, as they are without sharding: the arithmetic is the same.

Gathering takes all processes at once. Code that runs forward passes in one process alone, or a different number in
each (generation, validation), first gathers the whole model (`gathered`).

    shard_with_fsdp(model, torch.device("cuda"))    # in place; an optimizer made after this is sharded too
    with gathered(model): ...                       # every process has the whole model, and none waits for another
    full_tensors(model.state_dict())                # plain tensors, in rank 0
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from harness.config.checks import refuse
from harness.config.machine import Machine
from harness.runtime.processes import process_count, process_rank


def uses_fsdp(machine: Machine) -> bool:
    """Whether the student is FSDP-sharded on this machine; with one process it never is."""
    return machine.shard and process_count() > 1


def shard_with_fsdp(model: Any, device: torch.device) -> None:
    """Leave this process its shard of every weight, on `device`, unit by unit: the whole model is never on it.

    Every process has to hold the same model. Raises SettingsError where the model does not name its layers.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    kinds = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in kinds]
    if not layers:
        reason = f"{type(model).__name__} does not name its layers (_no_split_modules), by which FSDP shards a model"
        raise refuse("machine.shard", True, reason, "set machine.shard=false")
    mesh = init_device_mesh(device.type, (process_count(),))
    for module in (*reversed(layers), model):  # an inner module becomes a unit before the one around it
        fully_shard(module, mesh=mesh)


def is_fsdp_sharded(model: torch.nn.Module) -> bool:
    """Whether the model is FSDP-sharded in this process."""
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
    """While the block runs, a forward pass through an FSDP-sharded layer raises RuntimeError.

    Processes may make different numbers of chunks, so a layer that ran for each of them would wait for the others.
    """

    def leave_out(*_: Any) -> None:
        raise RuntimeError("an FSDP-sharded layer ran for one chunk of positions, which not every process has")

    hooks = [layer.register_forward_pre_hook(leave_out, prepend=True) for layer in _units(model)[1:]]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def full_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The full tensors on the CPU, in rank 0; the other ranks have to call it too, and get what is not sharded."""
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
    """This process's shard of a full value where `like` is sharded and of the same shape; else the value itself."""
    if not hasattr(like, "full_tensor") or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def _units(model: torch.nn.Module) -> list[Any]:
    """FSDP units (modules that are gathered at once), the model itself first; empty where it is not sharded."""
    if process_count() == 1:
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]
