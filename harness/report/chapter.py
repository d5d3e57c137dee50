"""Chapter: the report of one grid, ready to be written as HTML, Markdown, LaTeX and CSV.

one = chapter(outcome, Path("outputs/reports/g"), Path("."), store, frozen_plan)
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from harness.plan.claims import when_declared
from harness.plan.frozen import FrozenPlan
from harness.plan.metrics import MACRO_AVERAGE
from harness.report import tables
from harness.report.figures.figures import Picture, pictures
from harness.report.origins import made_with
from harness.report.paragraph import methods_paragraph
from harness.report.receipt import cell_name
from harness.report.sheet import Sheet
from harness.results.decision import Decision, advice, decisions, frame_of, place_of
from harness.results.findings import Finding
from harness.results.outcome import Outcome
from harness.results.records import REHEARSAL
from harness.results.spreadsheet import csv_text
from harness.results.suite import describe_suite
from harness.results.warning_ranks import Rank, grid_warnings, rank_of, ranked
from harness.store.store import Store, write_text

FIRST_RECEIPTS = 6


@dataclass(frozen=True)
class Chapter:
    """One grid of a report; links are relative to the page."""

    grid: str
    slug: str
    """The grid's name as a file's, and as an address within the page."""
    counts: str
    """How many cells are finished, in words."""
    metric: str
    advice: list[str]
    """The decision rule's answers, in sentences."""
    lines: list[tuple[str, list[Decision]]]
    """The same by student, corpus, budget and teacher."""
    shared_changes: list[str]
    """What would change every verdict."""
    verdict: str
    declared: str
    """When claims were declared, in words."""
    findings: list[Finding]
    decision: list[Sheet]
    claims: Sheet | None
    pictures: list[tuple[Picture, str]]
    """With the link to each SVG."""
    tables: list[Sheet]
    first_warnings: list[str]
    """Those that change a conclusion, which stand beside the verdict."""
    troubles: list[Sheet]
    receipts: list[Sheet]
    methods: str
    provenance: list[tuple[str, str]]
    downloads: list[tuple[str, str]]
    """What lies beside the page, with links."""

    @property
    def sheets(self) -> list[Sheet]:
        """All tables but receipts, in the page's order."""
        claims = [self.claims] if self.claims else []
        return [*self.decision, *claims, *self.tables, *self.troubles]


def chapter(
    outcome: Outcome, out: Path, part: Path, store: Store | None = None, frozen: FrozenPlan | None = None
) -> Chapter:
    """The chapter of one grid; figures and tables are written into `out`/figures and /tables, under `part`.

    `store` and `frozen` are those of a grid in a store; without them there are no receipts and no provenance. Raises
    OSError where a file of the outcome cannot be read, or one of the chapter not be written.
    """
    # random weights have gains too, and a decision on them could be mistaken for one
    found = [] if outcome.rehearsal else decisions(outcome.summary, outcome.metric)
    drawn = pictures(outcome, out / "figures" / part)
    lines: dict[str, list[Decision]] = {}
    for one in found:
        lines.setdefault(place_of(one), []).append(one)
    links = [] if store is None else _receipts(outcome, out, store)
    # a grid may have many students: the first few receipts are shown, the others folded
    receipts = [tables.receipts_sheet(links[:FIRST_RECEIPTS])] if links else []
    receipts += [tables.receipts_sheet(links[FIRST_RECEIPTS:], more=True)] if links[FIRST_RECEIPTS:] else []
    scored = [tables.scores_sheet(outcome), tables.references_sheet(outcome)]
    scored += [tables.simultaneous_sheet(outcome), tables.costs_sheet(outcome)]
    if outcome.rehearsal:
        scored = [replace(sheet, title=f"{sheet.title} ({REHEARSAL})") for sheet in scored]
    metric = outcome.metric
    whole = grid_warnings(outcome.records, outcome.summary, metric)
    every = [warning for record in outcome.records for warning in record.warnings]
    lower = "" if metric is None or metric.higher_is_better else ", lower is better"
    made = Chapter(
        grid=outcome.grid,
        slug=slug(outcome.grid),
        counts=_counts(outcome),
        metric=f"{metric.label}{_suite(outcome)}{lower}" if metric else "no score",
        advice=[f"{REHEARSAL[0].upper()}{REHEARSAL[1:]}."] if outcome.rehearsal else advice(found),
        lines=list(lines.items()),
        shared_changes=tables.shared_changes(found),
        verdict=outcome.verdict,
        declared=_declared(outcome),
        findings=outcome.findings,
        decision=[tables.decision_sheet(found), tables.price_sheet(found)],
        claims=tables.claims_sheet(outcome.findings) if outcome.findings else None,
        pictures=[(picture, picture.path.relative_to(out).as_posix()) for picture in drawn],
        tables=[sheet for sheet in scored if sheet.rows],
        first_warnings=[one for one in ranked([*whole, *every]) if rank_of(one) <= Rank.LOST],
        troubles=[tables.lost_sheet(outcome.records), tables.warnings_sheet(outcome.records, whole)],
        receipts=receipts,
        methods=methods_paragraph(outcome),
        provenance=_provenance(store, frozen),
        downloads=[],
    )
    # what is written depends on the chapter's own sheets, so its links are added when it is made
    made.downloads.extend(_write(made, outcome, found, out, Path("tables") / part))
    return made


def slug(name: str) -> str:
    """A name that is safe as a file's and within a page."""
    return re.sub(r"[^\w.=+-]+", "_", name).strip(".") or "_"


def _write(made: Chapter, outcome: Outcome, found: Sequence[Decision], out: Path, part: Path) -> list[tuple[str, str]]:
    """Write tables as CSV (every number in full) and LaTeX; returns labels and links of all downloads."""
    folder = out / part
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {
        "decision": frame_of(found),
        "claims": tables.findings_frame(outcome.findings),
        "summary": outcome.summary,
        "results": outcome.results,
    }
    written = []
    for name, frame in numbers.items():
        write_text(folder / f"{name}.csv", csv_text(frame))
        written.append(f"{name}.csv")
    for sheet in made.sheets:
        if sheet.rows:
            write_text(folder / f"{sheet.name}.tex", sheet.latex(made.slug))
            written.append(f"{sheet.name}.tex")
    links = [(name, (part / name).as_posix()) for name in written]
    return links + [(Path(link).name, link) for _, link in made.pictures]


def _suite(outcome: Outcome) -> str:
    """The benchmarks of the metric, where it is a macro-average."""
    whole = outcome.metric is not None and outcome.metric.eval == MACRO_AVERAGE
    return f" of {describe_suite(outcome.records)}" if whole else ""


def _counts(outcome: Outcome) -> str:
    students = [record for record in outcome.records if record.role == "student"]
    counts = [f"{len(students)} cells"]
    for status in dict.fromkeys(record.status for record in students):
        counts.append(f"{sum(record.status == status for record in students)} {status}")
    return ", ".join([*counts, *([REHEARSAL] if outcome.rehearsal else [])])


def _declared(outcome: Outcome) -> str:
    kept = outcome.declaration
    if kept is None:
        return "No claim was declared before this grid ran: all results here are exploratory."
    at = datetime.fromisoformat(kept["declared"]).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    when = f"Declared {at} (SHA-256 {kept['sha256'][:12]}), {when_declared(kept)}"
    # claims declared after cells were finished may have been chosen by their scores
    if kept["cells_finished"] == 0:
        return f"{when}. All other results on this page are exploratory."
    return f"{when}: the finished cells may have informed them. All other results on this page are exploratory."


def _receipts(outcome: Outcome, out: Path, store: Store) -> list[tuple[str, str, str]]:
    """Name, relative link and opening sentence of each receipt that is there."""
    found = []
    for record in outcome.records:
        path = store.model_folder(outcome.grid, cell_name(record)) / "RECEIPT.md" if record.role == "student" else None
        if path is None or not path.is_file():
            continue
        # a receipt opens with its verdict, the first line in bold
        says = next((line.strip("* ") for line in path.read_text().splitlines() if line.startswith("**")), "")
        # relative to the page, so that a report below its store can be moved with it
        found.append((path.parent.name, quote(Path(os.path.relpath(path, out)).as_posix()), says))
    return found


def _provenance(store: Store | None, frozen: FrozenPlan | None) -> list[tuple[str, str]]:
    """Code, versions, machines and dates of the grid's stages, in words."""
    if store is None or frozen is None:
        return [("records", "exported; the store they came from has code, versions and machines")]
    made = made_with(store, frozen)
    if not made["stages"]:
        return [("stages", f"none of {made['planned']} is finished yet")]
    # UTC, so that the page has the same bytes wherever it is written
    first, last = (datetime.fromtimestamp(made[end], UTC).strftime("%Y-%m-%d %H:%M UTC") for end in ("first", "last"))
    changed = f"; {made['changed']} stages ran with uncommitted changes of the code" if made["changed"] else ""
    return [
        ("stages", f"{made['stages']} of {made['planned']} finished, {first} to {last}"),
        ("git commit", ", ".join(f"{name} ({count} stages)" for name, count in made["commits"].items()) + changed),
        ("versions", ", ".join(made["versions"])),
        ("machines", ", ".join(made["machines"])),
    ]
