"""Ranks of warnings: what changes a conclusion stands before what does not, in terminal, report and receipts.

A warning is a sentence, with its kind before a colon. The order of `Rank` is the order in which they are read.

    ranked(record.warnings)
    grid_warnings(records, frame, metric)      # what no single cell can say: one seed, lost cells
"""

import re
from collections.abc import Iterable, Sequence
from enum import IntEnum

import pandas as pd

from harness.results.arms import Metric, diverged
from harness.results.conclusion import ONE_SEED, is_hint
from harness.results.records import Record
from harness.results.table import percent, select


class Rank(IntEnum):
    """What a warning is about; a smaller number changes more of what can be concluded."""

    MEMORY = 0
    """Most items of an evaluation are in the training rows: its score says nothing."""
    ONE_SEED = 1
    """Gains exclude the variance between seeds: no conclusion."""
    LOST = 2
    """Cells diverged, failed or are missing: arms are compared on what is left."""
    ROWS = 3
    """Other rows than were asked for: the realised share, rows left out or cut."""
    SCORES = 4
    """Scores that are not what they seem: repeated items, answers that cannot be read, a bound that is met exactly."""
    TRAINING = 5
    """How a model trained: its loss, its budget, its teacher's signal."""
    NOTE = 6
    """Whatever else was noted."""


KINDS = (
    (Rank.MEMORY, r"^memory:|measures memory"),
    (Rank.ONE_SEED, r"^one seed\b"),
    (Rank.LOST, r"^lost cells\b|\bdiverged\b"),
    (Rank.ROWS, r"^data_frac=|^rows (left out|cut)|^no validation rows|held-out rows|synthetic rows were kept"),
    (Rank.SCORES, r"^contamination:|^macro_average|\bis exactly\b|unparsed|(be|were) (parsed|read)\b|^no end of turn"),
    (
        Rank.TRAINING,
        r"^cold start|^loss does not fall|FLOPs were spent|length limit|\bof its probability\b|scored tokens",
    ),
    (Rank.TRAINING, r"rounds to 0 steps|^no answer"),
)


def rank_of(warning: str) -> Rank:
    """What a warning is about, by its words; a note where no kind fits."""
    return next((rank for rank, words in KINDS if re.search(words, warning)), Rank.NOTE)


def ranked(warnings: Iterable[str]) -> list[str]:
    """The same, what changes a conclusion first; those of one rank keep their order."""
    return sorted(dict.fromkeys(warnings), key=rank_of)


def grid_warnings(records: Sequence[Record], frame: pd.DataFrame, metric: Metric | None) -> list[str]:
    """What a grid as a whole warns of, ranked: gains of one seed, and cells that are lost."""
    return [*_one_seed(frame, metric), *_lost(records)]


def _one_seed(frame: pd.DataFrame, metric: Metric | None) -> list[str]:
    if metric is None or frame.empty:
        return []
    rows = select(frame, metric)
    gains = rows[(rows["role"] == "student") & rows["gain"].notna()]
    hints = sum(is_hint(row) for row in gains.to_dict("records"))
    if not hints:
        return []
    many = f"{hints} of {len(gains)} gains are hints" if hints < len(gains) else "every gain is a hint"
    return [
        f"one seed: {many} {ONE_SEED}, whatever the p value, because the interval excludes the variance between seeds; "
        "run a second seed, or five replicates"
    ]


def _lost(records: Sequence[Record]) -> list[str]:
    students = [record for record in records if record.role == "student"]
    lost = [record for record in students if record.status in ("failed", "missing")]
    if not lost:
        return []
    kinds = ["diverged" if diverged(record) else record.status for record in lost]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    arms = dict.fromkeys(f"{record.method} at {percent(record.data_frac)}" for record in lost)
    named = ", ".join(list(arms)[:3]) + (f" and {len(arms) - 3} more arms" if len(arms) > 3 else "")
    return [f"lost cells: {counts} of {len(students)} ({named}); arms are compared on the seeds that both have"]
