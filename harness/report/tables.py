"""Tables of a report, each from an outcome: decision, price, claims, scores, references, costs, failures, warnings.

decision_sheet(decisions(outcome.summary, outcome.metric)).markdown()
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import pandas as pd

from harness.plan.metrics import MACRO_AVERAGE, RAW, RESCALED
from harness.report.sheet import Column, Entry, Sheet, dense, entry, p_value, quantity, short
from harness.results.arms import Metric
from harness.results.conclusion import CLEAR, HINT, mark
from harness.results.decision import DISTIL, POINT, WORSE, Decision
from harness.results.findings import Finding
from harness.results.outcome import Outcome
from harness.results.records import Record
from harness.results.suite import describe_suite
from harness.results.table import HINTS, PURPOSES, interval_text, percent
from harness.results.warning_ranks import ranked

VARYING = ("student", "corpus", "budget", "variant")
MANY = 12
"""Rows above which a table of single cells is folded."""
PURPOSE_LABELS = dict(
    zip(PURPOSES, ("training", "teacher's share", "total", "with teacher training", "amortised"), strict=True)
)
REPLICATE = "A replicate has its own corpus and teacher."
CLAIM_MARKS = {"holds": "good", "does not hold": "bad"}


def decision_sheet(found: Sequence[Decision]) -> Sheet:
    """What to do where, with the expected gain, what a point of it costs, and what would change the verdict."""
    names = _varying([one.__dict__ for one in found])
    # what all rows have in common stands once above the table, and is left out of each row
    shared = shared_changes(found)
    columns = [Column(name) for name in names]
    columns += [Column("teacher"), Column("data", True), Column("choice")]
    columns += [Column("gain over SFT [95 %]", True), Column("p (Holm)", True)]
    columns += [Column(f"extra FLOPs per {POINT:g} gained", True)]
    rows = []
    for one in found:
        # only what is shown gets a colour: no difference shown is neither good nor bad
        colour = "good" if one.choice == DISTIL else "bad" if one.why == WORSE else ""
        row = [Entry(str(getattr(one, name))) for name in names]
        row += [Entry(one.teacher), _fraction(one.data_frac)]
        row += [Entry(_choice(one), None, colour)]
        row += [entry_interval(one.__dict__ | _gain(one), "gain"), p_value(one.p_holm), _per_point(one, "flops")]
        rows.append([*row, Entry(" ".join(text for text in one.would_change() if text not in shared))])
    by = f" in {found[0].metric}" if found and found[0].metric else ""
    caption = (
        f"The rule: distil where the gain over SFT{by} is better than zero after Holm over all {found[0].comparisons} "
        'comparisons of the table, with the method whose gain is largest; else fine-tune. Beside "fine-tune" stands '
        "the method with the largest gain; where every gain rests on one seed, the choice is undecided. The range of a "
        f"cost per {POINT:g} gained follows from the gain's interval."
        if found
        else "No student has a teacher, so there is no decision."
    )
    return Sheet(
        "decision", "Distil or fine-tune", [*columns, Column("what would change it", prose=True)], rows, caption
    )


def price_sheet(found: Sequence[Decision]) -> Sheet:
    """What SFT and the method of each decision cost, with the teacher's share and its making."""
    names = _varying([one.__dict__ for one in found])
    columns = [*(Column(name) for name in names), Column("teacher"), Column("data", True), Column("method")]
    extra = f"extra per {POINT:g} gained"
    parts = ("SFT", "method", "teacher's share", extra, "with teacher training", f"{extra}, teacher training included")
    for unit in ("FLOPs", "seconds"):
        columns += [Column(f"{unit}: {part}", True) for part in parts]
    rows = []
    for one in found:
        row = [Entry(str(getattr(one, name))) for name in names]
        row += [Entry(one.teacher), _fraction(one.data_frac), Entry(one.method)]
        for price, unit in ((one.flops, "flops"), (one.seconds, "seconds")):
            row += [quantity(value) for value in (price.sft, price.distil, price.teacher)]
            row += [_per_point(one, unit), quantity(price.with_making), _per_point(one, unit, making=True)]
        rows.append(row)
    caption = (
        "Means over finished cells. Method: training and the teacher's share; labels and caches are charged whole to "
        "the cell. With teacher training: all that was trained to have a teacher, charged whole to the cell as well."
    )
    return Sheet("price", "Cost of SFT and of the method", columns, rows, caption)


def shared_changes(found: Sequence[Decision]) -> list[str]:
    """What would change every verdict; said once, above the table."""
    texts = [one.would_change() for one in found]
    # one decision has nothing to share its conditions with: they stay in its row
    return [text for text in texts[0] if all(text in other for other in texts)] if len(texts) > 1 else []


def claims_sheet(findings: Sequence[Finding], grids: Sequence[str] = ()) -> Sheet:
    """Each claim with its verdict; `grids` names each one's grid where several are on one page."""
    columns = [Column("grid")] * bool(grids) + [Column("verdict"), Column("claim"), Column("condition")]
    columns += [Column("estimate [95 %]", True), Column("p (Holm)", True), Column("replicates x seeds", True)]
    rows = []
    for number, one in enumerate(findings):
        row = [Entry(grids[number])] if grids else []
        row += [Entry(one.verdict, None, CLAIM_MARKS.get(one.verdict, ""))]
        condition = "; ".join(filter(None, [_must_hold(one), one.note]))
        row += [Entry(one.claim.says or one.claim.name), Entry(condition)]
        numbers = {"gain": one.estimate, "gain_low": one.low, "gain_high": one.high}
        row += [entry_interval(numbers, "gain"), p_value(one.p_holm)]
        # sorted by the number of seeds over all replicates
        rows.append([*row, Entry(f"{one.draws} x {one.seeds}" if one.draws else "", float(one.draws * one.seeds))])
    covers = list(dict.fromkeys(one.covers for one in findings if one.covers))
    caption = f"Intervals cover {'; '.join(covers)}; they are not adjusted. " if covers else ""
    caption += "Holm's family is the claims of a grid. Open: neither the claim nor its contrary is shown. "
    if any(one.verdict == "undecided" for one in findings):
        caption += "Undecided: one seed, whose interval excludes the variance between seeds. "
    caption += REPLICATE
    return Sheet("claims", "Claims of all grids" if grids else "Claims", columns, rows, caption)


def scores_sheet(outcome: Outcome) -> Sheet:
    """Every student's arm x evaluation x metric: score and gain with intervals, the headline metric first."""
    rows = _headline_rows(outcome, "student")
    names = _varying(rows)
    columns = [Column("evaluation"), Column("data", True), Column("method"), Column("teacher")]
    columns += [Column(name) for name in names]
    numbers = ("replicates x seeds", "score [95 %]", "gain over SFT [95 %]", "p (Holm)", "gap closed")
    columns += [*(Column(label, True) for label in numbers), Column("note")]
    found = []
    for row in rows:
        line = [Entry(evaluation(row)), _fraction(row["data_frac"]), Entry(row["method"]), entry(row["teacher"])]
        line += [Entry(str(row[name])) for name in names]
        line += [Entry(f"{row['draws']:g} x {row['seeds']:g}", float(row["draws"] * row["seeds"]))]
        line += [entry_interval(row, "score"), entry_interval(row, "gain", mark(row))]
        line += [p_value(row["gain_p_holm"]), entry(row["gap_closed"], ".0%")]
        found.append([*line, Entry(_note(row))])
    covers = list(dict.fromkeys(row["gain_covers"] for row in rows if row["gain_covers"]))
    caption = "Marked: the gain differs from zero after Holm within its evaluation and metric. "
    caption += f"Intervals of gains cover: {'; '.join(covers)}. " if covers else ""
    caption += f"{HINTS} " if any(row["gain_conclusion"].startswith(HINT) for row in rows) else ""
    caption += f"Gap closed: (student - base) / (teacher - base). {REPLICATE}"
    caption += f" {told}" if (told := macro_average(outcome.records)) else ""
    return dense(Sheet("scores", "Scores and gains", columns, found, caption))


def references_sheet(outcome: Outcome) -> Sheet:
    """Teachers and the pretrained base model, scored like students."""
    rows = _headline_rows(outcome, "teacher") + _headline_rows(outcome, "base")
    # a reference model has no budget, and its name is a column already
    names = [name for name in _varying(rows) if name in ("corpus", "variant")]
    columns = [Column("evaluation"), Column("model"), Column("name"), *map(Column, names)]
    columns += [Column("data", True), Column("replicates", True)]
    found = []
    for row in rows:
        name = row["teacher"] if row["role"] == "teacher" else row["student"]
        line = [Entry(evaluation(row)), Entry(row["role"]), entry(name), *(entry(row[name]) for name in names)]
        line += [_fraction(row["data_frac"]), entry(row["draws"], "g"), entry_interval(row, "score")]
        found.append([*line, quantity(row["total_flops"]), Entry(_note(row))])
    more = [Column("score [95 %]", True), Column("training FLOPs", True), Column("note")]
    caption = "Scored by the same evaluations on the same items as the students."
    return dense(Sheet("references", "Teachers and base model", [*columns, *more], found, caption))


def simultaneous_sheet(outcome: Outcome) -> Sheet:
    """Simultaneous comparisons with SFT (Dunnett): intervals that hold for all methods of a fraction together."""
    # under the names that `entry_interval` reads
    rows = outcome.simultaneous.rename(columns={"low": "gain_low", "high": "gain_high"}).to_dict("records")
    names = _varying(rows)
    columns = [Column("data", True), Column("method"), Column("teacher"), *(Column(name) for name in names)]
    columns += [Column(label, True) for label in ("blocks", "gain over SFT [95 %, simultaneous]", "p (Dunnett)")]
    found = []
    for row in rows:
        better = (row["gain"] > 0) == (outcome.metric is not None and outcome.metric.higher_is_better)
        colour = ("good" if better else "bad") * (row["p"] < CLEAR)
        line = [_fraction(row["data_frac"]), Entry(row["method"]), entry(row["teacher"])]
        line += [Entry(str(row[name])) for name in names] + [entry(row["blocks"], "d")]
        found.append([*line, entry_interval(row, "gain", colour), p_value(row["p"])])
    caption = (
        "Methods that have every cell SFT has, compared within blocks (seeds, or replicates), with the residual "
        "variance pooled over the methods. Intervals and p values hold for all methods of a fraction together, so they "
        "need no further adjustment."
    )
    what = "" if outcome.metric is None else f": {outcome.metric.label}"
    return Sheet("simultaneous", f"Simultaneous comparisons with SFT (Dunnett){what}", columns, found, caption)


def costs_sheet(outcome: Outcome) -> Sheet:
    """Mean cost per cell of every arm, by purpose."""
    rows = [row for row in _headline_rows(outcome, "student") if _is(row, outcome.metric)]
    names = _varying(rows)
    columns = [Column("data", True), Column("method"), Column("teacher"), *(Column(name) for name in names)]
    columns += [Column(f"{u}: {PURPOSE_LABELS[purpose]}", True) for u in ("FLOPs", "seconds") for purpose in PURPOSES]
    found = []
    for row in rows:
        line = [_fraction(row["data_frac"]), Entry(row["method"]), entry(row["teacher"])]
        line += [Entry(str(row[name])) for name in names]
        found.append([*line, *(quantity(row[f"{p}_{unit}"]) for unit in ("flops", "seconds") for p in PURPOSES)])
    caption = (
        "Means over finished cells. Total: training and the teacher's share. Amortised: what the grid's cells share "
        "(labels, synthetic rows, teacher training) divided among them."
    )
    return Sheet("costs", "Costs of all arms", columns, found, caption)


def lost_sheet(records: Iterable[Record]) -> Sheet:
    """Cells and reference models without a score, each with its reason."""
    lost = [record for record in records if record.status != "done"]
    columns = [Column("status"), Column("model"), Column("method"), Column("teacher"), Column("data", True)]
    columns += [Column(name, True) for name in ("seed", "replicate")] + [Column("class"), Column("reason")]
    rows = []
    for one in lost:
        row = [Entry(one.status, None, "bad" * (one.status == "failed")), Entry(one.role)]
        row += [entry(one.method), entry(one.teacher), _fraction(one.data_frac)]
        row += [entry(one.seed, "d"), entry(one.world_seed, "d")]
        rows.append([*row, entry(one.failure_class), entry(one.reason)])
    caption = f"{len(rows)} have no score; all others are finished." if rows else "Every cell is finished."
    return dense(Sheet("lost", "Failed and missing cells", columns, rows, caption, folded=len(rows) > MANY))


def warnings_sheet(records: Iterable[Record], whole: Sequence[str] = ()) -> Sheet:
    """Warnings of the grid (`whole`) and of its cells, each text once with the number of cells, ranked."""
    found: dict[str, list[str]] = {warning: [] for warning in whole}
    for one in records:
        where = [one.method, one.teacher, percent(one.data_frac), f"seed {one.seed}"]
        for warning in one.warnings:
            found.setdefault(warning, []).append(" ".join(filter(None, where)))
    rows = []
    for text in ranked(found):
        cells = found[text]
        rows.append([Entry(text), entry(len(cells) or None, "d"), Entry(cells[0] if cells else "the grid")])
    columns = [Column("warning"), Column("cells", True), Column("first cell")]
    caption = "What changes a conclusion stands first." if len(rows) > 1 else ""
    return Sheet("warnings", "Warnings", columns, rows, caption, folded=len(rows) > MANY)


def receipts_sheet(links: Sequence[tuple[str, str, str]], more: bool = False) -> Sheet:
    """Receipts that were found, as (name, link, opening sentence); those beyond the first few (`more`) are folded."""
    rows = [[Entry(name, link=link), Entry(says)] for name, link, says in links]
    caption = "Each folder loads as a Hugging Face model; its receipt has the student's scores, cost and regressions."
    columns = [Column("student"), Column("result")]
    if more:
        return Sheet("more_receipts", f"{len(links)} more receipts", columns, rows, folded=True)
    return Sheet("receipts", "Receipts", columns, rows, caption)


def findings_frame(findings: Sequence[Finding]) -> pd.DataFrame:
    """One row per claim with every number, for files."""
    names = [field.name for field in fields(Finding) if field.name != "claim"]
    rows = [{"claim": f.claim.name, "says": f.claim.says, "must_hold": _must_hold(f)} for f in findings]
    rows = [row | {name: getattr(f, name) for name in names} for row, f in zip(rows, findings, strict=True)]
    return pd.DataFrame(rows, columns=["claim", "says", "must_hold", *names])


def macro_average(records: Iterable[Record]) -> str:
    """What the macro-averages of some records are, in a sentence; empty where there are none."""
    suite = describe_suite(records)
    if not suite:
        return ""
    return (
        f"The {MACRO_AVERAGE.replace('_', '-')} is the mean over {suite}, each with the same weight: {RAW} of the "
        f"scores, {RESCALED} of the scores on a scale from what guessing gives, 0, to all right, 1."
    )


def evaluation(row: Mapping[Any, Any]) -> str:
    """An evaluation and metric in words."""
    return f"{row['eval']} {row['metric']}".strip() + ("" if row["higher_is_better"] else " (lower is better)")


def entry_interval(row: Mapping[Any, Any], name: str, mark: str = "") -> Entry:
    """A score or gain with its interval, sorted by itself."""
    text = interval_text(row, name)
    return Entry(text, float(row[name]), mark) if text else Entry("")


def _headline_rows(outcome: Outcome, role: str) -> list[dict[Any, Any]]:
    frame = outcome.summary
    if frame.empty:
        return []
    rows = frame[frame["headline"] & (frame["role"] == role)].to_dict("records")
    # `sorted` is stable: the headline metric comes first, the rest keeps the summary's order
    return sorted(rows, key=lambda row: not _is(row, outcome.metric))


def _is(row: Mapping[Any, Any], metric: Metric | None) -> bool:
    return (row["eval"], row["metric"], row["source"]) == tuple(metric or ("", "", "all"))


def _varying(rows: Sequence[Mapping[Any, Any]]) -> list[str]:
    """Names that differ between rows, and so need a column."""
    return [name for name in VARYING if len({row[name] for row in rows}) > 1]


def _fraction(value: Any) -> Entry:
    return Entry("") if value is None or pd.isna(value) else Entry(percent(value), float(value))


def _choice(one: Decision) -> str:
    """The choice with its method, or with the one that was not enough and why."""
    method = one.method + (f" (best of {one.compared})" if one.compared > 1 else "")
    return f"{one.choice} with {method}" if one.choice == DISTIL else f"{one.choice}; {method}: {one.why}"


def _gain(one: Decision) -> dict[str, float]:
    # under the names that `entry_interval` reads, as in a row of the summary
    return {"gain_low": one.low, "gain_high": one.high}


def _per_point(one: Decision, unit: str, making: bool = False) -> Entry:
    """An extra cost per point with its range; `none` where distillation costs no more."""
    cost, low, high = one.per_point(unit, making)
    if math.isnan(cost):
        return Entry("")
    # where distillation is the cheaper one there is no price to a point; the number still sorts the row
    return Entry(f"{short(cost)} [{short(low)}, {short(high)}]", cost) if cost > 0 else Entry("none", cost)


def _must_hold(found: Finding) -> str:
    claim, of = found.claim, f" in {found.metric}" if found.metric else ""
    what = " minus ".join(f"gain of {_side(side)}" for side in claim.sides) + of
    return f"{what} within {claim.within:g} of 0" if claim.within is not None else f"{what} better than {claim.above:g}"


def _side(side: Mapping[str, Any]) -> str:
    """An arm as a claim names it, e.g. `kd (weak) at 3 %`."""
    rest = {name: value for name, value in side.items() if name not in ("method", "teacher", "data_frac")}
    told = [str(side.get("method", "")), f"({side['teacher']})" if side.get("teacher") else ""]
    told += [f"{name}={value}" for name, value in rest.items()]
    return " ".join(filter(None, [*told, f"at {percent(side['data_frac'])}" if "data_frac" in side else ""]))


def _note(row: Mapping[Any, Any]) -> str:
    lost = [f"{row[status]:g} {status}" for status in ("failed", "missing", "running") if row[status]]
    text = ", ".join(lost) + ("" if pd.isna(row["reason"]) or not lost else f": {row['reason']}")
    hint = row["gain_conclusion"] if row["gain_conclusion"].startswith(HINT) else ""
    return "; ".join(part for part in (hint, text, row["note"]) if part)
