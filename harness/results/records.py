"""Records: what is known of each cell and reference model, read from a frozen plan and the store.

A record says what was asked, what it cost, how it scored, or why there is no score. The frozen plan is
the grid's `plan.json`, so records of a grid can be read long after the command that made them.

    records(store, json.loads((store.grid_folder("grid-1a2b") / "plan.json").read_text()))
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness.plan.frozen import SEEDS, targets_of
from harness.results.cost import cell_cost
from harness.store.status import cell_state, stage_state
from harness.store.store import Store

if TYPE_CHECKING:
    from harness.results.contamination import Contamination


def records(store: Store, frozen: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One record per cell, then one per reference model (base, teacher), in plan order."""
    facts = _Facts(store, frozen)
    contamination = _contamination(store, frozen)
    found = [_record(store, frozen, cell, facts, contamination) for cell in frozen["cells"]]
    seen: set[str] = set()
    for cell in frozen["cells"]:
        for role, reference in cell["references"].items():
            if reference["fingerprint"] not in seen:
                seen.add(reference["fingerprint"])
                found.append(_record(store, frozen, {**cell, **reference, "role": role}, facts, contamination))
    return found


class _Facts:
    """The facts of finished stages, each manifest read once, and how many cells of the grid use a stage."""

    def __init__(self, store: Store, frozen: Mapping[str, Any]) -> None:
        self.store = store
        self.state_of = cache(partial(stage_state, store))
        self.users = Counter(key for cell in frozen["cells"] for key in (*cell["teaching"], *cell["making_teacher"]))
        self._read: dict[str, dict[str, Any] | None] = {}

    def of(self, keys: Iterable[str]) -> list[dict[str, Any]]:
        """Facts of those of the stages that are finished."""
        return [found for key in keys if (found := self._of(key)) is not None]

    def shared(self, keys: Iterable[str]) -> list[tuple[dict[str, Any], int]]:
        """The same, each with the number of cells that use the stage."""
        return [(found, max(1, self.users[key])) for key in keys if (found := self._of(key)) is not None]

    def _of(self, key: str) -> dict[str, Any] | None:
        if key not in self._read:
            self._read[key] = self.store.manifest(key)["facts"] if self.store.done(key) else None
        return self._read[key]


def _contamination(store: Store, frozen: Mapping[str, Any]) -> "Contamination":
    from harness.results.contamination import Contamination  # it reads tables, which planning does without

    return Contamination(store, frozen)


def _record(
    store: Store, frozen: Mapping[str, Any], cell: Mapping[str, Any], facts: _Facts, contamination: "Contamination"
) -> dict[str, Any]:
    addresses = {key: frozen["stages"][key]["address"] for key in cell["needs"]}
    state = cell_state(facts.state_of, addresses, targets_of(cell))
    record = {
        name: cell[name]
        for name in ("role", "method", "student", "teacher", "corpus", "budget", "data_frac", *SEEDS, "settings")
    }
    record |= {
        "cell": cell["fingerprint"],
        "grid": frozen["grid"],
        "status": state.status,
        "reason": state.reason,
        "failure_class": state.failure_class,
        "scores": [],
        "items": {},
        "contamination": {},
        "warnings": [],
        "tuned": cell.get("tuned", {}),
        "cost": cell_cost(
            facts.of(cell["train"]), facts.shared(cell["teaching"]), facts.shared(cell["making_teacher"])
        ),
        "artifact": str(store.folder(cell["train"][-1])) if cell["train"] else None,
    }
    own = [key for key in cell["needs"] if key not in cell["making_teacher"]]
    said = [warning for stage in facts.of(own) for warning in stage.get("warnings", [])]
    record["warnings"] = list(dict.fromkeys(said))  # blocks of one kind say the same
    for name, key in cell["evaluations"].items():
        if store.done(key):  # one that failed takes nothing from the others
            record["scores"] += json.loads((store.folder(key) / "scores.json").read_text())
            record["items"][name] = str(store.folder(key) / "items.parquet")
            told, warnings = contamination.told(cell, name, record["scores"], record["items"][name])
            record["contamination"] |= {name: told} if told else {}
            record["warnings"] += warnings
    return record


LOG = "log.jsonl"
NAMES = ("method", "teacher", "student", "corpus", "budget", "data_frac", "seed", "world_seed")


def curves(store: Store, frozen: Mapping[str, Any]) -> pd.DataFrame:
    """One row per logged step. `nll` is of the step's own rows in nats per token and `sequences` says whose text they
    are; `loss` is the method's own objective and cannot be compared between methods. A student that is not finished
    has no rows."""
    frames = []
    for cell in frozen["cells"]:
        logs = [store.folder(key) / LOG for key in cell["train"]]
        if not all(store.done(key) for key in cell["train"]) or not all(path.is_file() for path in logs):
            continue
        names, before = {name: cell[name] for name in NAMES}, 0
        for number, path in enumerate(logs):
            frame = pd.DataFrame([json.loads(line) for line in path.read_text().splitlines()])
            if frame.empty:
                continue
            frames.append(frame.assign(**names, stage=number, step=frame["step"] + before))
            before += int(frame["step"].max())
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*NAMES, "stage", "step", "nll"])
