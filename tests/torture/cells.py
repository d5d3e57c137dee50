"""Two small cells to torture, and one run of either in a process of its own.

`cheap` has makers that cost nothing, parts of unfinished output among them; `real` is a cell of the miniature, data to
figure. A run reports how it ended into a file, and nothing where it was killed.

    run("real", root, "inline", Fault(...), report)
"""

import hashlib
import json
import os
import signal
import subprocess
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa

import harness.execution.executor
import harness.execution.launchers.local as pool
import harness.plan.graph
from harness.config.cell import Settings
from harness.config.checks import SettingsError
from harness.config.machine import Launch, Machine
from harness.execution.executor import execute
from harness.execution.launchers import worker
from harness.grid import main as grid
from harness.plan.cell_plan import CellPlan, Plan
from harness.plan.graph import Stage
from harness.runtime import progress
from harness.store.partial_output import PartialOutput, read_batch
from harness.store.storage_error import StorageError, storage_faults
from harness.store.store import Store, write_json
from tests.torture.injector import Fault, arm, disarm

CHEAP_MAKERS = {kind: ("tests.torture.cells:make", 1) for kind in ("mixture", "base", "train", "evaluate")}
_composed: list = []
REAL = (
    "method=sft data_frac=0.1 corpus.rows=240 corpus.heldout_per_source=4 student.init=random student.size=tiny "
    "budget.batch_size=8 budget.kind=steps budget.amount=2 measure.formats=[] machine.checkpoint_minutes=0.000001"
).split()


def warm_up(cell: str, root: Path) -> None:
    """Run a cell once, so that the forks of this process find every module imported; quietly."""
    import torch

    torch.set_num_threads(1)
    graph, executor = harness.plan.graph, harness.execution.executor
    before = graph.MAKERS, executor.MAKERS, executor.stage_seconds
    # in this process, so that all it imports is there; a run forks no pool here
    with open(os.devnull, "w") as silence, redirect_stdout(silence), redirect_stderr(silence):
        CELLS[cell](root, Launch(kind="inline"))
    # what the cheap cell has set is for its own forks
    graph.MAKERS, executor.MAKERS, executor.stage_seconds = before


def make(settings, inputs, out: Path, machine: Machine) -> dict:
    """A maker: its files follow from its settings and from every byte of its inputs."""
    digest = hashlib.sha256(json.dumps(settings.get("number")).encode())
    for role in sorted(inputs):
        for path in sorted(inputs[role].rglob("*")):
            if path.is_file() and path.name != "manifest.json":
                digest.update(path.read_bytes())
    if settings.get("parts"):
        partial = PartialOutput(settings, inputs, size=1)
        for number in range(settings["parts"]):
            batch = pa.record_batch({"text": [f"{digest.hexdigest()} {number}"]})
            part = read_batch(partial.made(f"{number:05}", lambda batch=batch: batch))
            digest.update(part.to_pydict()["text"][0].encode())
    progress.report(1, 1, loss=1.0)
    (out / "folder").mkdir()
    (out / "folder" / "made.txt").write_text(digest.hexdigest())
    write_json(out / "made.json", {"digest": digest.hexdigest()})
    return {"cost": {"trained_tokens": 1, "flops": 1.0}}


def cheap_plan(cells: int = 1) -> Plan:
    """Cells of mixture, base, train (in parts) and evaluate; they share the first two."""
    mixture, base = Stage("mixture", "data", {"number": 0}), Stage("base", "model", {"number": 1})
    plans = []
    for number in range(cells):
        inputs = {"subset": mixture, "student": base}
        train = Stage("train", f"train{number}", {"number": 10 + number, "parts": 2}, inputs)
        evaluate = Stage("evaluate", f"evaluate{number}", {"number": 20 + number}, {"model": train, "mixture": mixture})
        plans.append(CellPlan(None, (train,), {"verified": evaluate}, (), None, None, {}))
    stages = {stage.key: stage for plan in plans for stage in plan.stages()}
    return Plan(tuple(plans), tuple(stages.values()))


class Silent:
    """A view that shows nothing."""

    def expect(self, seconds):
        pass

    def changed(self, stage, state):
        pass

    def progressed(self, stage, progress):
        pass

    def tick(self):
        pass


def cheap(root: Path, launch: Launch, cells: int = 1) -> tuple[dict, list]:
    """Run the cheap cells; the table is the content of every artifact, and failures are (class, reason)."""
    harness.plan.graph.MAKERS = harness.execution.executor.MAKERS = CHEAP_MAKERS
    harness.execution.executor.stage_seconds = lambda stage: 1.0
    plan, store = cheap_plan(cells), Store.open(root)
    with storage_faults(root):  # as the doors do
        states = execute(plan, store, Settings(method=None, corpus=None, launch=launch), Silent())
    disarm()
    lost = [(state.failure_class, state.reason) for state in states.values() if state.status == "failed"]
    made = (stage.key for stage in plan.stages if store.done(stage.key))
    return {key: _contents(store.folder(key)) for key in made}, lost


def real(root: Path, launch: Launch) -> tuple[dict, list]:
    """Run the real cell; the table is that of its scores, and its weights and items byte for byte."""
    from harness.api import collect
    from harness.execution.runner import run_grid
    from harness.plan.compose import compose

    # composing takes as long as training, and a fork has what its parent composed
    composed = _composed[0] if _composed else compose(REAL)
    _composed[:] = [composed]
    own = replace(composed.settings, store=str(root), launch=launch, grid="tortured")
    composed = replace(composed, settings=own)
    with storage_faults(root):  # as the doors do
        finished = collect(Store.open(root), run_grid(composed))
    disarm()
    scores = finished.summary[["role", "method", "eval", "metric", "source", "score", "score_low", "score_high"]]
    # an arm that failed is a row without a score
    table = {"scores": scores[scores["score"].notna()].to_csv(index=False)}
    # what a record names is complete: models with their links and receipts, figures
    for path in sorted([*finished.folder.iterdir(), *(file for model in finished.models for file in model.iterdir())]):
        assert path.name.startswith(".") or path.stat().st_size > 0, path
    for path in sorted(root.glob("objects/*/*/*")):
        if path.name in ("model.safetensors", "items.parquet", "rows.parquet"):
            table[f"{path.parent.name}/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return table, [(one.failure_class, one.reason) for one in finished.records if one.status != "done"]


CELLS: dict[str, Callable[..., tuple[dict, list]]] = {"cheap": cheap, "real": real}


def _contents(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "manifest.json")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run(cell: str, root: Path, launch: str, fault: Fault | None, report: Path, **named) -> None:
    """Run a cell under a fault, and report `ended`, `table`, `lost` and what was said; for a process of its own."""
    if os.environ.get("TORTURE_LOUD") is None:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
    root.parent.mkdir(parents=True, exist_ok=True)
    keep = arm(fault) if fault is not None else set()
    _fork_workers(keep)
    kind = "inline" if launch == "inline" else "local"
    workers = 0 if launch == "inline" else int(launch)
    said = {"ended": "done", "table": {}, "lost": []}
    try:
        said["table"], said["lost"] = CELLS[cell](root, Launch(kind=kind, workers=workers), **named)
    except StorageError as error:
        said |= {"ended": "storage", "sentence": str(error)}
    except SettingsError as error:
        said |= {"ended": "refused", "sentence": str(error)}
    except (KeyboardInterrupt, SystemExit) as error:
        said |= {"ended": "stopped", "sentence": str(error)}
    except Exception:
        said |= {"ended": "traceback", "sentence": traceback.format_exc()}
    disarm()
    report.write_text(json.dumps(said))


def clear(root: Path) -> list[str]:
    """Remove leftovers as a user would, and name those that stay."""
    with open(os.devnull, "w") as silence, redirect_stdout(silence):
        grid(["--store", str(root), "gc", "--yes"])
    found = [path for name in ("tmp", "claims", "checkpoints") for path in (root / name).iterdir()]
    found += [path for path in root.rglob(".*") if path.parent.name not in ("tmp", "claims", "checkpoints")]
    return sorted(str(path.relative_to(root)) for path in set(found))


def _fork_workers(keep: set[int]) -> None:
    """Let the pool fork its workers from this process, which has imported everything; they inherit the fault."""

    class Forked:
        """What the pool uses of `subprocess.Popen`."""

        def __init__(self, arguments, pass_fds, env, start_new_session) -> None:
            self.pid = os.fork()
            self.returncode: int | None = None
            if self.pid:
                return
            code = 1
            try:
                os.setsid()
                for name in os.listdir("/proc/self/fd"):
                    if int(name) > 2 and int(name) not in {*pass_fds, *keep}:
                        with suppress(OSError):  # the listing's own is closed
                            os.close(int(name))
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
                    signal.signal(number, signal.SIG_DFL)
                os.environ.update(env)
                worker.main(int(arguments[3]), Path(arguments[4]), Machine(**json.loads(arguments[5])))
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
            finally:
                os._exit(code)

        def poll(self) -> int | None:
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
            return self.returncode

        def wait(self, timeout: float | None = None) -> int:
            end = time.monotonic() + (timeout or 3600)
            while self.poll() is None:
                if time.monotonic() > end:
                    raise subprocess.TimeoutExpired("worker", timeout or 0)
                time.sleep(0.005)
            assert self.returncode is not None
            return self.returncode

        def terminate(self) -> None:
            if self.poll() is None:
                os.kill(self.pid, signal.SIGTERM)

        def kill(self) -> None:
            if self.poll() is None:
                os.kill(self.pid, signal.SIGKILL)

    pool.subprocess = SimpleNamespace(Popen=Forked, TimeoutExpired=subprocess.TimeoutExpired)
