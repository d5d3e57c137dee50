"""Quantise stage: a teacher's weights rounded to 8 or 4 bits, once, for all that ask it afterwards.

The folder is an ordinary Hugging Face one: whoever trains, answers, scores or evaluates with it loads it like any
other and pays the memory of the rounded weights. The library is bitsandbytes, which rounds on CPU and GPU.

    model.safetensors, config.json (with quantization_config), tokenizer.json, ...
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.config.machine import Machine
from harness.models.loading import count_parameters, device_of, load_quantised, load_tokenizer, save_model


def make_quantise(settings: dict[str, Any], inputs: Mapping[str, Path], out: Path, machine: Machine) -> dict[str, Any]:
    """Round the linear layers of `inputs["model"]` to `settings["to"]` (`int8` or `nf4`)."""
    model = load_quantised(inputs["model"], settings["to"], device_of(machine))
    save_model(model, load_tokenizer(inputs["model"]), out)
    return {"counts": {"parameters": count_parameters(model), "bytes": model.get_memory_footprint()}}
