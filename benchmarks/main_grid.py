"""The main grid, cold and again: seconds, peak memory, and where the time of the stages goes.

    python benchmarks/main_grid.py [folder]

Runs `data_frac=0.01,0.1,1.0 method=sft,kd` into a fresh store and then a second time. Prints JSON: wall
seconds of both, their ratio, peak memory of all processes together (proportional set size), and seconds by kind of
stage; for train stages also what is left when the optimizer steps are taken away (set-up, saving, validation).
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

COMMAND = ["-m", "harness.run", "-m", "data_frac=0.01,0.1,1.0", "method=sft,kd"]


def run(store: Path) -> tuple[float, float]:
    """Wall seconds and peak memory in MB of one run and all its workers."""
    started, peak = time.perf_counter(), 0.0
    process = subprocess.Popen([sys.executable, *COMMAND, f"store={store}"], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, _memory(process.pid))
        time.sleep(0.5)
    assert process.returncode == 0, process.returncode
    return time.perf_counter() - started, peak


def _memory(pid: int) -> float:
    total = 0
    try:
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            total += process.memory_full_info().pss
    except psutil.Error:
        pass
    return total / 2**20


def seconds_by_kind(store: Path) -> dict[str, dict[str, float]]:
    """Seconds of all stages by kind, and of train stages what is not optimizer steps."""
    table: dict[str, dict[str, float]] = {}
    for path in (store / "objects").glob("*/*/manifest.json"):
        manifest = json.loads(path.read_text())
        row = table.setdefault(manifest["kind"], {"stages": 0, "seconds": 0.0})
        row["stages"] += 1
        row["seconds"] = round(row["seconds"] + manifest["facts"]["seconds"], 1)
        log = path.parent / "log.jsonl"
        if manifest["kind"] == "train" and log.is_file():
            steps = json.loads(log.read_text().splitlines()[-1])["seconds"]
            row["not_steps"] = round(row.get("not_steps", 0.0) + manifest["facts"]["seconds"] - steps, 1)
    return table


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp())
    store = folder / "store"
    cold, peak = run(store)
    again, _ = run(store)
    result = {
        "cold_seconds": round(cold),
        "again_seconds": round(again, 1),
        "ratio": round(cold / again),
        "peak_memory_mb": round(peak),
        "stages": seconds_by_kind(store),
    }
    print(json.dumps(result, indent=1))
