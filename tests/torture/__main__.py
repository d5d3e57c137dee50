"""Torture: every crash point, random kills, races and storage faults of two small cells, within a number of minutes.

    python -m tests.torture --minutes 10

Trials are kept in `outputs/torture/<hash of the code>.jsonl`, so the same command goes on where the last one ended;
with too few minutes all kinds get their share. It prints a table, and what went wrong. Exit code 1 where a trial was
not right, 0 otherwise.
"""

import argparse
import hashlib
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from tests.torture.trials import Trial, Trials, stores

ROOT = Path(__file__).parents[2]
RANDOM_KILLS, RACES = 200, 10
Task = tuple[str, str, str, str, int]
"""Cell, part of the table, launch, error or empty, and the number of an operation, a limit or a seed."""


def tasks(cells: dict[str, Trials]) -> list[Task]:
    """Every trial, in an order in which a first part of any length has all kinds."""
    parts: list[list[Task]] = []
    for cell, trials in cells.items():

        def points(launch: str, act: str, trials: Trials = trials) -> range:
            return range(1, len(trials.undisturbed(launch, act)[1]) + 1)

        for launch, where in (("inline", "inline"), ("1", "pool")):
            parts.append([(cell, f"crash points, {where}", launch, "", at) for at in points(launch, "kill")])
        for act in ("ENOSPC", "EIO", "EROFS", "EDQUOT"):
            parts.append([(cell, f"storage faults, {act}", "inline", act, at) for at in points("inline", act)])
        parts.append([(cell, "storage faults, EFBIG", "inline", "EFBIG", int(200 * 1.25**step)) for step in range(40)])
        parts.append([(cell, "random kills", "", "", seed) for seed in range(RANDOM_KILLS)])
        parts.append([(cell, "races of 8 processes", "", "", seed) for seed in range(RACES)])
    order = random.Random(0)
    for part in parts:
        order.shuffle(part)
    # each at the middle of its share of the whole, so that all parts progress alike
    placed = [((number + 0.5) / len(part), task) for part in parts for number, task in enumerate(part)]
    return [task for _, task in sorted(placed)]


def take(trials: Trials, task: Task) -> Trial:
    """Run one trial."""
    _, part, launch, act, number = task
    if part.startswith("crash"):
        return trials.crash(launch, number)
    if part.startswith("random"):
        return trials.random_kill(number)
    if part.startswith("races"):
        return trials.race(number)
    return trials.fails(launch, act, number)


def table(wanted: list[Task], done: dict[Task, dict]) -> Iterator[str]:
    """A line a part, then what went wrong."""
    yield f"{'':34}{'in all':>8}{'tried':>8}{'right':>8}{'left over':>11}{'wrong':>7}"
    for part in dict.fromkeys(task[:2] for task in sorted(wanted)):
        mine = [task for task in wanted if task[:2] == part]
        tried = [done[task] for task in mine if task in done]
        wrong, left = sum(bool(one["wrong"]) for one in tried), sum(bool(one["left"]) for one in tried)
        right = sum(not one["wrong"] and not one["left"] for one in tried)
        yield f"{': '.join(part):34}{len(mine):8}{len(tried):8}{right:8}{left:11}{wrong:7}"
    for task in wanted:
        if task in done and (done[task]["wrong"] or done[task]["left"]):
            one = done[task]
            yield f"{task[0]}: {task[1]}: {one['what']}: {one['wrong'] or 'left over: ' + ', '.join(one['left'])}"


def main() -> int:
    """Run what the minutes allow, and print the table of all that was tried with this code."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="no trial is started after them (default: 10)")
    parser.add_argument("--cells", default="cheap,real", help="which cells (default: cheap,real)")
    parser.add_argument("--folder", type=Path, help="where the tortured stores lie (default: /dev/shm, else temporary)")
    given = parser.parse_args()
    ends = time.monotonic() + 60 * given.minutes
    code = hashlib.sha256()
    for path in sorted([*(ROOT / "harness").rglob("*.py"), *(ROOT / "tests/torture").glob("*.py")]):
        code.update(path.read_bytes())
    kept = ROOT / "outputs" / "torture" / f"{code.hexdigest()[:12]}.jsonl"
    kept.parent.mkdir(parents=True, exist_ok=True)
    with stores(given.folder) as folder:
        cells = {cell: Trials(folder, cell) for cell in given.cells.split(",")}
        wanted = tasks(cells)
        done: dict[Task, dict] = {}
        for line in kept.read_text().splitlines() if kept.is_file() else []:
            task, trial = json.loads(line)
            done[tuple(task)] = trial
        with open(kept, "a") as log:
            for task in wanted:
                if task in done:
                    continue
                if time.monotonic() > ends:
                    break
                done[task] = asdict(take(cells[task[0]], task))
                log.write(json.dumps([task, done[task]]) + "\n")
                log.flush()
    print("\n".join(table(wanted, done)))
    left = sum(task not in done for task in wanted)
    print(f"{left} trials are left: the same command goes on with them" if left else "all trials were taken")
    return 1 if any(one["wrong"] or one["left"] for one in done.values()) else 0


if __name__ == "__main__":
    for name, value in {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
    }.items():
        os.environ.setdefault(name, value)
    sys.exit(main())
