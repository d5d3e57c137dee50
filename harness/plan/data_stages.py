"""Data stages: the mixture, the rows of a fraction, their blocks, and decontamination."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from harness.config.cell import Cell
from harness.data.corpora import corpus_name
from harness.data.ngram_overlap import SHARE, SIZE
from harness.evals.benchmarks import benchmark_files, benchmark_identity, benchmark_names
from harness.plan.graph import Stage

EDGES = (
    *(step * 10.0**-decade for decade in (4, 3, 2) for step in (1, 2, 5)),
    *(tenth / 10 for tenth in range(1, 11)),
)
"""Where blocks of rows end, as fractions of each source's order."""


def block_edges(data_frac: float) -> list[tuple[float, float]]:
    """The blocks that hold every row of a fraction: (start, end] ranges of the order, the first from 0."""
    ends = [edge for edge in EDGES if edge < data_frac * (1 - 1e-9)]
    ends.append(EDGES[len(ends)])
    return list(zip([0.0, *ends], ends, strict=False))


def mixture_stage(cell: Cell, corpus: Any) -> Stage:
    """The whole corpus as rows, with its held-out split."""
    identity = {
        name: value
        for name, value in corpus.identity(cell.world_seed).items()
        if name not in ("max_length", "max_new_tokens")
    }
    kind = corpus_name(corpus)
    return Stage(
        "mixture",
        kind,
        {"corpus": {"kind": kind, **identity}},
        where={"corpus": {"kind": kind, **asdict(corpus)}, "world_seed": cell.world_seed},
    )


def subset_stage(
    mixture: Stage,
    tokenizer: Stage,
    data_frac: float,
    data_seed: int,
    max_length: int,
    exclude: Stage | None = None,
    answers: str = "given",
    overlap: Stage | None = None,
) -> Stage:
    """The rows a fraction holds, rendered for one tokenizer, with validation carved from them where they have
    answers; without those whose prompt `exclude` holds out, or that `overlap` names."""
    inputs = {"mixture": mixture, "tokenizer": tokenizer} | ({"exclude": exclude} if exclude else {})
    inputs |= {"overlap": overlap} if overlap else {}
    settings: dict[str, Any] = {"data_frac": data_frac, "data_seed": data_seed, "max_length": max_length}
    settings |= {"validation": 0.1} if answers == "given" else {"validation": 0.0, "answers": answers}
    return Stage("subset", f"{mixture.name}-{data_frac:g}-s{data_seed}", settings, inputs)


def block_stage(
    mixture: Stage,
    tokenizer: Stage,
    edges: tuple[float, float],
    data_seed: int,
    max_length: int,
    answers: str = "given",
) -> Stage:
    """The rows of one block, validation rows among them, rendered for one tokenizer; it may hold none."""
    settings = {
        "block": list(edges),
        "data_frac": edges[1],
        "data_seed": data_seed,
        "max_length": max_length,
        "validation": 0.0,
        **({} if answers == "given" else {"answers": answers}),
    }
    inputs = {"mixture": mixture, "tokenizer": tokenizer}
    return Stage("subset", f"{mixture.name}-block-{edges[1]:g}-s{data_seed}", settings, inputs)


def overlap_stage(cell: Cell, rows: Stage, mixture: Stage) -> Stage:
    """Where rows (a mixture, or synthetic ones) are compared with every item the cell is scored on.

    `mixture` is the cell's own, whose held-out rows are scored. How many items are, and by which model, is no part.
    """
    names = sorted(set(cell.evals.names))
    benchmarks = [name for name in names if name in benchmark_names()]
    evals = replace(cell.evals, server=None)  # who writes answers changes no item
    identities = {name: benchmark_identity(evals, name) for name in benchmarks}
    settings = {"size": SIZE, "share": SHARE, "benchmarks": identities}
    where = {"files": {name: benchmark_files(evals, name).get("files", []) for name in benchmarks}}
    inputs = {"rows": rows} | ({"heldout": mixture} if len(benchmarks) < len(names) else {})
    if "subset" in rows.inputs:  # synthetic rows are kept as tokens
        inputs["tokenizer"] = rows.inputs["subset"].inputs["tokenizer"]
    return Stage("overlap", rows.name, settings, inputs, where)


def dropped_by(cell: Cell, rows: Stage, mixture: Stage) -> Stage | None:
    """The stage that says which of a mixture's rows are left out of training; None where all may stay."""
    return overlap_stage(cell, rows, mixture) if cell.evals.overlap == "drop" else None


def _subset(cell: Cell, mixture: Stage, tokenizer: Stage, answers: str = "given") -> Stage:
    """The cell's rows, rendered for one tokenizer."""
    assert cell.data_seed is not None
    dropped = dropped_by(cell, mixture, mixture)
    return subset_stage(
        mixture, tokenizer, cell.data_frac, cell.data_seed, cell.corpus.max_length, answers=answers, overlap=dropped
    )


def _overlaps(cell: Cell, train: Sequence[Stage], mixture: Stage) -> tuple[Stage, ...]:
    """A stage for each mixture, and for each set of synthetic rows, that student or teacher are trained on."""
    if cell.evals.overlap == "none":
        return ()
    needed = {one.key: one for last in train[-1:] for one in last.ancestry() if one.kind in ("mixture", "synthesize")}
    return tuple(overlap_stage(cell, rows, mixture) for rows in needed.values())
