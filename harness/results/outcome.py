"""Outcome: the results of a grid, from a store or from a folder that was exported.

Everything is computed from the grid's records and the scores of single items, at first use.

    outcome = Outcome.of(store, frozen_plan)
    outcome.summary, outcome.verdict, outcome.findings
    outcome.export(Path("shared/data_scaling"))     # small files without weights, texts or rows
    Outcome.read(Path("shared/data_scaling")).summary
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd

from harness.config.checks import refuse
from harness.evals import ALL
from harness.plan.claims import Claim, declared
from harness.plan.frozen import SEEDS, FrozenPlan
from harness.plan.metrics import MACRO_AVERAGE
from harness.results.arms import Arm, Metric, metrics_of
from harness.results.findings import Finding, judge
from harness.results.items import LoadItems, named_once, read_items
from harness.results.paired_gains import crossovers
from harness.results.records import REHEARSAL, Record, curves, lines_of, read_records, records
from harness.results.simultaneous import simultaneous_table
from harness.results.stats.crossover import Crossover
from harness.results.suite import suite_of
from harness.results.table import reported_metric, summary, tidy
from harness.results.verdict import verdict
from harness.store.store import Store, replacing, write_json, write_text

RECORDS, ITEMS, CLAIMS, PRIMARY = "records.jsonl", "items.parquet", "claims.json", "primary_metric.json"
NAMES = ("eval", "id", "source", "prompt_hash")
NAMED = (*"cell role method student teacher corpus budget data_frac".split(), *SEEDS, "status")


@dataclass(frozen=True)
class Outcome:
    """A grid's records and the tables, verdict and findings computed from them."""

    grid: str
    records: list[Record]
    declaration: Mapping[str, Any] | None = None
    """The claims as `harness.plan.claims.declared` gives them; null where none were declared."""
    load_items: LoadItems = read_items
    """From a path in a record's `items` to the scores of single items."""
    load_curves: Callable[[], pd.DataFrame] | None = None
    """Training curves (`records.curves`); null for an exported folder, which has none."""
    primary: Metric | None = None
    """The grid's primary metric; null where its plan names none, as those of earlier versions."""

    @classmethod
    def of(cls, store: Store, frozen: FrozenPlan) -> "Outcome":
        """Of a grid in a store, by its frozen plan. Raises OSError where a finished stage lacks a file."""
        claims = declared(store, frozen.grid)
        primary = frozen.primary_metric and Metric.named(frozen.primary_metric)
        load_curves = partial(curves, store, frozen)
        return cls(frozen.grid, records(store, frozen), claims, named_once(read_items), load_curves, primary or None)

    @classmethod
    def read(cls, folder: Path) -> "Outcome":
        """Of a folder that `export` wrote. Raises SettingsError for any other folder, and as `Record.of` does."""
        if not (folder / RECORDS).is_file() or not (folder / ITEMS).is_file():
            raise refuse("folder", str(folder), f"it lacks {RECORDS} or {ITEMS}", "export a grid into it first")
        found = read_records((folder / RECORDS).read_text())
        items = pd.read_parquet(folder / ITEMS)
        parts = {str(name): part.drop(columns="of") for name, part in items.groupby("of", observed=True)}
        # in an exported folder a record's `items` are names of parts, which stand where a store has paths
        path = folder / CLAIMS
        claims = json.loads(path.read_text()) if path.is_file() else None
        path = folder / PRIMARY
        primary = Metric.named(json.loads(path.read_text())["primary_metric"]) if path.is_file() else None
        grid = found[0].grid if found else folder.name
        return cls(grid, found, claims, named_once(parts.__getitem__), primary=primary)

    @cached_property
    def results(self) -> pd.DataFrame:
        """One row per cell x evaluation x metric x source (`table.tidy`)."""
        return tidy(self.records)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One row per arm x evaluation x metric, over seeds and replicates (`table.summary`)."""
        return summary(self.records, self.load_items, primary=self.primary)

    @cached_property
    def metric(self) -> Metric | None:
        """The metric of figures, verdict, decision and claims (`table.reported_metric`); null without any score."""
        return reported_metric(self.summary, self.primary, self.records)

    @property
    def rehearsal(self) -> bool:
        """Whether stand-ins of random weights were trained, so that no number means anything."""
        return any(REHEARSAL in record.budget for record in self.records)

    @cached_property
    def crossovers(self) -> dict[Arm, Crossover]:
        """Each line's crossover with SFT (`paired_gains.crossovers`)."""
        return crossovers(self.records, self.metric, self.load_items) if self.metric else {}

    @cached_property
    def simultaneous(self) -> pd.DataFrame:
        """Simultaneous comparisons with SFT (Dunnett; `simultaneous_table`); empty where there are few methods."""
        return simultaneous_table(self.records, self.metric, self.load_items) if self.metric else pd.DataFrame()

    @cached_property
    def verdict(self) -> str:
        """The result of the grid and its certainty, in sentences; of a rehearsal that there is none."""
        if self.rehearsal:
            students = [record for record in self.records if record.role == "student"]
            done = sum(record.status == "done" for record in students)
            why = "models of random weights stand in for real ones, and rows and items are made up"
            return f"No verdict ({REHEARSAL}): {why}. {done} of {len(students)} cells ran to the end."
        return verdict(self.summary, self.crossovers, self.metric)

    @cached_property
    def findings(self) -> list[Finding]:
        """The judgement of each claim; empty where none were declared. Raises SettingsError as `Claim.of` does."""
        if self.declaration is None or self.metric is None:
            return []
        claims = [Claim.of(one) for one in self.declaration["claims"]]
        found = judge(self.records, claims, self.metric, self.load_items)
        return [replace(one, verdict="rehearsal") for one in found] if self.rehearsal else found

    def export(self, folder: Path, evals: Sequence[str] | None = None) -> Path:
        """Write records, scores of items (no texts), claims and the primary metric into `folder`, which is returned.

        `evals`: of these evaluations only; a macro-average is exported with all of its benchmarks. Raises SettingsError
        where the primary metric is not among them and several others are, of which none would be the one to report;
        OSError where items cannot be read or files not be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        parts, exported = {}, []
        for record in self.records:
            wanted = [name for name in record.items if evals is None or name in evals]
            # names in place of paths into the store, which lead nowhere on another machine
            paths = {name: f"{record.role}-{record.cell}-{name}" for name in wanted}
            suite = suite_of(record.settings)
            whole = evals is None or bool(suite and set(suite) <= set(evals))
            scored = tuple(
                score
                for score in record.scores
                if evals is None or score.eval in evals or (whole and score.eval == MACRO_AVERAGE)
            )
            for name, key in paths.items():
                parts[key] = _scores_only(self.load_items(record.items[name])).assign(of=key)
            exported.append(replace(record, items=paths, scores=scored, artifact=None))
        kept = self._exported_metric(exported, evals)
        # a grid without scores is exported with the columns that `read` looks for
        empty = pd.DataFrame(columns=[*NAMES, "of"])
        frame = pd.concat(parts.values(), ignore_index=True) if parts else empty
        # the same few names repeat for every model; as categories each is stored once
        for column in (*NAMES, "of"):
            frame[column] = frame[column].astype("category")
        with replacing(folder / ITEMS) as unfinished:
            frame.to_parquet(unfinished, index=False, compression="zstd")
        write_text(folder / RECORDS, lines_of(exported))
        if self.declaration is not None:
            write_json(folder / CLAIMS, self.declaration)
        (folder / PRIMARY).unlink(missing_ok=True)  # of an export that was here before
        if kept is not None:
            write_json(folder / PRIMARY, {"primary_metric": kept.name})
        return folder

    def _exported_metric(self, exported: Sequence[Record], evals: Sequence[str] | None) -> Metric | None:
        """The primary metric where it is exported; null where one metric at most could be taken for it."""
        scored = metrics_of(exported)
        if self.primary is None or evals is None or self.primary in scored:
            return self.primary
        others = [metric.label for metric in scored if metric.source == ALL and metric.higher_is_better]
        if len(others) > 1:
            why = f"it leaves out the primary metric, {self.primary.label}, and keeps {', '.join(others)}"
            raise refuse("evals", list(evals), why, "export the primary metric's evaluations too")
        return None

    def logged(self) -> dict[str, Any]:
        """What a grid's run in Weights & Biases shows: the verdict in words, and tables of results and artifacts."""
        findings = [{"name": one.claim.name, "says": one.claim.says, **asdict(one)} for one in self.findings]
        return {
            "verdict": self.verdict,
            "summary": self.summary,
            "results": self.results,
            "claims": pd.DataFrame(findings).drop(columns="claim", errors="ignore"),
            "artifacts": pd.DataFrame([_artifacts(record) for record in self.records]),
        }


def _artifacts(record: Record) -> dict[str, Any]:
    """Which cell a record is of, and the keys of its artifacts in the store."""
    evaluations = {f"evaluation {name}": Path(path).parent.name for name, path in record.items.items()}
    model = Path(record.artifact).name if record.artifact else None
    return {name: getattr(record, name) for name in NAMED} | {"model": model, **evaluations}


def _scores_only(items: pd.DataFrame) -> pd.DataFrame:
    """What statistics read of items: names and numbers, no prompt and no answer."""
    # by type, so that a text column added later is not exported unseen
    numbers = items.select_dtypes(["number", "bool"]).columns
    return items[[*NAMES, *(name for name in numbers if name not in NAMES)]].astype({name: str for name in NAMES})
