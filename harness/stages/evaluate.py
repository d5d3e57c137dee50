"""Stage `evaluate`: one model scored by one evaluation, item by item, on a mixture's held-out rows or a benchmark.

Base models, teachers and students are scored here on the same rows in the same way. The evaluations are in
`harness/evals/`; `results/` compares arms from the items written here.

    items.parquet    one row per evaluation and held-out row (the fields of `evals.Item`)
    scores.json      [{"eval", "metric", "source" ("all" or a name), "score", "standard_error", "items"}, ...]
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from harness.config.machine import Machine
from harness.data.chat import end_of_turn_id, rejections
from harness.data.control_tokens import marks_of
from harness.evals import ALL, UNCLOSED, UNREAD, HeldoutRow, Item, Options, Score, Scored, load_eval
from harness.evals.benchmarks import load_benchmark
from harness.evals.subsample import in_proportion
from harness.models.diverged import DivergedError
from harness.models.finite import check_weights
from harness.models.flops import forward_flops
from harness.models.loading import count_parameters, device_of, load_model, load_shape, load_tokenizer, weights_folder
from harness.runtime import progress
from harness.store.store import write_json
from harness.teachers.server_process import serving

CUT_OFF_SHARE = 0.05  # a larger share of answers at the length limit, or without an end of reasoning, is warned about
REJECTED = "rejected_by_template"
TOO_TIDY_ITEMS = 20  # at least as many items, all right or all wrong, are warned about


def make_evaluate(settings: dict[str, Any], inputs: Mapping[str, Path], out: Path, machine: Machine) -> dict[str, Any]:
    """Score the model on one evaluation and write items and scores.

    `settings`: `eval` (its name), `limit` (rows, or null for all), and optionally `seed` (of the sample that
    `limit` takes), `precision` (else fp32), `max_new_tokens` where answers to held-out rows are generated, and for a
    benchmark `card` (its identity) with `revision` or `files`.
    `inputs`: `model`, and `mixture` for held-out rows.
    Raises SettingsError where the model cannot be loaded, or a benchmark's file or data changed after planning, and
    DivergedError where its weights, or what it gives an item, are not numbers.
    """
    tokenizer = load_tokenizer(inputs["model"])
    # the server generates the answers; the shape is needed for the context and the FLOPs
    if settings.get("served"):
        model = load_shape(inputs["model"])
    else:  # one precision for base, teacher and student, so that scores compare
        model = load_model(inputs["model"], device_of(machine), dtype=settings.get("precision", "fp32"))
        check_weights(model, "the model that is scored")
    progress.report(0, 1, note=settings["eval"])
    score = _benchmark if "card" in settings else _heldout
    scored, scores, resolved = score(settings, inputs, model, tokenizer)
    _check_finite(scored.items)
    _write_items(scored.items, out / "items.parquet")
    write_json(out / "scores.json", [_plain(score) for score in scores])
    flops = forward_flops(count_parameters(model), scored.read_tokens + scored.generated_tokens)
    return {
        "cost": {"generated_tokens": scored.generated_tokens, "flops": flops},
        "counts": {f"{settings['eval']}.{what}": number for what, number in scored.counts.items()},
        "metrics": {f"{score.eval}.{score.metric}": score.score for score in scores if score.source == ALL},
        "warnings": _warnings(settings, scores, scored),
        **({"resolved": resolved} if resolved else {}),
    }


def _heldout(
    settings: Mapping[str, Any], inputs: Mapping[str, Path], model: Any, tokenizer: Any
) -> tuple[Scored, list[Score], dict[str, Any]]:
    evaluation = load_eval(settings["eval"])
    rows = read_heldout(inputs["mixture"])
    chosen = in_proportion([(row.source, row.id) for row in rows], settings["limit"], settings.get("seed", 0))
    rows = [rows[index] for index in chosen]
    rows, counted = _renderable(rows, tokenizer, settings.get("where", {}).get("on_bad_row") == "drop")
    options = Options(max_new_tokens=settings.get("max_new_tokens", 0))
    scored = evaluation.score(model, tokenizer, rows, options)
    counts = {"rows": len(rows), **counted, **scored.counts}
    return replace(scored, counts=counts), evaluation.summary(scored.items), {}


def _renderable(rows: list[HeldoutRow], tokenizer: Any, drop: bool) -> tuple[list[HeldoutRow], dict[str, int]]:
    """The rows without those that the chat template rejects, where the corpus drops bad rows, and counts of these and
    of control tokens in the texts of the others."""
    # where bad rows are refused, such a row is refused when it is rendered
    rejected = rejections(tokenizer, [row.messages for row in rows]) if drop else {}
    kept = [row for place, row in enumerate(rows) if place not in rejected]
    tokens = sum(marks_of(tokenizer).count(row.messages).total() for row in kept)
    counts = {REJECTED: len(rejected), "control_tokens": tokens}
    return kept, {name: count for name, count in counts.items() if count}


def _benchmark(
    settings: Mapping[str, Any], inputs: Mapping[str, Path], model: Any, tokenizer: Any
) -> tuple[Scored, list[Score], dict[str, Any]]:
    from harness.evals.lm_evaluation.run import run_benchmark, summary
    from harness.evals.lm_evaluation.tasks import planned

    name = settings["eval"]
    benchmark, data = planned(name, settings, settings.get("where", {}).get("files", ()))
    limit, seed = settings["limit"], settings.get("seed", 0)
    with ExitStack() as stack:
        write = None
        if settings.get("served"):
            # the stack ends the server with the block, also where scoring fails
            server = stack.enter_context(serving(settings["where"]["server"], weights_folder(inputs["model"])))
            write = partial(server.complete, stop_ids={end_of_turn_id(tokenizer)})
        scored, resolved = run_benchmark(name, benchmark, data, model, tokenizer, limit, seed, write)
    return scored, summary(name, benchmark, scored.items), resolved


def read_heldout(mixture: Path) -> list[HeldoutRow]:
    """The held-out rows of a mixture, in its order. Raises OSError where the file cannot be read."""
    import pyarrow.parquet as pq

    columns = [field.name for field in fields(HeldoutRow)]
    return [HeldoutRow(**row) for row in pq.read_table(mixture / "heldout.parquet", columns=columns).to_pylist()]


def _check_finite(items: Sequence[Item]) -> None:
    """Raise DivergedError where a model whose weights are numbers gives an item no number: its logits overflow."""
    for item in items:
        values = {"score": item.score, "nll": item.nll, "nll_truth": item.nll_truth}
        for name, value in values.items():
            if value is not None and not math.isfinite(value):
                raise DivergedError(f"the model's {name} of {item.eval} item {item.id} ({item.source}) is {value}")


def _write_items(items: Sequence[Item], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # a schema of its own: a column that is null in every item would have no type
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


def _warnings(settings: Mapping[str, Any], scores: Sequence[Score], scored: Scored) -> list[str]:
    items = scored.items
    bounds = {0.0: "the floor", 1.0: "the ceiling"}
    if "card" in settings:
        # a score at what guessing gives is as suspect as one at the ends
        bounds |= {load_benchmark(settings["eval"]).floor: "what guessing scores"}
    found = [
        f"{score.eval} {score.metric} is exactly {score.score:g}, {bounds[score.score]}, on {score.items} items: "
        "read some of them in items.parquet before you trust the score"
        for score in scores
        if score.source == ALL
        and not score.metric.startswith("nll")
        and score.items >= TOO_TIDY_ITEMS
        and score.score in bounds
    ]
    answered = [item for item in items if item.prediction is not None]
    cut = sum(item.hit_length_limit for item in answered)
    if cut > CUT_OFF_SHARE * len(answered):
        way_out = "the benchmark sets this limit" if "card" in settings else "raise corpus.max_new_tokens"
        found.append(
            f"{settings['eval']}: {cut} of {len(answered)} answers were cut off by max_new_tokens and may be wrong for "
            f"this reason alone; {way_out}"
        )
    unclosed = scored.counts.get(UNCLOSED, 0)
    if unclosed > CUT_OFF_SHARE * len(answered):
        way_out = "the benchmark sets the longest answer" if "card" in settings else "raise corpus.max_new_tokens"
        found.append(
            f"{settings['eval']}: {unclosed} answers to {len(answered)} items ended within their reasoning and count "
            f"as no answer; {way_out}, or set thinking=false for a model whose chat template has the switch"
        )
    if unread := sum(item.parsed == UNREAD for item in items):
        found.append(f"{settings['eval']}: {unread} of {len(items)} answers could not be parsed and count as wrong")
    if rejected := scored.counts.get(REJECTED):
        found.append(f"{settings['eval']}: {rejected} held-out rows are not scored: the chat template rejects them")
    if truncated := sum(item.truncated for item in items):
        found.append(
            f"{settings['eval']}: {truncated} of {len(items)} prompts are longer than the model's context, so their "
            "scores say little about the model"
        )
    return found
