"""Stages `measure` and `quantise`: memory and speed of a model in one number format, and its quantised weights.

Answers have a fixed length (no token stops one), so models of one shape do the same work whatever they generate: a
base stands for every student that is trained from it. Timings are those of the machine at that time, and no result
of a study is computed from them. bitsandbytes quantises weights to 8 or 4 bits, on CPU and GPU; the folder is an
ordinary Hugging Face one and loads with the memory of the quantised weights.

    measure.json                                     of `measure`: the facts below, on their own
    model.safetensors, config.json, tokenizer.json   of `quantise`: the rounded model, with its quantization_config
"""

import ctypes
import gc
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import psutil
import torch

from harness.config.machine import Machine
from harness.models.generate import context_of
from harness.models.kv_cache import with_room
from harness.models.loading import (
    DTYPES,
    count_parameters,
    device_of,
    load_config,
    load_model,
    load_quantised,
    load_tokenizer,
    save_model,
)
from harness.store.store import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAMPLE_SECONDS = 0.002


def make_measure(settings: dict[str, Any], inputs: Mapping[str, Path], out: Path, machine: Machine) -> dict[str, Any]:
    """Load the model, process a prompt and generate an answer; then repeat for the median speed.

    `settings`: `format` (`fp32`, `bf16`, `int8`, `nf4`), `precision` of the weights that are not quantised (the last
    two formats only), `prompt_tokens`, `new_tokens`, `batch_size`, `repeats`.
    `inputs`: `model`, a model folder; for `int8` and `nf4` one whose weights are quantised already.

    `counts`: `parameters`, `weight_bytes` (of the weights as saved in this format), `peak_memory_bytes` (from before
    loading until the last token, above the memory in use before: resident memory on a CPU, the allocator's on a GPU),
    and the lengths in force, which a short context reduces. `metrics`: tokens per second over the whole batch.
    Raises SettingsError for a folder that only names a server.
    """
    device, dtype = device_of(machine), settings.get("precision", settings["format"])
    _import_ahead(inputs["model"], settings["format"])
    load_average = os.getloadavg()[0]
    with _peak_memory(device) as peak:
        model = load_model(inputs["model"], device, dtype)
        context, new_tokens = context_of(model) or 2**31, settings["new_tokens"]
        # a short context takes from the prompt first; the facts state what was run
        prompt_tokens = max(1, min(settings["prompt_tokens"], context - new_tokens))
        new_tokens = min(new_tokens, context - prompt_tokens)
        prompts = _prompts(model, settings["batch_size"], prompt_tokens)  # (B, P)
        _prefill_and_decode(model, prompts, new_tokens)  # a warm-up, whose memory is that of every later run
    timed = [_prefill_and_decode(model, prompts, new_tokens) for _ in range(settings["repeats"])]
    prefill, decode = (median(seconds) for seconds in zip(*timed, strict=True))
    facts = {
        "counts": {
            "parameters": count_parameters(model),
            "weight_bytes": weight_bytes(model),
            "peak_memory_bytes": peak(),
            "prompt_tokens": prompt_tokens,
            "new_tokens": new_tokens,
            "batch_size": settings["batch_size"],
            "repeats": settings["repeats"],
        },
        "metrics": {
            "prefill_tokens_per_second": prompts.numel() / prefill,
            "decode_tokens_per_second": len(prompts) * new_tokens / decode,
        },
        "measured_on": {
            "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu",
            "threads": torch.get_num_threads(),
            "load_average": load_average,
        },
    }
    write_json(out / "measure.json", facts)
    return facts


def weight_bytes(model: "PreTrainedModel") -> int:
    """Bytes of all weights as saved: tied weights count once, quantised ones with their scales."""
    tensors = [tensor for tensor in model.state_dict().values() if isinstance(tensor, torch.Tensor)]
    # tied weights are one tensor at one address
    return sum({(tensor.data_ptr(), tensor.nbytes): tensor.nbytes for tensor in tensors}.values())


def _prefill_and_decode(model: "PreTrainedModel", prompts: torch.Tensor, new_tokens: int) -> tuple[float, float]:
    """Seconds of processing the prompts (B, P) at once, and of generating `new_tokens` greedy tokens after them."""
    with torch.no_grad():
        prefill_start = _now(model)
        output: Any = model(input_ids=prompts, use_cache=True, logits_to_keep=1)
        token = output.logits[:, -1:].argmax(-1)  # (B, 1)
        decode_start = _now(model)
        cache = with_room(output.past_key_values)
        for _ in range(new_tokens):
            output = model(input_ids=token, past_key_values=cache, use_cache=True)
            token, cache = output.logits[:, -1:].argmax(-1), output.past_key_values  # (B, 1)
        return decode_start - prefill_start, _now(model) - decode_start


def _prompts(model: "PreTrainedModel", batch_size: int, prompt_tokens: int) -> torch.Tensor:
    """Random ids of the vocabulary, (B, P): which ids they are does not change the work."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    return torch.randint(vocabulary, (batch_size, prompt_tokens), generator=generator).to(model.device)


def _now(model: "PreTrainedModel") -> float:
    """The time (s) at which the device has finished all work submitted so far."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()


def _import_ahead(folder: Path, number_format: str) -> None:
    """Import the modules that loading imports, so that their memory is not counted as the model's."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    assert MODEL_FOR_CAUSAL_LM_MAPPING[type(load_config(folder))]
    if number_format not in DTYPES:
        import bitsandbytes

        assert bitsandbytes


@contextmanager
def _peak_memory(device: str) -> Iterator[Callable[[], int]]:
    """Yields a function that returns, after the block, the peak of bytes in use within it above those before it."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield lambda: torch.cuda.max_memory_allocated(device) - before
        return
    with suppress(OSError, AttributeError):  # return memory freed earlier to the system, where libc supports it
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    process, ended = psutil.Process(), threading.Event()
    before = process.memory_info().rss
    most = before

    def watch() -> None:
        nonlocal most
        # the system keeps a peak of the process's whole life only, so the memory in use is sampled
        while not ended.wait(SAMPLE_SECONDS):
            most = max(most, process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield lambda: most - before
    finally:
        # once more at the end: a short block may end between two samples
        most = max(most, process.memory_info().rss)
        ended.set()
        watcher.join()


def make_quantise(settings: dict[str, Any], inputs: Mapping[str, Path], out: Path, machine: Machine) -> dict[str, Any]:
    """Quantise the linear layers of `inputs["model"]` to `settings["to"]` (`int8` or `nf4`)."""
    model = load_quantised(inputs["model"], settings["to"], device_of(machine))
    save_model(model, load_tokenizer(inputs["model"]), out)
    return {"counts": {"parameters": count_parameters(model), "bytes": model.get_memory_footprint()}}
