"""The verbs on grids: `python -m harness.grid plan|status|watch|retry|cancel|explain|logs|cost|results|gc|fsck`.

They read the store, and query Slurm for what the store does not record. `retry` submits or makes failed cells, `cancel`
ends jobs, `results` writes a grid's tables, figures and receipts again, `gc --yes` deletes, `fsck --repair` mends;
other verbs change nothing.

    python -m harness.grid plan data_frac=0.01,1.0 method=sft,kd   what would run, and its cost
    python -m harness.grid status [grid] [--cells]                 cells by state, what runs, and every failure's reason
    python -m harness.grid watch <grid>                            the same, until nothing runs or waits
    python -m harness.grid retry <grid> [--class oom]              failed cells again, each class by its own rule
    python -m harness.grid cancel <grid>                           take its jobs out of the queue; what is done stays
    python -m harness.grid explain A [B]                           a stage's settings, or where two stages differ
    python -m harness.grid logs A                                  what the last try at a stage, or a cell, left behind
    python -m harness.grid cost <grid>                             hours of machines, CPUs and GPUs, lost tries too
    python -m harness.grid results <grid>                          table, figure and verdict again
    python -m harness.grid results <grid> --by exposure            gains by what student and teacher had seen
    python -m harness.grid gc [--yes]                              artifacts no grid needs, and leftovers
    python -m harness.grid fsck [--repair]                         what in the store is not as it was written
    python -m harness.grid cards [name]                            public benchmarks: data, prompt, metric
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import chain

from harness import notebook_function
from harness.config.checks import SettingsError, check_folder_name, is_number, refuse
from harness.execution.slurm.squeue import Queue, run_command
from harness.execution.slurm.submissions import arrays_of, log_files, read_entry, read_sent
from harness.execution.status_screen import StatusSnapshot, headline, screen
from harness.plan.frozen import frozen_plan, grid_names
from harness.store.fsck import findings, remove
from harness.store.integrity import VERIFY
from harness.store.storage_error import storage_faults
from harness.store.store import Store

CANCELLED_AT_ONCE = 500


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; refusals are one sentence and exit code 2.

    A verb itself raises SettingsError for what it refuses. Raises SystemExit for a command line that has no such verb
    or option.
    """
    parser, _ = _parser()
    given = parser.parse_args(arguments)
    try:
        with storage_faults(Store.at(given.store or "outputs").root):
            return given.call(given) or 0
    except SettingsError as error:
        print(f"harness: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nharness: stopped", file=sys.stderr)
        return 130


def verb_names() -> tuple[str, ...]:
    """The verbs, in the order of the help text."""
    _, verbs = _parser()
    return tuple(verbs)


def _parser() -> tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]:
    """The parser of the command line, and each verb's own by name."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.grid", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", help="the store folder (default: outputs; for `plan`, the setting `store`)")
    verbs = parser.add_subparsers(dest="verb", required=True)

    def verb(name: str, call: Callable[[argparse.Namespace], int | None], text: str) -> argparse.ArgumentParser:
        one = verbs.add_parser(name, help=text)
        one.set_defaults(call=call)
        return one

    plan = verb("plan", show_plan, "what would run and what it would cost")
    plan.add_argument("overrides", nargs="*", help="as for harness.run, e.g. method=sft,kd")
    status = verb("status", show_status, "cells by state, what runs, and every failure's reason")
    status.add_argument("grid", nargs="?", help="a grid's name; without it, all grids in a line each")
    status.add_argument("--cells", action="store_true", help="every cell in a line")
    watched = verb("watch", watch, "status again and again, until nothing runs or waits")
    watched.add_argument("grid")
    watched.add_argument(
        "--every", type=float, default=10.0, help="seconds between two updates of the screen (default: 10)"
    )
    retry = verb("retry", retry_failed, "failed cells again, each class of failure by its own rule")
    retry.add_argument("grid")
    retry.add_argument("--class", dest="failure_class", help="only these, e.g. oom, timeout, node_failure, application")
    verb("cancel", cancel, "take a grid's jobs out of the queue").add_argument("grid")
    logs = verb("logs", show_logs, "what the last try at a stage, or a cell, left behind")
    logs.add_argument("one", help="an address, key or the start of a fingerprint, as status prints it")
    verb("cost", show_cost, "hours of machines, CPUs and GPUs, lost tries too").add_argument("grid")
    explain = verb("explain", show_explain, "the settings in which two stages differ")
    explain.add_argument("one", help="an address, key or the start of a fingerprint")
    explain.add_argument("other", nargs="?", help="a second one; without it, what the first is made of")
    results = verb("results", show_results, "table, figure and verdict of a grid")
    results.add_argument("grid")
    results.add_argument("--by", help="gains by class of held-out item: exposure, source, or exposure,source")
    results.add_argument("--receipts", action="store_true", help="the receipts of all models, also of a large grid")
    gc = verb("gc", collect_garbage, "artifacts no grid needs, and what ended processes left")
    gc.add_argument("--yes", action="store_true", help="delete them; without it they are listed")
    fsck = verb("fsck", check_store, "what in the store is not as it was written: exit code 1 where something is")
    fsck.add_argument("--repair", action="store_true", help="set aside what is damaged, clear leftovers, renew tables")
    fsck.add_argument("--verify", choices=VERIFY, default="full", help="hash every file (full), or compare sizes")
    fsck.add_argument("--set-aside", metavar="A", help="only set one artifact aside, so that it is made again")
    cards = verb("cards", show_cards, "public benchmarks: data, prompt, metric, floor, an example")
    cards.add_argument("name", nargs="?", help="one of them; without it, a line for each")
    return parser, verbs.choices


def show_plan(given: argparse.Namespace) -> None:
    """Cells, unique stages, what the store already has, and the expected cost of the rest.

    Raises SettingsError for what cannot be planned, and where `slurm.gpu_hours` or `slurm.gpu_memory_gb` would be
    exceeded.
    """
    from harness.config.cluster import Cluster
    from harness.execution.preflight import preflight
    from harness.execution.runner import wanted_name
    from harness.execution.slurm.usage import check_gpu_hours
    from harness.plan.cell_plan import Plan
    from harness.plan.compose import compose
    from harness.plan.memory import check_memory
    from harness.plan.tuning import Tune
    from harness.report.terminal import plan_lines

    if given.store is not None:
        check_folder_name("--store", given.store)
    composed = compose(given.overrides)
    for note in composed.notes:
        print(f"note: {note}", file=sys.stderr)
    settings, plan = composed.settings, Plan.of(composed.cells)
    Tune.of(settings.tune)
    preflight(plan)
    store = Store.at(given.store or settings.store)
    cluster = None if settings.slurm is None else Cluster.of(settings.slurm)
    # printed before the limit is checked, so a plan that exceeds it is shown with its cost
    print(*plan_lines(composed, plan, store, cluster), sep="\n")
    if cluster is not None:
        check_memory(plan, store, settings.machine, cluster)
        check_gpu_hours(plan, store, cluster, wanted_name(settings, plan))


def show_status(given: argparse.Namespace) -> None:
    """One screen on a grid; all grids in a line each when none is named.

    Raises SettingsError where there is no such store or grid, or Slurm does not answer.
    """
    store = _existing(given.store)
    for name in [given.grid] if given.grid else grid_names(store):
        try:
            frozen = frozen_plan(store, name)
        except SettingsError as error:
            if given.grid:
                raise
            print(f"{name}: {error}")  # one broken plan hides no other grid
            continue
        # all grids at once are read from the store alone: a call to Slurm for each would take seconds
        snapshot = StatusSnapshot.at(store, frozen, ask_slurm=bool(given.grid))
        print("\n".join(screen(store, frozen, snapshot, given.cells) if given.grid else [headline(name, snapshot)]))


def watch(given: argparse.Namespace) -> None:
    """The status screen anew every few seconds, until nothing of the grid runs or waits in a queue.

    Raises SettingsError as `show_status`.
    """
    if not (is_number(given.every) and given.every > 0):
        raise refuse("--every", given.every, "it must be a number of seconds above 0", "try --every 10")
    store = _existing(given.store)
    frozen = frozen_plan(store, given.grid)
    # in a file the screens follow each other, since the codes of a terminal would be noise there
    clear = "\x1b[2J\x1b[H" if sys.stdout.isatty() else ""
    while True:
        snapshot = StatusSnapshot.at(store, frozen)
        print(clear + "\n".join(screen(store, frozen, snapshot)), flush=True)
        if not snapshot.moving:
            return
        time.sleep(given.every)


def retry_failed(given: argparse.Namespace) -> None:
    """Failed cells again: on the cluster that had them, or here.

    Raises SettingsError where there is no such store or grid, and as `retry` does.
    """
    from harness.execution.retry import retry
    from harness.execution.view import view_of

    store = _existing(given.store)
    with view_of(sys.stderr) as view:
        retry(store, frozen_plan(store, given.grid), given.failure_class, view, print)


def cancel(given: argparse.Namespace) -> None:
    """Take a grid's jobs out of the queue; those that run keep what they have done, and servers end by themselves.

    Raises SettingsError where there is no such store or grid, no Slurm on this machine, or no answer from it.
    """
    store = _existing(given.store)
    frozen_plan(store, given.grid)  # refuses an unknown name, for which nothing would be cancelled
    queue = Queue.read()
    # a server may have users in other grids, and ends by itself when no job needs it
    arrays = {array for array in arrays_of(store, given.grid) if ".serve." not in array}
    jobs = sorted(job for (array, _), job in queue.jobs.items() if array in arrays)
    # a command line is limited in length, and a grid may have thousands of jobs
    for first in range(0, len(jobs), CANCELLED_AT_ONCE):
        run_command("scancel", *jobs[first : first + CANCELLED_AT_ONCE])
    print(f"{len(jobs)} jobs of {given.grid} cancelled; run the grid's own command again to continue")


def show_logs(given: argparse.Namespace) -> None:
    """How the tries at a stage ended, the last one's traceback, and the end of what its job printed.

    Raises SettingsError where the name fits no stage, or several.
    """
    from harness.report.terminal import attempt_lines, find_stage, log_lines

    store = _existing(given.store)
    key = find_stage(store, given.one)
    attempts = store.attempts(key)
    print(*attempt_lines(key, attempts), sep="\n")
    note = read_entry(store, key)
    # a job that ended before its first stage left no attempt; its output says why
    job = attempts[-1].get("job") if attempts else note and read_sent(store, note)
    for path in log_files(store, job) if job else []:
        print(*log_lines(path), sep="\n")


def show_cost(given: argparse.Namespace) -> None:
    """What a grid took, by kind of work.

    Raises SettingsError where there is no such store or grid, or Slurm does not answer.
    """
    from harness.execution.slurm.usage import ledger
    from harness.report.terminal import cost_lines

    store = _existing(given.store)
    source, table = ledger(store, frozen_plan(store, given.grid))
    print(*cost_lines(given.grid, source, table), sep="\n")


def show_explain(given: argparse.Namespace) -> None:
    """Leaves in which two stages differ, inputs followed down to the settings that made them differ.

    Raises SettingsError where a name fits no stage, or several.
    """
    from harness.report.terminal import explain_lines

    print(*explain_lines(_existing(given.store), given.one, given.other), sep="\n")


def show_results(given: argparse.Namespace) -> None:
    """Table, figure and verdict of a grid, from the store alone; with `--by`, its gains by class of item.

    Raises SettingsError where there is no such store or grid, and for an unknown name in `--by`.
    """
    # imported here, as in other verbs: `status` and `watch` start without the libraries of tables and figures
    from harness.api import collect, gains
    from harness.report.terminal import show_gains

    store = _existing(given.store)
    if given.by:
        by = given.by.split(",")
        show_gains(gains(given.grid, by, str(store.root)), by)
    else:
        collect(store, frozen_plan(store, given.grid), given.receipts or None).show()


def collect_garbage(given: argparse.Namespace) -> None:
    """List or delete what no plan, live claim or queued job needs, and what ended processes left behind.

    Raises SettingsError where there is no such store; OSError where a folder cannot be moved.
    """
    from harness.execution.garbage import garbage

    store = _existing(given.store)
    found = garbage(store)
    for note in found.notes:
        print(f"warning: {note}", file=sys.stderr)
    paths = found.artifacts + found.leftovers
    size = sum(file.lstat().st_size for path in paths for file in (path, *path.rglob("*")) if file.is_file())
    for path in paths:
        print(path.relative_to(store.root))
        if given.yes:
            remove(store, path)
    said = "deleted" if given.yes else "could go; add --yes to delete"
    print(f"{len(paths)} folders and files, {size / 2**20:.1f} MB {said}")


def check_store(given: argparse.Namespace) -> int:
    """Name what is not as it was written; with `--repair` set it aside, clear it or make it again.

    Returns 1 where something was found, with `--repair` where something is left; else 0. Raises SettingsError where
    there is no such store, or no one artifact of the name given to `--set-aside`; OSError where the store cannot be
    read.
    """
    from harness.report.grid_folder import grid_findings
    from harness.report.terminal import find_stage

    store = _existing(given.store)
    if given.set_aside:
        key = find_stage(store, given.set_aside)
        aside = store.set_aside(key, "set aside by hand")
        if aside is None:
            raise refuse("--set-aside", given.set_aside, f"{key} is not in the store", "nothing needs to be done")
        print(
            f"{key} is set aside as quarantine/{aside.name}; the next run that needs it makes it again, or retry=true"
        )
        return 0
    if given.repair:
        Store.open(store.root)  # marks a store of an earlier version
    found = left = 0
    # artifacts first: records and models are written anew from what is whole
    for finding in chain(findings(store, given.verify), grid_findings(store)):
        found += 1
        print(f"{finding.part:<12}{finding.problem}")
        if given.repair and finding.mend is not None:
            print(f"{'':<12}{finding.mend()}")
        else:
            left += 1
    kept = len(store.quarantine())
    said = "nothing found" if not found else f"{found} found, {left} left" if given.repair else f"{found} found"
    more = "" if given.repair or not found else "; add --repair to set aside what is damaged and clear the rest"
    print(f"{store.root}: {said}{more}" + (f"; {kept} entries in quarantine/" if kept else ""))
    return int(left > 0)


def _existing(root: str | None) -> Store:
    if root is not None:
        check_folder_name("--store", root)
    store = Store.at(root or "outputs")
    way_out = "run a grid first, or name another with --store"
    if not store.root.is_dir():
        raise refuse("store", str(store.root), "there is no such folder", way_out)
    if not store.is_store():
        raise refuse("store", str(store.root), "this folder is no store", way_out)
    return store


def show_cards(given: argparse.Namespace) -> None:
    """One card whole, or all in a line each. Raises SettingsError for an unknown name."""
    from harness.evals import describe, eval_names
    from harness.evals.benchmarks import benchmark_names, load_benchmark

    for name in [] if given.name else (*eval_names(), *benchmark_names()):
        print(f"{name:<16}{describe(name).splitlines()[0] if name in eval_names() else load_benchmark(name).title}")
    if given.name:
        print(describe(given.name) if given.name in eval_names() else load_benchmark(given.name).describe(given.name))


notebook_function(__name__)

if __name__ == "__main__":
    sys.exit(main())
