"""Data stages: the mixture, the rows of a fraction, their blocks, and decontamination.

A cell's rows are made once and handed to every builder of its stages. A teacher answers and scores fixed blocks of
rows: a block is a range of each source's seeded row order (`stages/subset.py`), the ranges end at 1, 2, 5 in each
decade and at every tenth, and no fraction, budget or student is part of its address: a larger fraction adds blocks
and relabels nothing.

    rows = CellRows.of(cell, base_stage(cell, cell.student)); rows.subset.inputs["mixture"] is rows.mixture
    block_edges(0.03)       # (0, 0.0001), (0.0001, 0.0002), ..., (0.01, 0.02), (0.02, 0.05)
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from harness.config.cell import Cell
from harness.data.corpora import corpus_name
from harness.evals.benchmarks import benchmark_files, benchmark_identity, benchmark_names
from harness.plan.graph import Stage

EDGES = (
    *(step * 10.0**-decade for decade in (4, 3, 2) for step in (1, 2, 5)),
    *(tenth / 10 for tenth in range(1, 11)),
)
"""Where blocks of rows end, as fractions of each source's order."""


@dataclass(frozen=True)
class BadRows:
    """What becomes of rows that a chat template rejects, or whose text has control tokens."""

    on_bad_row: str = "refuse"
    control_tokens: str = "text"

    @classmethod
    def of(cls, corpus: Any) -> "BadRows":
        """As a corpus's settings have it."""
        return cls(corpus.on_bad_row, corpus.control_tokens)

    @property
    def settings(self) -> dict[str, str]:
        """What enters an address: nothing at the default, so that earlier addresses stay."""
        return {} if self.control_tokens == "text" else {"control_tokens": self.control_tokens}

    @property
    def where(self) -> dict[str, str]:
        """What needs no part in it: `on_bad_row` is in the identity of the mixture already."""
        return {} if self.on_bad_row == "refuse" else {"on_bad_row": self.on_bad_row}


REFUSED = BadRows()


@dataclass(frozen=True)
class CellRows:
    """The rows of one cell: its corpus, the fraction it trains on, and what is compared with its evaluations."""

    cell: Cell
    """The cell, with every seed filled in."""
    mixture: Stage
    """The whole corpus as rows, with its held-out split."""
    tokenizer: Stage
    """The base model of the student, whose tokenizer renders the rows."""

    @classmethod
    def of(cls, cell: Cell, tokenizer: Stage) -> "CellRows":
        """The rows of a cell with seeds, rendered for the tokenizer of its student's base model.

        Raises as `mixture_stage`.
        """
        assert cell.data_seed is not None, "Cell.with_seeds fills the seeds in"
        return cls(cell, mixture_stage(cell, cell.corpus, scored=scores_heldout(cell)), tokenizer)

    @cached_property
    def benchmarks(self) -> tuple[str, ...]:
        """Names of the cell's evaluations that are public benchmarks; the others score the mixture's held-out rows."""
        # sorted and without repeats, so that the order of `evals.names` moves no address
        known = benchmark_names()
        return tuple(name for name in sorted(set(self.cell.evals.names)) if name in known)

    @cached_property
    def subset(self) -> Stage:
        """The cell's fraction of the rows, rendered for the student's tokenizer."""
        return self.rendered_for(self.tokenizer)

    def rendered_for(self, tokenizer: Stage, room: int = 1) -> Stage:
        """The rows of `subset`, rendered for another model's tokenizer, at most `room` times as long."""
        cell = self.cell
        assert cell.data_seed is not None
        return subset_stage(
            self.mixture,
            tokenizer,
            cell.data_frac,
            cell.data_seed,
            room * cell.corpus.max_length,
            answers=cell.corpus.answers,
            overlap=self.dropped_by(self.mixture),
            bad_rows=BadRows.of(cell.corpus),
        )

    def blocks(self, tokenizer: Stage, room: int = 1) -> list[Stage]:
        """The blocks that hold every row of the cell's fraction, rendered for one tokenizer as `rendered_for` does."""
        cell = self.cell
        assert cell.data_seed is not None
        length = room * cell.corpus.max_length
        return [
            block_stage(
                self.mixture, tokenizer, edges, cell.data_seed, length, cell.corpus.answers, BadRows.of(cell.corpus)
            )
            for edges in block_edges(cell.data_frac)
        ]

    def overlap(self, rows: Stage) -> Stage:
        """Where rows (a mixture, or synthetic ones) are compared with every item the cell is scored on.

        The cell's own mixture is compared for its held-out rows. Neither the number of items that are scored nor the
        model that answers them is part of the stage. Raises SettingsError where `evals.data_dir` lacks files.
        """
        inputs = {"rows": rows} | ({"heldout": self.mixture} if scores_heldout(self.cell) else {})
        if "subset" in rows.inputs:  # synthetic rows are kept as tokens
            inputs["tokenizer"] = rows.inputs["subset"].inputs["tokenizer"]
        from harness.data.ngram_overlap import SHARE, SIZE  # it needs numpy, which `grid status` does without

        settings = {"size": SIZE, "share": SHARE, "benchmarks": self._benchmark_identities}
        return Stage("overlap", rows.name, settings, inputs, {"files": self._benchmark_files})

    def dropped_by(self, rows: Stage) -> Stage | None:
        """The stage that names the rows of a mixture to leave out of training; None where all may stay."""
        return self.overlap(rows) if self.cell.evals.overlap == "drop" else None

    def overlaps(self, train: Sequence[Stage]) -> tuple[Stage, ...]:
        """An overlap stage for each mixture, and each set of synthetic rows, that student or teacher train on."""
        if self.cell.evals.overlap == "none":
            return ()
        kinds = ("mixture", "synthesize")
        needed = {one.key: one for last in train[-1:] for one in last.ancestry() if one.kind in kinds}
        return tuple(self.overlap(rows) for rows in needed.values())

    @cached_property
    def _benchmark_identities(self) -> dict[str, Any]:
        evals = replace(self.cell.evals, server=None)  # the model that answers changes no item
        return {name: benchmark_identity(evals, name) for name in self.benchmarks}

    @cached_property
    def _benchmark_files(self) -> dict[str, Any]:
        return {name: benchmark_files(self.cell.evals, name).get("files", []) for name in self.benchmarks}


def scores_heldout(cell: Cell) -> bool:
    """Whether the cell is scored on held-out rows, as an evaluation does that is no benchmark."""
    return not set(cell.evals.names) <= set(benchmark_names())


def mixture_stage(cell: Cell, corpus: Any, scored: bool = False) -> Stage:
    """The whole corpus as rows, with its held-out split, on which models are `scored` or not.

    Raises SettingsError where the corpus finds no data, OSError where its files cannot be read.
    """
    # lengths cut a row when it is rendered or generated, and a mixture is text, so they are settings of later stages
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
        where={"corpus": {"kind": kind, **asdict(corpus)}, "world_seed": cell.world_seed, "scored": scored},
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
    bad_rows: BadRows = REFUSED,
) -> Stage:
    """The rows a fraction holds, rendered for one tokenizer, with validation carved from them where they have
    answers; without those whose prompt `exclude` holds out, or that `overlap` names."""
    inputs = {"mixture": mixture, "tokenizer": tokenizer} | ({"exclude": exclude} if exclude else {})
    inputs |= {"overlap": overlap} if overlap else {}
    settings: dict[str, Any] = {"data_frac": data_frac, "data_seed": data_seed, "max_length": max_length}
    # `answers` enters the address only where it is not the default, so that earlier addresses stay
    settings |= {"validation": 0.1} if answers == "given" else {"validation": 0.0, "answers": answers}
    settings |= bad_rows.settings
    return Stage("subset", f"{mixture.name}-{data_frac:g}-s{data_seed}", settings, inputs, bad_rows.where)


def block_stage(
    mixture: Stage,
    tokenizer: Stage,
    edges: tuple[float, float],
    data_seed: int,
    max_length: int,
    answers: str = "given",
    bad_rows: BadRows = REFUSED,
) -> Stage:
    """The rows of one block, validation rows among them, rendered for one tokenizer; it may hold none."""
    settings = {
        "block": list(edges),
        # the block ends where this fraction does: `make_subset` takes its rows and leaves out those up to edges[0]
        "data_frac": edges[1],
        "data_seed": data_seed,
        "max_length": max_length,
        "validation": 0.0,
        **({} if answers == "given" else {"answers": answers}),
        **bad_rows.settings,
    }
    inputs = {"mixture": mixture, "tokenizer": tokenizer}
    return Stage("subset", f"{mixture.name}-block-{edges[1]:g}-s{data_seed}", settings, inputs, bad_rows.where)


def block_edges(data_frac: float) -> list[tuple[float, float]]:
    """The blocks that hold every row of a fraction: (start, end] ranges of the order, the first from 0."""
    # a fraction that is an edge up to rounding ends a block there: 0.3 may be 3 * 0.1, which is larger
    ends = [edge for edge in EDGES if edge < data_frac * (1 - 1e-9)]
    ends.append(EDGES[len(ends)])
    return list(zip([0.0, *ends], ends, strict=False))
