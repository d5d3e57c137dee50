"""Origins: where a finished student comes from, read from the artifacts it is made of.

What a record does not hold because it is the same for many cells: rows by source with their licences, the
teacher's words, code and machines, and what was measured. Each file is read once, whatever the number of cells.

    Origins(store, frozen).data(cell)["sources"][0]     # {"source": "arith", "rows": 12, "license": ..., ...}
"""

import json
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from harness.data.corpora.tulu3 import REPOSITORY
from harness.models.files import HUB_ID, local_folder, read_pointer
from harness.plan.frozen import FrozenCell, FrozenPlan
from harness.report.licences import flag_of
from harness.results.contamination import teachers_of
from harness.store.store import Store

WRITTEN = {"labels": "answers", "cache": "rows", "synthetic": "kept"}
"""What a teacher leaves for a training stage to read, by role of input, and the count that says how much."""
DATA_SETS = {"tulu3": REPOSITORY}
"""Hub ids of corpora that are published there."""


class Origins:
    """Reads the artifacts behind the cells of one frozen plan.

    Its methods raise OSError where the store lacks a file of an artifact that a cell is made of.
    """

    def __init__(self, store: Store, frozen: FrozenPlan) -> None:
        self._store = store
        self._stages = frozen.stages
        # cells share many of their stages, so each manifest is read once
        self._manifest = cache(store.manifest)
        self._json = cache(lambda path: json.loads(Path(path).read_text()))

    def data(self, cell: FrozenCell) -> dict[str, Any]:
        """The cell's own rows by source with licences and flags, and what the teacher wrote to them.

        A corpus's own `license` (its user's word) goes before what its files say of each source.
        """
        subset = self._stages[cell.train[-1]]["inputs"]["subset"]
        rows = self._file(subset, "subset.json")
        mixture = self._file(self._stages[subset]["inputs"]["mixture"], "mixture.json")
        corpus = cell.settings["corpus"]
        sources = []
        for name, counts in rows["sources"].items():
            license = corpus.get("license") or mixture["sources"][name]["license"]
            counted = {"rows": counts["train"], "validation_rows": counts["validation"]}
            sources.append({"source": name, **counted, "license": license, "flag": flag_of(license)})
        return {
            "corpus": cell.corpus,
            "data_set": DATA_SETS.get(corpus["kind"]),
            "revision": mixture["revision"],
            "data_frac": cell.data_frac,
            "rows": rows["n_train"],
            "validation_rows": rows["n_validation"],
            "sources": sources,
            "written": self._written(cell),
        }

    def student(self, cell: FrozenCell) -> dict[str, Any]:
        """What training began from: the settings that say so, and the hub's id and revision where it is from there."""
        settings = cell.settings["student"]
        model = {name: settings[name] for name in ("name", "kind", "size", "init", "layers", "license")}
        model |= _family(settings) | {"lora_rank": settings.get("lora_rank")}
        return model | self._hub(settings, self._base(cell.train[0]))

    def teacher(self, cell: FrozenCell) -> dict[str, Any] | None:
        """The same of the teacher, with what its licence says of distillation; null where there is none.

        Of several teachers `combine` and `members`, each with its share or sources.
        """
        settings = cell.settings["teacher"]
        if settings is None:
            return None
        # a student that teaches itself brings no other licence, so there is no one to allow it
        if settings == "self":
            student = cell.settings["student"]
            return {"name": "self", "license": student["license"], "distillation_allowed": "yes"}
        if not settings.get("members"):
            return self._teacher(settings, cell.making_teacher[-1])
        made = teachers_of(self._stages, cell.train)
        members = [
            {"share": one["share"], "sources": one["sources"], **self._teacher(one["teacher"], key)}
            for one, key in zip(settings["members"], made, strict=True)
        ]
        return {"name": settings["name"], "combine": settings["combine"], "members": members}

    def _teacher(self, settings: Mapping[str, Any], made: str) -> dict[str, Any]:
        """One teacher's settings, fine-tunings and place on the hub; `made`: the stage that made it."""
        names = ["name", "kind", "size", "init", "layers", "license", "served_model", "quantise"]
        names += ["distillation_allowed", "acknowledge_license"]
        model = {name: settings[name] for name in names} | _family(settings) | {"lessons": self._lessons(made)}
        return model | self._hub(settings, self._base(made))

    def provenance(self, cell: FrozenCell) -> dict[str, Any]:
        """Code, versions and machine of the last training stage, and what else the cell's stages were made with."""
        made = [self._manifest(key) for key in cell.needs if self._store.done(key)]
        last = self._manifest(cell.train[-1])
        commits = Counter(one["provenance"]["commit"] or "not known" for one in made)
        return {
            **last["provenance"],
            "machine": last["machine"],
            "trained": last["published"],
            "commits": dict(commits),
            "changed_stages": sum(bool(one["provenance"]["changed"]) for one in made),
            "stages": [one["address"] for one in made],
            "weights_sha256": {
                name: file["sha256"] for name, file in last["files"].items() if name.endswith(".safetensors")
            },
        }

    def measured(self, cell: FrozenCell) -> list[dict[str, Any]]:
        """One row for each role and number format: counts and metrics of its measure, or the `problem`; `evaluations`
        are the folders of scores of its rounded weights by evaluation."""
        found = []
        for role, formats in cell.deployments.items():
            for name, deployed in formats.items():
                key, done = deployed.measure, self._store.done(deployed.measure)
                facts = self._manifest(key)["facts"] if done else {}
                row: dict[str, Any] = {"role": role, "format": name, "problem": None if done else self._why_not(key)}
                row |= facts.get("counts", {}) | facts.get("metrics", {})
                row |= {"precision": self._stages[key]["settings"].get("precision", name)}
                row["measured_on"] = facts.get("measured_on")
                # an evaluation that failed hides neither the measure nor the other scores
                scored = [name for name, key in deployed.evaluations.items() if self._store.done(key)]
                missing = [key for name, key in deployed.evaluations.items() if name not in scored]
                row["evaluations"] = {name: str(self._store.folder(deployed.evaluations[name])) for name in scored}
                row["not_scored"] = [self._why_not(key) for key in missing]
                found.append(row)
        return found

    def _written(self, cell: FrozenCell) -> dict[str, int]:
        """How much the teacher wrote or said beforehand, by kind; blocks of rows are shared with other cells."""
        # phases may have inputs of one role from different stages; one that several phases read counts once
        pairs = (pair for stage in cell.train for pair in self._stages[stage]["inputs"].items())
        inputs = dict.fromkeys((role.partition(":")[0], key) for role, key in pairs)
        found: Counter[str] = Counter()
        for kind, key in inputs:
            if kind in WRITTEN:
                found[kind] += self._manifest(key)["facts"]["counts"][WRITTEN[kind]]
        return dict(found)

    def _lessons(self, key: str) -> int:
        """How many fine-tunings made a teacher."""
        stage = self._stages[key]
        before = stage["inputs"].get("start") or stage["inputs"].get("model")
        return (stage["kind"] == "train") + (0 if before is None else self._lessons(before))

    def _base(self, key: str) -> str:
        """The base stage that a model was before it was trained or rounded."""
        inputs = self._stages[key]["inputs"]
        # a train stage has its model as `start`, a rounding as `model`, a base neither
        before = inputs.get("start") or inputs.get("model")
        return key if before is None else self._base(before)

    def _hub(self, settings: Mapping[str, Any], base: str) -> dict[str, str | None]:
        """`path` and `revision` on the hub; both null for a model that is not from there."""
        path = settings["path"]
        # a local folder can have a path of the same form as a hub id, and means nothing to a reader elsewhere
        if settings["kind"] != "hf" or not HUB_ID.fullmatch(path or "") or local_folder(path) is not None:
            return {"path": None, "revision": None}
        found = read_pointer(self._store.folder(base))  # the revision that was resolved, where the settings name none
        return {"path": path, "revision": found[1] if found[0] == path else settings["revision"]}

    def _why_not(self, key: str) -> str:
        last = (self._store.attempts(key) or [{}])[-1]
        address = self._stages[key]["address"]
        return f"{address}: {last.get('reason') or 'not made yet'}"

    def _file(self, key: str, name: str) -> Any:
        return self._json(str(self._store.folder(key) / name))


def made_with(store: Store, frozen: FrozenPlan) -> dict[str, Any]:
    """What a grid's finished stages were made with: `commits`, `versions` and `machines`, each the commonest first.

    And how many `stages` of those `planned` there are, how many by `changed` code, and when (`first`, `last`, in
    seconds since 1970; null where none is made). Raises OSError where a manifest cannot be read.
    """
    manifests = [store.manifest(key) for key in frozen.stages if store.done(key)]
    said = [one["provenance"] for one in manifests]
    versions = Counter(f"Python {one['python']}" for one in said)
    versions.update(f"{name} {version}" for one in said for name, version in one["versions"].items() if version)
    machines = Counter(f"{one['hardware']['cpu']} ({one['hardware']['cores']} cores)" for one in said)
    times = [one["published"] for one in manifests]
    return {
        "planned": len(frozen.stages),
        "stages": len(manifests),
        "changed": sum(bool(one["changed"]) for one in said),
        "commits": dict(Counter(one["commit"] or "not known" for one in said).most_common()),
        "versions": [name for name, _ in versions.most_common()],
        "machines": [name for name, _ in machines.most_common()],
        "first": min(times, default=None),
        "last": max(times, default=None),
    }


def _family(settings: Mapping[str, Any]) -> dict[str, str]:
    """The family of a mini, where it is not the one that goes without saying."""
    return {"family": settings["family"]} if "family" in settings else {}
