"""Our training path beside TRL's trainers as their users call them: the same models, rows, batches and steps.

Tasks: `sft` (SFTTrainer, loss on assistant turns), `forward_kl` and `jsd` (GKDTrainer with lmbda 0),
`on_policy` (GKDTrainer with lmbda 1, and DistillationTrainer; reverse KL). An arm starts from messages, so
each side's own rendering, preparation and padding counts. Models have random weights, in the shapes of
the miniature (`mini`) or with 8 M and 17 M parameters and a BPE of 8,192 tokens (`small`). Optimizer values are
the same and gradient checkpointing is off on both sides (TRL's default is on, which is slower). Rows have
one assistant turn, since GKDTrainer trains only the last. Text is sampled at a temperature of 0.001, so
that every arm writes the same; the temperature of the divergence is 1, which is what GKDTrainer always uses.

Every arm takes its turn in a process of its own, several rounds each. Reported are medians of wall and CPU
seconds from messages to trained model, of milliseconds a step, and of the peak of the resident set above what
it was before; ratios are theirs over ours, so above 1 ours is better. That arms do the same work is checked:
scored tokens are equal, and so is the loss of the first step, once that of GKDTrainer on student text, which
it divides by the tokens of the data set (tests/test_trl_defects.py), is put right. Prints JSON; `--out` writes it.

    PYTHONPATH=. python benchmarks/against_trl.py --shape mini --rounds 5
    PYTHONPATH=. python benchmarks/against_trl.py --shape small --task on_policy --rounds 3
"""

import argparse
import ctypes
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from datasets import disable_progress_bars
from trl_arms import ARMS
from trl_work import SHAPES, given, prepare

RIVALS = {
    "sft": ("sft_trainer",),
    "forward_kl": ("gkd_trainer",),
    "jsd": ("gkd_trainer",),
    "on_policy": ("gkd_trainer", "distillation_trainer"),
}
AIMS = {"sft_trainer": 1.2, "gkd_trainer": 1.2, "distillation_trainer": 1.0}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="mini")
    parser.add_argument("--task", choices=tuple(RIVALS), action="append", help="default: all")
    parser.add_argument("--steps", type=int, help="default: 60 (mini), 6 (small)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    disable_progress_bars()
    shape = SHAPES[options.shape]
    steps = options.steps or shape.steps
    with tempfile.TemporaryDirectory() as folder:
        _apart(prepare, options.shape, steps * shape.batch_size, folder)
        tasks = {task: _compare(task, options, folder) for task in options.task or RIVALS}
    found = {
        "shape": options.shape,
        "batch_size": shape.batch_size,
        "steps": steps,
        "rounds": options.rounds,
        "threads": options.threads,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, torch {torch.__version__}",
        "tasks": tasks,
    }
    print(json.dumps(found, indent=1))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


def _compare(task: str, options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """One task: every arm in turns, medians, ratios, and whether the arms did the same work."""
    arms = ("ours", *RIVALS[task])
    turns: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    for _ in range(options.rounds):  # arms take turns, so a busy minute does not hit one of them alone
        for arm in arms:
            turns[arm].append(_apart(_turn, options.shape, task, arm, folder))
    of = {arm: {name: statistics.median(turn[name] for turn in turns[arm]) for name in turns[arm][0]} for arm in arms}
    ours = of["ours"]
    for arm in RIVALS[task]:
        assert of[arm]["scored_tokens"] == ours["scored_tokens"], f"{task}: {arm} scores other tokens: {of}"
        assert abs(of[arm]["first_loss"] / ours["first_loss"] - 1) < 1e-3, f"{task}: {arm} has another loss: {of}"
    pairs = {arm: list(zip(turns[arm], turns["ours"], strict=True)) for arm in RIVALS[task]}

    fastest = {arm: min(turn["seconds"] for turn in turns[arm]) for arm in arms}  # the least disturbed of each

    def ratio(arm: str, name: str) -> float:
        return round(of[arm][name] / ours[name], 2)

    return {
        "arms": {arm: {name: _rounded(value) for name, value in values.items()} for arm, values in of.items()},
        "times_faster": {
            arm: {
                "whole": ratio(arm, "seconds"),
                "whole_in_the_fastest_rounds": round(fastest[arm] / fastest["ours"], 2),
                "each_round": [round(theirs["seconds"] / own["seconds"], 2) for theirs, own in pairs[arm]],
                "whole_in_cpu_seconds": ratio(arm, "cpu_seconds"),
                "step": ratio(arm, "ms_per_step"),
                "aim": AIMS[arm],
            }
            for arm in RIVALS[task]
        },
        "times_the_memory": {arm: ratio(arm, "peak_mib") for arm in RIVALS[task]},
    }


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _apart(task: Callable[..., Any], *arguments: Any) -> Any:
    """What `task` returns in a process of its own, forked before torch or the tokenizers started a thread."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(task(*arguments)))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise RuntimeError(f"{task.__name__}{arguments} failed; what it said is above") from None
    finally:
        process.join()


def _turn(shape: str, task: str, arm: str, folder: str) -> dict[str, float]:
    """One arm, once: two steps to warm imports and allocators, then all of it."""
    rows = [json.loads(line) for line in (Path(folder) / "rows.jsonl").read_text().splitlines()]
    ARMS[arm](given(shape, rows[: 2 * SHAPES[shape].batch_size], folder), task)
    work = given(shape, rows, folder)
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, cpu, started = _memory("VmRSS"), time.process_time(), time.perf_counter()
    done = ARMS[arm](work, task)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "ms_per_step": 1000 * (done.at[-1] - done.at[0]) / (len(done.at) - 1),
        "scored_tokens_per_second": done.scored / seconds,
        "peak_mib": (_memory("VmHWM") - before) / 1024,
        "scored_tokens": done.scored,
        "first_loss": done.first_loss,
    }


def _memory(name: str) -> int:
    """This process's figure of that name, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


if __name__ == "__main__":
    main()
