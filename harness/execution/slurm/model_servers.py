"""Model servers: teachers that jobs of the cluster serve, which arrays use one, and when its job may end.

A server's job is submitted for the first array that uses it, and stays until no waiting or running task has a stage
left that sends it requests. Two orders make this safe: an array registers as a user before its submitter looks for a
live server, and a server removes the note by which it is found before it looks for users a last time. So the server
sees each submitter that found it, and any other submits a new one.

    servers/<key>/<array>.json     one user: a note of the array, and by task the stages that send requests
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from harness.config.cluster import Cluster
from harness.execution.slurm.squeue import tasks_of
from harness.execution.slurm.submissions import Submissions, being_sent, new_entry
from harness.plan.graph import Stage
from harness.store.fingerprint import SHORT, fingerprint
from harness.store.store import Store, write_json
from harness.teachers.discovery import address_file, write_address
from harness.teachers.http_endpoint import BY_SLURM


class Server(NamedTuple):
    """One model to be served."""

    model: str
    revision: str | None
    api_key_env: str | None

    @property
    def key(self) -> str:
        """Its name in the store, the same for every user of this model and revision."""
        return f"serve-{fingerprint([self.model, self.revision])[:SHORT]}"


def server_of(stage: Stage) -> Server | None:
    """The server that the cluster is to run for a stage; None where the stage sends requests to no such server."""
    # two kinds of stages send requests: the base stage, which probes the server, and those with a `teacher_url`
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
    """A stage's `spec()`, in which the path of the server's address file replaces `slurm`."""
    server, where = server_of(stage), dict(spec["where"])
    if server is not None:
        file = str(address_file(store, server.key))
        where |= {"teacher_url": file} if "teacher_url" in where else {"model": {**where["model"], "path": file}}
    return {**spec, "where": where}


def take_servers(
    store: Store,
    notes: Submissions,
    cluster: Cluster,
    prefix: str,
    submission: str,
    asking: Mapping[str, Sequence[Sequence[Stage]]],
) -> dict[str, Server]:
    """The servers this submission has to send, by the names of their jobs; those that run stay for its arrays.

    `asking` has the stages of each array, by task; `prefix` begins the names of the jobs. Raises OSError where the
    store cannot be written, SettingsError where Slurm's controller does not answer.
    """
    used: dict[str, Server] = {}
    for array, tasks in asking.items():
        servers = {found.key: found for stages in tasks for stage in stages if (found := server_of(stage))}
        # Registered before `notes.take` looks for a live server: one that ends now sees this array when it looks a
        # last time, or has removed its note, and a new one is taken below.
        for key in servers:
            _register(store, key, new_entry(submission, array, 0), tasks)
        used |= servers
    mine: dict[str, Server] = {}
    for key, server in used.items():
        name = f"{prefix}.{len(mine)}"
        if notes.take(key, submission, name, 0):
            assert cluster.serve is not None
            # the file is there before the job is sent: a stage that starts early waits for the url instead of failing
            minutes = cluster.serve.ready_minutes
            write_address(address_file(store, key), name=name, job=None, model=server.model, ready_minutes=minutes)
            mine[name] = server
    return mine


def wanted(store: Store, key: str) -> bool:
    """Whether a task that waits, runs or is being submitted has requests left; removes the notes of other arrays.

    Raises SettingsError where Slurm's controller does not answer. Raises FileNotFoundError where this machine has no
    Slurm.
    """
    found = {}
    for path in _users(store, key).glob("*.json"):
        with suppress(FileNotFoundError):
            found[path] = json.loads(path.read_text())
    # Read before the queue. A task that is sent between the two readings is then in both, in the other order in
    # neither.
    sending = {path for path, note in found.items() if being_sent(store, note)}
    left = {
        path: {task for task, keys in enumerate(note["asking"]) if not all(map(store.done, keys))}
        for path, note in found.items()
    }
    arrays = {found[path]["array"] for path, tasks in left.items() if tasks}
    # no patience: the server must notice signals, and it looks again soon
    queue = tasks_of(arrays, patience=0) if arrays else {}
    live = {path for path, tasks in left.items() if any((found[path]["array"], task) in queue for task in tasks)}
    live |= {path for path in sending if left[path]}
    for path in found.keys() - live:
        path.unlink(missing_ok=True)
    return bool(live)


def _register(store: Store, key: str, note: Mapping[str, Any], tasks: Sequence[Sequence[Stage]]) -> None:
    """Register the array of a note as a user of the server, until its stages that send requests are made."""
    folder = _users(store, key)
    folder.mkdir(parents=True, exist_ok=True)
    own = [[(stage.key, server_of(stage)) for stage in stages] for stages in tasks]
    asking = [[stage for stage, server in stages if server is not None and server.key == key] for stages in own]
    write_json(folder / f"{note['array']}.json", {**note, "asking": asking})


def _users(store: Store, key: str) -> Path:
    return address_file(store, key).with_suffix("")
