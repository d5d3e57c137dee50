"""Stage `train`: one training stage of a recipe, from a start model to a trained one.

Which batches it sees follows from the budget alone: the visiting order of the whole budget is cut by the
stage's span, so a warm-up and its sequel together see exactly the batches that `sft` sees. What is put
in the rows' place (teacher's answers, synthetic rows) and what the loss compares comes from the recipe.
A missing teacher or missing answers are an error, never a fallback.

    model.safetensors, tokenizer.json, ...   the trained model, a Hugging Face folder
    log.jsonl                                a line a step
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, load_from_disk

from harness.config import Budget, Machine, refuse
from harness.identity import fingerprint
from harness.models import device_of, load_model, load_tokenizer, save_model
from harness.recipe import TrainStage
from harness.sequences import Rows, draw_seed, span_of, total_steps, visits
from harness.signals import LiveTeacher
from harness.trainers import fit, mean_nll


def make_train(settings: dict[str, Any], inputs: Mapping[str, Path], out: Path, machine: Machine) -> dict[str, Any]:
    """Train and save a model; returns cost, counts, the validation NLL and warnings.

    `settings`: `stage` (a TrainStage's values), `budget`, `seed`, `index` (place in the recipe), `loss_on`,
    and `max_new_tokens` where the student writes. `inputs`: `subset`, `start`, and where the stage needs
    them `teacher` (a model folder), `labels`, `synthetic`. `metrics["validation_nll"]` is in nats per
    token of the cell's own validation rows, the same for every objective. Raises DivergedError.
    """
    stage = TrainStage.of(settings["stage"])
    budget, seed = Budget(**settings["budget"]), settings["seed"]
    subset = load_from_disk(inputs["subset"] / "train")
    order = visiting_order(subset, budget, seed, stage.span, settings["loss_on"])
    dataset, batches = _sequences(stage, subset, order, inputs, budget, seed)

    device = device_of(machine)
    tokenizer = load_tokenizer(inputs["start"])
    model = load_model(inputs["start"], device=device)
    teacher = None
    if stage.normal().asks_teacher:
        folder = _needed(inputs, "teacher", stage)
        teacher = LiveTeacher(
            load_model(folder, device=device, dtype=budget.precision),
            load_tokenizer(folder),
            tokenizer,
            device,
        )
    report = fit(
        model,
        tokenizer,
        dataset,
        batches,
        budget=budget,
        objective=stage,
        machine=machine,
        out=out,
        teacher=teacher,
        seed=draw_seed(seed, "train", settings["index"]),
        loss_on=settings["loss_on"],
        max_new_tokens=settings.get("max_new_tokens", 0),
        run_name=fingerprint([settings, str(inputs["subset"].name), str(inputs["start"].name)])[:16],
    )
    save_model(model, tokenizer, out)

    metrics: dict[str, Any] = {}
    if report.steps:
        metrics |= {"first_loss": report.first_loss, "last_loss": report.last_loss}
    if report.diagnostics:
        metrics["diagnostics"] = report.diagnostics
    validation = load_from_disk(inputs["subset"] / "validation")
    if len(validation):
        metrics["validation_nll"], metrics["validation_tokens"] = mean_nll(model, Rows(validation))
    counts = {
        name: value for name, value in asdict(report).items() if name in ("steps", "student_steps", "read_tokens")
    }
    cost = {
        name: value
        for name, value in asdict(report).items()
        if (name.endswith("_tokens") and name != "read_tokens") or name in ("flops", "teacher_flops", "teacher_seconds")
    }
    return {"cost": cost, "counts": counts, "metrics": metrics, "warnings": report.warnings}


def visiting_order(subset: Dataset, budget: Budget, seed: int, span: Any, loss_on: str = "assistant") -> np.ndarray:
    """Positions in `subset` that a stage with this span visits, (steps, batch_size).

    The one place that says which rows a stage sees: training and the labels made for it both ask here.
    """
    steps = total_steps(budget, Rows(subset, loss_on).response_tokens, seed)
    return span_of(visits(len(subset), steps, budget.batch_size, seed), span)


def _sequences(
    stage: TrainStage,
    subset: Dataset,
    order: np.ndarray,
    inputs: Mapping[str, Path],
    budget: Budget,
    seed: int,
) -> tuple[Dataset, np.ndarray]:
    """The rows this stage trains on and the order of visits among them."""
    if stage.sequences == "synthetic":
        synthetic = load_from_disk(_needed(inputs, "synthetic", stage) / "synthetic")
        return synthetic, visits(len(synthetic), len(order), budget.batch_size, seed)
    if stage.sequences == "teacher":
        labels = load_from_disk(_needed(inputs, "labels", stage) / "labels")
        place = {row: position for position, row in enumerate(labels["row"])}
        places = np.array([place.get(row, -1) for row in subset["row"]])
        batches = places[order]
        assert (batches >= 0).all(), "a visited row has no teacher's answer"
        return (dealt(labels, seed) if stage.control == "shuffled" else labels), batches
    return subset, order


def dealt(labels: Dataset, seed: int) -> Dataset:
    """The same prompts with the answers dealt to other rows: one seeded cycle, so no row keeps its own."""
    if len(labels) < 2:
        raise refuse(
            "method.shuffled", True, "one row has no other row to swap answers with", "take a larger data_frac"
        )
    cycle = np.random.default_rng(draw_seed(seed, "shuffled")).permutation(len(labels))
    giver = np.empty_like(cycle)
    giver[cycle] = np.roll(cycle, 1)
    rows = list(labels)
    columns: dict[str, list[Any]] = {name: [] for name in ("row", "id", "input_ids", "starts", "ends")}
    for row, source in zip(rows, (rows[other] for other in giver), strict=True):
        prompt = row["input_ids"][: row["starts"][-1]]
        answer = source["input_ids"][source["starts"][-1] : source["ends"][-1]]
        columns["row"].append(row["row"])
        columns["id"].append(row["id"])
        columns["input_ids"].append(prompt + answer)
        columns["starts"].append([len(prompt)])
        columns["ends"].append([len(prompt) + len(answer)])
    return Dataset.from_dict(columns, features=labels.features)


def _needed(inputs: Mapping[str, Path], role: str, stage: TrainStage) -> Path:
    if role not in inputs:
        raise ValueError(f"{stage.sequences} x {stage.divergence} needs the input {role!r} and got none")
    return inputs[role]
