"""Members: the processes of one job, and how a stage is made by all of them.

Slurm, or `torchrun`, starts one command several times. Outside a stage that they make together every process
is alone and its environment says so; `together` names its rank for the length of such a stage, and
Accelerate builds the process group from that. Who leads and who follows: `leader.py`.

    member = own_member()                  # None: this process is alone
    with together(member, port): ...       # process_rank(), process_count() are the member's
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

GROUP = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Names that make a process one of several to torch and Accelerate."""
MPI = ("PMI_SIZE", "PMI_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE")
"""Names that srun sets on some clusters, and that Accelerate takes for the same."""


@dataclass(frozen=True)
class Member:
    """A process among all of its job."""

    rank: int
    """From 0; the first leads."""
    count: int
    local_rank: int
    """Number of this process on its node, which picks its GPU."""
    address: str
    """Of the first process's node."""
    start: str
    """What tells this start of the job from every other one."""


def own_member() -> Member | None:
    """What Slurm's step, or `torchrun`, says of this process, taken out of the environment; None for one alone."""
    said = {name: os.environ.pop(name) for name in (*GROUP, *MPI) if name in os.environ}
    if "WORLD_SIZE" in said:
        member = Member(
            int(said["RANK"]),
            int(said["WORLD_SIZE"]),
            int(said["LOCAL_RANK"]),
            said["MASTER_ADDR"],
            said["MASTER_PORT"],
        )
        return member if member.count > 1 else None
    count = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if count == 1:
        return None
    start = [os.environ.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")]
    return Member(
        int(os.environ["SLURM_PROCID"]), count, int(os.environ["SLURM_LOCALID"]), _first_node(), ".".join(start)
    )


@contextmanager
def together(member: Member, port: int) -> Iterator[None]:
    """While the block runs this process is one of several; their process group, which is its own, ends with it.

    `port`, of the first process's node, is where they find each other; no other block may have used it.
    """
    named = {"WORLD_SIZE": member.count, "RANK": member.rank, "LOCAL_RANK": member.local_rank}
    os.environ |= {name: str(value) for name, value in named.items()}
    os.environ |= {"MASTER_ADDR": member.address, "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "False"}
    try:
        yield
    finally:
        _leave_group()
        for name in GROUP:
            os.environ.pop(name, None)


def _leave_group() -> None:
    """End torch's process group, if there is one, and what Accelerate remembers of it."""
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_initialized():
        distributed.destroy_process_group()
    state: Any = sys.modules.get("accelerate.state")
    if state is not None:
        state.AcceleratorState._reset_state(reset_partial_state=True)


def _first_node() -> str:
    """The address of the step's first node, where its first process is."""
    names = _ask("scontrol", "show", "hostnames", os.environ["SLURM_STEP_NODELIST"])
    first = names.split()[0]
    found = _ask("scontrol", "show", "node", first)
    return next((word[9:] for word in found.split() if word.startswith("NodeAddr=")), first)


def _ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
