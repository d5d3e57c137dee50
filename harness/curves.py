"""Training curves of a grid: every logged step of every finished student, its stages one after another.

curves(store, frozen_plan)     # columns of the cell, stage, step (counted through), nll, loss, sequences, ...
"""

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from harness.store.store import Store

LOG = "log.jsonl"
NAMES = ("method", "teacher", "student", "corpus", "budget", "data_frac", "seed", "world_seed")


def curves(store: Store, frozen: Mapping[str, Any]) -> pd.DataFrame:
    """One row per logged step. `nll` is of the step's own rows in nats per token and `sequences` says whose text they
    are; `loss` is the method's own objective and cannot be compared between methods. A student that is not finished
    has no rows."""
    frames = []
    for cell in frozen["cells"]:
        logs = [store.folder(key) / LOG for key in cell["train"]]
        if not all(store.done(key) for key in cell["train"]) or not all(path.is_file() for path in logs):
            continue
        names, before = {name: cell[name] for name in NAMES}, 0
        for number, path in enumerate(logs):
            frame = pd.DataFrame([json.loads(line) for line in path.read_text().splitlines()])
            if frame.empty:
                continue
            frames.append(frame.assign(**names, stage=number, step=frame["step"] + before))
            before += int(frame["step"].max())
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*NAMES, "stage", "step", "nll"])
