"""The verbs on grids: `python -m harness.grid plan|status|watch|retry|cancel|explain|logs|cost|results|gc`.

They read the store, and ask Slurm where the store is silent; only `retry`, `cancel` and `gc --yes` change anything.

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
    python -m harness.grid gc [--yes]                              artifacts no grid needs
    python -m harness.grid cards [name]                            a public benchmark: what it asks, and how
"""

import argparse
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import notebook_function
from harness.config.checks import SettingsError, refuse
from harness.execution.slurm.squeue import Queue, ask
from harness.execution.slurm.submissions import arrays_of, log_files, read_note, read_sent
from harness.execution.status_screen import Look, headline, screen
from harness.plan.frozen import frozen_plan, grid_names
from harness.store.fingerprint import differences
from harness.store.store import Store

CANCELLED_AT_ONCE = 500
LOG_LINES = 40


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; refusals are one sentence and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.grid", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", help="the store folder (default: outputs)")
    verbs = parser.add_subparsers(dest="verb", required=True)
    plan = verbs.add_parser("plan", help="what would run and what it would cost")
    plan.add_argument("overrides", nargs="*", help="as for harness.run, e.g. method=sft,kd")
    status = verbs.add_parser("status", help="cells by state, what runs, and every failure's reason")
    status.add_argument("grid", nargs="?", help="a grid's name; without it, all grids in a line each")
    status.add_argument("--cells", action="store_true", help="every cell in a line")
    watch = verbs.add_parser("watch", help="status again and again, until nothing runs or waits")
    watch.add_argument("grid")
    watch.add_argument("--every", type=float, default=10.0, help="seconds between two looks (default: 10)")
    again = verbs.add_parser("retry", help="failed cells again, each class of failure by its own rule")
    again.add_argument("grid")
    again.add_argument("--class", dest="failure_class", help="only these, e.g. oom, timeout, node_failure, application")
    cancel = verbs.add_parser("cancel", help="take a grid's jobs out of the queue")
    cancel.add_argument("grid")
    logs = verbs.add_parser("logs", help="what the last try at a stage, or a cell, left behind")
    logs.add_argument("one", help="an address, key or the start of a fingerprint, as status prints it")
    cost = verbs.add_parser("cost", help="hours of machines, CPUs and GPUs, lost tries too")
    cost.add_argument("grid")
    explain = verbs.add_parser("explain", help="the settings in which two stages differ")
    explain.add_argument("one", help="an address, key or the start of a fingerprint")
    explain.add_argument("other", nargs="?", help="a second one; without it, what the first is made of")
    results = verbs.add_parser("results", help="table, figure and verdict of a grid")
    results.add_argument("grid")
    results.add_argument("--by", help="gains by class of held-out item: exposure, source, or exposure,source")
    gc = verbs.add_parser("gc", help="artifacts no grid needs")
    gc.add_argument("--yes", action="store_true", help="delete them; without it they are listed")
    cards = verbs.add_parser("cards", help="public benchmarks: data, prompt, metric, floor, an example")
    cards.add_argument("name", nargs="?", help="one of them; without it, a line for each")
    given = parser.parse_args(arguments)
    try:
        VERBS[given.verb](given)
    except SettingsError as error:
        print(f"harness: {error}", file=sys.stderr)
        return 2
    return 0


def show_plan(given: argparse.Namespace) -> None:
    """Cells, unique stages, what the store already has, and the expected cost of the rest."""
    from harness.config.cluster import Cluster
    from harness.execution.preflight import preflight
    from harness.execution.runner import wanted_name
    from harness.execution.slurm.usage import check_gpu_hours
    from harness.plan.cell_plan import Plan
    from harness.plan.compose import compose
    from harness.plan.estimate import plan_text
    from harness.plan.frozen import freeze
    from harness.results.power import foresee

    composed = compose(given.overrides)
    settings, plan = composed.settings, Plan.of(composed.cells)
    preflight(plan)
    store = Store(Path(given.store or settings.store).absolute())  # looked at, never made
    done = sum(store.done(stage.key) for stage in plan.stages)
    print(
        f"{len(composed.cells)} cells asked for, {len(plan.cells)} different, {len(plan.stages)} stages, "
        f"{done} of them in the store"
    )
    cluster = None if settings.slurm is None else Cluster.of(settings.slurm)
    print(plan_text(plan, store, cluster))
    if settings.claims:
        print("claims, without items' variance and before Holm:")
        print("\n".join(f"  {line}" for line in foresee(settings.claims, freeze(plan, ""))))
    if cluster is not None:
        check_gpu_hours(plan, store, cluster, wanted_name(settings, plan))


def show_status(given: argparse.Namespace) -> None:
    """One screen on a grid; all grids in a line each when none is named."""
    store = _existing(given.store)
    for name in [given.grid] if given.grid else grid_names(store):
        frozen = frozen_plan(store, name)
        look = Look.at(store, frozen, ask_slurm=bool(given.grid))
        print("\n".join(screen(store, frozen, look, given.cells) if given.grid else [headline(name, look)]))


def watch(given: argparse.Namespace) -> None:
    """The status screen anew every few seconds, until nothing of the grid runs or waits in a queue."""
    store = _existing(given.store)
    frozen = frozen_plan(store, given.grid)
    clear = "\x1b[2J\x1b[H" if sys.stdout.isatty() else ""
    while True:
        look = Look.at(store, frozen)
        print(clear + "\n".join(screen(store, frozen, look)), flush=True)
        if not look.moving:
            return
        time.sleep(given.every)


def try_again(given: argparse.Namespace) -> None:
    """Failed cells again: on the cluster that had them, or here."""
    from harness.execution.retry import retry
    from harness.execution.view import view_of

    store = _existing(given.store)
    with view_of(sys.stderr) as view:
        retry(store, frozen_plan(store, given.grid), given.failure_class, view, print)


def cancel(given: argparse.Namespace) -> None:
    """Take a grid's jobs out of the queue; those that run keep what they have done, and servers end by themselves."""
    store = _existing(given.store)
    frozen_plan(store, given.grid)
    queue = Queue.look()
    arrays = {array for array in arrays_of(store, given.grid) if ".serve." not in array}
    jobs = sorted(job for (array, _), job in queue.jobs.items() if array in arrays)
    for first in range(0, len(jobs), CANCELLED_AT_ONCE):
        ask("scancel", *jobs[first : first + CANCELLED_AT_ONCE])
    print(f"{len(jobs)} jobs of {given.grid} cancelled; the same command, or retry, goes on")


def show_logs(given: argparse.Namespace) -> None:
    """How the tries at a stage ended, the last one's traceback, and the end of what its job printed."""
    store = _existing(given.store)
    key = _find(_known_stages(store), given.one)
    attempts = store.attempts(key)
    if not attempts:
        print(f"{key}: nobody has tried to make it yet")
    for number, page in enumerate(attempts, start=1):
        reason = f", {page['reason']}" if page.get("reason") else ""
        print(f"try {number} on {page.get('host')}: {page.get('outcome')}{reason}")
    if attempts and attempts[-1].get("traceback"):
        print(attempts[-1]["traceback"])
    note = read_note(store, key)
    job = attempts[-1].get("job") if attempts else note and read_sent(store, note)
    for path in log_files(store, job) if job else []:
        lines = path.read_text(errors="replace").splitlines()
        print(f"--- {path}", *lines[-LOG_LINES:], sep="\n")


def show_cost(given: argparse.Namespace) -> None:
    """What a grid took, by kind of work."""
    from harness.execution.slurm.usage import ledger

    store = _existing(given.store)
    source, table = ledger(store, frozen_plan(store, given.grid))
    print(f"{given.grid}, from {source}:")
    print(table.to_string(float_format="{:.2f}".format))


def show_explain(given: argparse.Namespace) -> None:
    """Leaves in which two stages differ, inputs followed down to the settings that made them differ."""
    store = _existing(given.store)
    known = _known_stages(store)
    one = _find(known, given.one)
    if given.other is None:
        print(json.dumps(_whole(known, one), indent=1, sort_keys=True))
        return
    other = _find(known, given.other)
    leaves = differences(_whole(known, one), _whole(known, other))
    for path, before, after in leaves:
        print(f"{path}: {json.dumps(before)} -> {json.dumps(after)}")
    if not leaves:
        print("the same stage: no setting differs")


def show_results(given: argparse.Namespace) -> None:
    """Table, figure and verdict of a grid, from the store alone; with `--by`, its gains by class of item."""
    from harness.api import collect, gains

    store = _existing(given.store)
    if given.by:
        from rich.console import Console

        from harness.results.breakdown import render

        by = given.by.split(",")
        frame = gains(given.grid, by, str(store.root))
        Console(width=None if sys.stdout.isatty() else 160).print(render(frame, by))
        return
    collect(store, frozen_plan(store, given.grid)).show()


def collect_garbage(given: argparse.Namespace) -> None:
    """List or delete artifacts that no grid's plan names, and what dead attempts left behind."""
    store = _existing(given.store)
    named = {key for name in grid_names(store) for key in frozen_plan(store, name).stages}
    unneeded = [key for key in store.published() if key not in named]
    left = [path for path in (store.root / "tmp").iterdir() if not store.claimed(path.name.split(".")[0])]
    stopped = [path for path in (store.root / "checkpoints").glob("*") if not store.claimed(path.name)]
    left += [path for path in stopped if path.name not in named or store.done(path.name)]
    folders = [store.folder(key) for key in unneeded] + left
    size = sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())
    for folder in folders:
        print(folder.relative_to(store.root))
        if given.yes:
            grave = store.root / "tmp" / f"gone.{uuid.uuid4().hex}"
            os.rename(folder, grave)  # gone at once for readers, then removed file by file
            shutil.rmtree(grave) if grave.is_dir() else grave.unlink()
    print(
        f"{len(folders)} folders, {size / 2**20:.1f} MB {'deleted' if given.yes else 'could go; add --yes to delete'}"
    )


def _existing(root: str | None) -> Store:
    root = root or "outputs"
    if not Path(root).is_dir():
        raise refuse("store", root, "there is no such folder", "run a grid first, or name another with --store")
    return Store(Path(root).absolute())


def _known_stages(store: Store) -> dict[str, Any]:
    known = {key: spec for name in grid_names(store) for key, spec in frozen_plan(store, name).stages.items()}
    return known | {key: store.manifest(key) for key in store.published()}


def _find(known: dict[str, dict[str, Any]], name: str) -> str:
    digest = name.rsplit("-", 1)[-1]
    found = sorted(key for key in known if key == name or key.rsplit("-", 1)[-1].startswith(digest))
    if len(found) != 1:
        raise refuse("address", name, f"{len(found)} stages match", "give more of the fingerprint; `status` lists them")
    return found[0]


def _whole(known: dict[str, dict[str, Any]], key: str) -> dict[str, Any]:
    """A stage's identity with its inputs' identities in place of their keys."""
    spec = known[key]
    return {
        "kind": spec["kind"],
        "version": spec["version"],
        "settings": spec["settings"],
        "inputs": {role: _whole(known, upstream) for role, upstream in spec["inputs"].items()},
    }


def show_cards(given: argparse.Namespace) -> None:
    """One card whole, or all in a line each."""
    from harness.evals import eval_names, told
    from harness.evals.benchmarks import card_names, load_card

    for name in [] if given.name else (*eval_names(), *card_names()):
        print(f"{name:<16}{told(name).splitlines()[0] if name in eval_names() else load_card(name).title}")
    if given.name:
        print(told(given.name) if given.name in eval_names() else load_card(given.name).told(given.name))


VERBS = {
    "plan": show_plan,
    "status": show_status,
    "watch": watch,
    "retry": try_again,
    "cancel": cancel,
    "logs": show_logs,
    "cost": show_cost,
    "explain": show_explain,
    "results": show_results,
    "gc": collect_garbage,
    "cards": show_cards,
}

notebook_function(__name__)

if __name__ == "__main__":
    sys.exit(main())
