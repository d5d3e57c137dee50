"""Evaluations of one model, planned: a stage for each, so that a suite that is interrupted loses at most one; and
where training rows are compared with what is asked there.

What a benchmark's score depends on is its card and its data, by content or by hub revision; what a held-out score
depends on is the mixture, and there alone the corpus is part of its identity.

    evaluate_stages(cell, model, mixture)["gsm8k"].key
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from harness.config.cell import Cell
from harness.config.evaluation import Evals
from harness.data.corpora._files import file_sha256
from harness.data.ngram_overlap import SHARE, SIZE
from harness.evals.benchmarks import card_names, data_files, load_card
from harness.stage import Stage
from harness.store.fingerprint import fingerprint


def evaluate_stages(cell: Cell, model: Stage, mixture: Stage) -> dict[str, Stage]:
    """The stages that score one model, by evaluation."""
    return {name: _stage(cell, name, model, mixture) for name in sorted(set(cell.evals.names))}


def overlap_stage(cell: Cell, rows: Stage, mixture: Stage) -> Stage:
    """Where rows (a mixture, or synthetic ones) are compared with every item the cell is scored on.

    `mixture` is the cell's own, whose held-out rows are scored. How many items are, and by which model, is no part.
    """
    names = sorted(set(cell.evals.names))
    benchmarks = [name for name in names if name in card_names()]
    evals = replace(cell.evals, server=None)  # who writes answers changes no item
    settings = {"size": SIZE, "share": SHARE, "benchmarks": {name: _benchmark(evals, name) for name in benchmarks}}
    where = {"files": {name: _where(evals, name).get("files", []) for name in benchmarks}}
    inputs = {"rows": rows} | ({"heldout": mixture} if len(benchmarks) < len(names) else {})
    if "subset" in rows.inputs:  # synthetic rows are kept as tokens
        inputs["tokenizer"] = rows.inputs["subset"].inputs["tokenizer"]
    return Stage("overlap", rows.name, settings, inputs, where)


def dropped_by(cell: Cell, rows: Stage, mixture: Stage) -> Stage | None:
    """The stage that says which of a mixture's rows are left out of training; None where all may stay."""
    return overlap_stage(cell, rows, mixture) if cell.evals.overlap == "drop" else None


def fingerprint_of(stages: Mapping[str, Stage]) -> str:
    """One fingerprint of several stages, by what each is for."""
    return fingerprint({name: stage.fingerprint for name, stage in stages.items()})


def _stage(cell: Cell, name: str, model: Stage, mixture: Stage) -> Stage:
    settings: dict[str, Any] = {"eval": name, "limit": cell.evals.limit}
    if cell.evals.precision != "fp32":
        settings["precision"] = cell.evals.precision
    if name in card_names():
        settings, where = settings | _benchmark(cell.evals, name), _where(cell.evals, name)
        return Stage("evaluate", f"{model.name}-{name}", settings, {"model": model}, where)
    if name == "verified":
        settings["max_new_tokens"] = cell.corpus.max_new_tokens
    return Stage("evaluate", f"{model.name}-{name}", settings, {"model": model, "mixture": mixture})


def _benchmark(evals: Evals, name: str) -> dict[str, Any]:
    card: dict[str, Any] = {"card": load_card(name).identity()}
    if evals.server is not None and load_card(name).max_new_tokens is not None:
        card["served"] = True
    if evals.data_dir is None:
        return card | {"revision": evals.revisions.get(name)}
    return card | {"files": {path.name: file_sha256(path) for path in data_files(name, evals.data_dir)}}


def _where(evals: Evals, name: str) -> dict[str, Any]:
    where: dict[str, Any] = {} if evals.server is None else {"server": evals.server}
    if evals.data_dir is not None:
        where["files"] = [str(path.resolve()) for path in data_files(name, evals.data_dir)]
    return where
