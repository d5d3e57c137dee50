"""Evaluate stage: one model scored on a mixture's held-out rows, item by item.

Base models, teachers and students all pass through here, on the same rows in the same way. What an
evaluation does is in `harness/evals/`; comparing arms is `stats.py`'s matter, from the items kept here.

    items.parquet    one row per evaluation and held-out row (the fields of `evals.Item`)
    scores.json      [{"eval", "metric", "source" ("all" or a name), "score", "standard_error", "items"}, ...]
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from harness import track
from harness.config import Machine
from harness.cost import forward_flops
from harness.evals import ALL, HeldoutRow, Item, Options, Score, load_eval
from harness.models import count_parameters, device_of, load_model, load_tokenizer
from harness.store import write_json

CUT_OFF_SHARE = 0.05  # more answers than this at the length limit are worth a warning
TOO_TIDY_ITEMS = 20  # as many items all right or all wrong are worth one


def make_evaluate(settings: dict[str, Any], inputs: Mapping[str, Path], out: Path, machine: Machine) -> dict[str, Any]:
    """Score the model and write items and scores.

    `settings`: `evals` (names), `limit` (rows, or null for all), `max_new_tokens`, and optionally `seed` (of
    the sample that `limit` takes).
    `inputs`: `model`, `mixture`.
    """
    evaluations = {name: load_eval(name) for name in settings["evals"]}
    rows = choose_rows(read_heldout(inputs["mixture"]), settings["limit"], settings.get("seed", 0))
    tokenizer = load_tokenizer(inputs["model"])
    model = load_model(inputs["model"], device_of(machine), dtype="fp32")  # base, teacher and student alike
    options = Options(max_new_tokens=settings["max_new_tokens"])
    items: list[Item] = []
    scores: list[Score] = []
    counts, read, generated = {"rows": len(rows)}, 0, 0
    for done, (name, evaluation) in enumerate(evaluations.items()):
        track.report(done, len(evaluations), note=name)
        scored = evaluation.score(model, tokenizer, rows, options)
        items += scored.items
        scores += evaluation.summary(scored.items)
        read, generated = read + scored.read_tokens, generated + scored.generated_tokens
        counts |= {f"{name}.{what}": number for what, number in scored.counts.items()}
    _write_items(items, out / "items.parquet")
    write_json(out / "scores.json", [_plain(score) for score in scores])
    flops = forward_flops(count_parameters(model), read + generated)
    return {
        "cost": {"generated_tokens": generated, "flops": flops},
        "counts": counts,
        "metrics": {f"{score.eval}.{score.metric}": score.score for score in scores if score.source == ALL},
        "warnings": _warnings(scores, items),
    }


def read_heldout(mixture: Path) -> list[HeldoutRow]:
    """The held-out rows of a mixture, in its order."""
    import pyarrow.parquet as pq

    columns = [field.name for field in fields(HeldoutRow)]
    return [HeldoutRow(**row) for row in pq.read_table(mixture / "heldout.parquet", columns=columns).to_pylist()]


def choose_rows(rows: list[HeldoutRow], limit: int | None, seed: int) -> list[HeldoutRow]:
    """At most `limit` rows, each source in proportion; the same for every model, and nested in `limit`."""
    if limit is None or limit >= len(rows):
        return rows
    by_source: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        by_source.setdefault(row.source, []).append(index)
    place: dict[int, float] = {}
    for mine in by_source.values():
        mine.sort(key=lambda index: _draw(seed, rows[index]))
        place |= {index: (rank + 0.5) / len(mine) for rank, index in enumerate(mine)}
    chosen = sorted(place, key=lambda index: (place[index], rows[index].source))[:limit]
    return [rows[index] for index in sorted(chosen)]


def _draw(seed: int, row: HeldoutRow) -> bytes:
    return hashlib.sha256(f"{seed}\x1f{row.source}\x1f{row.id}".encode()).digest()


def _write_items(items: Sequence[Item], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {
        "str": pa.string(),
        "str | None": pa.string(),
        "float | None": pa.float64(),
        "int | None": pa.int64(),
        "bool": pa.bool_(),
    }
    schema = pa.schema([(field.name, types[_type_name(field.type)]) for field in fields(Item)])
    pq.write_table(pa.Table.from_pylist([asdict(item) for item in items], schema=schema), path)


def _type_name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)


def _plain(score: Score) -> dict[str, Any]:
    """A score as JSON, which has no NaN: the error of a single item is null."""
    values = asdict(score)
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()}


def _warnings(scores: Sequence[Score], items: Sequence[Item]) -> list[str]:
    found = [
        f"{score.eval} {score.metric} is exactly {score.score:g} on {score.items} items: look at the answers"
        for score in scores
        if score.source == ALL
        and score.metric == "accuracy"
        and score.items >= TOO_TIDY_ITEMS
        and score.score in (0.0, 1.0)
    ]
    answered = [item for item in items if item.prediction is not None]
    cut = sum(item.hit_length_limit for item in answered)
    if cut > CUT_OFF_SHARE * len(answered):
        found.append(f"{cut} of {len(answered)} answers were cut off by max_new_tokens")
    if truncated := sum(item.truncated for item in items):
        found.append(f"{truncated} held-out rows are longer than the model's context")
    return found
