"""Rendezvous: how the processes of one job find each other, and the connections they keep.

The first process listens, the others call; a message is a line of JSON. A process that is gone is known by its
closed connection. What they say to each other is in `leader.py` and `follower.py`.

    server = listen(word(member, secret))            # in the first process
    line = call(member, word(member, secret))         # in every other
    line.send({"left": None}); line.receive()
"""

import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from harness.members import Member

JOIN_SECONDS = 300.0  # how long the others may take to start
GRACE_SECONDS = 10.0  # how long a process may take to come out of a stage that is over; then it ends where it stands
FIRST_PORT, PORTS, TRIES = 20000, 12000, 16  # below the range that systems deal out themselves

Problem = tuple[str, str]
"""Class of a failure and its one line."""


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
