"""A real Slurm for the tests beside this file: `slurm/dev_cluster`, started once, and a small grid to send to it.

`undisturbed` is that grid as one process made it. `grid` is the same with data, models and teacher there already, so a
test disturbs the training of two cells and nothing else.
"""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from harness.plan.frozen import frozen_plan, targets_of
from harness.store.store import Store

ROOT = Path(__file__).parents[2]
COMMANDS = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd")
GRID = [
    "data_frac=0.02",
    "method=sft,logit_kd",
    "student=mini_tiny",
    "student.init=random",
    "teacher.size=tiny",
    "teacher.init=random",
    "teacher.lessons.0.budget.amount=20",
    "budget.amount=300",
    "evals.limit=20",
    "machine.checkpoint_minutes=0.05",
]
PATIENCE = 240.0


def pytest_collection_modifyitems(config, items):
    missing = [name for name in COMMANDS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    packages = "apt-get install slurmctld slurmd slurmdbd slurm-client munge mariadb-server"
    reason = f"no {', '.join(missing)} here: {packages}" if missing else "by `make test-slurm`, one at a time"
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)
            item.add_marker(pytest.mark.timeout(900))
            if missing or config.option.markexpr != "cluster":
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """The folder of a running dev cluster, in the environment of every command until the tests are over."""
    folder = tmp_path_factory.mktemp("slurm") / "cluster"
    script = str(ROOT / "slurm" / "dev_cluster")
    subprocess.run([script, "start", str(folder)], check=True)
    before = dict(os.environ)
    os.environ |= {"SLURM_CONF": str(folder / "etc" / "slurm.conf"), "PYTHONPATH": str(ROOT)}
    yield folder
    subprocess.run([script, "stop", str(folder)], check=True)
    os.environ.clear()
    os.environ.update(before)
    assert not folder.exists()


def slurm(*command):
    """What a command of Slurm's, or of the dev cluster's own, prints."""
    program = [str(ROOT / "slurm" / "dev_cluster")] if command[0] == "dev_cluster" else [command[0]]
    return subprocess.run([*program, *command[1:]], capture_output=True, text=True, check=True).stdout


def until(what, true, patience=PATIENCE):
    """Wait until `true()`; fails with `what` did not come to be."""
    end = time.monotonic() + patience
    while not (found := true()):
        assert time.monotonic() < end, f"waited {patience:g} s for: {what}\n{slurm('squeue')}"
        time.sleep(0.3)
    return found


@dataclass
class Sent:
    """One grid in a store, and the commands on it."""

    store: Store
    settings: list[str] = field(default_factory=lambda: list(GRID))

    def start(self, *more, slurm="dev", name="g"):
        """Begin the command that runs the grid; with `slurm`, there. `more` takes the place of its own settings."""
        where = [f"slurm={slurm}"] if slurm else ["launch.kind=inline"]
        named = {one.partition("=")[0] for one in more}
        own = [one for one in self.settings if one.partition("=")[0] not in named]
        command = [sys.executable, "-m", "harness.run", "-m", *own, *more, *where, f"grid={name}"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([*command, f"store={self.store.root}"], cwd=self.store.root, **pipes)

    def run(self, *more, slurm="dev", code=0):
        """The same to its end; what it printed."""
        process = self.start(*more, slurm=slurm)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == code, out + err
        return out + err

    def verb(self, *arguments, code=0):
        """What `python -m harness.grid` says of it."""
        command = [sys.executable, "-m", "harness.grid", "--store", str(self.store.root), *arguments]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        assert code in (None, said.returncode), said.stdout + said.stderr
        return said.stdout + said.stderr

    @property
    def plan(self):
        return frozen_plan(self.store, "g")

    def training(self, method):
        """The key of a cell's training."""
        return next(cell.train[-1] for cell in self.plan.cells if cell.method == method)

    def steps(self, key):
        """How far the last attempt at a stage is, as last written down."""
        return (self.store.attempts(key) or [{}])[-1].get("step") or 0

    def begun(self, method):
        """Wait until a cell's training has a checkpoint behind it; its key."""
        key = until("a plan", lambda: (self.store.root / "grids" / "g" / "plan.json").is_file()) and self.training(
            method
        )
        until(f"a checkpoint of {key}", lambda: list(self.store.checkpoints(key).glob("*/*")))
        return key

    def finished(self, patience=PATIENCE):
        """Wait until every evaluation of the grid is there; what Slurm holds back after a requeue for two minutes, for
        its node to be cleaned up, is held back for ten seconds."""
        held: dict[str, float] = {}

        def all_there():
            for line in slurm("squeue", "-h", "-t", "PD", "-r", "-o", "%i %r").splitlines():
                job, reason = line.split(maxsplit=1)
                if reason == "BeginTime" and time.monotonic() - held.setdefault(job, time.monotonic()) > 10:
                    del held[job]
                    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=False)
            return all(self.store.done(key) for key in self.targets)

        until("all evaluations", all_there, patience)

    @property
    def targets(self):
        cells = self.plan.cells
        return {key for cell in cells for one in (cell, *cell.references.values()) for key in targets_of(one)}

    def made(self):
        """What was computed, by key: the checksums of every model and every table of scores."""
        names = ("model.safetensors", "scores.json")
        files = {key: self.store.manifest(key)["files"] for key in self.plan.stages if self.store.done(key)}
        return {key: {name: one[name]["sha256"] for name in names if name in one} for key, one in files.items()}

    def times(self):
        """When each artifact was published."""
        return {key: self.store.manifest(key)["published"] for key in self.store.published()}


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The grid as one process makes it, in one go."""
    sent = Sent(Store.open(tmp_path_factory.mktemp("undisturbed")))
    sent.run(slurm=None)
    return sent


@pytest.fixture
def grid(cluster, undisturbed, tmp_path):
    """The grid with everything made but its two cells; at the end nothing of it is left in the queue."""
    sent = Sent(Store.open(tmp_path / "store"))
    cells = {key for cell in undisturbed.plan.cells for key in (*cell.train, *targets_of(cell))}
    for key in undisturbed.plan.stages.keys() - cells:
        shutil.copytree(undisturbed.store.folder(key), sent.store.folder(key))
    yield sent
    slurm("scancel", "--full", "-u", "root" if os.geteuid() == 0 else os.environ["USER"])
    until("an empty queue", lambda: not slurm("squeue", "-h"))
