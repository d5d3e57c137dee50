"""Rehearsal: `python -m harness.rehearsal [experiments]` runs paper experiments end to end with stand-ins.

Every experiment of `experiments/paper/` (or the named ones) is planned with `scale=rehearsal`, made on this machine,
scored, compared and written as a report; the table at the end shows what ran. The models have random weights
(`harness/stand_ins/`), so the numbers mean nothing: a rehearsal shows that a grid will run before GPUs are paid for.

    python -m harness.rehearsal                         # all of them: `make rehearsal`
    python -m harness.rehearsal data_scaling two_stage  # two of them
    python -m harness.run -m experiments=data_scaling scale=rehearsal evals.run_code=true     # the same, by hand
"""

import argparse
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.plan.compose import Composed, compose, presets_folder
from harness.plan.rehearsal import SERVER
from harness.stand_ins import MODELS, ensure

if TYPE_CHECKING:
    from harness.store.store import Store

ALLOWED = "evals.run_code=true"
"""What every rehearsal adds: the code that random models write is run in the sandbox, as the paper's suite needs."""


@dataclass(frozen=True)
class Rehearsed:
    """What one experiment's rehearsal came to."""

    experiment: str
    cells: int = 0
    stages: int = 0
    steps: str = ""
    """Distinct steps of the cells' phases, e.g. `4, 1+3`."""
    seconds: float = 0.0
    problem: str = ""
    """Why it was refused, or the first failure; empty where all of it ran."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Rehearse experiments and print the table; 1 where one did not run to its end, 2 for an unknown one."""
    names = experiment_names()
    parser = argparse.ArgumentParser(
        prog="python -m harness.rehearsal", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", help=f"experiments ({', '.join(names)}), and settings as for harness.run")
    parser.add_argument("--store", default="outputs", help="folder of artifacts, results and stand-ins")
    given = parser.parse_intermixed_args(arguments)
    settings = [word for word in given.words if "=" in word]
    wanted = [word for word in given.words if "=" not in word] or list(names)
    if unknown := sorted(set(wanted) - set(names)):
        print(f"harness: {unknown[0]} has no file in experiments/paper; there are {', '.join(names)}", file=sys.stderr)
        return 2
    found = [rehearse(name, given.store, settings) for name in wanted]
    print(table(found))
    return 1 if any(one.problem for one in found) else 0


def experiment_names() -> tuple[str, ...]:
    """The experiments that have a file at the paper's scale."""
    return tuple(sorted(path.stem for path in (presets_folder() / "experiments" / "paper").glob("*.yaml")))


def rehearse(name: str, store: str, settings: Sequence[str] = ()) -> Rehearsed:
    """Run one experiment with stand-ins, to its report; a failure is part of what is returned."""
    # imported here: the list of experiments and a refused name need none of it
    from harness.api import collect
    from harness.execution.attempt import one_line
    from harness.execution.runner import run_grid, submit_grid
    from harness.report.page import write_report
    from harness.store.store import Store

    started = time.monotonic()
    words = [f"experiments={name}", "scale=rehearsal", f"store={store}", ALLOWED, *settings]
    try:
        composed = compose(words)
        with _served(composed):
            frozen = run_grid(composed) if composed.settings.slurm is None else submit_grid(composed)
        if frozen is None:
            return Rehearsed(name, len(composed.cells), problem="sent to the cluster; add wait=true to wait for it")
        finished = collect(Store.open(store), frozen)
        write_report(frozen.grid, store=store)
    except Exception as error:  # whatever it is, the other experiments are rehearsed too
        return Rehearsed(name, seconds=time.monotonic() - started, problem=one_line(error))
    failed = f"{len(finished.failed)} cells failed: {finished.failed[0].reason}" if finished.failed else ""
    return Rehearsed(
        name,
        len(composed.cells),
        len(frozen.stages),
        _steps(Store.open(store), (cell.train for cell in frozen.cells)),
        time.monotonic() - started,
        failed,
    )


@contextmanager
def _served(composed: Composed) -> Iterator[None]:
    """A server of the stand-ins while the block runs, where a teacher is served over HTTP."""
    if all(one.teacher.kind != "http" for cell in composed.cells for one in cell.with_each_teacher()):
        yield
        return
    from harness.stand_ins.server import StandInServer

    folder = ensure(Path(composed.settings.store) / "rehearsal") / MODELS
    with StandInServer(folder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        os.environ[SERVER.removeprefix("$")] = server.url
        try:
            yield
        finally:
            server.shutdown()


def table(found: Sequence[Rehearsed]) -> str:
    """One line per experiment: cells, stages, steps per phase, seconds, and what went wrong."""
    lines = [("experiment", "cells", "stages", "seconds", "steps per phase", "")]
    for one in found:
        ended = one.problem or "ran to the end"
        lines.append((one.experiment, str(one.cells), str(one.stages), f"{one.seconds:.0f}", one.steps, ended))
    total = (sum(one.cells for one in found), sum(one.stages for one in found), sum(one.seconds for one in found))
    lines.append(("all", str(total[0]), str(total[1]), f"{total[2]:.0f}", "", "numbers of a rehearsal mean nothing"))
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    return "\n".join(
        f"{line[0]:<{widths[0]}}  {line[1]:>{widths[1]}}  {line[2]:>{widths[2]}}  {line[3]:>{widths[3]}}  "
        f"{line[4]:<{widths[4]}}  {line[5]}".rstrip()
        for line in lines
    )


def _steps(store: "Store", trained: Iterable[Sequence[str]]) -> str:
    """The distinct steps of cells' phases, in the order of the cells."""
    found: dict[str, None] = {}
    for keys in trained:
        if keys and all(store.done(key) for key in keys):
            steps = [store.manifest(key)["facts"]["counts"]["steps"] for key in keys]
            found["+".join(map(str, steps))] = None
    return ", ".join(found)


if __name__ == "__main__":
    sys.exit(main())
