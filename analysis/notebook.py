"""Shared by the notebooks: figures shown where they are drawn, and short tables.

Every number comes from an outcome (`harness.api.read`); here it is only selected and formatted.

    outcome = harness.read(GRID, STORE)
    figure(crossover_figure, outcome.summary, crossovers=outcome.crossovers)
    gains(outcome)
"""

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness.results.outcome import Outcome
from harness.results.table import interval_text, percent, select

if TYPE_CHECKING:
    from IPython.display import Image

warnings.filterwarnings("ignore", "IProgress not found")  # from tqdm, whose bar is not used here

NAMES = ("student", "corpus", "budget", "data_frac", "method", "teacher")


def figure(draw: Callable[..., list[Path]], *given: Any, **named: Any) -> "Image | None":
    """What `draw(*given, path=..., **named)` draws, as a picture, or None where it draws nothing; its files are
    temporary."""
    from IPython.display import Image

    with tempfile.TemporaryDirectory() as folder:
        pictures = [path for path in draw(*given, path=Path(folder) / "figure", **named) if path.suffix == ".png"]
        return Image(pictures[0].read_bytes(), width=900) if pictures else None


def scores(outcome: Outcome) -> pd.DataFrame:
    """Every arm and reference model at the metric of the figures.

    Score and gain over SFT with 95 % intervals, adjusted p (Holm), what the gain shows (of one seed: a hint), seeds in
    each replicate, replicates (own corpus and teacher), and the mean cost of a cell in FLOPs with the teacher's share.
    """
    rows = select(outcome.summary, outcome.metric)
    rows = rows.sort_values(
        ["role", *NAMES], key=lambda column: column if column.name != "role" else column != "student"
    )
    found = rows.to_dict("records")
    table = pd.DataFrame(
        {
            **{name: rows[name].tolist() for name in ("role", *NAMES) if name == "method" or rows[name].nunique() > 1},
            "score": [interval_text(row, "score") for row in found],
            "gain over SFT": [interval_text(row, "gain") for row in found],
            "p (Holm)": [_number(row["gain_p_holm"], ".3g") for row in found],
            "shown": [row["gain_conclusion"] for row in found],
            "gap closed": [_number(row["gap_closed"], ".2f") for row in found],
            "seeds": rows["seeds"].tolist(),
            "replicates": rows["draws"].tolist(),
            "FLOPs": [_number(row["total_flops"], ".2g") for row in found],
        }
    )
    if "data_frac" in table:
        table["data_frac"] = [percent(fraction) for fraction in table["data_frac"]]
    return table.fillna("")


def crossings(outcome: Outcome) -> pd.DataFrame:
    """Each line's crossover with SFT: the confidence set from a fitted curve, and the interval by sign change."""
    rows = []
    for arm, found in outcome.crossovers.items():
        pieces = " and ".join(f"{percent(low)} to {percent(high)}" for low, high in found.pieces)
        change = found.sign_change
        rows.append(
            {
                "method": arm.method,
                "teacher": arm.teacher or "",
                "crossing": found.status,
                "confidence set": (pieces or "empty") if found.fits else "no parabola fits: see the sign change",
                "last fraction above 0": _fraction(change.last_above),
                "first within the margin": _fraction(change.first_equivalent),
                "first below 0": _fraction(change.first_below),
            }
        )
    return pd.DataFrame(rows)


def claims(outcome: Outcome) -> pd.DataFrame:
    """The claims declared before the first cell and their judgement; empty where none were declared."""
    return pd.DataFrame(
        [
            {
                "claim": found.claim.says or found.claim.name,
                "verdict": found.verdict,
                "estimate": f"{found.estimate:+.3f} [{found.low:+.3f}, {found.high:+.3f}]",
                "p (Holm)": _number(found.p_holm, ".3g"),
                "covers": found.covers,
            }
            for found in outcome.findings
        ]
    )


def unfinished(outcome: Outcome) -> pd.DataFrame:
    """Cells without a score, each with the reason."""
    names = ("method", "teacher", "data_frac", "seed", "world_seed", "status", "reason")
    rows = [record for record in outcome.records if record.status != "done"]
    return pd.DataFrame([{name: getattr(row, name) for name in names} for row in rows])


def _number(value: float, form: str) -> str:
    return "" if pd.isna(value) else format(value, form)


def _fraction(value: float | None) -> str:
    return "" if value is None else percent(value)
