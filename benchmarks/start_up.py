"""Start-up: CPU seconds of commands that compute nothing, beside the same commands of another checkout.

    python benchmarks/start_up.py
    python benchmarks/start_up.py --baseline ../before --store outputs --rounds 7
    python benchmarks/start_up.py --only help "complete data_"

Each command is a process of its own, and a round starts it once from each checkout in turn; a first run, which
compiles bytecode, is not counted. CPU seconds are user and system time of the process and its children. `status`
reads a copy of `--store`, or a grid of 6 cells of which nothing is made. Prints a table to stderr and JSON to stdout:
per command the median, the aim where there is one, and beside a baseline its median, the ratio, and whether both
print the same.

Before, `--help` took 7.6 CPU seconds. Profiled, 20.6 of 22.3 seconds were `copy.deepcopy`: Hydra 1.3 copies its
ConfigStore, with every preset parsed, whenever it composes a config or lists a group, and help lists 101 times.
Predicted: 0.7 with nodes shared among the copies, 0.4 when presets are read as they are composed; 0.4 for completion
(0.8 before), whose floor is 0.15 for importing Hydra; nothing for `status`. Measured by this script beside commit
92bf051, medians of 5 rounds on 2 CPU cores that had other work too (`plan`: 3 rounds):

| command | aim | before | now |
|---|---|---|---|
| `--help` | 1.0 | 9.22 | 0.45 |
| completion of `data_` | 0.5 | 0.91 | 0.38 |
| completion of `method=`, `experiments=`, `slurm=` | 0.5 | 0.76 | 0.28 |
| completion of `student.` | 0.5 | 0.93 | 0.40 |
| `status`, one grid and all | 0.4 | 0.32 | 0.33–0.35 |
| `plan experiments=data_scaling` | | 4.10 | 3.02 |
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness.plan.cell_plan import Plan
from harness.plan.compose import compose
from harness.plan.frozen import freeze, grid_names, keep_plan
from harness.store.store import Store

HERE = Path(__file__).resolve().parent.parent
WORDS = ("data_", "method=", "experiments=", "slurm=", "student.")


class Command(NamedTuple):
    """What is started, and how many CPU seconds it may take."""

    arguments: Sequence[str]
    aim: float | None = None
    line: str | None = None
    """What a shell has on its command line when it asks for completions."""


def commands(store: Path) -> dict[str, Command]:
    """By name; `store` holds a grid."""
    (grid, *_) = grid_names(Store(store))
    verb = ["-m", "harness.grid", "--store", str(store)]
    complete = ["-m", "harness.run", "-sc", "query=bash"]
    return {
        "help": Command(["-m", "harness.run", "--help"], aim=1.0),
        **{f"complete {word}": Command(complete, aim=0.5, line=f"harness {word}") for word in WORDS},
        "status": Command([*verb, "status", grid], aim=0.4),
        "status of all grids": Command([*verb, "status"], aim=0.4),
        "plan data_scaling": Command([*verb, "plan", "experiments=data_scaling"]),
    }


def cpu_seconds(command: Command, checkout: Path) -> tuple[float, str]:
    """User and system time of one process that runs the code of a checkout, and what it printed."""
    env = {**os.environ, "PYTHONPATH": str(checkout)}
    if command.line is not None:
        env |= {"COMP_LINE": command.line, "COMP_POINT": str(len(command.line))}
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen([sys.executable, *command.arguments], cwd=checkout, env=env, stdout=printed)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0, command
        printed.seek(0)
        return used.ru_utime + used.ru_stime, printed.read()


def measure(command: Command, checkouts: Mapping[str, Path], rounds: int) -> dict[str, Any]:
    """Medians over rounds in which the checkouts take turns."""
    printed = {name: cpu_seconds(command, path)[1] for name, path in checkouts.items()}
    seconds: dict[str, list[float]] = {name: [] for name in checkouts}
    for _ in range(rounds):
        for name, path in checkouts.items():
            seconds[name].append(cpu_seconds(command, path)[0])
    found: dict[str, Any] = {name: round(statistics.median(one), 2) for name, one in seconds.items()}
    if "baseline" in found:
        found["ratio"] = round(statistics.median(seconds["baseline"]) / statistics.median(seconds["ours"]), 1)
        found["same_output"] = printed["baseline"] == printed["ours"]
    return found if command.aim is None else {**found, "aim": command.aim, "reached": found["ours"] <= command.aim}


def small_store(folder: Path) -> Path:
    """A store with one grid's plan, of which nothing is made."""
    plan = Plan.of(compose(["data_frac=0.01,0.1,1.0", "method=sft,kd"]).cells)
    keep_plan(Store.open(folder), freeze(plan, plan.name))
    return folder


def main() -> None:
    """Measure every command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", type=Path, help="another checkout of this project to measure beside this one")
    parser.add_argument("--store", type=Path, help="a store with a grid; it is copied, and only read")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", help="names of commands; default: all")
    given = parser.parse_args()
    checkouts = {"ours": HERE} | ({"baseline": given.baseline.resolve()} if given.baseline else {})
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "store"
        store = small_store(copy) if given.store is None else Path(shutil.copytree(given.store, copy))
        found = {}
        for one, command in commands(store).items():
            if given.only is None or one in given.only:
                found[one] = measure(command, checkouts, given.rounds)
                columns = "".join(f"  {key} {value}" for key, value in found[one].items())
                print(f"{one:<22}{columns}", file=sys.stderr, flush=True)
    print(json.dumps({"rounds": given.rounds, "cpu_seconds": found}, indent=1))


if __name__ == "__main__":
    main()
