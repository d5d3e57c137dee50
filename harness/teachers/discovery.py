"""Discovery: the address of a server that a job of its own runs, kept in a file of the store.

`teacher.path=slurm` has the cluster serve the teacher. On submission the path of the server's address file takes that
word's place; a stage finds the server through the file, and finds it again after it was stopped and started elsewhere.
`execution/slurm/server_job.py` is the job and keeps the file; `execution/slurm/model_servers.py` submits it.

    servers/<key>.json     name and id of the server's job, model, ready_minutes, and url (null: not yet) or failed

    endpoint_at("/store/servers/serve-3f2a.json").request("/v1/models")     # waits until the server is there
"""

import json
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from harness.config.checks import SettingsError, refuse
from harness.runtime import preemption
from harness.store.store import Store, write_json
from harness.teachers.http_endpoint import ANSWER_BYTES, BY_SLURM, FIELD, HttpEndpoint, ServerError

LOOK_SECONDS = 2.0
ANSWER_SECONDS = 10.0
WAY_OUT = "run the same command again, or `grid retry`, to send its job again"


def address_file(store: Store, key: str) -> Path:
    """The address file of the server of this key."""
    return store.root / "servers" / f"{key}.json"


def read_address(file: Path) -> dict[str, Any] | None:
    """The content of an address file; None where there is none, because no job serves.

    Raises OSError where it cannot be read.
    """
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        return None


def write_address(file: Path, **content: Any) -> None:
    """Write an address file: which job serves which model, and at which `url` (None: not yet).

    Raises OSError where it cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {"url": None, **content})


def endpoint_at(path: str, api_key_env: str | None = None, **patience: Any) -> HttpEndpoint:
    """The endpoint at an address, or at the one that the address file `path` names, which is waited for; `patience` as
    of an `HttpEndpoint`.

    Raises SettingsError for a malformed address, ServerError where the job behind an address file has ended, failed,
    or starts later than it may, and Preempted where this process is asked to stop while it waits.
    """
    if path == BY_SLURM:
        raise refuse(FIELD, path, "no cluster serves it here", "send the grid to one with slurm=<cluster>")
    if path.startswith("/"):
        return DiscoveredEndpoint(Path(path), api_key_env, **patience)
    return HttpEndpoint(path, api_key_env, **patience)


def answers(url: str, api_key_env: str | None) -> bool:
    """Whether a server answers there now. Raises SettingsError where it does and refuses the key."""
    with closing(HttpEndpoint(url, api_key_env, timeout_s=ANSWER_SECONDS, attempts=1)) as endpoint:
        try:
            endpoint.request("/v1/models")
        except ServerError:
            return False
    return True


class DiscoveredEndpoint(HttpEndpoint):
    """The server that an address file names; where it stops answering, the file is read again."""

    def __init__(self, file: Path, api_key_env: str | None = None, **patience: Any) -> None:
        """Waits until the server is there; `patience` as of an `HttpEndpoint`. Raises as `endpoint_at`."""
        self.file, self._moving = file, threading.Lock()
        super().__init__(_wait_for_address(file, api_key_env, threading.Event()), api_key_env, **patience)

    def request(
        self,
        path: str,
        body: dict[str, Any] | None = None,
        stopped: threading.Event | None = None,
        most_bytes: int = ANSWER_BYTES,
        seconds: float | None = None,
    ) -> dict[str, Any]:
        """As `HttpEndpoint.request`, and a server that is restarted meanwhile is waited for.

        Raises as both that method and `endpoint_at`.
        """
        stopped = stopped or threading.Event()
        while True:
            url = self.url
            try:
                return super().request(path, body, stopped, most_bytes, seconds)
            # a server that refuses the request is there, and its SettingsError passes on; this one may come back
            except ServerError:
                with self._moving:  # one of many threads reads the file
                    # another thread has moved to the new address already where it differs
                    if self.url == url:
                        self.url = _wait_for_address(self.file, self.api_key_env, stopped)
                if self.url == url:  # it is there and fails all the same
                    raise


def _wait_for_address(file: Path, api_key_env: str | None, stopped: threading.Event) -> str:
    """Where the server answers now; waits for one that starts, as long as that may take."""
    deadline = None
    while True:
        # read anew each time: the job writes its address, or its failure, while this process waits
        content = read_address(file)
        if content is None:
            raise _no_server("the job that serves it has ended")
        job = f"its server's job {content['job'] or content['name']}"
        if "failed" in content:
            raise _no_server(f"{job} failed: {str(content['failed']).rstrip('.')}")
        if content["url"] and answers(content["url"], api_key_env):
            return content["url"]
        minutes = content["ready_minutes"] + 1  # a server that starts too late has written so by then
        deadline = deadline or time.monotonic() + 60 * minutes
        if time.monotonic() > deadline or stopped.is_set():
            raise _no_server(f"{job} did not answer within {minutes:g} minutes")
        if preemption.stop_requested():
            raise preemption.Preempted("stopped on request while it waited for the teacher's server")
        stopped.wait(LOOK_SECONDS)


def _no_server(reason: str) -> SettingsError:
    return ServerError(str(refuse(FIELD, BY_SLURM, reason, WAY_OUT)))
