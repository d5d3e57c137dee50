"""Verdict: the result of a grid in one sentence, and its certainty in another.

Reads a summary (`table.summary`) and crossovers (`paired_gains.crossovers`). "Beats" and "loses to" need a p value
below 0.05 after Holm over all comparisons of the figure; every other gain "does not differ clearly from SFT", which is
not the same as equal: equality needs an interval within the margin, declared in the metric's unit, and is part of the
crossover's interval by sign change. A gain of one seed is a hint and says no more (`conclusion.py`). Better and worse
follow the metric's direction; numbers keep its sign.

    verdict(summary(records), crossovers(records, metric))
    # "For small on mini at 300 steps x 32 rows, kd (weak) beats SFT at 1 % of the data by +0.056 [...]; ..."
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from harness.results.arms import Arm, Metric
from harness.results.conclusion import AHEAD, BEHIND, BETTER, HINT, NOT_CLEAR, ONE_SEED, WORSE, conclusion, is_hint
from harness.results.stats.crossover import Crossover
from harness.results.table import headline, percent, select

UNCLEAR = "does not differ clearly from SFT"
VERBS = {
    BETTER: "beats SFT",
    WORSE: "loses to SFT",
    AHEAD: "is ahead before Holm, but not after it,",
    BEHIND: "is behind before Holm, but not after it,",
    NOT_CLEAR: UNCLEAR,
}
HINTS = {
    f"{HINT}ahead {ONE_SEED}": "is ahead of SFT",
    f"{HINT}behind {ONE_SEED}": "is behind SFT",
    f"{HINT}{NOT_CLEAR} {ONE_SEED}": UNCLEAR,
}
SHOWN = 3  # lines in words; the rest are in the table
LINE = ["student", "corpus", "budget", "variant", "method", "teacher"]


def verdict(
    frame: pd.DataFrame, crossovers: Mapping[Arm, Crossover] | None = None, metric: Metric | None = None
) -> str:
    """The result for one metric (default: `table.headline`) and its certainty, in sentences."""
    if frame.empty:
        return "No verdict: the grid has no cells."
    metric = metric or headline(frame)
    rows = select(frame, metric)
    students = rows[rows["role"] == "student"]
    scored = students[students["score"].notna()]
    lost = _lost(frame, metric)
    if metric is None or scored.empty:
        which = (
            f" in {metric.label}" if metric is not None and (students["scored_cells"] == 0).all() and len(frame) else ""
        )
        return f"No verdict: no cell has a score{which}. {lost}".strip()
    others = scored[scored["method"] != "sft"]
    paired = others[others["gain"].notna()]
    best = scored.sort_values("score", ascending=not metric.higher_is_better).iloc[0]
    where = f"{_who(best)} at {percent(best['data_frac'])}"
    top = f"the best {metric.eval} {metric.metric} is {best['score']:.3f} ({where})"
    if others.empty:
        return f"No verdict on distillation: only SFT has a score; {top}. {lost}".strip()
    if paired.empty:
        alone = (scored["method"] != "sft").all()
        why = "no SFT cell has a score" if alone else "no SFT cell has the same settings and seed"
        return f"No verdict on distillation against SFT: {why}, so there is no gain; {top}. {lost}".strip()
    sign = 1 if metric.higher_is_better else -1
    lines = [(key, part.sort_values("data_frac")) for key, part in paired.groupby(LINE, dropna=False, sort=False)]
    lines.sort(key=lambda line: -_strength(line[1], sign))
    told = [_line(part, sign, _find(crossovers or {}, part), paired) for _, part in lines[:SHOWN]]
    more = f"; {len(lines) - SHOWN} more {'line is' if len(lines) == SHOWN + 1 else 'lines are'} in the table"
    text = "; ".join(told) + (more if len(lines) > SHOWN else "")
    place = " ".join(
        f"{word} {names[0]}" if len(names) == 1 else f"{word} {len(names)} {plural}"
        for word, column, plural in (
            ("For", "student", "students"),
            ("on", "corpus", "corpora"),
            ("at", "budget", "budgets"),
        )
        if (names := [n for n in paired[column].unique() if n])
    )
    direction = "" if metric.higher_is_better else ", lower is better"
    return f"{place} ({metric.eval} {metric.metric}{direction}), {text}. {_certainty(students, metric)} {lost}".strip()


def _line(part: pd.DataFrame, sign: int, crossing: Crossover | None, paired: pd.DataFrame) -> str:
    """What one method and teacher do over the fractions, e.g. `kd (weak) beats SFT at 1 % by ...`."""
    first = part.iloc[0]
    extra = [str(first[name]) for name in ("student", "corpus", "budget") if paired[name].nunique() > 1]
    extra += [first["variant"]] if first["variant"] else []
    groups: dict[str, list[Any]] = {}
    for row in part.to_dict("records"):
        groups.setdefault(conclusion(row), []).append(row)
    parts = []
    for verbs, form in ((VERBS, "{}"), (HINTS, f"{HINT}{{}} {ONE_SEED}")):
        clauses = [f"{verb} at {_listed(groups[shown])}" for shown, verb in verbs.items() if shown in groups]
        if clauses:
            parts.append(form.format(" ".join([_who(first, *extra), _joined(clauses)])))
    text = "; ".join(parts)
    # a crossover of single seeds excludes their variance, and would be read as shown
    if crossing is not None and crossing.excludes_seed_variance:
        return text
    if crossing is None:
        return text
    # where no parabola can be fitted or trusted, the interval by sign change speaks
    by_sign_change = crossing.status == "too few fractions" or not crossing.fits
    if by_sign_change and crossing.sign_change.last_above == part["data_frac"].max():
        return text  # clear to the last fraction run: nothing to add
    return f"{text} ({_crossing(crossing)})"


def _listed(members: list[dict[str, Any]]) -> str:
    """Fractions with gains and intervals; of three or more only the ends get theirs."""
    texts = []
    for number, row in enumerate(members):
        low, high = row["gain_low"], row["gain_high"]
        interval = "no interval" if pd.isna(low) else f"{low:+.3f} to {high:+.3f}"
        detail = f" ({row['gain']:+.3f} [{interval}])" if len(members) < 3 or number in (0, len(members) - 1) else ""
        texts.append(f"{percent(row['data_frac'])}{detail}")
    return _joined(texts)


def _crossing(found: Crossover) -> str:
    """The crossover in words, from its confidence set and interval by sign change; they fit losses too."""
    better, worse, level = "better than SFT", "worse than SFT", "zero"
    if found.delta:
        level = f"{found.delta:+g}"
        better, worse = f"better than SFT by more than {found.delta:g}", f"not better than SFT by {found.delta:g}"
    change = found.sign_change
    pieces = " and ".join(f"{percent(low)} to {percent(high)}" for low, high in found.pieces)
    if found.status == "never":
        return f"it is {better if found.sign > 0 else worse} at all fractions that were run"
    if found.fits and found.status == "crosses":
        return f"the 95 % confidence set for the crossover at {level} is {pieces} of the data"
    if found.fits and found.status == "several":
        return f"the 95 % confidence set for the crossover at {level} shows no single change of sign: {pieces}"
    if found.fits and found.status == "unbounded":
        where = f"includes {pieces} and may reach beyond the fractions that were run"
        return f"no crossover is established: its 95 % confidence set {where}"
    above = percent(change.last_above)
    if above and change.first_below is not None:
        return f"the interval by sign change for the crossover is {above} to {percent(change.first_below)}"
    if change.first_equivalent is not None:
        return f"from {percent(change.first_equivalent)} on the gain is within {found.margin:g} of {level}"
    if found.status != "too few fractions":
        last = f"the last fraction at which it is {better} is {above}" if above else f"at no fraction is it {better}"
        return f"no crossover is established: {last}, and no parabola fits the gains"
    if above:
        return f"it is {better} at {above}; there are too few fractions to show where that ends"
    return "no fraction shows a change of sign, and there are too few fractions for a curve"


def _find(crossovers: Mapping[Arm, Crossover], part: pd.DataFrame) -> Crossover | None:
    """The crossover of one line; over replicates where there are several."""
    first = part.iloc[0]
    names = [None if pd.isna(first[name]) else first[name] for name in LINE]
    found = [c for arm, c in crossovers.items() if [getattr(arm, name) for name in LINE] == names]
    return found[0] if len(found) == 1 else None


def _strength(part: pd.DataFrame, sign: int) -> float:
    """The order of lines: the largest clear gain, then the largest gain."""
    # 1e6 is above any gain, so each line with a clear one comes before all lines without
    clear = part[[conclusion(row) in (BETTER, WORSE) for row in part.to_dict("records")]]
    return float(
        (sign * clear["gain"]).max() + 1e6
        if len(clear) and (sign * clear["gain"]).max() > 0
        else (sign * part["gain"]).max()
    )


def _certainty(students: pd.DataFrame, metric: Metric) -> str:
    """How many seeds, which variance the intervals cover, how many comparisons, how many replicates."""
    paired = students[students["gain"].notna() & (students["method"] != "sft")]
    low, high = int(paired["paired_seeds"].min()), int(paired["paired_seeds"].max())
    seeds = f"{low} seed{'s' if low > 1 else ''}" if low == high else f"{low} to {high} seeds"
    kinds = [kind for kind in paired["gain_covers"].dropna().unique() if kind]
    words = {"and items": "and test items", "items only": "test items only", "seeds only": "seeds, not test items"}
    for short, long in words.items():
        kinds = [kind.replace(short, long) for kind in kinds]
    seeds += " in each replicate" if (paired["draws"] > 1).any() else ""
    family = f"{len(paired)} comparison{'s' if len(paired) > 1 else ''}"
    text = f"Certainty: {seeds}, 95 % intervals over {' or '.join(kinds)}, Holm over {family}"
    alone = paired.apply(is_hint, axis=1)
    if alone.any():
        text += "; one seed gives no seed variance, so it shows a hint only"
        text += "" if alone.all() else ", where there is only one"
    if (paired["draws"] == 1).any() and "for one replicate" not in text:
        several = paired["teacher"].str.contains("[seed=", regex=False, na=False).any()
        text += "; for one corpus and these teachers only" if several else "; for one replicate only"
        text += "" if (paired["draws"] == 1).all() else ", where there is only one"
    if students["diverged"].any():
        count = int(students["diverged"].sum())
        counted = "counted as 0" if metric.higher_is_better else "left out, because a loss has no floor"
        text += f"; {count} diverged cell{'s are' if count > 1 else ' is'} {counted}"
    methods = paired.groupby(LINE, dropna=False).ngroups
    if methods > 1:
        text += "; confirm the best of several methods on new seeds"
    return f"{text}. A replicate has its own corpus and teacher." if "replicate" in text else f"{text}."


def _lost(frame: pd.DataFrame, metric: Metric | None) -> str:
    """Cells without a score, with the first reason."""
    wanted = (
        frame["eval"] == "" if metric is None else (frame[["eval", "metric", "source"]] == list(metric)).all(axis=1)
    )
    # rows over replicates would count the cells of each replicate twice
    rows = frame[wanted & ~frame["pooled"] & (frame["role"] == "student")]
    counts = {status: int(rows[status].sum()) for status in ("failed", "missing", "running")}
    total = sum(counts.values()) + int(rows["done"].sum())
    parts = [f"{count} {status}" for status, count in counts.items() if count]
    reasons = rows.loc[rows["failed"] > 0, "reason"].dropna().unique()
    why = f" ({reasons[0]})" if len(reasons) else ""
    # a finished cell may lack this one evaluation, and would be in no count above
    unscored = int(rows["done"].sum() - rows["scored_cells"].sum())
    parts += [f"{unscored} finished without this score"] if unscored and metric is not None else []
    return f"Of {total} cells, {_joined(parts)}{why}." if parts else ""


def _who(row: Any, *more: str) -> str:
    """A method and its teacher, e.g. `kd (weak)`."""
    notes = [*([] if pd.isna(row["teacher"]) else [str(row["teacher"])]), *more]
    return f"{row['method']} ({', '.join(notes)})" if notes else str(row["method"])


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
