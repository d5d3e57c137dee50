"""Tracked: a stage's curve, or a grid's tables, as a run of Weights & Biases, beside our own files and after them.

A run's id follows from the stage's key or the grid's name, so a stage that was stopped goes on with the same curve.
Offline, its earlier files give way to new ones with every line so far; online, the server drops the steps it has.
Whatever wandb does, nothing here raises and nobody waits for long: `problem` says what went wrong. What wandb would
gather by itself (code, git, host, user, environment, packages, console) is switched off.

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
"""Unless the environment variable WANDB_PROJECT names another."""
LONGEST_WAIT_SECONDS = 30.0
TABLE_ROWS = 10_000
"""What wandb shows of one table."""


class WandbRun:
    """One run, opened at its first line; `track` as in harness.config.cell.Settings."""

    def __init__(self, root: Path, track: str, run_id: str, name: str, group: str, kind: str) -> None:
        """`root` is the store's folder; the run's files come to lie in its folder `wandb`."""
        self.mode, self.folder, self.id = MODES.get(track), root / "wandb", run_id
        self.named = {"name": name, "group": group, "job_type": kind}
        self.config: Callable[[], dict[str, Any]] = dict
        self.problem: str | None = None
        self._run: Any = None

    def log(self, line: Mapping[str, Any]) -> None:
        """Take one line: numbers, words and tables (DataFrames); its `step`, where it has one, counts from 1."""
        if self.mode is None or self.problem is not None:
            return
        try:
            self._run = self._run or self._open()
            self._run.log({name: _loggable(value) for name, value in line.items()}, step=line.get("step"))
        except Exception as error:  # somebody else's program, beside what is computed
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
        said = (str(error).strip().splitlines() or [""])[0]
        key = os.environ.get("WANDB_API_KEY")
        said = said.replace(key, "***") if key else said
        self.problem = f"not all of it is in wandb: {type(error).__name__}: {said}"
        with suppress(Exception):  # the next run in this process gets a service of its own
            import wandb

            wandb.teardown()


@contextmanager
def curve(store: Store, spec: Mapping[str, Any]) -> Iterator[WandbRun]:
    """The run of a stage, by its spec; one that takes no lines where `track` asks for none."""
    asked = spec.get("track", {})
    key = spec["key"]
    run = WandbRun(store.root, asked.get("to", "none"), key, spec["address"], asked.get("grid", ""), spec["kind"])
    run.config = partial(_config_of, store, spec)
    exit_code = 1
    try:
        yield run
        exit_code = 0
    finally:
        run.close(exit_code)


def log_grid(root: Path, track: str, grid: str, line: Mapping[str, Any]) -> list[str]:
    """Write a grid's run, one line of words and tables, into the store at `root`; returns warnings."""
    run = WandbRun(root, track, f"grid-{fingerprint(grid)[:SHORT]}", grid, grid, "grid")
    run.log(line)
    run.close(0)
    for name, value in line.items():
        if run.mode and _is_table(value) and len(value) > TABLE_ROWS:
            run.problem = run.problem or f"wandb has the first {TABLE_ROWS} of {len(value)} rows of {name}"
    return [] if run.problem is None else [run.problem]


def tracking(track: str, grid: str | None) -> dict[str, Any]:
    """What the spec of a stage has more where it is tracked, as a part of `grid`."""
    return {} if track == "none" else {"track": {"to": track, "grid": grid or ""}}


def _config_of(store: Store, spec: Mapping[str, Any]) -> dict[str, Any]:
    """What people sort runs by: method, data_frac, seed, student, teacher and budget, as far as the stage has them."""
    inputs = {role.partition(":")[0]: store.manifest(key) for role, key in spec["inputs"].items()}
    taught = next((inputs[role] for role in ("labels", "synthetic", "cache") if role in inputs), None)
    teacher = inputs.get("teacher") or (store.manifest(taught["inputs"]["teacher"]) if taught else None)
    about = {
        "kind": spec["kind"],
        "key": spec["key"],
        "method": spec["name"].partition("-")[0],
        "data_frac": inputs.get("subset", {"settings": {}})["settings"].get("data_frac"),
        "seed": spec["settings"].get("seed", spec["settings"].get("init_seed")),
        "student": _pretrained_base(store, spec)["name"],
        "teacher": None if teacher is None else _pretrained_base(store, teacher)["name"],
        "budget": spec["settings"].get("budget"),
        "settings": spec["settings"],
    }
    return {name: value for name, value in about.items() if value is not None}


def _pretrained_base(store: Store, spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """The base model that a model was before it was trained or rounded."""
    before = next((spec["inputs"][role] for role in ("start", "model") if role in spec["inputs"]), None)
    return spec if before is None else _pretrained_base(store, store.manifest(before))


def _is_table(value: Any) -> bool:
    return hasattr(value, "to_json")  # pandas is not imported for a type


def _loggable(value: Any) -> Any:
    """A table as wandb has it, its first `TABLE_ROWS` rows; anything else as it is."""
    if not _is_table(value):
        return value
    import wandb

    plain = json.loads(value.head(TABLE_ROWS).to_json(orient="split", index=False))
    return wandb.Table(columns=plain["columns"], data=plain["data"], allow_mixed_types=True)
