"""The terminal's summary of a grid: table, figure, verdict and models, written into its folder and printed.

Finished.collect(store, frozen).show()
console.print(overview(frame))      # every public benchmark side by side, a row per model
"""

import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness.plan.frozen import FrozenPlan
from harness.results.records import Record
from harness.results.table import percent
from harness.store.store import Store, write_text

if TYPE_CHECKING:
    from rich.table import Table

    from harness.results.outcome import Outcome


NAMED = ["method", "teacher", "student"]


@dataclass(frozen=True)
class Finished:
    """The results of a grid, and the files that hold them."""

    outcome: "Outcome"
    folder: Path
    """Of tables, figure, verdict and records."""
    models: list[Path]
    """Folders of the finished students, each with its receipt."""
    warnings: list[str] = field(default_factory=list)
    """About the grid as a whole."""

    @classmethod
    def collect(cls, store: Store, frozen: FrozenPlan) -> "Finished":
        """Read records from the store; write table, figure and verdict into the grid's folder."""
        from harness.report.figures.forest import MANY, arms_of, forest_figure
        from harness.report.figures.plots import crossover_figure
        from harness.report.receipt import write_receipts
        from harness.results.outcome import Outcome
        from harness.results.records import lines_of
        from harness.results.table import write

        outcome = Outcome.of(store, frozen)
        found, frame = outcome.records, outcome.summary
        folder = store.grid_folder(frozen.grid)
        write(folder, found, frame)
        models = write_receipts(store, frozen, found)
        crossover_figure(frame, folder / "crossover", outcome.crossovers)
        if arms_of(frame, outcome.metric, outcome.simultaneous)["name"].nunique() > MANY:
            forest_figure(frame, folder / "methods", outcome.metric, outcome.simultaneous)
        write_text(folder / "verdict.txt", outcome.verdict + "\n")
        write_text(folder / "records.jsonl", lines_of(found))
        return cls(outcome, folder, models)

    @property
    def grid(self) -> str:
        """The grid's name."""
        return self.outcome.grid

    @property
    def records(self) -> list[Record]:
        """One record per cell, then one per reference model."""
        return self.outcome.records

    @property
    def summary(self) -> pd.DataFrame:
        """One row per arm x evaluation x metric, with intervals."""
        return self.outcome.summary

    @property
    def verdict(self) -> str:
        """The result of the grid and its certainty, in sentences."""
        return self.outcome.verdict

    @property
    def failed(self) -> list[Record]:
        """Records of student cells that have no score."""
        return [record for record in self.records if record.status != "done" and record.role == "student"]

    def show(self) -> None:
        """Print the table, the failures, the verdict and where the files are."""
        from rich.console import Console

        from harness.results.table import render

        console = Console(width=None if sys.stdout.isatty() else 160)
        console.print(render(self.summary))
        if (benchmarks := overview(self.summary)) is not None:
            console.print(benchmarks)
        kinds = {warning: [f"{self.grid}: {warning}"] for warning in self.warnings}
        for record in self.records:
            for warning in record.warnings:
                kinds.setdefault(warning.split(":")[0], []).append(f"{_who(record)}: {warning}")
        for warnings in kinds.values():
            more = f" ({len(warnings) - 1} more of this kind are in records.jsonl)" if len(warnings) > 1 else ""
            console.print(f"warning: {warnings[0]}{more}", style="yellow", highlight=False, markup=False)
        for record in self.failed:
            told = f"{record.status}: {_who(record)}: {record.reason}"
            console.print(told, style="red", highlight=False, markup=False)
        if self.failed:
            console.print("To run the failed cells again, add retry=true to the command; finished cells are kept.")
        console.print(self.verdict, style="bold", highlight=False, markup=False)
        console.print(
            f"{self.folder}: results.parquet, results.csv, summary.csv, crossover.png, crossover.svg, records.jsonl",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
        if self.models:
            told = f"{self.models[0].parent}: {len(self.models)} models, each with its RECEIPT.md"
            console.print(told, soft_wrap=True, highlight=False, markup=False)


def _who(record: Record) -> str:
    """A record in words: `kd 0.1 seed 0`, or the role of a reference model."""
    if record.role != "student":
        return record.role
    return f"{record.method} {record.data_frac:g} seed {record.seed}"


def overview(frame: pd.DataFrame) -> "Table | None":
    """Scores of all arms on public benchmarks; null where a grid has none. Bold: a gain over SFT after Holm."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    columns = ("metric", "source", "headline")
    rows = frame if len(frame) and set(columns) <= set(frame) else pd.DataFrame(columns=columns)
    rows = rows[rows["metric"].str.contains("@", na=False) & (rows["source"] == "all") & rows["headline"].astype(bool)]
    if rows.empty:
        return None
    names = list(dict.fromkeys(zip(rows["eval"], rows["metric"], strict=True)))
    order = rows["role"].map({"base": 0, "student": 1, "teacher": 2})
    rows = rows.assign(order=order).sort_values(["order", "data_frac", "method"], kind="stable")
    table = Table(title="Public benchmarks", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("data", justify="right")
    for column in NAMED:
        table.add_column(column)
    for name, metric in names:
        table.add_column(escape(f"{name}\n{metric.partition('@')[0]}"), justify="right")
    for _, part in rows.groupby(["role", "data_frac", *NAMED], sort=False, dropna=False):
        first: dict[Any, Any] = part.iloc[0].to_dict()
        cells: dict[Any, dict[Any, Any]] = {(row["eval"], row["metric"]): row for row in part.to_dict("records")}
        scores = []
        for name in names:
            row = cells.get(name) or {"score": math.nan, "gain_p_holm": math.nan}
            text = "" if pd.isna(row["score"]) else f"{row['score']:.3f}"
            scores.append(Text(text, "bold" if row["gain_p_holm"] < 0.05 else ""))
        named = [first[column] for column in NAMED]
        shown = ["" if pd.isna(value) else escape(str(value)) for value in named]
        table.add_row(percent(first["data_frac"]), *shown, *scores)
    suite = names[0][1].partition("@")[2].rpartition("/")[0]
    table.caption = (
        f"Scored by {suite}; results.csv has the hash of each benchmark's definition. "
        "Scores of other suites are not comparable."
    )
    table.caption_justify = "left"
    return table
