"""The terminal's summary of a grid: table, figure, verdict and models, written into its folder and printed.

At the end: what the verbs of `harness.grid` print, as lines of text. Nothing here looks at jobs or processes.

Finished.collect(store, frozen).show()
console.print(overview(frame))      # every public benchmark side by side, a row per model
print(*explain_lines(store, "train-1f", "train-2a"), sep="\n")
"""

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.checks import SettingsError, refuse
from harness.plan.frozen import FrozenPlan, freeze, frozen_plan, grid_names
from harness.plan.metrics import MACRO_AVERAGE
from harness.runtime.processes import visible_gpus
from harness.store.fingerprint import differences
from harness.store.status import RECHECKED_CLASSES
from harness.store.store import DamagedError, Store, write_text

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from harness.config.cluster import Cluster
    from harness.plan.cell_plan import Plan
    from harness.plan.compose import Composed
    from harness.results.outcome import Outcome
    from harness.results.records import Record


NAMED = ["method", "teacher", "student"]
MOST_RECEIPTS = 500
"""Receipts that are written without being asked for."""
LOG_LINES = 40
"""Of a job's log, the last ones are shown."""


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
    without_receipt: int = 0
    """Finished students whose receipts were not written, because they are many."""

    @classmethod
    def collect(cls, store: Store, frozen: FrozenPlan, receipts: bool | None = None) -> "Finished":
        """Read records from the store; write table, figure and verdict into the grid's folder, then the receipts.

        `receipts` null: only of a grid with MOST_RECEIPTS finished students or fewer, since each takes a while. Raises
        SettingsError as `by_arm` does, OSError where files cannot be read or written.
        """
        # imported where they are used: figures and tables load slowly, and most verbs print neither
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
        crossover_figure(frame, folder / "crossover", outcome.crossovers, outcome.metric)
        # fewer arms are the lines of the crossover figure already
        if arms_of(frame, outcome.metric, outcome.simultaneous)["name"].nunique() > MANY:
            forest_figure(frame, folder / "methods", outcome.metric, outcome.simultaneous)
        write_text(folder / "verdict.txt", outcome.verdict + "\n")
        write_text(folder / "records.jsonl", lines_of(found))
        students = sum(one.role == "student" and one.status == "done" and one.artifact is not None for one in found)
        if receipts is None:
            receipts = students <= MOST_RECEIPTS
        models = write_receipts(store, frozen, found) if receipts else []
        return cls(outcome, folder, models, without_receipt=0 if receipts else students)

    @property
    def grid(self) -> str:
        """The grid's name."""
        return self.outcome.grid

    @property
    def records(self) -> "list[Record]":
        """One record per cell, then one per reference model."""
        return self.outcome.records

    @property
    def summary(self) -> "pd.DataFrame":
        """One row per arm x evaluation x metric, with intervals."""
        return self.outcome.summary

    @property
    def verdict(self) -> str:
        """The result of the grid and its certainty, in sentences."""
        return self.outcome.verdict

    @property
    def failed(self) -> "list[Record]":
        """Records of student cells that have no score."""
        return [record for record in self.records if record.status != "done" and record.role == "student"]

    def show(self) -> None:
        """Print the table, the failures, the verdict and where the files are."""
        from rich.console import Console

        from harness.results.table import render
        from harness.results.warning_ranks import grid_warnings, rank_of

        # a file or a pipe has no width, and rich would fold the table to 80 columns
        console = Console(width=None if sys.stdout.isatty() else 160)
        console.print(render(self.summary, self.outcome.metric))
        if (benchmarks := overview(self.summary)) is not None:
            console.print(benchmarks)
        # many cells warn of the same, so the first of each kind is printed, and the kind is what stands before the
        # colon; of one rank, those of the grid come first
        whole = [*grid_warnings(self.records, self.summary, self.outcome.metric), *self.warnings]
        kinds = {warning: (rank_of(warning), [f"{self.grid}: {warning}"]) for warning in whole}
        for record in self.records:
            for warning in record.warnings:
                kind = kinds.setdefault(warning.split(":")[0], (rank_of(warning), []))
                kind[1].append(f"{_who(record)}: {warning}")
        for _, warnings in sorted(kinds.values(), key=lambda kind: kind[0]):
            more = f" ({len(warnings) - 1} more of this kind are in records.jsonl)" if len(warnings) > 1 else ""
            console.print(f"warning: {warnings[0]}{more}", style="yellow", highlight=False, markup=False)
        for record in self.failed:
            told = f"{record.status}: {_who(record)}: {record.reason}"
            console.print(told, style="red", highlight=False, markup=False)
        if classes := {record.failure_class for record in self.failed}:
            # what was refused is looked at again by the same command; what it blocked follows
            again = not classes <= {*RECHECKED_CLASSES, "blocked", None}
            way = "To run the failed cells again, add retry=true to the command"
            refused = "Correct what is refused, then run the same command again"
            console.print(f"{way if again else refused}; finished cells are kept.", highlight=False)
        console.print(self.verdict, style="bold", highlight=False, markup=False)
        console.print(
            f"{self.folder}: results.parquet, results.csv, summary.csv, crossover.png, crossover.svg, records.jsonl",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
        if self.without_receipt:
            told = f"{self.without_receipt} models are without a receipt, since they are more than {MOST_RECEIPTS}. "
            told += f"To write them: python -m harness.grid results {self.grid} --receipts"
            console.print(told, soft_wrap=True, highlight=False, markup=False)
        if self.models:
            told = f"{self.models[0].parent}: {len(self.models)} models, each with its RECEIPT.md"
            console.print(told, soft_wrap=True, highlight=False, markup=False)


def _who(record: "Record") -> str:
    """A record in words: `kd 0.1 seed 0`, or the role of a reference model."""
    if record.role != "student":
        return record.role
    return f"{record.method} {record.data_frac:g} seed {record.seed}"


def overview(frame: "pd.DataFrame") -> "Table | None":
    """Scores of all arms on public benchmarks; null where a grid has none. Bold: a gain over SFT after Holm, of two
    seeds or more."""
    import pandas as pd
    from rich import box
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    from harness.results.conclusion import BETTER, WORSE
    from harness.results.table import percent

    columns = ("eval", "metric", "source", "headline")
    rows = frame if len(frame) and set(columns) <= set(frame) else pd.DataFrame(columns=columns)
    # metrics of public benchmarks have their suite and their definition after an @
    public = rows["metric"].str.contains("@", na=False) | (rows["eval"] == MACRO_AVERAGE)
    rows = rows[public & (rows["source"] == "all") & rows["headline"].astype(bool)]
    if rows.empty:
        return None
    names = list(dict.fromkeys(zip(rows["eval"], rows["metric"], strict=True)))
    names.sort(key=lambda name: name[0] == MACRO_AVERAGE)  # after the benchmarks that it is made of
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
            row = cells.get(name) or {"score": math.nan, "gain_conclusion": ""}
            text = "" if pd.isna(row["score"]) else f"{row['score']:.3f}"
            scores.append(Text(text, "bold" if row["gain_conclusion"] in (BETTER, WORSE) else ""))
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


def plan_lines(composed: "Composed", plan: "Plan", store: Store, cluster: "Cluster | None") -> Iterator[str]:
    """How many cells and stages a plan has, what of it the store has, what the rest costs, its primary metric, and what
    claims can show.

    Raises SettingsError as `foresee` and `primary_metric` do, and for a claim with an unknown metric.
    """
    from harness.plan.claims import check_claims
    from harness.plan.estimate import plan_text
    from harness.plan.memory import memory_lines
    from harness.plan.metrics import grid_metrics, primary_metric, short_name
    from harness.plan.phase_steps import short_phases_warning
    from harness.plan.unread import unread_lines
    from harness.results.power import foresee

    done = sum(store.done(stage.key) for stage in plan.stages)
    yield (
        f"{len(composed.cells)} cells requested, {len(plan.cells)} distinct, {len(plan.stages)} stages, "
        f"{done} of them in the store"
    )
    known = grid_metrics(one.cell for one in plan.cells)
    primary = primary_metric(composed.settings.primary_metric, known)
    check_claims(composed.settings.claims, known)
    yield plan_text(plan, store, cluster)
    others = ", ".join(short_name(metric) for metric in known if metric != primary)
    yield f"primary metric: {short_name(primary)}" + (f" (others: {others})" if others else "")
    machine = composed.settings.machine
    if cluster is None and machine.device == "auto" and not visible_gpus():
        machine = replace(machine, device="cpu")
    yield from memory_lines(plan, store, machine, cluster)
    yield from (f"note: {line}" for line in unread_lines(composed, plan))
    yield from (f"warning: {line}" for line in short_phases_warning(plan))
    if composed.settings.claims:
        yield "claims, without items' variance and before Holm:"
        yield from (f"  {line}" for line in foresee(composed.settings.claims, freeze(plan, "")))


def attempt_lines(key: str, attempts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """How the tries at a stage ended, and the last one's traceback."""
    if not attempts:
        yield f"{key}: has not been tried yet"
    for number, page in enumerate(attempts, start=1):
        reason = f", {page['reason']}" if page.get("reason") else ""
        yield f"try {number} on {page.get('host')}: {page.get('outcome')}{reason}"
    if attempts and attempts[-1].get("traceback"):
        yield attempts[-1]["traceback"]


def log_lines(path: Path) -> Iterator[str]:
    """The end of what a job printed. Raises OSError where the log cannot be read."""
    yield f"--- {path}"
    yield from path.read_text(errors="replace").splitlines()[-LOG_LINES:]


def cost_lines(grid: str, source: str, table: "pd.DataFrame") -> Iterator[str]:
    """What a grid took, by kind of work, and where the figures are from."""
    yield f"{grid}, from {source}:"
    yield table.to_string(float_format="{:.2f}".format)


def explain_lines(store: Store, one: str, other: str | None = None) -> Iterator[str]:
    """A stage's identity; of two, the leaves in which they differ, their inputs' settings among them.

    A cell, or the folder of its model, stands for its last training stage. Raises SettingsError where a name fits no
    stage, or several.
    """
    known, cells = _known_stages(store), _known_cells(store)
    keys = [_find(known, name, cells) for name in (one, other) if name is not None]
    first, *second = (_identity(known, key) for key in keys)
    if not second:
        yield json.dumps(first, indent=1, sort_keys=True)
        return
    # inputs by their settings, not their fingerprints: one changed setting upstream would change every key below it
    leaves = differences(first, second[0])
    if leaves:
        yield f"{' -> '.join(str(known[key].get('address', key)) for key in keys)}"
    for path, before, after in leaves:
        yield f"{path}: {json.dumps(before)} -> {json.dumps(after)}"
    if not leaves:
        yield "the same stage: no setting differs"


def find_stage(store: Store, name: str) -> str:
    """The key of the one stage that an address, a key or the start of a fingerprint names.

    Raises SettingsError where it fits no stage of the store and its grids, or several.
    """
    return _find(_known_stages(store), name, _known_cells(store))


def show_gains(frame: "pd.DataFrame", by: Sequence[str]) -> None:
    """Print a grid's gains by class of held-out item."""
    from rich.console import Console

    from harness.results.breakdown import render

    Console(width=None if sys.stdout.isatty() else 160).print(render(frame, by))


def _known_stages(store: Store) -> dict[str, Any]:
    known: dict[str, Any] = {}
    for name in grid_names(store):
        with suppress(SettingsError):  # a plan that cannot be read hides its own stages alone
            known |= frozen_plan(store, name).stages
    # plans know stages that are not made yet, the store those of grids whose plans are gone
    for key in store.published():
        with suppress(DamagedError, FileNotFoundError):
            known[key] = store.manifest(key)
    return known


def _known_cells(store: Store) -> dict[str, str]:
    """The last stage that makes the student of every cell, by the cell's fingerprint."""
    known: dict[str, str] = {}
    for name in grid_names(store):
        with suppress(SettingsError):  # a plan that cannot be read hides its own cells alone
            known |= {cell.fingerprint: cell.train[-1] for cell in frozen_plan(store, name).cells if cell.train}
    return known


def _find(known: Mapping[str, Any], name: str, cells: Mapping[str, str] | None = None) -> str:
    # addresses, keys and the folders of models end with a fingerprint, so its first letters are enough for each
    digest = name.rstrip("/").rsplit("-", 1)[-1]
    found = sorted(key for key in known if key == name or key.rsplit("-", 1)[-1].startswith(digest)) if digest else []
    found = found or sorted({key for cell, key in (cells or {}).items() if digest and cell.startswith(digest)})
    if not found:
        raise refuse("address", name, "no stage matches", "`grid status <grid> --cells` lists fingerprints")
    if len(found) > 1:
        raise refuse("address", name, f"{len(found)} stages match", "give more letters of the fingerprint")
    return found[0]


def _identity(known: Mapping[str, Mapping[str, Any]], key: str) -> dict[str, Any]:
    """A stage's identity with its inputs' identities in place of their keys."""
    spec = known[key]
    return {
        "kind": spec["kind"],
        "version": spec["version"],
        "settings": spec["settings"],
        "inputs": {role: _identity(known, upstream) for role, upstream in spec["inputs"].items()},
    }
