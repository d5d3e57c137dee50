"""Processes: which of several processes of one training run this is, and what of the machine it may use.

While all ranks make a stage, each finds its rank in the environment, under `torchrun`'s names
(`execution/distributed/process_group.py`). Rank 0 alone logs, keeps checkpoints and saves.
"""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class ProcessError(RuntimeError):
    """A stage failed because of another process that made it too: it failed there, or is gone."""

    def __init__(self, reason: str, failure: str) -> None:
        """`failure` is its class there (`attempt.failure_class`); `killed` where the process is gone."""
        super().__init__(reason)
        self.failure = failure


def process_count() -> int:
    """Processes that train one model together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_rank() -> int:
    """Number of this process among them, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Number of this process among those of its node, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def slurm_job() -> str | None:
    """The job this process belongs to, as Slurm names it: `12`, or `12_3` of an array; None outside one."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID")


def available_cores() -> int:
    """CPU cores this process may use."""
    # not the machine's count: a job or a container may be confined to some of its cores
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may be set to for each GPU, without importing torch.

    Without that variable GPUs are numbered from 0 as CUDA numbers them, whatever their device files are called.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        # an empty value and -1 both hide the GPUs
        return [gpu.strip() for gpu in visible.split(",") if gpu.strip() not in ("", "-1")]
    return [str(number) for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]


def node_address(name: str, description: str) -> str:
    """The address in `scontrol show node`'s description of a node; the node's name where it gives none."""
    return next((word[9:] for word in description.split() if word.startswith("NodeAddr=")), name)


def equal_part(rows: int, most: int) -> int:
    """The most rows, at most `most`, of which equal parts make up `rows`."""
    return next(size for size in range(min(rows, most), 0, -1) if rows % size == 0)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """While the block runs torch computes with `count` threads, imported already or only then; None: as it was."""
    if count is None:
        yield
        return
    # Not imported here: some stages need no torch, and importing it takes seconds. A torch that is imported within the
    # block reads the variable; one that is imported already is set directly.
    torch, before = sys.modules.get("torch"), os.environ.get("OMP_NUM_THREADS")
    at_first = torch.get_num_threads() if torch else None
    if torch:
        torch.set_num_threads(count)
    os.environ["OMP_NUM_THREADS"] = str(count)  # what torch reads when it is imported
    try:
        yield
    finally:
        if torch:
            torch.set_num_threads(at_first)
        elif torch := sys.modules.get("torch"):  # imported within the block, so it took the block's count for good
            torch.set_num_threads(int(before) if before else available_cores())
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def free_port() -> int:
    """A port of this machine that no process listens at now. Raises OSError where there is none."""
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]
