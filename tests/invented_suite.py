"""Invented records of a suite of two benchmarks, one of four choices (GPQA, floor 0.25) and one of answers (GSM8K, 0).

records, load_items = suite(gains={"kd": {1.0: (0.1, 0.2)}}, seeds=2, sizes=(40, 90))
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.evals import Score
from harness.evals.benchmarks import load_benchmark
from harness.results.records import Record
from harness.results.suite import with_macro_average
from tests.invented_records import cell

NAMES = ("gpqa", "gsm8k")
COLUMNS = {name: load_benchmark(name).column for name in NAMES}
SETTINGS = {"evals": {"names": ["heldout", *NAMES]}}


def items_frame(name: str, scores: Sequence[float], first: int = 0) -> pd.DataFrame:
    """Items of one benchmark, of two subsets in turn, numbered from `first`."""
    numbers = range(first, first + len(scores))
    return pd.DataFrame(
        {
            "eval": name,
            "id": [f"{n}" for n in numbers],
            "source": ["a" if n % 2 else "b" for n in numbers],
            "prompt_hash": [f"h{n}" for n in numbers],
            "score": list(map(float, scores)),
        }
    )


def record_of(
    method: str, data_frac: float | None, seed: int, frames: Mapping[str, pd.DataFrame], shelf: dict, **changes: Any
) -> Record:
    """One record with these items; its macro-averages are made as those of a stored grid."""
    scores = []
    for name, frame in frames.items():
        values = frame["score"]
        error = float(values.std(ddof=1) / np.sqrt(len(values)))
        scores.append(Score(name, COLUMNS[name], "all", float(values.mean()), error, len(values)))
    made = cell(method, data_frac, seed, **{"settings": SETTINGS, **changes})
    paths = {name: f"{made.cell}-{name}" for name in frames}
    shelf |= {paths[name]: frame for name, frame in frames.items()}
    plain = made.plain() | {"items": paths, "scores": [vars(one) for one in with_macro_average(scores, SETTINGS)]}
    return Record.of(plain)


def suite(
    gains: Mapping[str, Mapping[float, tuple[float, float]]], seeds: int = 2, sizes: tuple[int, int] = (40, 90)
) -> tuple[list[Record], Any]:
    """Records of SFT (0.4 on GPQA, 0.3 on GSM8K) and of methods with about these gains on the two."""
    generator, shelf, records = np.random.default_rng(11), {}, []
    hard = [generator.random(size) for size in sizes]
    levels = {"sft": {fraction: (0.0, 0.0) for curve in gains.values() for fraction in curve}, **gains}
    for seed in range(seeds):
        for method, curve in levels.items():
            for fraction, gained in curve.items():
                frames = {}
                for name, level, more, easy in zip(NAMES, (0.4, 0.3), gained, hard, strict=True):
                    drawn = 0.8 * easy + 0.2 * generator.random(len(easy))
                    frames[name] = items_frame(name, drawn < level + more)
                records.append(record_of(method, fraction, seed, frames, shelf))
    return records, shelf.__getitem__
