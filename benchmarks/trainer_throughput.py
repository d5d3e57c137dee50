"""How much of a plain PyTorch loop's speed our trainer keeps, on the same batches, model and optimizer.

Three arms take turns in one process, several rounds each, and the medians are compared: `plain` (a loop
written out: collate, forward, cross-entropy at scored positions, backward, clip, AdamW), `ours`
(`harness.training.trainer.fit`), and `trl` (SFTTrainer on pre-tokenised rows as its users call it). Set-up is
reported apart from time per step. Prints JSON; `--out` writes it.

    PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/trainer_throughput.py --steps 100 --rounds 3
    PYTHONPATH=. python benchmarks/trainer_throughput.py --model FOLDER --batch-size 8 --length 256 --steps 8
"""

import argparse
import copy
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback
from trl import SFTConfig, SFTTrainer

from harness.config.budget import Budget
from harness.config.machine import Machine
from harness.config.recipe import TrainingPhase
from harness.data.sequences import Rows, collate, visits
from harness.models.loading import count_parameters, load_model, load_tokenizer
from harness.training.trainer import TrainingData, TrainingSettings, fit


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, help="a Hugging Face folder; default: a 96 x 3 x 4 mini")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--length", type=int, default=20, help="mean tokens per row, a third of them scored")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, tokenizer = _model(options.model)
    dataset = _rows(512, options.length, min(200, model.config.vocab_size))
    batches = visits(len(dataset), options.steps, options.batch_size, seed=0)
    budget = Budget(kind="steps", amount=options.steps, batch_size=options.batch_size)

    arms: dict[str, Callable[[Any], tuple[float, float]]] = {
        "plain": lambda model: _plain(model, dataset, batches, budget),
        "ours": lambda model: _ours(model, tokenizer, dataset, batches, budget),
        "trl": lambda model: _trl(model, tokenizer, dataset, budget),
    }
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    setup: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(options.rounds + 1):
        for name, arm in arms.items():
            whole, per_step = arm(copy.deepcopy(model))
            if turn:  # the first turn warms imports and allocators
                seconds[name].append(per_step)
                setup[name].append(whole - per_step * options.steps)
    found = {
        "parameters": count_parameters(model),
        "batch_size": options.batch_size,
        "length": options.length,
        "steps": options.steps,
        "rounds": options.rounds,
        "threads": options.threads,
        "machine": f"{platform.machine()}, torch {torch.__version__}",
        "ms_per_step": {name: round(1000 * statistics.median(times), 2) for name, times in seconds.items()},
        "setup_seconds": {name: round(statistics.median(times), 3) for name, times in setup.items()},
        "speed_against_plain": {
            name: round(statistics.median(seconds["plain"]) / statistics.median(times), 3)
            for name, times in seconds.items()
        },
    }
    print(json.dumps(found, indent=1))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


def _plain(model: Any, dataset: Dataset, batches: np.ndarray, budget: Budget) -> tuple[float, float]:
    rows = Rows(dataset)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, budget.beta2), fused=True)
    started = time.perf_counter()
    for numbers in batches:
        batch = collate([rows[i] for i in numbers], pad_id=0)
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        labels = batch["labels"][:, 1:]
        scored = labels != -100
        loss = functional.cross_entropy(logits[:, :-1][scored].float(), labels[scored])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), budget.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
    whole = time.perf_counter() - started
    return whole, whole / len(batches)


def _ours(model: Any, tokenizer: Any, dataset: Dataset, batches: np.ndarray, budget: Budget) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        fit(
            model,
            tokenizer,
            TrainingData(dataset, batches),
            TrainingSettings(budget, TrainingPhase(), Machine(device="cpu"), seed=0),
            out=Path(folder),
        )
        whole = time.perf_counter() - started
        lines = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    # a line is written before its step's optimizer moves: the distance of two lines is one whole step
    return whole, (lines[-1]["seconds"] - lines[0]["seconds"]) / (len(lines) - 1)


def _trl(model: Any, tokenizer: Any, dataset: Dataset, budget: Budget) -> tuple[float, float]:
    def labelled(row: dict[str, Any]) -> dict[str, Any]:
        spans = list(zip(row["starts"], row["ends"], strict=True))
        ids = row["input_ids"]
        return {"labels": [t if any(a <= i < b for a, b in spans) else -100 for i, t in enumerate(ids)]}

    prepared = dataset.map(labelled).select_columns(["input_ids", "labels"])
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder,
            max_steps=int(budget.amount),
            per_device_train_batch_size=budget.batch_size,
            learning_rate=budget.learning_rate,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=None,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        )
        started = time.perf_counter()
        trainer = SFTTrainer(model, arguments, train_dataset=prepared, processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        begun = time.perf_counter()
        trainer.train()
        ended = time.perf_counter()
    return ended - started, (ended - begun) / budget.amount


def _model(folder: Path | None) -> tuple[Any, Any]:
    if folder is not None:
        return load_model(folder), load_tokenizer(folder)
    from harness.data.miniature.sizes import llama_settings
    from harness.data.miniature.tokenizer import load_mini_tokenizer

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**llama_settings("small"))), load_mini_tokenizer()


def _rows(count: int, length: int, vocabulary: int) -> Dataset:
    generator = np.random.default_rng(0)
    lengths = generator.integers(length // 2, length + length // 2, count)
    starts = (lengths * 2) // 3
    ids = [generator.integers(6, vocabulary, size).tolist() for size in lengths]
    return Dataset.from_dict(
        {"input_ids": ids, "starts": [[int(s)] for s in starts], "ends": [[int(n)] for n in lengths]}
    )


if __name__ == "__main__":
    main()
