"""Invented records with item scores: a small grid whose gains are set by hand, for tests of the reading side.

records, load_items = grid(gains={"kd": {0.01: 0.1, 1.0: 0.0}}, seeds=3)
records, load_items = grid(DATA_SCALING, seeds=4, worlds=(0, 1))     # the shape of the main experiment
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from harness.plan.frozen import FrozenCell
from harness.results.records import Record

SFT = {0.01: 0.2, 0.03: 0.3, 0.1: 0.45, 0.3: 0.55, 1.0: 0.6}
DATA_SCALING: dict[tuple[str, str | None], dict[float, float]] = {
    ("sft_restart", None): dict(zip(SFT, (0.02, 0.01, 0.0, 0.0, -0.01), strict=True)),
    ("kd", "weak"): dict(zip(SFT, (0.12, 0.1, 0.07, 0.03, 0.0), strict=True)),
    ("kd", "strong"): {0.03: 0.16, 1.0: 0.12},
    ("logit_kd", "weak"): dict(zip(SFT, (0.1, 0.09, 0.05, 0.03, 0.01), strict=True)),
    ("logit_kd", "strong"): {0.03: 0.15, 1.0: 0.14},
}


def cell(method: str, data_frac: float | None, seed: int, scores: list[float] | None = None, **changes: Any) -> Record:
    """One record; `scores` are the item scores, whose mean is the cell's score."""
    role = changes.get("role", "student")
    name = f"{role}-{method}-{data_frac}-{seed}-" + "-".join(
        f"{k}={v}" for k, v in sorted(changes.items()) if k != "settings"
    )
    record: dict[str, Any] = {
        "cell": name,
        "grid": "g",
        "status": "done",
        "reason": None,
        "failure_class": None,
        "role": role,
        "method": method,
        "data_frac": data_frac,
        "student": "small",
        "teacher": None if method in ("sft", "base") else "weak",
        "corpus": "mini",
        "budget": "300 steps x 32 rows",
        "seed": seed,
        "data_seed": seed,
        "train_seed": seed,
        "world_seed": 0,
        "teacher_seed": 0,
        "settings": {},
        "cost": {
            "train": {"tokens": 1e5, "flops": 2e11, "seconds": 8.0},
            "teacher": {"tokens": 1e4, "flops": 1e10, "seconds": 2.0},
            "total": {"tokens": 1.1e5, "flops": 2.1e11, "seconds": 10.0},
        },
        "scores": [],
        "items": {},
        "warnings": [],
    }
    if scores is not None:
        error = float(np.std(scores, ddof=1) / np.sqrt(len(scores))) if len(scores) > 1 else 0.0
        record["scores"] = [
            {
                "eval": "verified",
                "metric": "accuracy",
                "source": "all",
                "score": float(np.mean(scores)),
                "standard_error": error,
                "items": len(scores),
            }
        ]
        record["items"] = {"verified": name}
    return Record.of(record | changes)


def changed(record: Record, **changes: Any) -> Record:
    """The same record with other values, given as plain JSON."""
    return Record.of(record.plain() | changes)


def frozen_cell(**changes: Any) -> FrozenCell:
    """A cell of a frozen plan with no stages but those given."""
    empty: dict[str, Any] = {name: "" for name in ("fingerprint", "method", "student", "corpus", "budget")}
    empty |= {name: () for name in ("needs", "train", "teaching", "making_teacher")}
    empty |= dict.fromkeys(("seed", "data_seed", "train_seed", "world_seed", "teacher_seed", "teacher", "data_frac"))
    return FrozenCell(**{**empty, "evaluations": {}, "settings": {}, **changes})


def items(scores: list[float], sources: tuple[str, ...] = ("add", "sort"), world: int = 0) -> pd.DataFrame:
    """An evaluation's items.parquet, with what the reading side looks at; every world has the same ids."""
    return pd.DataFrame(
        {
            "eval": "verified",
            "id": [f"i{n}" for n in range(len(scores))],
            "source": [sources[n % len(sources)] for n in range(len(scores))],
            "prompt_hash": [f"{world}-{n}" for n in range(len(scores))],
            "score": scores,
            "nll": 1.0,
            "nll_tokens": 2,
            "nll_truth": 1.0,
            "nll_truth_tokens": 2,
        }
    )


def grid(
    gains: Mapping[Any, dict[float, float]],
    seeds: int = 3,
    size: int = 240,
    noise: float = 0.01,
    worlds: tuple[int, ...] = (0,),
    references: bool = True,
    teachers: Mapping[str, float] = MappingProxyType({"weak": 0.7, "strong": 0.88}),
) -> tuple[list[Record], Any]:
    """Records of SFT and of each method at its fractions, with gains over SFT close to those given."""
    generator = np.random.default_rng(7)
    shelf: dict[str, pd.DataFrame] = {}
    records: list[Record] = []

    def add(
        method: str, fraction: float | None, seed: int, mean: float, difficulty: np.ndarray, **changes: Any
    ) -> None:
        scores = (generator.random(size) * 0.3 + difficulty * 0.7 < mean).astype(float).tolist()
        record = cell(method, fraction, seed, scores, **changes)
        shelf[record.items["verified"]] = items(scores, tuple("abcdefghijkl"), changes["world_seed"])
        records.append(record)

    fractions = sorted({fraction for curve in gains.values() for fraction in curve})
    for world in worlds:
        difficulty = generator.permutation(size) / size
        for seed in range(seeds):
            for fraction in fractions:
                sft = SFT[fraction] + generator.normal(0, 0.02)
                add("sft", fraction, seed, sft, difficulty, world_seed=world)
                for who, curve in gains.items():
                    method, teacher = who if isinstance(who, tuple) else (who, "weak")
                    if fraction in curve:
                        mean = sft + curve[fraction] + generator.normal(0, noise)
                        add(
                            method,
                            fraction,
                            seed,
                            mean,
                            difficulty,
                            teacher=teacher,
                            world_seed=world,
                            teacher_seed=world,
                        )
        if references:
            add("base", None, 0, 0.05, difficulty, role="base", world_seed=world)
            for teacher, level in teachers.items():
                if any(isinstance(who, str) or who[1] == teacher for who in gains):
                    add(
                        "teacher",
                        None,
                        0,
                        level,
                        difficulty,
                        role="teacher",
                        teacher=teacher,
                        student=teacher,
                        world_seed=world,
                        teacher_seed=world,
                    )
    return records, lambda path: shelf[path]
