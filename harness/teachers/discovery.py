"""Serving: a server that a job of its own runs, and the page in the store that says where it listens now.

`teacher.path=slurm` has the cluster serve the teacher; on submission the page's path takes that word's place, and
whoever asks finds the server through it, again after it was stopped and started elsewhere. `serve.py` is the job;
`launch/servers.py` sends it.

    servers/<key>.json     name and job of who serves, model, ready_minutes, and url (null: not yet) or failed; no key

    endpoint_at("/store/servers/serve-3f2a.json").ask("/v1/models")     # waits until the server is there
"""

import json
import threading
import time
from pathlib import Path
from typing import Any

from harness.config.checks import SettingsError, refuse
from harness.runtime import preemption
from harness.store.store import Store, write_json
from harness.teachers.http_endpoint import BY_SLURM, FIELD, Endpoint, ServerError

LOOK_SECONDS = 2.0
ANSWER_SECONDS = 10.0
WAY_OUT = "the same command, or grid retry, sends it again"


def page_of(store: Store, key: str) -> Path:
    """The page of the server of this key."""
    return store.root / "servers" / f"{key}.json"


def read_page(page: Path) -> dict[str, Any] | None:
    """What the page says; None where nobody serves."""
    try:
        return json.loads(page.read_text())
    except FileNotFoundError:
        return None


def write_page(page: Path, **said: Any) -> None:
    """Say who serves what, and where."""
    page.parent.mkdir(parents=True, exist_ok=True)
    write_json(page, {"url": None, **said})


def endpoint_at(path: str, api_key_env: str | None = None) -> Endpoint:
    """The endpoint at an address, or where the page `path` says, which is waited for.

    Raises ServerError where the job behind a page has ended, failed, or takes longer than it may.
    """
    if path == BY_SLURM:
        raise refuse(FIELD, path, "no cluster serves it here", "send the grid to one with slurm=<cluster>")
    return PagedEndpoint(Path(path), api_key_env) if path.startswith("/") else Endpoint(path, api_key_env)


def answers(url: str, api_key_env: str | None) -> bool:
    """Whether a server is there; SettingsError where it is and wants another key."""
    try:
        Endpoint(url, api_key_env, timeout_s=ANSWER_SECONDS, attempts=1).ask("/v1/models")
    except ServerError:
        return False
    return True


class PagedEndpoint(Endpoint):
    """The server a page tells of; where it stops answering, the page is looked at again."""

    def __init__(self, page: Path, api_key_env: str | None = None, **patience: Any) -> None:
        """Waits until the server is there; `patience` as of an `Endpoint`."""
        self.page, self._moving = page, threading.Lock()
        super().__init__(_address(page, api_key_env, threading.Event()), api_key_env, **patience)

    def ask(
        self, path: str, body: dict[str, Any] | None = None, stopped: threading.Event | None = None
    ) -> dict[str, Any]:
        """As `Endpoint.ask`; a server that is started anew meanwhile is waited for."""
        stopped = stopped or threading.Event()
        while True:
            url = self.url
            try:
                return super().ask(path, body, stopped)
            except ServerError:
                with self._moving:  # one of many threads looks
                    if self.url == url:
                        self.url = _address(self.page, self.api_key_env, stopped)
                if self.url == url:  # it is there and fails all the same
                    raise


def _address(page: Path, api_key_env: str | None, stopped: threading.Event) -> str:
    """Where the server answers now; waits for one that starts, as long as that may take."""
    deadline = None
    while True:
        said = read_page(page)
        if said is None:
            raise _gone("the job that serves it has ended")
        job = f"its server's job {said['job'] or said['name']}"
        if "failed" in said:
            raise _gone(f"{job} failed: {str(said['failed']).rstrip('.')}")
        if said["url"] and answers(said["url"], api_key_env):
            return said["url"]
        minutes = said["ready_minutes"] + 1  # where it fails to start in time it says so itself
        deadline = deadline or time.monotonic() + 60 * minutes
        if time.monotonic() > deadline or stopped.is_set():
            raise _gone(f"{job} did not answer within {minutes:g} minutes")
        if preemption.stop_requested():
            raise preemption.Preempted("asked to stop while it waited for the teacher's server")
        stopped.wait(LOOK_SECONDS)


def _gone(reason: str) -> SettingsError:
    return ServerError(str(refuse(FIELD, BY_SLURM, reason, WAY_OUT)))
