"""What training a 1B student costs on a GPU under four objectives: speed, model FLOPs utilisation, memory.

Student and teacher have random weights in the shapes of Llama 3.2 1B and Llama 3.1 8B; the teacher is in bf16, the
student trains under bf16 autocast with fp32 weights, through `harness.training.trainer.fit`, on rows of 4,096 tokens.
Arms: `sft`, `forward_kl` from the live teacher, `cached_top_64` (the same from a cache), and `on_policy`
(reverse KL on the student's own text, whose generation counts as part of the step). `sft` and `cached_top_64` run
when the teacher is gone from memory.

Utilisation is the FLOPs the arm needs, over seconds a step, over the device's dense bf16 peak: 2 per weight and
token forward and 4 backward, the output layer at scored positions only, causal attention at half of its square
(so it is a little below figures that count all of it). Prints JSON; `--out` writes it. Not yet run on a
GPU; `--tiny` runs all of it on a CPU in seconds, with models too small for its figures to mean anything.

    CUDA_VISIBLE_DEVICES=0 PYTHONPATH=. python benchmarks/gpu_objectives.py --out gpu_objectives.json
    PYTHONPATH=. python benchmarks/gpu_objectives.py --tiny
"""

import argparse
import gc
import json
import platform
import resource
import statistics
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from llama_shapes import STUDENT, TEACHER, TINY_STUDENT, TINY_TEACHER, forward_flops, peak_tflops
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from harness.config.budget import Budget
from harness.config.checks import refuse
from harness.config.machine import Machine
from harness.config.recipe import TrainingPhase
from harness.config.teacher_signal import Signal
from harness.data.sequences import Rows
from harness.models.loading import count_parameters
from harness.runtime import progress
from harness.stages.logit_cache import MassOutside, score
from harness.store.partial_output import PartialOutput
from harness.teachers.logit_cache import ROWS_PER_SHARD, shard_batch, write_cache
from harness.teachers.signals import CachedTeacher, LiveTeacher, hashes_of
from harness.training.trainer import TrainingData, TrainingSettings, fit
from harness.training.training_report import TrainingReport

ARMS = {
    "forward_kl": TrainingPhase(divergence="forward_kl"),
    "on_policy": TrainingPhase(sequences="student", student_share=1.0, divergence="reverse_kl"),
    "cached_top_64": TrainingPhase(divergence="forward_kl"),
    "sft": TrainingPhase(),
}
GIVEN = ("batch_size", "micro_batch_size", "gradient_checkpointing", "steps", "tiny")
SPECIALS = ("<pad>", "<|user|>", "<|assistant|>", "<|end|>")
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True)
class Scale:
    """How big a run is."""

    student: dict[str, Any]
    teacher: dict[str, Any]
    length: int
    """Tokens of a row."""
    new_tokens: int
    """Of these, tokens the student writes where it writes; else three quarters are scored."""
    device: str


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="on a CPU, with tiny models")
    parser.add_argument("--arm", choices=tuple(ARMS), action="append", help="default: all")
    parser.add_argument("--length", type=int, help="tokens of a row; default: 4096")
    parser.add_argument("--new-tokens", type=int, help="tokens the student writes; default: 512")
    parser.add_argument("--batch-size", type=int, default=8, help="rows a step")
    parser.add_argument("--micro-batch-size", type=int, default=2, help="rows a forward pass")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--steps", type=int, default=6, help="of which the first is not timed")
    parser.add_argument("--peak-tflops", type=float, help="dense bf16 peak of a device that is not in the table")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    assert options.steps >= 2, "the first step is not timed"
    peak = _peak_tflops(options)
    if options.tiny:
        scale = Scale(TINY_STUDENT, TINY_TEACHER, options.length or 32, options.new_tokens or 8, "cpu")
    else:
        scale = Scale(STUDENT, TEACHER, options.length or 4096, options.new_tokens or 512, "cuda")
    progress.MIN_SECONDS_BETWEEN_REPORTS = 0.0  # every step is timed
    with tempfile.TemporaryDirectory() as folder:
        arms = _measure(options, scale, peak, Path(folder))
    found = {
        "device": torch.cuda.get_device_name() if scale.device == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "peak_tflops": peak,
        "length": scale.length,
        "new_tokens": scale.new_tokens,
        **{name: getattr(options, name) for name in GIVEN},
        "arms": arms,
        "seconds_per_step_against_sft": _ratios(arms, "sft"),
    }
    print(json.dumps(found, indent=1))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


def _ratios(arms: dict[str, Any], floor: str) -> dict[str, float]:
    seconds = {name: arm["seconds_per_step"] for name, arm in arms.items()}
    return {name: round(value / seconds[floor], 2) for name, value in seconds.items()} if floor in seconds else {}


def _peak_tflops(options: argparse.Namespace) -> float | None:
    """The device's peak; a machine without a GPU, or with one nobody knows, is refused before anything is built."""
    if options.tiny:
        return options.peak_tflops
    if not torch.cuda.is_available():
        raise SystemExit(str(refuse("device", "cuda", "no CUDA device is visible", "run it with --tiny, on a CPU")))
    name = torch.cuda.get_device_name()
    peak = options.peak_tflops or peak_tflops(name)
    if peak is None:
        raise SystemExit(str(refuse("--peak-tflops", None, f"{name} is not in the table", "give its dense bf16 peak")))
    return peak


def _measure(options: argparse.Namespace, scale: Scale, peak: float | None, folder: Path) -> dict[str, Any]:
    """Every arm wanted: first those the teacher is needed for, then, without it, the others."""
    wanted = [name for name in ARMS if name in (options.arm or ARMS)]
    tokenizer = _tokenizer(scale.student["vocab_size"])
    count = options.batch_size * options.steps
    rows = _rows(count, scale.length, scale.length // 4, len(tokenizer))
    prompts = _rows(count, scale.length, scale.length - scale.new_tokens, len(tokenizer))
    teacher, cached, written = None, None, {}
    if set(wanted) - {"sft"}:
        teacher = LiveTeacher(_llama(scale.teacher, scale.device, torch.bfloat16), tokenizer, tokenizer, scale.device)
    if "cached_top_64" in wanted:
        assert teacher is not None
        written = _write_cache(teacher, tokenizer, rows, folder / "cache", scale.length)
        cached = CachedTeacher([folder / "cache"], Signal(kind="top_k", top_k=64), tokenizer)
    found = {}
    for name in wanted:
        on_policy = name == "on_policy"
        if name not in ("forward_kl", "on_policy"):
            teacher = None
        signal = cached if name == "cached_top_64" else teacher
        _free(scale.device)
        found[name] = _arm(name, options, scale, peak, tokenizer, prompts if on_policy else rows, signal, folder)
        if name == "cached_top_64":
            found[name] |= written
    return found


def _arm(
    name: str,
    options: argparse.Namespace,
    scale: Scale,
    peak: float | None,
    tokenizer: Any,
    rows: Dataset,
    teacher: Any,
    folder: Path,
) -> dict[str, Any]:
    student = _llama(scale.student, scale.device, torch.float32)
    at: list[float] = []
    with progress.listen(lambda _: at.append(time.perf_counter())):  # a step's loss was read, so the device is done
        report = fit(
            student,
            tokenizer,
            TrainingData(rows, np.arange(len(rows)).reshape(options.steps, options.batch_size)),
            TrainingSettings(
                Budget(amount=options.steps, batch_size=options.batch_size, learning_rate=1e-5, precision="bf16"),
                ARMS[name],
                Machine(
                    device=scale.device,
                    micro_batch_size=options.micro_batch_size,
                    gradient_checkpointing=options.gradient_checkpointing,
                ),
                seed=0,
                max_new_tokens=scale.new_tokens,
            ),
            out=folder,
            teacher=teacher,
        )
    assert len(at) == options.steps, "a step was not reported"
    seconds = statistics.median(after - before for before, after in pairwise(at))
    flops = _flops(name, scale, report) / options.steps
    return {
        "parameters": count_parameters(student),
        "seconds_per_step": float(f"{seconds:.4g}"),
        "tokens_per_second": round(report.read_tokens / options.steps / seconds, 1),
        "scored_tokens_per_second": round(report.trained_tokens / options.steps / seconds, 1),
        "tflop_per_step": float(f"{flops / 1e12:.4g}"),
        "model_flops_utilisation": None if peak is None else float(f"{flops / seconds / peak / 1e12:.3g}"),
        "peak_mib": round(_peak_mib(scale.device)),
        "scored_tokens": report.trained_tokens,
        "generated_tokens": report.generated_tokens,
        "first_loss": report.first_loss,
    }


def _flops(name: str, scale: Scale, report: TrainingReport) -> float:
    """FLOPs the whole fit needs: training, the live teacher's reading, and the student's writing."""
    length = report.read_tokens, report.trained_tokens
    student = forward_flops(scale.student, *length, scale.length)
    needed = 3 * student
    if name == "on_policy":
        needed += student  # it reads its prompts and what it has written, each token once
    if name in ("forward_kl", "on_policy"):
        needed += forward_flops(scale.teacher, *length, scale.length)
    return needed


def _write_cache(teacher: LiveTeacher, tokenizer: Any, dataset: Dataset, folder: Path, length: int) -> dict[str, Any]:
    """Store the teacher's top-64 of all rows, straight from memory."""
    signal = Signal(kind="top_k", top_k=64)
    about = {
        "signal": signal.stored(),
        "seed": None,
        "teacher": "random weights",
        "parameters": teacher.parameters,
        "precision": "bf16",
        "vocabulary": len(tokenizer),
        "max_length": length,
        "rows_per_shard": ROWS_PER_SHARD,
        **hashes_of(tokenizer),
    }
    started = time.perf_counter()
    rows = list(Rows(dataset))
    assert len(rows) <= ROWS_PER_SHARD, f"at most {ROWS_PER_SHARD} rows, so that one shard has them"
    shards = PartialOutput(about, {}, ROWS_PER_SHARD)
    more = teacher.reading, MassOutside()
    read_by = partial(score, teacher.model, rows, signal, [0] * len(rows), len(tokenizer), *more)
    made = shards.made("00000", lambda: shard_batch(read_by()))
    folder.mkdir()
    meta = write_cache(folder, about, [made], {})
    seconds = time.perf_counter() - started
    return {
        "cache_tokens_per_second": round(sum(len(row.input_ids) for row in rows) / seconds, 1),
        "cache_bytes_per_scored_token": round(meta["bytes"] / meta["positions"], 1),
    }


def _free(device: str) -> None:
    """Make the peak of what follows its own, and that of what is needed still."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak_mib(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _llama(shape: dict[str, Any], device: str, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(**shape, max_position_embeddings=8192, pad_token_id=0, bos_token_id=None, eos_token_id=3)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """As many words as the models have tokens: ids are what counts here."""
    words = [*SPECIALS, "<unk>", *(f"t{number}" for number in range(len(SPECIALS) + 1, vocabulary))]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in SPECIALS])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<|end|>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _rows(count: int, length: int, prompt: int, vocabulary: int) -> Dataset:
    draw = np.random.default_rng(0)
    return Dataset.from_dict(
        {
            "row": np.arange(count),
            "id": [f"r{number}" for number in range(count)],
            "input_ids": draw.integers(len(SPECIALS), vocabulary, (count, length)).tolist(),
            "starts": [[prompt]] * count,
            "ends": [[length]] * count,
        }
    )


if __name__ == "__main__":
    main()
