"""Receipts: scores, cost, regressions and deployment of each finished student, beside its weights.

A folder per student, `<store>/models/<grid>/<cell>/`: the artifact's files as links, so that it loads like any
Hugging Face folder, `receipt.json`, and the same as a model card, `RECEIPT.md` (`model_card.py`). Figures are
those of the table, by the same functions (`comparison.py`); a receipt is of one model, so its intervals cover
test items; what its method does is said of the arm's seeds, where there are several. Written whenever a grid is
collected; one whose records have not changed is left as it is.

    write_receipts(store, frozen_plan, records)
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from harness.config.evaluation import FORMATS
from harness.evals import ALL, Score
from harness.plan.frozen import FrozenPlan
from harness.plan.metrics import MACRO_AVERAGE
from harness.report.licences import judge_licences
from harness.report.model_card import card_text
from harness.report.origins import Origins
from harness.results.arms import Arm, Metric, by_arm, diverged, metrics_of, name_diverged, seeds_of, why_unpaired
from harness.results.comparison import Comparison
from harness.results.conclusion import ONE_SEED
from harness.results.items import LoadItems, read_items
from harness.results.records import Record
from harness.results.suite import with_macro_average
from harness.results.table import headline, reported_metric
from harness.results.warning_ranks import ranked
from harness.store.store import Store, write_json, write_text

VERSION = 3
"""Raised when the same records give another receipt."""
MODEL_FILES = (".safetensors", ".json", ".jinja", ".model", ".txt", ".bin")
NOT_THE_MODELS = ("manifest.json",)


def write_receipts(
    store: Store, frozen: FrozenPlan, records: Sequence[Record], load_items: LoadItems = read_items
) -> list[Path]:
    """Make or renew the folder of every finished student of a grid; returns the folders, unchanged ones too.

    A student that was not trained (`untrained`), failed, or whose weights left the store has none. Raises
    SettingsError as `by_arm` does, ValueError as `card_text` does, OSError where files cannot be read or written.
    """
    receipts = _Receipts(store, frozen, records, load_items)
    folders = []
    for record in records:
        artifact = Path(record.artifact or "nowhere")
        if record.role != "student" or record.status != "done" or not (artifact / "config.json").is_file():
            continue
        folder = store.model_folder(frozen.grid, cell_name(record))
        basis = receipts.basis(record)
        made_from = hashlib.sha256(json.dumps(basis, sort_keys=True).encode()).hexdigest()
        if _made_from(folder) != made_from:
            receipt = {**receipts.of(record, basis["measured"]), "made_from": made_from}
            card = card_text(receipt)
            receipt["card_sha256"] = hashlib.sha256(card.encode()).hexdigest()
            _link(artifact, folder)
            write_text(folder / "RECEIPT.md", card)
            write_json(folder / "receipt.json", receipt)  # the last, so that a stopped run writes both again
        folders.append(folder)
    return folders


def cell_name(record: Record) -> str:
    """The name of a student's folder, e.g. `kd-weak-0.1-s0-3f2a9c1d`."""
    words = [record.method, record.teacher, f"{record.data_frac:g}", f"s{record.seed}", record.cell[:8]]
    return re.sub(r"[^\w.=-]+", "_", "-".join(filter(None, words)))


class _Receipts:
    """The receipts of one grid's students."""

    def __init__(self, store: Store, frozen: FrozenPlan, records: Sequence[Record], load_items: LoadItems) -> None:
        self._cells = {cell.fingerprint: cell for cell in frozen.cells}
        self._records = {record.cell: record for record in records}
        self._arms = by_arm(records)
        self._arm_of = {(one.cell, one.role): arm for arm, cells in self._arms.items() for one in cells}
        self._origins = Origins(store, frozen)
        self._compare = Comparison(load_items)
        self._primary = Metric.named(frozen.primary_metric) if frozen.primary_metric else None
        self._found = records
        self._arms_gain = cache(self._arms_gain_of)

    def basis(self, record: Record) -> dict[str, Any]:
        """All that may change in a receipt: the records it is made from, and what was measured."""
        arm = self._arm(record)
        # the arm's gain is in the receipt, so a new seed of the method or of SFT makes it out of date
        peers = [*self._arms[arm], *self._arms.get(arm.partner, [])]
        return {
            "version": VERSION,
            "record": record.plain(),
            "others": {role: other.plain() for role, other in self._others(record).items()},
            "peers": [[one.cell, one.status, one.plain()["scores"]] for one in peers],
            "measured": self._origins.measured(self._cells[record.cell]),
            # another primary metric makes another receipt; the default of earlier plans leaves receipts as they are
            **({} if self._first(record) == headline(_frame(_metrics(record))) else {"first": self._first(record)}),
        }

    def of(self, record: Record, measured: list[dict[str, Any]]) -> dict[str, Any]:
        """The receipt of one finished student, as plain JSON."""
        cell, others = self._cells[record.cell], self._others(record)
        metrics, first = _metrics(record), self._first(record)
        data, student, teacher = self._origins.data(cell), self._origins.student(cell), self._origins.teacher(cell)
        sources = [(row["source"], row["license"]) for row in data["sources"]]
        verdict = judge_licences(student["license"], sources, teacher)
        names = ("cell", "grid", "method", "corpus", "data_frac", "seed", "data_seed", "train_seed", "world_seed")
        finite = {role: other for role, other in others.items() if other.status == "done"}
        receipt = {
            "name": cell_name(record),
            **{name: getattr(record, name) for name in (*names, "teacher_seed")},
            "headline": None if first is None else {"eval": first.eval, "metric": first.metric},
            "scores": [self._score(record, others, metric) for metric in metrics],
            "arm": self._arms_gain(self._arm(record), first),
            # a macro-average would count its benchmarks twice in the family of comparisons
            "lost": self._compare.losses(record, finite, [one for one in metrics if one.eval != MACRO_AVERAGE]),
            "student": student,
            "teacher": teacher,
            "data": data,
            "recipe": record.settings["method"],
            "budget": {"label": record.budget, **record.settings["budget"]},
            "tuned": record.tuned,
            "cost": record.plain()["cost"],
            "sft_cost": others["sft"].plain()["cost"] if "sft" in finite else None,
            "deployment": [self._deployed(row, record, metrics) for row in measured],
            "licences": {"says": verdict.says, "reasons": verdict.reasons},
            "scored_on": dict(record.scored_on),
            "warnings": ranked([*self._warnings(record), *record.warnings]),
            "provenance": self._origins.provenance(cell),
        }
        return receipt | {"missing": list(self._missing(record, others, receipt))}

    def _first(self, record: Record) -> Metric | None:
        """The metric that the receipt opens with: the grid's primary metric, as in its report."""
        return reported_metric(_frame(_metrics(record)), self._primary, self._found)

    def _arm(self, record: Record) -> Arm:
        return self._arm_of[record.cell, record.role]

    def _others(self, record: Record) -> dict[str, Record]:
        """What the student is compared with: SFT of the same seeds (none for SFT itself), base and teacher."""
        arm, found = self._arm(record), {}
        if arm != arm.partner:
            for sft in self._arms.get(arm.partner, []):
                if seeds_of(sft) == seeds_of(record):
                    found["sft"] = sft
        for role, reference in self._cells[record.cell].references.items():
            # of several teachers each is a comparison of its own
            name = f"teacher {reference.teacher}" if role.startswith("teacher:") else role
            found[role if name in found else name] = self._records[reference.fingerprint]
        return found

    def _score(self, record: Record, others: Mapping[str, Record], metric: Metric) -> dict[str, Any]:
        """The student's score on one metric, and what it gains over each other model."""
        compared = {role: self._compare.against(record, other, metric) for role, other in others.items()}
        named = {"eval": metric.eval, "metric": metric.metric, "higher_is_better": metric.higher_is_better}
        return named | (self._compare.score(record, metric) or {"score": None}) | {"against": compared}

    def _warnings(self, record: Record) -> Iterator[str]:
        """What no stage knows: that the arm has one seed, and which of its cells are lost."""
        arm = self._arm(record)
        if self._arms_gain(arm, self._first(record)) is None:
            yield f"one seed: what this model gains is a hint {ONE_SEED}; another seed of its method may do otherwise"
        lost = [one for one in self._arms[arm] if one.status in ("failed", "missing")]
        if lost:
            names = ", ".join(f"seed {one.seed} {'diverged' if diverged(one) else one.status}" for one in lost)
            yield f"lost cells: of this model's arm, {names}"

    def _arms_gain_of(self, arm: Arm, metric: Metric | None) -> dict[str, Any] | None:
        """The gain over SFT (of SFT over its base model) of all seeds of the arm; null where there is only one."""
        if metric is None:
            return None
        cells, others = self._arms[arm], self._arms.get(arm.partner, [])
        if arm == arm.partner:
            base = self._cells[cells[0].cell].references.get("base")
            whole = None if base is None else self._records[base.fingerprint]
            # one base model is the partner of every seed
            others = [replace(whole, data_seed=one.data_seed, train_seed=one.train_seed) for one in cells if whole]
        return self._compare.arms_gain(cells, others, metric)

    def _deployed(self, row: Mapping[str, Any], record: Record, metrics: Sequence[Metric]) -> dict[str, Any]:
        """What was measured in one number format, with the scores of rounded weights beside those of whole ones."""
        folders = row["evaluations"]
        settings, mine = record.settings, row["role"] == "student"
        whole = record if mine else self._others(record)["teacher"]
        known = None if mine else settings["teacher"]["quantise"]  # then the teacher that is scored is rounded itself
        read = [json.loads(Path(path, "scores.json").read_text()) for path in folders.values()]
        items = {name: f"{path}/items.parquet" for name, path in folders.items()}
        found = tuple(Score(**one) for part in read for one in part)
        if self._primary is not None:
            found = with_macro_average(found, settings)
        # the record of the same model with the rounded weights' scores, so that `Comparison` pairs both item by item
        rounded = replace(whole, status="done", items=items, scores=found)
        scores = []
        for metric in metrics if folders else ():
            if (score := self._compare.score(rounded, metric)) is not None:
                # a teacher that is used rounded has no score of whole weights to compare with
                change = None if known else self._compare.against(rounded, whole, metric)
                scores.append({"eval": metric.eval, "metric": metric.metric, **score, "against_whole": change})
        told = {name: value for name, value in row.items() if name != "evaluations"}
        return told | {"scored_in": known or settings["evals"].get("precision", "fp32"), "scores": scores}

    def _missing(self, record: Record, others: Mapping[str, Record], receipt: Mapping[str, Any]) -> Iterator[str]:
        """Parts that the receipt lacks, each with the reason."""
        arm = self._arm(record)
        if arm != arm.partner and "sft" not in others:
            yield f"no comparison with SFT: {why_unpaired(arm, self._arms)}"
        for role, other in others.items():
            if other.status != "done":
                first = Metric(**receipt["headline"]) if receipt["headline"] else Metric("", "")
                why = name_diverged([other], first) or f"{other.status}: {other.reason}"
                yield f"{role} is not finished: {why}"
        if record.teacher and not any(role.startswith("teacher") for role in others):
            own = record.teacher == "self"
            yield (
                "its teacher is the SFT student of the same cell"
                if own
                else "the teacher's weights are not in the store"
            )
        if any(score.get("covers") == "items only" for score in receipt["scores"]):
            yield "one seed: intervals of this model cover test items and exclude the variance between seeds"
        asked = {row["format"] for row in receipt["deployment"]}
        if unasked := [name for name in FORMATS if name not in asked]:
            formats = ",".join(name for name in FORMATS if name in asked)
            yield f"not measured in {', '.join(unasked)}: measure.formats=[{formats}]"
        for row in receipt["deployment"]:
            yield from (f"not measured: {problem}" for problem in filter(None, [row["problem"]]))
            yield from (f"not scored: {problem}" for problem in row["not_scored"])


def _metrics(record: Record) -> list[Metric]:
    """What a record was scored on, over all items."""
    return [metric for metric in metrics_of([record]) if metric.source == ALL]


def _frame(metrics: Sequence[Metric]) -> pd.DataFrame:
    return pd.DataFrame(metrics, columns=["eval", "metric", "source"])


def _made_from(folder: Path) -> str | None:
    """What the receipt in a folder was made from; null where there is none, or a file there was changed since."""
    try:
        receipt = json.loads((folder / "receipt.json").read_text())
        card = hashlib.sha256((folder / "RECEIPT.md").read_bytes()).hexdigest()
        whole = card == receipt["card_sha256"] and all(link.exists() for link in folder.iterdir())
        return receipt["made_from"] if whole else None
    # a receipt that cannot be read is written again; it is no reason to stop
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _link(artifact: Path, folder: Path) -> None:
    """Fill a folder with relative links to the model's files, and let `README.md` be the receipt."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [file for file in artifact.iterdir() if file.suffix in MODEL_FILES and file.name not in NOT_THE_MODELS]
    # relative, so that the store can be moved as a whole
    links = {file.name: os.path.relpath(file, folder) for file in files} | {"README.md": "RECEIPT.md"}
    for name, target in links.items():
        link = folder / name
        # a student that was trained again has another artifact; links that are right are left alone
        if not link.is_symlink() or os.readlink(link) != target:
            link.unlink(missing_ok=True)
            link.symlink_to(target)
