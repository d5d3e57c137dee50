"""How much faster a step is with a cached teacher than with a live one, and what the cache costs.

One student, the same batches and the same trainer, three arms in turns and medians of CPU time compared (a
busy machine stretches wall time, not that): `live` (a teacher of four times the student's parameters reads each
batch), `cached` (its top-64 from the cache, rows in shuffled order) and `sft` (no teacher: the floor). Before
that caches and labels are written, beside plain forward passes of the teacher over the same rows, in batches of
like length and in the rows' order. The teacher is random with its logits scaled to the entropy asked for, since
that decides how many distinct tokens are drawn. Prints JSON; `--out` writes it.

    PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/cached_teacher.py --steps 6 --rounds 3
"""

import argparse
import copy
import itertools
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, load_from_disk
from transformers import LlamaConfig, LlamaForCausalLM

from harness.config.budget import Budget
from harness.config.machine import Machine
from harness.config.recipe import TrainingPhase
from harness.config.teacher_signal import Signal
from harness.data.miniature.tokenizer import load_mini_tokenizer
from harness.data.sequences import Rows, collate, visits
from harness.models.loading import count_parameters, load_model, save_model
from harness.models.logits import scored_positions
from harness.runtime import progress
from harness.stages.labels import make_labels
from harness.stages.logit_cache import batches_of_like_length, make_cache
from harness.teachers.signals import CachedTeacher, LiveTeacher, logits_at
from harness.training.trainer import TrainingData, TrainingSettings, fit

CPU = Machine(device="cpu")
LLAMA_VOCABULARY = 128_256


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--length", type=int, default=64, help="mean tokens per row, two thirds of them scored")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--entropy", type=float, default=1.5, help="nats per position of the teacher")
    parser.add_argument("--answer", type=int, default=32, help="tokens of an answer; a random teacher never stops")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    progress.MIN_SECONDS_BETWEEN_REPORTS = 0.0  # every step is timed
    tokenizer = load_mini_tokenizer()
    tokenizer.add_tokens([f"<t{number}>" for number in range(options.vocabulary - len(tokenizer))])
    student, teacher = _llama(tokenizer, 256, 6), _llama(tokenizer, 512, 7)
    rows = _rows(options.rows, options.length, len(tokenizer))
    _sharpen(teacher, rows, options.entropy)
    with tempfile.TemporaryDirectory() as folder:
        found = _measure(options, student, teacher, tokenizer, rows, Path(folder))
    print(json.dumps(found, indent=1))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


def _measure(options: Any, student: Any, teacher: Any, tokenizer: Any, rows: Dataset, folder: Path) -> dict[str, Any]:
    rows.save_to_disk(folder / "rows" / "train")
    rows = load_from_disk(folder / "rows" / "train")
    save_model(teacher, tokenizer, folder / "teacher")
    top, drawn = Signal(kind="top_k"), Signal(kind="sampled")
    plain = [_forward_seconds(folder, rows, len(tokenizer)) for _ in range(3)][1:]  # the first warms the allocator
    unsorted = [_forward_seconds(folder, rows, len(tokenizer), by_length=False) for _ in range(2)]
    labels, label_seconds = _labels(folder, options.answer)
    facts, seconds = {}, {}
    for signal in (top, drawn):
        (folder / signal.kind).mkdir()
        started = time.process_time()
        facts[signal.kind] = make_cache(
            {"signal": signal.stored(), "seed": 0, "max_length": 2 * options.length},
            {"rows": folder / "rows", "teacher": folder / "teacher"},
            folder / signal.kind,
            CPU,
        )
        seconds[signal.kind] = time.process_time() - started
    cached = CachedTeacher([folder / "top_k"], top, tokenizer)
    arms: dict[str, Any] = {"live": LiveTeacher(teacher, tokenizer, tokenizer), "cached": cached, "sft": None}
    order = visits(len(rows), options.steps, options.batch_size, seed=0)
    times: dict[str, list[float]] = {name: [] for name in arms}
    reading, shares = _timed(cached), []
    for turn in range(options.rounds + 1):
        for name, teacher_signal in arms.items():
            reading.clear()
            found = _step_seconds(copy.deepcopy(student), tokenizer, rows, order, teacher_signal, folder)
            if turn:  # the first turn warms imports and allocators
                times[name] += found
            if turn and name == "cached":
                shares.append(statistics.median(reading) / statistics.median(found))
    median = {name: statistics.median(values) for name, values in times.items()}
    metrics = {kind: one["metrics"] for kind, one in facts.items()}
    read = facts["top_k"]["cost"]["teacher_tokens"]
    return {
        "parameters": {"student": count_parameters(student), "teacher": count_parameters(teacher)},
        "teacher_to_student": round(count_parameters(teacher) / count_parameters(student), 2),
        "vocabulary": len(tokenizer),
        "teacher_entropy_nats": options.entropy,
        "batch": f"{options.batch_size} rows of {options.length} tokens, {options.rows} rows",
        "threads": options.threads,
        "machine": f"{platform.machine()}, torch {torch.__version__}",
        "cpu_ms_per_step": {name: round(1000 * value, 1) for name, value in median.items()},
        "cached_against_live": round(median["live"] / median["cached"], 2),
        "cached_against_sft": round(median["sft"] / median["cached"], 2),
        "teachers_share_of_a_live_step": round(1 - median["sft"] / median["live"], 3),
        "readings_share_of_a_cached_step": round(statistics.median(shares), 4),
        "bytes_per_scored_token": {kind: round(one["bytes_per_token"], 1) for kind, one in metrics.items()},
        "distinct_tokens_drawn_of_50": round(metrics["sampled"]["kept_tokens_per_token"], 1),
        "bytes_per_scored_token_at_128256": {
            "top_k": round(metrics["top_k"]["bytes_per_token"] + 64 / 8, 1),
            "sampled": round(
                metrics["sampled"]["bytes_per_token"] + metrics["sampled"]["kept_tokens_per_token"] / 8, 1
            ),
        },
        "tokens_read_per_second": {
            "plain_forward": round(read / statistics.median(plain)),
            "plain_forward_in_row_order": round(read / statistics.median(unsorted)),
            **{kind: round(read / value) for kind, value in seconds.items()},
        },
        "label_tokens_per_second": {
            "read_and_written": round((labels["teacher_tokens"] + labels["generated_tokens"]) / label_seconds),
            "written": round(labels["generated_tokens"] / label_seconds),
        },
        "a_written_tokens_cost_in_tokens_read": round(
            label_seconds / labels["generated_tokens"] / (statistics.median(plain) / read), 1
        ),
        "writing_against_plain_forward": {
            kind: round(statistics.median(plain) / value, 2) for kind, value in seconds.items()
        },
    }


def _timed(teacher: CachedTeacher) -> list[float]:
    """CPU seconds of every reading from now on."""
    seconds: list[float] = []
    sparse = teacher.sparse_logits

    def timed(batch: Any) -> Any:
        started = time.process_time()
        found = sparse(batch)
        seconds.append(time.process_time() - started)
        return found

    teacher.sparse_logits = timed  # type: ignore[method-assign]
    return seconds


def _step_seconds(
    model: Any, tokenizer: Any, rows: Dataset, order: np.ndarray, teacher: Any, folder: Path
) -> list[float]:
    """CPU seconds of each step but the first: a step is reported before its optimizer moves."""
    at: list[float] = []
    with progress.listen(lambda _: at.append(time.process_time())):
        fit(
            model,
            tokenizer,
            TrainingData(rows, order),
            TrainingSettings(
                Budget(kind="steps", amount=len(order), batch_size=order.shape[1]),
                TrainingPhase(divergence="forward_kl") if teacher is not None else TrainingPhase(),
                CPU,
                seed=0,
            ),
            out=folder,
            teacher=teacher,
        )
    assert len(at) == len(order), "a step was not reported"
    return [after - before for before, after in itertools.pairwise(at)]


def _labels(folder: Path, answer: int) -> tuple[dict[str, Any], float]:
    """What greedy answers of `answer` tokens to every row cost, and the CPU seconds they took."""
    (folder / "labels").mkdir()
    settings = {"sampling_temperature": 0.0, "samples_per_prompt": 1, "precision": "fp32", "max_length": 10**6}
    started = time.process_time()
    inputs = {"rows": folder / "rows", "teacher": folder / "teacher"}
    facts = make_labels(settings | {"max_new_tokens": answer}, inputs, folder / "labels", CPU)
    return facts["cost"], time.process_time() - started


def _forward_seconds(folder: Path, dataset: Dataset, vocabulary: int, by_length: bool = True) -> float:
    """Loading the teacher and its logits at all scored positions, in the batches the cache is made in.

    Without `by_length` as many rows make a batch, but in the rows' order.
    """
    started = time.process_time()
    model, rows = load_model(folder / "teacher"), list(Rows(dataset))
    in_order = iter(range(len(rows)))
    with torch.no_grad():
        for indices in batches_of_like_length([len(row.input_ids) for row in rows], vocabulary):
            if not by_length:
                indices = [next(in_order) for _ in indices]
            batch = collate([rows[index] for index in indices], pad_id=0)
            logits_at(model, batch["input_ids"], batch["attention_mask"], scored_positions(batch["labels"]))
    return time.process_time() - started


def _llama(tokenizer: Any, width: int, layers: int) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=8 * width // 3 // 8 * 8,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def _sharpen(model: Any, dataset: Dataset, entropy: float) -> None:
    """Scale the final norm until the model's mean entropy on some rows is the one asked for (bisection)."""
    batch = collate(list(Rows(dataset.select(range(4)))), pad_id=0)
    scored = scored_positions(batch["labels"])
    with torch.no_grad():
        logits = logits_at(model, batch["input_ids"], batch["attention_mask"], scored)
        low, high = 0.0, 1000.0
        for _ in range(40):
            scale = (low + high) / 2
            found = torch.distributions.Categorical(logits=scale * logits).entropy().mean()
            low, high = (scale, high) if found > entropy else (low, scale)
        model.model.norm.weight *= scale


def _rows(count: int, length: int, vocabulary: int) -> Dataset:
    generator = np.random.default_rng(0)
    lengths = generator.integers(length // 2, length + length // 2, count)
    return Dataset.from_dict(
        {
            "row": np.arange(count),
            "id": [f"r{number}" for number in range(count)],
            "input_ids": [generator.integers(6, vocabulary, size).tolist() for size in lengths],
            "starts": [[int(size) // 3] for size in lengths],
            "ends": [[int(size)] for size in lengths],
        }
    )


if __name__ == "__main__":
    main()
