"""Servers: teachers that the cluster serves by jobs of their own, who wants them, and when one may end.

A server is sent for the first array that wants it and stays until no task that waits or runs has anything left to
ask. An array is written down as wanting it before its submitter looks for a live server; a server gives up the note
by which it is found before it looks a last time who wants it. So whoever still found it is seen, and others send a
new one.

    servers/<key>/<array>.json     who wants it: a note of the array, and by task the stages that ask
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from harness.config.cluster import Cluster
from harness.execution.slurm.squeue import tasks_of
from harness.execution.slurm.submissions import Notes, being_sent, new_note
from harness.plan.graph import Stage
from harness.store.fingerprint import SHORT, fingerprint
from harness.store.store import Store, write_json
from harness.teachers.discovery import page_of, write_page
from harness.teachers.http_endpoint import BY_SLURM


class Server(NamedTuple):
    """One model to be served."""

    model: str
    revision: str | None
    api_key_env: str | None

    @property
    def key(self) -> str:
        """Its name in the store, the same for whoever asks for this model and revision."""
        return f"serve-{fingerprint([self.model, self.revision])[:SHORT]}"


def server_of(stage: Stage) -> Server | None:
    """The server that the cluster is to run for a stage to ask; None for one that asks none."""
    adopted = stage if stage.kind == "base" else None
    if "teacher_url" in stage.where:
        adopted = stage.inputs["teacher"].base_model()
    if adopted is None or adopted.settings.get("kind") != "http":
        return None
    model = adopted.where["model"]
    if stage.where.get("teacher_url", model["path"]) != BY_SLURM:
        return None
    return Server(adopted.settings["served_model"], adopted.settings["revision"], model["api_key_env"])


def pointed(spec: Mapping[str, Any], stage: Stage, store: Store) -> dict[str, Any]:
    """A stage's `spec()`, with the page of its server where it said that the cluster serves."""
    server, where = server_of(stage), dict(spec["where"])
    if server is not None:
        page = str(page_of(store, server.key))
        where |= {"teacher_url": page} if "teacher_url" in where else {"model": {**where["model"], "path": page}}
    return {**spec, "where": where}


def take_servers(
    store: Store,
    notes: Notes,
    cluster: Cluster,
    prefix: str,
    submission: str,
    asking: Mapping[str, Sequence[Sequence[Stage]]],
) -> dict[str, Server]:
    """The servers this submission has to send, by the names of their jobs; those that run stay for its arrays.

    `asking` is what each array makes, by task; `prefix` begins the names.
    """
    asked: dict[str, Server] = {}
    for array, tasks in asking.items():
        servers = {found.key: found for stages in tasks for stage in stages if (found := server_of(stage))}
        for key in servers:
            _want(store, key, new_note(submission, array, 0), tasks)
        asked |= servers
    mine: dict[str, Server] = {}
    for key, server in asked.items():
        name = f"{prefix}.{len(mine)}"
        if notes.take(key, submission, name, 0):
            assert cluster.serve is not None
            minutes = cluster.serve.ready_minutes
            write_page(page_of(store, key), name=name, job=None, model=server.model, ready_minutes=minutes)
            mine[name] = server
    return mine


def wanted(store: Store, key: str) -> bool:
    """Whether a task that waits, runs or is being sent has something to ask; forgets arrays that have not.

    Raises SettingsError where the controller is away.
    """
    found = {}
    for path in _wanting(store, key).glob("*.json"):
        with suppress(FileNotFoundError):
            found[path] = json.loads(path.read_text())
    sending = {path for path, note in found.items() if being_sent(store, note)}  # read before the queue
    left = {
        path: {task for task, keys in enumerate(note["asking"]) if not all(map(store.done, keys))}
        for path, note in found.items()
    }
    arrays = {found[path]["array"] for path, tasks in left.items() if tasks}
    queue = tasks_of(arrays, patience=0) if arrays else {}
    live = {path for path, tasks in left.items() if any((found[path]["array"], task) in queue for task in tasks)}
    live |= {path for path in sending if left[path]}
    for path in found.keys() - live:
        path.unlink(missing_ok=True)
    return bool(live)


def _want(store: Store, key: str, note: Mapping[str, Any], tasks: Sequence[Sequence[Stage]]) -> None:
    """Write down that the array of a note wants the server, until its stages that ask are made."""
    folder = _wanting(store, key)
    folder.mkdir(parents=True, exist_ok=True)
    own = [[(stage.key, server_of(stage)) for stage in stages] for stages in tasks]
    asking = [[stage for stage, server in stages if server is not None and server.key == key] for stages in own]
    write_json(folder / f"{note['array']}.json", {**note, "asking": asking})


def _wanting(store: Store, key: str) -> Path:
    return page_of(store, key).with_suffix("")
