"""Weights & Biases: a stage's training curve, or a grid's tables, as a run beside the store's own files.

A run's id follows from the stage's key or the grid's name, so a stage that was stopped continues the same curve.
Offline, new files with all lines so far replace the run's earlier files; online, the server drops steps that it has.
A fault of wandb is kept in `problem`; it neither raises nor delays the stage for more than half a minute. What wandb
collects by itself (code, git, host, user, environment, packages, console) is switched off.

    with curve(store, spec) as run:
        run.log({"step": 1, "loss": 0.41})
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from harness.store.fingerprint import SHORT, fingerprint
from harness.store.store import Store

MODES = {"wandb": "offline", "wandb_online": "online"}
PROJECT = "harness"
"""The wandb project, unless the environment variable WANDB_PROJECT names another."""
LONGEST_WAIT_SECONDS = 30.0
TABLE_ROWS = 10_000
"""Rows that wandb shows of one table."""


class WandbRun:
    """One run, opened at its first line; `track` as in harness.config.cell.Settings."""

    def __init__(self, root: Path, track: str, run_id: str, name: str, group: str, kind: str) -> None:
        """`root` is the store's folder; the run's files are in its folder `wandb`."""
        self.mode, self.folder, self.id = MODES.get(track), root / "wandb", run_id
        self.named = {"name": name, "group": group, "job_type": kind}
        self.config: Callable[[], dict[str, Any]] = dict
        self.problem: str | None = None
        self._run: Any = None

    def log(self, line: Mapping[str, Any]) -> None:
        """Log one line of numbers, words and tables (DataFrames); `step`, where the line has it, counts from 1.

        A fault is kept in `problem` and not raised.
        """
        if self.mode is None or self.problem is not None:
            return
        try:
            self._run = self._run or self._open()
            self._run.log({name: _loggable(value) for name, value in line.items()}, step=line.get("step"))
        except Exception as error:  # tracking must not end a stage
            self._note(error)

    def close(self, exit_code: int) -> None:
        """Finish the run, if it was opened."""
        if self._run is None:
            return
        try:
            self._run.finish(exit_code=exit_code)
        except Exception as error:
            self._note(error)

    def _open(self) -> Any:
        import wandb

        self.folder.mkdir(parents=True, exist_ok=True)
        if not os.access(self.folder, os.W_OK):  # wandb would write into a folder for temporary files
            raise PermissionError(f"{self.folder} is not writable")
        if self.mode == "online" and not wandb.login(prompt=False, verify=False):
            raise PermissionError("not logged in; `wandb login` does that, and track=wandb needs no login")
        if self.mode == "offline":
            for earlier in self.folder.glob(f"offline-run-*-{self.id}"):
                shutil.rmtree(earlier)
        private = wandb.Settings(
            console="off",
            save_code=False,
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            host="",
            username="",
            program="",
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            silent=True,
            init_timeout=LONGEST_WAIT_SECONDS,
            finish_timeout=LONGEST_WAIT_SECONDS,
            finish_timeout_raises=True,
        )
        return wandb.init(
            **self.named,  # type: ignore[arg-type]
            id=self.id,
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=self.folder.parent,
            mode=self.mode,  # type: ignore[arg-type]
            resume="allow" if self.mode == "online" else None,
            config=self.config(),
            reinit="create_new",
            settings=private,
        )

    def _note(self, error: Exception) -> None:
        reason = (str(error).strip().splitlines() or [""])[0]
        key = os.environ.get("WANDB_API_KEY")
        reason = reason.replace(key, "***") if key else reason
        self.problem = f"not all of it is in wandb: {type(error).__name__}: {reason}; the store has all of it"
        with suppress(Exception):  # so that the next run in this process starts a new wandb service
            import wandb

            wandb.teardown()


@contextmanager
def curve(store: Store, spec: Mapping[str, Any]) -> Iterator[WandbRun]:
    """The run of a stage, by its spec; it drops every line where the spec's `track` is absent."""
    tracked = spec.get("track", {})
    key = spec["key"]
    run = WandbRun(store.root, tracked.get("to", "none"), key, spec["address"], tracked.get("grid", ""), spec["kind"])
    # computed when the run is opened: most stages log no line, and then no manifest is read
    run.config = partial(_config_of, store, spec)
    exit_code = 1
    try:
        yield run
        exit_code = 0
    finally:
        run.close(exit_code)


def log_grid(root: Path, track: str, grid: str, line: Mapping[str, Any]) -> list[str]:
    """Log a grid's run, one line of words and tables, into the store at `root`; returns warnings."""
    run = WandbRun(root, track, f"grid-{fingerprint(grid)[:SHORT]}", grid, grid, "grid")
    run.log(line)
    run.close(0)
    for name, value in line.items():
        if run.mode and _is_table(value) and len(value) > TABLE_ROWS:
            cut = f"wandb has the first {TABLE_ROWS} of {len(value)} rows of {name}; the store has them all"
            run.problem = run.problem or cut
    return [] if run.problem is None else [run.problem]


def tracking(track: str, grid: str | None) -> dict[str, Any]:
    """The field `track` of a stage's spec, where stages of `grid` are tracked; empty elsewhere."""
    return {} if track == "none" else {"track": {"to": track, "grid": grid or ""}}


def _config_of(store: Store, spec: Mapping[str, Any]) -> dict[str, Any]:
    """What runs are sorted by: method, data_frac, seed, student, teacher and budget, where the stage has them."""
    inputs = {role.partition(":")[0]: store.manifest(key) for role, key in spec["inputs"].items()}
    # a student that learns from stored labels, rows or logits has its teachers as their inputs, not as its own
    made = [role for role in spec["inputs"] if role.partition(":")[0] in ("labels", "synthetic", "cache")]
    live = [key for role, key in spec["inputs"].items() if role.partition(":")[0] == "teacher"]
    stored = (store.manifest(spec["inputs"][role])["inputs"]["teacher"] for role in made)
    teachers = [store.manifest(key) for key in dict.fromkeys(live or stored)]
    about = {
        "kind": spec["kind"],
        "key": spec["key"],
        "method": spec["name"].partition("-")[0],
        "data_frac": inputs.get("subset", {"settings": {}})["settings"].get("data_frac"),
        "seed": spec["settings"].get("seed", spec["settings"].get("init_seed")),
        "student": _pretrained_base(store, spec)["name"],
        "teacher": "+".join(_pretrained_base(store, one)["name"] for one in teachers) or None,
        "budget": spec["settings"].get("budget"),
        "settings": spec["settings"],
    }
    return {name: value for name, value in about.items() if value is not None}


def _pretrained_base(store: Store, spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """The spec of the pretrained base of a model that was trained or quantised."""
    before = next((spec["inputs"][role] for role in ("start", "model") if role in spec["inputs"]), None)
    return spec if before is None else _pretrained_base(store, store.manifest(before))


def _is_table(value: Any) -> bool:
    return hasattr(value, "to_json")  # pandas is not imported for a type


def _loggable(value: Any) -> Any:
    """A table as a wandb table of its first `TABLE_ROWS` rows; any other value unchanged."""
    if not _is_table(value):
        return value
    import wandb

    plain = json.loads(value.head(TABLE_ROWS).to_json(orient="split", index=False))
    return wandb.Table(columns=plain["columns"], data=plain["data"], allow_mixed_types=True)
