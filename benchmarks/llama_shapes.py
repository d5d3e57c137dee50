"""Llama shapes, the FLOPs of reading tokens with them, and what devices can do at most, for `gpu_objectives.py`."""

import re
from typing import Any

PEAK_TFLOPS = {
    r"\bB200\b": 2250.0,
    r"\bG?H200\b": 989.0,
    r"\bH100 PCIe\b": 756.0,
    r"\bH100 NVL\b": 835.0,
    r"\bH100\b": 989.0,
    r"\bA100\b": 312.0,
    r"\bL40S\b": 362.0,
    r"\bL4\b": 121.0,
    r"\bA10\b": 125.0,
}
"""Dense bf16 peaks by device name, from NVIDIA's data sheets; the first pattern that is found counts."""

SHARED = {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256, "rms_norm_eps": 1e-5}
STUDENT = {
    **SHARED,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "tie_word_embeddings": True,
}
TEACHER = {
    **SHARED,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "tie_word_embeddings": False,
}
TINY_SHARED = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320}
TINY_STUDENT = {
    **TINY_SHARED,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "tie_word_embeddings": True,
}
TINY_TEACHER = {**TINY_SHARED, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}


def peak_tflops(device: str) -> float | None:
    """The dense bf16 peak of a device by its name, or None where the table does not know it."""
    return next((peak for pattern, peak in PEAK_TFLOPS.items() if re.search(pattern, device)), None)


def forward_flops(shape: dict[str, Any], read_tokens: int, scored: int, length: int) -> float:
    """FLOPs of reading tokens in rows of `length` and making logits at the scored positions."""
    width, heads = shape["hidden_size"], shape["num_attention_heads"]
    projections = 2 * width * width * (1 + shape["num_key_value_heads"] / heads)
    layer = projections + 3 * width * shape["intermediate_size"]
    attention = 2 * length * width  # scores and their sum of values, each 2 T d, at half of the square
    body = shape["num_hidden_layers"] * (2 * layer + attention) * read_tokens
    return body + 2.0 * width * shape["vocab_size"] * scored
