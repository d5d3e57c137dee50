"""Estimate: what a plan would cost, from settings alone, before data is tokenised or a model is loaded.

Tokens come from the budget and the corpus's stated size, FLOPs from 6 N per trained and 2 N per processed
token (models/flops.py), seconds from the speed of finished stages of the same kind in the store, else
from a cautious figure for one CPU thread. Estimates order the work and are printed by `grid plan`.
"""

import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from harness.config.cluster import Cluster
from harness.config.recipe import CHECKS
from harness.data.corpora import Size, corpus_from
from harness.evals.benchmarks import load_benchmark
from harness.models.flops import forward_flops, train_flops
from harness.plan.graph import Stage, Work
from harness.store.fingerprint import canonical
from harness.store.store import DamagedError, Store

DEFAULT_FLOPS_PER_SECOND = 2e10
OVERHEAD_SECONDS = 2.0
UNKNOWN = Size(rows=1000, response_tokens=200.0, row_tokens=400.0, heldout_rows=1000)
COSTS = ("tokens", "flops", "seconds", "bytes", "gpu_hours")
LINE_TOKENS = {"words": 21.0, "letters": 36.0}  # of a raw question and answer of the miniature corpus, by family
BENCHMARK_ITEMS, ITEM_TOKENS = (
    1000,
    200,
)  # of a benchmark whose number of items is not known; tokens of a prompt, or of one shot
STUDENT_TEXT_FACTOR = 2.0  # generating costs about as much again as training on what was generated


@dataclass(frozen=True)
class Estimate:
    """The expected cost of a stage."""

    tokens: float = 0.0
    """Processed and generated tokens."""
    flops: float = 0.0
    """Floating-point operations."""
    bytes: float = 0.0
    """Bytes of the artifact in the store."""

    def __add__(self, other: "Estimate") -> "Estimate":
        return Estimate(self.tokens + other.tokens, self.flops + other.flops, self.bytes + other.bytes)


def estimate(stage: Stage) -> Estimate:
    """The expected cost of one stage."""
    if stage.kind == "mixture":
        # 4 bytes a token, also of text before it is tokenised
        size = _mixture_size(stage)
        return Estimate(bytes=size.rows * size.row_tokens * 4)
    if stage.kind == "overlap":
        return Estimate(bytes=1e6)
    if stage.kind == "subset":
        rows, _, row_tokens = _rows(stage)
        return Estimate(bytes=rows * row_tokens * 4)
    if stage.kind == "base":
        return _base(stage)
    if stage.kind == "quantise":
        # about a byte a weight
        return Estimate(bytes=stage.parameters)
    if stage.kind == "train":
        return _train(stage)
    if stage.kind in ("labels", "synthesize"):
        # answers of the visited rows alone where these are fewer; synthetic rows are a number, or a ratio to human rows
        rows, response, row_tokens = _rows(stage.inputs["rows" if stage.kind == "labels" else "subset"])
        if stage.kind == "labels":
            answers = min(rows, _visited(stage, rows)) * stage.settings["samples_per_prompt"]
        else:
            answers = _synthetic_rows(stage)
        tokens = answers * (row_tokens + response)
        return Estimate(tokens, forward_flops(stage.inputs["teacher"].parameters, tokens), answers * row_tokens * 4)
    if stage.kind == "cache":
        rows, response, row_tokens = _rows(stage.inputs["rows"])
        kept = stage.settings["signal"].get("top_k", 12)  # 50 draws fall on about a dozen different tokens
        flops = forward_flops(stage.inputs["teacher"].parameters, rows * row_tokens)
        return Estimate(rows * row_tokens, flops, rows * response * kept * 4.2)
    if stage.kind == "measure":
        run = stage.settings
        # one warm-up and then the timed runs
        tokens = (1 + run["repeats"]) * run["batch_size"] * (run["prompt_tokens"] + run["new_tokens"])
        return Estimate(tokens, forward_flops(stage.parameters, tokens))
    scored, item_tokens = _scored(stage)
    tokens = scored * item_tokens
    return Estimate(tokens, forward_flops(stage.inputs["model"].parameters, tokens), scored * 500)


def _scored(stage: Stage) -> tuple[int, float]:
    """About how many items an evaluation has, and the tokens that are processed and generated for each."""
    limit = stage.settings["limit"]
    if "card" in stage.settings:
        card = stage.settings["card"]
        # the item and its shots, and answers that are half as long as they may be
        length = ITEM_TOKENS * (1 + card["shots"]) + card["samples"] * (card["max_new_tokens"] or 0) / 2
        items = load_benchmark(stage.settings["eval"]).items or BENCHMARK_ITEMS
        return min(limit or items, items), length
    size = _mixture_size(stage.inputs["mixture"], _family(stage.inputs["model"]))
    length = size.row_tokens + (size.response_tokens if stage.settings["eval"] == "verified" else 0)
    return min(limit or size.heldout_rows, size.heldout_rows), length


def stage_seconds(stage: Stage, flops_per_second: float = DEFAULT_FLOPS_PER_SECOND) -> float:
    """Expected wall seconds of one stage at a given speed."""
    return OVERHEAD_SECONDS + estimate(stage).flops / flops_per_second


def measured_speed(store: Store, stages: Iterable[Stage]) -> Mapping[str, float]:
    """FLOPs per second of finished stages, the median per kind; kinds with none are absent."""
    speeds: dict[str, list[float]] = {}
    for stage in stages:
        if store.done(stage.key):
            try:
                facts = store.manifest(stage.key)["facts"]
            except DamagedError:  # the run sets it aside; here it tells nothing of the speed
                continue
            if facts.get("seconds") and facts.get("cost", {}).get("flops"):
                speeds.setdefault(stage.kind, []).append(facts["cost"]["flops"] / facts["seconds"])
    return {kind: statistics.median(found) for kind, found in speeds.items()}


def plan_rows(plan: Work, store: Store, cluster: Cluster | None = None) -> list[dict[str, Any]]:
    """One row per kind of stage: how many, how many are done, and what the rest is expected to cost.

    GPU-hours are those of `cluster`, by the speed that its rules state; 0 without one. Raises SettingsError where no
    rule of the cluster fits a stage.
    """
    speeds = measured_speed(store, plan.stages)
    rows: dict[str, dict[str, Any]] = {}
    for stage in plan.stages:
        row = rows.setdefault(
            stage.kind,
            {"kind": stage.kind, "stages": 0, "done": 0} | dict.fromkeys(COSTS, 0.0),
        )
        row["stages"] += 1
        if store.done(stage.key):
            row["done"] += 1
            continue
        expected = estimate(stage)
        row["tokens"] += expected.tokens
        row["flops"] += expected.flops
        row["bytes"] += expected.bytes
        row["seconds"] += stage_seconds(stage, speeds.get(stage.kind, DEFAULT_FLOPS_PER_SECOND))
        if cluster is not None:
            # a rule is chosen by the largest model in the job, the teacher of a training stage among them
            largest = max(one.parameters for one in (stage, *stage.inputs.values()))
            rule = cluster.resources_for(stage.kind, stage.name, largest)
            row["gpu_hours"] += rule.gpu_hours(expected.flops, largest)
    return list(rows.values())


def plan_text(plan: Work, store: Store, cluster: Cluster | None = None) -> str:
    """The rows of `plan_rows` as a table, with their sum; on a cluster in GPU-hours, else in minutes of one worker.

    Raises as `plan_rows`.
    """
    rows = plan_rows(plan, store, cluster)
    total = {name: sum(row[name] for row in rows) for name in rows[0] if name != "kind"} | {"kind": "to make"}
    time = "one worker" if cluster is None else "GPU-hours"
    lines = [f"{'stage':<12}{'count':>7}{'done':>7}{'tokens':>10}{'FLOPs':>10}{'disk':>12}{time:>13}"]
    lines += [
        f"{row['kind']:<12}{row['stages']:>7}{row['done']:>7}{row['tokens']:>10.2g}{row['flops']:>10.2g}"
        f"{_disk(row['bytes']):>12}"
        + (f"{row['seconds'] / 60:>9.1f} min" if cluster is None else f"{row['gpu_hours']:>13,.1f}")
        for row in [*rows, total]
    ]
    return "\n".join(lines)


def _disk(size: float) -> str:
    return f"{size / 2**20:,.0f} MB" if size < 2**33 else f"{size / 2**30:,.0f} GB"


def _mixture_size(stage: Stage, family: str = "words") -> Size:
    """The size that a mixture's corpus states, in tokens of a family where a model of the miniature reads it."""
    return _size(canonical(stage.where["corpus"]), family)


@cache
def _size(corpus: str, family: str) -> Size:
    return corpus_from(json.loads(corpus)).size(family) or UNKNOWN


def _family(model: Stage) -> str:
    """The family of a model of the miniature; `words` for any other model."""
    return str(model.base_model().settings.get("family", "words"))


def _rows(subset: Stage) -> tuple[float, float, float]:
    size = _mixture_size(subset.inputs["mixture"], _family(subset.inputs["tokenizer"]))
    settings = subset.settings
    # a block holds the rows between two fractions
    rows = max(1.0, size.rows * (settings["data_frac"] - settings.get("block", [0])[0]))
    return rows, size.response_tokens, min(size.row_tokens, subset.settings["max_length"])


def expected_rows(subset: Stage) -> float:
    """About how many rows a fraction holds, validation rows among them, by the size that its corpus states."""
    return _rows(subset)[0]


def _training_rows(subset: Stage) -> float:
    """Rows of a fraction without those that are set apart for validation."""
    return max(1.0, _rows(subset)[0] * (1 - subset.settings["validation"]))


def _synthetic_rows(synthesize: Stage) -> float:
    """Rows that a teacher generates: a number, or a ratio to the human training rows."""
    given = synthesize.settings["synthetic_rows"]
    return float(given or _training_rows(synthesize.inputs["subset"]) * synthesize.settings["synthetic_ratio"])


def train_steps(stage: Stage) -> int:
    """About how many optimizer steps a training stage makes; 0 where its share of the budget rounds to none.

    The number of rows is that which the corpus states, and a teacher is taken to keep all synthetic rows.
    """
    recipe, budget = stage.settings["stage"], stage.settings["budget"]
    start, end = recipe["span"]
    if budget["kind"] == "flops":
        prepared = sum(
            estimate(one).flops
            for role, one in stage.inputs.items()
            if role.partition(":")[0] in ("labels", "synthetic", "cache")
        )
        step = _token_flops(stage) * _rows(stage.inputs["subset"])[2] * budget["batch_size"]
        return max(0, int(((end - start) * budget["amount"] - prepared) / step))
    rows = _training_rows(stage.inputs["subset"])
    if budget.get("epochs_of") == "phase":
        human = rows if recipe["sequences"] == "mixed" else 0
        rows = _synthetic_rows(stage.inputs["synthetic"]) + human
    steps = _steps(budget, rows, _rows(stage.inputs["subset"])[1])
    return round(end * steps) - round(start * steps)


def _steps(budget: Mapping[str, Any], rows: float, response_tokens: float) -> int:
    """Steps of a whole budget that does not count FLOPs."""
    if budget["kind"] == "steps":
        steps = budget["amount"]
    elif budget["kind"] == "epochs":
        steps = budget["amount"] * rows / budget["batch_size"]
    else:  # trained tokens, those of the answers
        steps = budget["amount"] / (response_tokens * budget["batch_size"])
    return max(budget.get("min_steps") or 1, round(steps))


def _visited(labels: Stage, rows: float) -> float:
    visits = labels.settings.get("visits")
    if visits is None:
        return rows
    budget, (start, end) = visits["budget"], visits["span"]
    whole = _steps(budget, rows, _rows(labels.inputs["rows"])[1])
    return (round(end * whole) - round(start * whole)) * budget["batch_size"]


def _base(stage: Stage) -> Estimate:
    parameters = stage.parameters
    pretraining = stage.settings.get("pretraining")
    if not pretraining:
        return Estimate(bytes=0 if stage.settings["init"] == "pretrained" else 4.0 * parameters)
    tokens = pretraining["steps"] * pretraining["batch_size"] * LINE_TOKENS[_family(stage)]
    return Estimate(tokens, train_flops(parameters, tokens), 4.0 * parameters)


def _train(stage: Stage) -> Estimate:
    recipe, budget = stage.settings["stage"], stage.settings["budget"]
    parameters, size = stage.parameters, 4.0 * stage.parameters
    # the budget is the cost; tokens follow from it as if all were trained
    if budget["kind"] == "flops":
        flops = (recipe["span"][1] - recipe["span"][0]) * budget["amount"]
        return Estimate(flops / train_flops(parameters, 1), flops, size)
    row_tokens = _rows(stage.inputs["subset"])[2]
    tokens = train_steps(stage) * budget["batch_size"] * row_tokens
    flops = _token_flops(stage) * tokens
    # an adaptive phase scores the validation rows at each check
    if recipe.get("adaptive"):
        subset = stage.inputs["subset"]
        flops += CHECKS * forward_flops(parameters, subset.settings["validation"] * _rows(subset)[0] * row_tokens)
    return Estimate(tokens, flops, size)


def _token_flops(stage: Stage) -> float:
    """FLOPs of training on a token, those of the student's own generation and of a live teacher among them."""
    recipe, parameters = stage.settings["stage"], stage.parameters
    flops = train_flops(parameters, 1, frozen=parameters if "lora" in stage.settings else 0)
    flops += _generated_share(recipe) * STUDENT_TEXT_FACTOR * forward_flops(parameters, 1)
    for teacher, times in _live_teachers(stage):
        # the teacher processes the text once more while it is generated
        times *= 2.0 if recipe["sequences"] == "interleaved" else 1.0
        if "teacher_rows" in stage.inputs:  # the same rows, in the teacher's own tokens
            times *= _rows(stage.inputs["teacher_rows"])[2] / _rows(stage.inputs["subset"])[2]
        flops += times * forward_flops(teacher.parameters, 1)
    return flops


def _live_teachers(stage: Stage) -> list[tuple[Stage, float]]:
    """The teachers that run while a stage trains, and the part of its rows that each is expected to read."""
    if "teacher" in stage.inputs:
        return [(stage.inputs["teacher"], 1.0)]
    found = [one for role, one in stage.inputs.items() if role.partition(":")[0] == "teacher"]
    if not found:
        return []
    composition = stage.settings["teachers"]
    members = composition["members"]
    if composition["combine"] == "mean":
        return [(teacher, 1.0) for teacher in found]
    # how many rows the named sources have is known later: each such member is taken to have an equal part
    named = sum("sources" in one for one in members)
    left = 1 - named / len(members) if named < len(members) else 0.0
    shares = [left * one["share"] if "share" in one else 1 / len(members) for one in members]
    return list(zip(found, shares, strict=True))


def _generated_share(recipe: Mapping[str, Any]) -> float:
    """Share of a phase's steps in which the student generates; an adaptive one generates, not replays, about half."""
    if recipe["sequences"] == "interleaved":
        return 1.0
    return recipe.get("student_share", 0) * (0.5 if recipe.get("adaptive") else 1.0)
