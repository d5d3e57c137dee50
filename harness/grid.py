"""The verbs on grids: `python -m harness.grid plan|status|explain|results|gc`.

All but `plan` read the store alone; none but `gc --yes` changes anything.

    python -m harness.grid plan data_frac=0.01,1.0 method=sft,kd   what would run, and its cost
    python -m harness.grid status [grid]                           every cell's state, and why
    python -m harness.grid explain A B                             the settings in which two stages differ
    python -m harness.grid results <grid>                          table, figure and verdict again
    python -m harness.grid results <grid> --by exposure            gains by what student and teacher had seen
    python -m harness.grid gc [--yes]                              artifacts no grid needs
"""

import argparse
import json
import os
import shutil
import sys
import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.checks import SettingsError, refuse
from harness.identity import differences
from harness.launch.jobs import job_states
from harness.status import StageState, cell_state
from harness.store import Store


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; refusals are one sentence and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.grid", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", help="the store folder (default: outputs)")
    verbs = parser.add_subparsers(dest="verb", required=True)
    plan = verbs.add_parser("plan", help="what would run and what it would cost")
    plan.add_argument("overrides", nargs="*", help="as for harness.run, e.g. method=sft,kd")
    status = verbs.add_parser("status", help="every cell's state, and why")
    status.add_argument("grid", nargs="?", help="a grid's name; without it, all grids in a line each")
    explain = verbs.add_parser("explain", help="the settings in which two stages differ")
    explain.add_argument("one", help="an address, key or the start of a fingerprint")
    explain.add_argument("other", nargs="?", help="a second one; without it, what the first is made of")
    results = verbs.add_parser("results", help="table, figure and verdict of a grid")
    results.add_argument("grid")
    results.add_argument("--by", help="gains by class of held-out item: exposure, source, or exposure,source")
    gc = verbs.add_parser("gc", help="artifacts no grid needs")
    gc.add_argument("--yes", action="store_true", help="delete them; without it they are listed")
    given = parser.parse_args(arguments)
    try:
        VERBS[given.verb](given)
    except SettingsError as error:
        print(f"harness: {error}", file=sys.stderr)
        return 2
    return 0


def show_plan(given: argparse.Namespace) -> None:
    """Cells, unique stages, what the store already has, and the expected cost of the rest."""
    from harness.compose import compose
    from harness.estimate import plan_text
    from harness.plan import Plan
    from harness.preflight import preflight

    composed = compose(given.overrides)
    plan = Plan.of(composed.cells)
    preflight(plan)
    store = Store(Path(given.store or composed.settings.store).absolute())  # looked at, never made
    done = sum(store.done(stage.key) for stage in plan.stages)
    print(
        f"{len(composed.cells)} cells asked for, {len(plan.cells)} different, {len(plan.stages)} stages, "
        f"{done} of them in the store"
    )
    print(plan_text(plan, store))


def show_status(given: argparse.Namespace) -> None:
    """States of a grid's cells; all grids in a line each when none is named."""
    store = _existing(given.store)
    for name in [given.grid] if given.grid else _grids(store):
        frozen = frozen_plan(store, name)
        states = _states(store, frozen, ask_slurm=bool(given.grid))
        counts = Counter(state.status for _, state in states)
        rest = "".join(f", {count} {status}" for status, count in sorted(counts.items()) if status != "done")
        print(f"{name}: {counts['done']} of {len(states)} cells done{rest}")
        for cell, state in states if given.grid else []:
            teacher = f" teacher={cell['teacher']}" if cell["teacher"] else ""
            reason = f"  {state.reason}" if state.reason else ""
            print(
                f"  {state.status:<12}{cell['train'][-1].rsplit('-', 1)[-1][:8]}  {cell['method']} "
                f"{cell['data_frac']:g} {cell['student']}{teacher} seed={cell['seed']}{reason}"
            )


def _states(store: Store, frozen: dict[str, Any], ask_slurm: bool) -> list[tuple[dict[str, Any], StageState]]:
    """Every cell's state: what the store says, and of cells that wait in a queue what Slurm says."""
    states = [
        (cell, cell_state(store, {key: frozen["stages"][key]["address"] for key in cell["needs"]}, cell["evaluate"]))
        for cell in frozen["cells"]
    ]
    silent = [cell["evaluate"] for cell, state in states if state.status in ("missing", "interrupted")]
    if not (ask_slurm and silent and (store.root / "jobs").is_dir()):
        return states
    jobs = job_states(store, silent)
    return [
        (cell, jobs[cell["evaluate"]].as_stage_state(state) if cell["evaluate"] in jobs else state)
        for cell, state in states
    ]


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
    from harness.api import Finished, gains

    store = _existing(given.store)
    if given.by:
        from rich.console import Console

        from harness.breakdown import render

        by = given.by.split(",")
        frame = gains(given.grid, by, str(store.root))
        Console(width=None if sys.stdout.isatty() else 160).print(render(frame, by))
        return
    Finished.collect(store, frozen_plan(store, given.grid)).show()


def collect_garbage(given: argparse.Namespace) -> None:
    """List or delete artifacts that no grid's plan names, and what dead attempts left behind."""
    store = _existing(given.store)
    named = {key for name in _grids(store) for key in frozen_plan(store, name)["stages"]}
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


def frozen_plan(store: Store, grid: str) -> dict[str, Any]:
    """The plan a grid was run with."""
    path = store.grid_folder(grid) / "plan.json"
    if not path.is_file():
        raise refuse("grid", grid, f"the store {store.root} has {', '.join(_grids(store)) or 'no grid yet'}")
    return json.loads(path.read_text())


def _existing(root: str | None) -> Store:
    root = root or "outputs"
    if not Path(root).is_dir():
        raise refuse("store", root, "there is no such folder", "run a grid first, or name another with --store")
    return Store(Path(root).absolute())


def _grids(store: Store) -> list[str]:
    return sorted(path.parent.name for path in (store.root / "grids").glob("*/plan.json"))


def _known_stages(store: Store) -> dict[str, dict[str, Any]]:
    known = {key: spec for name in _grids(store) for key, spec in frozen_plan(store, name)["stages"].items()}
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


VERBS = {
    "plan": show_plan,
    "status": show_status,
    "explain": show_explain,
    "results": show_results,
    "gc": collect_garbage,
}

if __name__ == "__main__":
    sys.exit(main())
