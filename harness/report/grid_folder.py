"""A grid's folder, looked at: whether its plan, records, tables and models are as they were written.

for finding in grid_findings(store): print(finding.problem)
"""

import hashlib
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from harness.config.checks import SettingsError
from harness.plan.claims import KEPT, declared
from harness.plan.frozen import FrozenPlan, frozen_plan, grid_names
from harness.store.fsck import Finding
from harness.store.store import DamagedError, Store

WRITTEN = ("results.parquet", "results.csv", "summary.parquet", "summary.csv", "verdict.txt")


def grid_findings(store: Store) -> Iterator[Finding]:
    """Plans that cannot be read; records, tables and models that were cut off or changed, or whose weights are gone.

    Raises OSError where a folder cannot be listed.
    """
    for name in grid_names(store):
        path = store.grid_folder(name) / "plan.json"
        try:
            frozen = frozen_plan(store, name)
        except DamagedError as error:
            yield Finding("grids", str(error), partial(_plan_aside, store, path))
            continue
        except SettingsError as error:
            yield Finding("grids", str(error))
            continue
        try:
            declared(store, name)
        except DamagedError as error:
            yield Finding("grids", str(error), partial(_claims_aside, store, path.with_name(KEPT)))
        problem = _problem_of_files(store.grid_folder(name), frozen)
        for folder in sorted(path.parent for path in (store.root / "models" / name).glob("*/receipt.json")):
            if (of_model := _problem_of_model(folder)) is not None:
                # so that it is written again, or not at all where the weights are gone
                mend = partial(_collected, store, frozen, folder)
                yield Finding("models", f"{folder.relative_to(store.root)}: {of_model}", mend)
        if problem is not None:
            yield Finding("grids", f"grids/{name}/{problem}", partial(_collected, store, frozen))


def _problem_of_files(folder: Path, frozen: FrozenPlan) -> str | None:
    """What is wrong with the records and tables of a grid; None where they are whole, or were not written yet."""
    if not (folder / "records.jsonl").exists():
        return None
    try:
        lines = (folder / "records.jsonl").read_text().splitlines()
        cells = {record["cell"] for record in map(json.loads, lines) if record["role"] == "student"}
    except (OSError, ValueError, KeyError, TypeError):
        return "records.jsonl is cut off or was changed"
    if cells != {cell.fingerprint for cell in frozen.cells if cell.role == "student"}:
        return "records.jsonl holds other cells than the plan"
    for name in WRITTEN:
        if not (folder / name).is_file() or not (folder / name).stat().st_size:
            return f"{name} is {'empty' if (folder / name).is_file() else 'missing'}"
    tail = b"PAR1"  # a parquet file that was cut off has lost its end
    cut = [name for name in WRITTEN if name.endswith(".parquet") and (folder / name).read_bytes()[-4:] != tail]
    return f"{cut[0]} is cut off" if cut else None


def _problem_of_model(folder: Path) -> str | None:
    try:
        receipt = json.loads((folder / "receipt.json").read_text())
        card = hashlib.sha256((folder / "RECEIPT.md").read_bytes()).hexdigest()
        # receipts of earlier versions state no hash of the card
        if card != receipt.get("card_sha256", card):
            return "RECEIPT.md is cut off or was changed"
    except FileNotFoundError:
        return "RECEIPT.md is missing"
    except (OSError, ValueError, AttributeError):
        return "receipt.json is cut off or was changed"
    broken = sorted(link.name for link in folder.iterdir() if not link.exists())
    return f"{', '.join(broken)} lead nowhere: the model's artifact has left the store" if broken else None


def _plan_aside(store: Store, path: Path) -> str:
    aside = store.set_file_aside(path, "it is no plan of a grid")
    return f"set aside as {aside}; run the grid's command again, which writes it anew and reuses what is finished"


def _claims_aside(store: Store, path: Path) -> str:
    aside = store.set_file_aside(path, "it says nothing of claims")
    return f"set aside as {aside}; the grid has no declared claims until its command declares them again"


def _collected(store: Store, frozen: FrozenPlan, model: Path | None = None) -> str:
    """Write a grid's tables, records and receipts again; a model whose weights are gone loses its folder of links."""
    from harness.report.terminal import Finished

    if model is not None:
        (model / "receipt.json").unlink(missing_ok=True)
    finished = Finished.collect(store, frozen)
    if model is not None and model not in finished.models:
        aside = store.set_file_aside(model, "the model's artifact has left the store")
        return f"set aside as {aside}; add retry=true to the grid's command to make the model again"
    return "written again"
