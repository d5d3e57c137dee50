"""Peak memory of training stages against the estimate of the plan (`harness/plan/memory.py`), on a CPU.

Each case is planned as a grid is, its inputs are made, and its last training stage is made once more in a process of
its own while every tensor that torch allocates is counted; the peak of what is alive is compared with the estimate.
Scratch memory inside kernels is not counted. Prints JSON; `--out` writes it.

    PYTHONPATH=. python benchmarks/memory_estimate.py                     # the miniature
    PYTHONPATH=. python benchmarks/memory_estimate.py --student path.gguf # and a real model, e.g. of `make smollm2`
"""

import argparse
import json
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MINI = ("corpus.rows=200", "corpus.max_length=24", "budget.amount=2", "student.init=random")
MINI += ("teacher.init=random", "teacher.lessons=[]")  # what a model has learned takes no memory
REAL = ("budget.amount=1", "budget.batch_size=2", "student.kind=gguf", "student.name=real", "corpus=jsonl")
CASES: dict[str, tuple[str, ...]] = {
    "sft": ("method=sft",),
    "sft, 512 rows a step": ("method=sft", "budget.batch_size=512"),
    "sft, micro-batches": ("method=sft", "machine.micro_batch_size=1"),
    "sft, gradient checkpointing": ("method=sft", "machine.gradient_checkpointing=true", "budget.batch_size=512"),
    "sft, bf16": ("method=sft", "budget.precision=bf16", "budget.batch_size=512"),
    "sft, adapters": ("method=sft", "student.lora_rank=8"),
    "logit_kd": ("method=logit_kd", "budget.batch_size=512"),
    "on_policy": ("method=on_policy", "method.warmup=0", "budget.batch_size=256"),
}
"""Arguments of a run by what the case is about."""
REAL_CASES: dict[str, tuple[str, ...]] = {
    "sft": ("method=sft", "corpus.max_length=128"),
    "sft, micro-batches": ("method=sft", "corpus.max_length=128", "machine.micro_batch_size=1"),
    "sft, gradient checkpointing": (
        "method=sft",
        "corpus.max_length=256",
        "machine.micro_batch_size=1",
        "machine.gradient_checkpointing=true",
    ),
    "sft, bf16": ("method=sft", "corpus.max_length=128", "budget.precision=bf16"),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--student", type=Path, help="a GGUF file: cases with a real student are measured too")
    parser.add_argument("--only", help="the cases of the miniature whose names contain this")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", nargs="+", help="arguments of one case, to be measured in this process")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measured(options.measure)))
        return
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in CASES.items():
            if options.only is None or options.only in name:
                found[f"miniature: {name}"] = _apart([*MINI, *arguments, f"store={folder}/store"])
        if options.student is not None:
            rows = Path(folder) / "rows.jsonl"
            rows.write_text("".join(json.dumps(row) + "\n" for row in long_rows()))
            real = [*REAL, f"student.path={options.student}", f"corpus.path={rows}", f"store={folder}/store"]
            for name, arguments in REAL_CASES.items():
                found[f"{options.student.stem}: {name}"] = _apart([*real, *arguments])
    print(json.dumps(found, indent=1))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


def long_rows() -> Iterator[dict[str, Any]]:
    """Conversations that are longer than any limit, so that every row is cut to the length that is set."""
    for number in range(40):
        answer = " ".join(f"Step {step} of {number} adds {step * number}." for step in range(200))
        turns = [{"role": "user", "content": f"Add {number}."}, {"role": "assistant", "content": answer}]
        yield {"id": str(number), "source": "long", "messages": turns}


def measured(arguments: list[str]) -> dict[str, float]:
    """Peak and estimate, in MB, of the last training stage of the one cell of some arguments."""
    from harness.execution.executor import execute
    from harness.execution.view import PlainView
    from harness.plan.cell_plan import Plan
    from harness.plan.compose import compose
    from harness.plan.frozen import Part
    from harness.plan.memory import Placement, stage_memory
    from harness.stages.train import make_train
    from harness.store.store import Store

    small = ("evals.names=[heldout]", "evals.overlap=none", "measure.formats=[]")
    composed = compose([*small, "machine.device=cpu", "launch.kind=inline", *arguments])
    machine, store = composed.settings.machine, Store.open(composed.settings.store)
    stage = Plan.of(composed.cells).cells[0].train[-1]
    *before, _ = {one.key: one for one in stage.ancestry()}.values()
    wanted = {one.key: one for one in stage.inputs.values()}
    execute(Part(tuple(before), wanted, frozenset()), store, composed.settings, PlainView(sys.stderr))
    inputs = {role: store.folder(one.key) for role, one in stage.inputs.items()}
    with tempfile.TemporaryDirectory() as out, allocations() as peak:
        make_train(dict(stage.settings), inputs, Path(out), machine)
    expected = stage_memory(stage, Placement.of(None, machine))
    ratio = expected.total / peak()
    return {"peak_mb": round(peak() / 1e6, 2), "estimate_mb": round(expected.total / 1e6, 2), "ratio": round(ratio, 3)}


@contextmanager
def allocations() -> Iterator[Any]:
    """Yields a function that returns the most bytes of tensors that were alive at once within the block."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Counting(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.now, self.most = 0, 0
            self.alive: dict[int, Any] = {}

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            # tensors that exist already are counted when an operation first reads them
            for value in tree_leaves((args, kwargs, result)):
                if isinstance(value, torch.Tensor):
                    self.see(value.untyped_storage())
            return result

        def see(self, storage: Any) -> None:
            key, size = storage._cdata, storage.nbytes()
            if key in self.alive or not size:
                return

            def gone(_: Any) -> None:
                del self.alive[key]
                self.now -= size

            self.alive[key] = weakref.ref(storage, gone)
            self.now += size
            self.most = max(self.most, self.now)

    counting = Counting()
    with counting:
        yield lambda: counting.most


def _apart(arguments: list[str]) -> dict[str, float]:
    """One case in a fresh process."""
    command = [sys.executable, __file__, "--measure", *arguments]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.splitlines()[-1])
    print(*arguments, found, file=sys.stderr)
    return found


if __name__ == "__main__":
    main()
