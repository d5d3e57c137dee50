"""Planning a thousand cells: seconds from a command line to a plan, beside composing every cell with Hydra.

    python benchmarks/planning.py

Prints JSON: seconds of ours (compose and plan, no torch imported), seconds of Hydra composing the same cells
one by one (measured on 20 of them, scaled), and the ratio.
"""

import json
import sys
import time

FRACTIONS = ",".join(f"{n / 50}" for n in range(1, 51))
SWEEP = [f"data_frac={FRACTIONS}", "method=sft,kd", "seed=range(10)"]


def ours() -> tuple[float, int, int]:
    """Seconds, cells and stages of compose and plan."""
    from harness.plan.cell_plan import Plan
    from harness.plan.compose import compose

    started = time.perf_counter()
    plan = Plan.of(compose(SWEEP).cells)
    return time.perf_counter() - started, len(plan.cells), len(plan.stages)


def hydra_alone(cells: int = 20) -> float:
    """Seconds per cell of composing with Hydra and converting to the same dataclasses."""
    import hydra
    from omegaconf import OmegaConf

    from harness.plan.compose import hydra_ready

    with hydra_ready():
        started = time.perf_counter()
        for cell in range(cells):
            OmegaConf.to_object(hydra.compose("config", [f"method={('sft', 'kd')[cell % 2]}", f"seed={cell}"]))
        return (time.perf_counter() - started) / cells


if __name__ == "__main__":
    seconds, cells, stages = ours()
    baseline = hydra_alone() * cells
    heavy = [name for name in ("torch", "transformers", "datasets") if name in sys.modules]
    print(
        json.dumps(
            {
                "cells": cells,
                "stages": stages,
                "seconds": round(seconds, 2),
                "hydra_one_by_one_seconds": round(baseline, 1),
                "ratio": round(baseline / seconds, 1),
                "heavy_libraries_imported": heavy,
            }
        )
    )
