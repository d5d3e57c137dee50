"""Process group: the ranks of a job, the connections between them, and the process group of a stage they make together.

Slurm, or `torchrun`, starts one command several times. Outside a stage that all ranks make, each process is a single
process and its environment says so. `process_group` sets the names of `torchrun` for the length of such a stage, and
Accelerate builds torch's process group from them. Rank 0 listens and the others connect; a message is a line of JSON,
and a closed connection means that the process has ended. `coordinator.py` defines the messages.

    rank = own_rank()                                      # None: this process is the only one
    server = listen(job_token(rank, secret))               # in rank 0
    connection = connect(rank, job_token(rank, secret))    # in every other rank
    with process_group(rank, port): ...                    # process_rank(), process_count() are this rank's

Shorter ways were measured on two Slurm nodes, with four ranks on two cores, and none keeps what `coordinator.py`
promises. A new `srun` step or `torchrun` for each stage imports torch and the trainer in every rank (9 s of CPU time,
45 s until the first collective, against 0.5 s for processes that run already); the ranks of a step ran on for 65 s
after the process that owned their stage was killed, and `torchrun` took 94 s for one killed outside a collective, and
named no rank. A gloo group for the decisions notices a killed rank only at rank 0's next collective, and with a
heartbeat it names an address in place of the rank, and takes a process that holds the interpreter lock for 15 s for a
dead one.
"""

import gc
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

from harness.execution.slurm.squeue import run_command
from harness.runtime.processes import node_address

JOIN_SECONDS = 300.0  # for the other ranks to start
GRACE_SECONDS = 10.0  # for a process to leave a stage that is over; then it is ended where it stands
FIRST_PORT, PORTS, TRIES = 20000, 12000, 16  # below the range of ports that systems assign by themselves

Problem = tuple[str, str]
"""Class of a failure and its one line."""
GROUP = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Names that make a process one of several to torch and Accelerate."""
MPI = ("PMI_SIZE", "PMI_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE")
"""Names that srun sets on some clusters, and that Accelerate takes for the same."""


@dataclass(frozen=True)
class Rank:
    """One process among all of its job."""

    number: int
    """From 0; rank 0 coordinates."""
    count: int
    local_rank: int
    """Number of this process on its node, which picks its GPU."""
    address: str
    """Of the node of rank 0."""
    start: str
    """Differs for every start of the job, so that a late process of an earlier start is refused."""


def own_rank() -> Rank | None:
    """This process among those of Slurm's step or of `torchrun`; None where it is the only one.

    The names that say so are taken out of the environment. Raises SettingsError where Slurm's controller is away.
    """
    # left in place, they would make Accelerate wait for the other ranks in a stage that rank 0 makes alone
    given = {name: os.environ.pop(name) for name in (*GROUP, *MPI) if name in os.environ}
    if "WORLD_SIZE" in given:
        rank = Rank(
            int(given["RANK"]),
            int(given["WORLD_SIZE"]),
            int(given["LOCAL_RANK"]),
            given["MASTER_ADDR"],
            given["MASTER_PORT"],
        )
        return rank if rank.count > 1 else None
    count = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if count == 1:
        return None
    start = [os.environ.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")]
    return Rank(
        int(os.environ["SLURM_PROCID"]), count, int(os.environ["SLURM_LOCALID"]), _first_node(), ".".join(start)
    )


@contextmanager
def process_group(rank: Rank, port: int) -> Iterator[None]:
    """While the block runs this process is one rank of several; their process group ends with the block.

    The ranks meet at `port` of rank 0's node; no other block may have used it.
    """
    named = {"WORLD_SIZE": rank.count, "RANK": rank.number, "LOCAL_RANK": rank.local_rank}
    os.environ |= {name: str(value) for name, value in named.items()}
    # `torchrun` sets TORCHELASTIC_USE_AGENT_STORE; with it no rank would open a store at this stage's port
    os.environ |= {"MASTER_ADDR": rank.address, "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "False"}
    try:
        yield
    finally:
        _leave_group()
        for name in GROUP:
            os.environ.pop(name, None)


def _leave_group() -> None:
    """End torch's process group, if there is one, and what Accelerate remembers of it."""
    # from sys.modules: a stage that failed early may have imported neither, and this must not take seconds
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_initialized():
        # a DistributedDataParallel wrapper that outlives the group ends it in its own destructor, which joins gloo's
        # thread with the interpreter's lock held, and that thread may need the lock to drop its last work: a deadlock
        gc.collect()
        distributed.destroy_process_group()
    state: Any = sys.modules.get("accelerate.state")
    if state is not None:
        state.AcceleratorState._reset_state(reset_partial_state=True)


def _first_node() -> str:
    """The address of the step's first node, where rank 0 runs."""
    names = run_command("scontrol", "show", "hostnames", os.environ["SLURM_STEP_NODELIST"])
    first = names.split()[0]
    return node_address(first, run_command("scontrol", "show", "node", first))


class Connection:
    """Messages to and from one other process, each a line of JSON; None stands for the end."""

    def __init__(self, opened: socket.socket) -> None:
        self._socket, self._read = opened, opened.makefile("r", encoding="utf-8")
        self._sending = threading.Lock()
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a node without power closes no connection
        for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, name):
                opened.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, message: Mapping[str, Any]) -> None:
        with suppress(OSError), self._sending:  # the thread that receives notices a lost process
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any] | None:
        try:
            found = json.loads(self._read.readline() or "null")
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def job_token(rank: Rank, secret: str) -> str:
    """A text that only the processes of one start of one job can compute; a connection begins with it."""
    return hashlib.sha256(f"{rank.start}\n{secret}".encode()).hexdigest()


def _ports(token: str) -> range:
    # from the token, so that all ranks find the ports without a message, and two jobs on a node seldom share one
    first = FIRST_PORT + int(token[:8], 16) % PORTS
    return range(first, first + TRIES)


def listen(token: str) -> socket.socket:
    """The socket at which rank 0 takes connections. Raises OSError where all ports of this token are in use."""
    for port in _ports(token):
        with suppress(OSError):
            return socket.create_server(("", port))
    raise OSError(f"the ports {_ports(token)[0]} to {_ports(token)[-1]} are all in use on {socket.gethostname()}")


def connect(rank: Rank, token: str) -> Connection:
    """The connection to rank 0, which may start later; another program on one of its ports is passed over.

    Raises TimeoutError where rank 0 does not answer within `JOIN_SECONDS`.
    """
    deadline = time.monotonic() + JOIN_SECONDS
    while time.monotonic() < deadline:
        for port in _ports(token):
            with suppress(OSError):
                opened = socket.create_connection((rank.address, port), timeout=5)
                connection = Connection(opened)
                connection.send({"token": token, "rank": rank.number, "host": socket.gethostname()})
                if (connection.receive() or {}).get("welcome") == rank.number:
                    # five seconds were for the handshake; a stage may send nothing for hours
                    opened.settimeout(None)
                    return connection
                connection.close()
        time.sleep(0.2)
    raise TimeoutError(f"rank 0 did not answer on {rank.address} within {JOIN_SECONDS:g} s")


def exit_now(reason: str, code: int) -> None:
    """End this process at once, though another of its threads may wait in a collective operation."""
    print(f"harness: {reason}", flush=True)
    os._exit(code)
