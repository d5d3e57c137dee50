"""The process group of a job: which processes there are, how they find each other, and the connections they keep.

Slurm, or `torchrun`, starts one command several times. Outside a stage that they make together every process is alone
and its environment says so; `together` names its rank for the length of such a stage, and Accelerate builds torch's
process group from that. Rank 0 listens and the others call; a message is a line of JSON, and a process that is gone is
known by its closed connection. What they say to each other is in `coordinator.py`.

    member = own_member()                      # None: this process is alone
    server = listen(word(member, secret))      # in rank 0
    line = call(member, word(member, secret))  # in every other rank
    with together(member, port): ...           # process_rank(), process_count() are the member's
"""

import hashlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from harness.execution.slurm.squeue import ask
from harness.runtime.processes import node_address

JOIN_SECONDS = 300.0  # how long the others may take to start
GRACE_SECONDS = 10.0  # how long a process may take to come out of a stage that is over; then it ends where it stands
FIRST_PORT, PORTS, TRIES = 20000, 12000, 16  # below the range that systems deal out themselves

Problem = tuple[str, str]
"""Class of a failure and its one line."""
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
    names = ask("scontrol", "show", "hostnames", os.environ["SLURM_STEP_NODELIST"])
    first = names.split()[0]
    return node_address(first, ask("scontrol", "show", "node", first))


class Line:
    """One connection; a message is a line of JSON, and None stands for its end."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._read = connection, connection.makefile("r", encoding="utf-8")
        self._sending = threading.Lock()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a node without power closes nothing
        for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, message: Mapping[str, Any]) -> None:
        with suppress(OSError), self._sending:  # whoever reads learns that the other is gone
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any] | None:
        try:
            found = json.loads(self._read.readline() or "null")
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def close(self) -> None:
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


def word(member: Member, secret: str) -> str:
    """By which the processes of one start of one job know each other."""
    return hashlib.sha256(f"{member.start}\n{secret}".encode()).hexdigest()


def _ports(known: str) -> range:
    first = FIRST_PORT + int(known[:8], 16) % PORTS
    return range(first, first + TRIES)


def listen(known: str) -> socket.socket:
    for port in _ports(known):
        with suppress(OSError):
            return socket.create_server(("", port))
    raise OSError(f"the ports {_ports(known)[0]} to {_ports(known)[-1]} are all in use on {socket.gethostname()}")


def call(member: Member, known: str) -> Line:
    """A connection to the leader, which may start later; what else listens on its ports does not answer."""
    deadline = time.monotonic() + JOIN_SECONDS
    while time.monotonic() < deadline:
        for port in _ports(known):
            with suppress(OSError):
                connection = socket.create_connection((member.address, port), timeout=5)
                line = Line(connection)
                line.send({"hello": known, "rank": member.rank, "host": socket.gethostname()})
                if (line.receive() or {}).get("welcome") == member.rank:
                    connection.settimeout(None)
                    return line
                line.close()
        time.sleep(0.2)
    raise TimeoutError(f"the first process did not answer on {member.address} within {JOIN_SECONDS:g} s")


def exit_now(reason: str, code: int) -> None:
    print(f"harness: {reason}", flush=True)
    os._exit(code)
