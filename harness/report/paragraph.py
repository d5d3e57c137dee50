"""The methods paragraph of a paper: what was compared, on which data, with which budget, seeds and statistics.

Every number is read from the records' settings; what they do not hold is left out. Methods are cited by the arXiv
numbers in the docstrings of their files.

    methods_paragraph(outcome)
"""

import importlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from harness.methods import method_names
from harness.plan.claims import when_declared
from harness.report.tables import macro_average
from harness.results.conclusion import is_hint
from harness.results.outcome import Outcome
from harness.results.records import Record
from harness.results.stats.intervals import LEAST_REPLICATES
from harness.results.table import percent, select

BUDGET = {
    "learning_rate": "peak learning rate",
    "schedule": "schedule",
    "warmup_ratio": "warm-up ratio",
    "weight_decay": "weight decay",
    "beta2": "beta2",
    "max_grad_norm": "gradient clipping at norm",
    "precision": "precision",
}
ASIDE = re.compile(r"[^.]*\bnot\b[^.]*\(arXiv [^)]*\)")  # a paper named as what the method is not
ARXIV = re.compile(r"(?:arXiv\s+)(\d{4}\.\d{4,5})")


def citations(method: str) -> tuple[str, ...]:
    """arXiv numbers that a method's file names as its source; none for an unknown method."""
    if method not in method_names():
        return ()
    text = importlib.import_module(f"harness.methods.{method}").__doc__ or ""
    return tuple(dict.fromkeys(ARXIV.findall(ASIDE.sub("", text))))


def methods_paragraph(outcome: Outcome) -> str:
    """A paragraph to start a paper's methods section from."""
    students = [record for record in outcome.records if record.role == "student"]
    if not students:
        return "The grid has no students."
    parts = [
        _compared(students),
        _data(students),
        _training(students),
        _scoring(outcome, students),
        _statistics(outcome),
    ]
    return " ".join(filter(None, [*parts, _claims(outcome)]))


def _compared(students: Sequence[Record]) -> str:
    # variants of one method, such as kd[student_share=1], are one citation
    methods = dict.fromkeys(record.method.partition("[")[0] for record in students)
    named = []
    for method in methods:
        cited = ", ".join(f"arXiv:{number}" for number in citations(method))
        named.append(f"{method} ({cited})" if cited else method)
    teachers = _values(students, "teacher")
    taught = f", with {'teachers' if len(teachers) > 1 else 'teacher'} {_joined(teachers)}" if teachers else ""
    text = f"We trained {_joined(_values(students, 'student'))} with {_joined(named)}{taught}."
    return " ".join([text, *_several(students)])


def _several(students: Sequence[Record]) -> Iterator[str]:
    """A sentence for each teacher that is several: how its members share the rows, or their probabilities."""
    found = {}
    for record in students:
        settings = record.settings.get("teacher")
        if record.teacher and isinstance(settings, Mapping) and settings.get("members"):
            found[record.teacher] = settings
    for name, settings in found.items():
        members = [(one["teacher"]["name"], one["share"], one["sources"]) for one in settings["members"]]
        drawn = [one if share is None else f"{one} ({share:g})" for one, share, sources in members if not sources]
        if settings["combine"] == "mean":
            yield f"{name} is the mean of the probabilities of {_joined(drawn)} (Bucila et al. 2006)."
            continue
        parts = [f"{one} those of {_joined(sources)}" for one, _, sources in members if sources]
        if drawn:
            rest = " the others" if parts else ""
            chosen = (
                f" or {drawn[-1]}, drawn by the row's id".join([", ".join(drawn[:-1]), ""]) if drawn[1:] else drawn[0]
            )
            parts.append(chosen + rest)
        yield f"{name} gave each row one teacher: {'; '.join(parts)}."


def _data(students: Sequence[Record]) -> str:
    taken = {record.data_frac for record in students if record.data_frac is not None}
    fractions = [percent(value) for value in sorted(taken)]
    text = f"Training rows were nested subsets of {_joined(fractions)} of {_joined(_values(students, 'corpus'))}"
    rows = _settings(students, "corpus.rows")
    read = set(_settings(students, "corpus.domain")) <= {"general"}  # the miniature's clinic has rows of its own
    text += f" ({_joined(rows)} training and validation rows in all)" if rows and read else ""
    longest = _settings(students, "corpus.max_length")
    return text + (f", at most {_joined(longest)} tokens long." if longest else ".")


def _training(students: Sequence[Record]) -> str:
    told = [
        f"{label} {_joined(found)}"
        for name, label in BUDGET.items()
        if (found := _settings(students, f"budget.{name}"))
    ]
    text = f"Every arm had the same budget, {_joined(_values(students, 'budget'))}"
    text = text if len(_values(students, "budget")) == 1 else text.replace("the same budget", "one of the same budgets")
    tuned = any(record.tuned for record in students)
    text += f" (AdamW, {', '.join(told)})" if told else ""
    return f"{text}, with the same rows in the same order" + (
        "; settings that were tuned had equal numbers of trials on seeds of their own." if tuned else "."
    )


def _scoring(outcome: Outcome, students: Sequence[Record]) -> str:
    if outcome.metric is None:
        return ""
    frame = outcome.summary
    names = list(dict.fromkeys(f"{e} {m}" for e, m in zip(frame["eval"], frame["metric"], strict=True) if e))
    items = int(select(frame, outcome.metric)["items"].max())
    headline = f"{outcome.metric.eval} {outcome.metric.metric}"
    text = f"Students, the pretrained base model and teachers were scored by {_joined(names)}; figures show {headline}"
    text += f" on {items} items" if items else ""
    text += f". {told.rstrip('.')}" if (told := macro_average(students)) else ""
    checked = any(record.contamination for record in students)
    return f"{text}." + (" Training rows were compared with all items by shared 8-grams." if checked else "")


def _statistics(outcome: Outcome) -> str:
    students = [record for record in outcome.records if record.role == "student"]
    draws = {record.world_seed for record in students}
    seeds = {(record.data_seed, record.train_seed) for record in students}
    text = f"There {'were' if len(seeds) > 1 else 'was'} {len(seeds)} seed{'s' * (len(seeds) > 1)} of rows and training"
    text += (
        f" in each of {len(draws)} replicates, each with its own corpus and teacher."
        if len(draws) > 1
        else " and one replicate (one corpus and one teacher)."
    )
    if outcome.metric is None:
        return text
    rows = select(outcome.summary, outcome.metric)
    gains = rows[rows["gain"].notna()]
    if gains.empty:
        return text
    covers = _joined(dict.fromkeys(gains["gain_covers"]))
    text += " Gains are differences from SFT with the same student, rows, budget and seeds, item by item; "
    text += f"95 % intervals cover {covers}"
    over = gains["draws"] >= LEAST_REPLICATES
    text += ", with Satterthwaite degrees of freedom" if not over.all() else ""
    if over.any():
        which = "" if over.all() else " of those over replicates"
        text += f", the variance{which} being at least that within replicates"
    # Holm's family has the gains with a p value only
    known = int(gains["gain_p_holm"].notna().sum())
    text += f"; p values are adjusted by Holm's method over {known} comparison{'s' * (known != 1)}."
    hints = int(gains.apply(is_hint, axis=1).sum())
    which = "All gains rest" if hints == len(gains) else f"{hints} of {len(gains)} gains rest"
    return text + (f" {which} on one seed, are hints, and support no conclusion." if hints else "")


def _claims(outcome: Outcome) -> str:
    if outcome.declaration is None:
        return "No claim was declared: all results are exploratory."
    count = len(outcome.declaration["claims"])
    when = when_declared(outcome.declaration)
    digest = outcome.declaration["sha256"][:12]
    declared = f"{count} claim{'s were' if count > 1 else ' was'} declared {when} (SHA-256 {digest})"
    return f"{declared}; all other results are exploratory."


def _values(records: Iterable[Record], name: str) -> list[str]:
    return [str(value) for value in dict.fromkeys(getattr(record, name) for record in records) if value]


def _settings(records: Iterable[Record], path: str) -> list[str]:
    """The values of one setting over all records, smallest first; none where records do not hold it."""
    found = set()
    for record in records:
        value: Any = record.settings
        for name in path.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is not None:
            found.add(
                f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
            )
    # by length, then as text: whole numbers stand in the order of their size
    return sorted(found, key=lambda text: (len(text), text))


def _joined(parts: Iterable[str]) -> str:
    *rest, last = list(parts)
    return f"{', '.join(rest)} and {last}" if rest else last
