"""How much memory fixed-text distillation needs at a large vocabulary, in chunks against in one piece.

One micro-batch of a small-bodied student and teacher (so that the output layer dominates), loss and
backward, each arm in a process of its own: `ours` (`objectives.Distributions` as the trainer calls it),
`dense` (the textbook loop: all logits, softmax, KL) and `trl` (TRL's ChunkedDivergenceFunction on the same
hidden states, if it is there). Memory is the peak of the resident set minus what it was before; loss and
gradients of the arms are compared. Prints JSON; `--out` writes it.

    PYTHONPATH=. python benchmarks/objective_memory.py --positions 2048 --hidden 128 --rounds 3
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

DIVERGENCES = {"forward_kl": 0.0, "jsd": 0.5, "reverse_kl": 1.0}  # and TRL's name for each
PROMPT = 4  # tokens before each row's answer


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--positions", type=int, default=2048, help="scored positions of the micro-batch")
    parser.add_argument("--vocabulary", type=int, default=128256)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--divergence", choices=tuple(DIVERGENCES), default="forward_kl")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--arm", choices=("ours", "dense", "trl"), help="measure one arm in this process")
    options = parser.parse_args()
    if options.arm:
        print(json.dumps(_measure(options)))
        return
    arms: dict[str, list[dict[str, Any]]] = {"ours": [], "dense": [], "trl": []}
    for _ in range(options.rounds):  # arms take turns, so a busy minute does not hit one of them alone
        for name, runs in arms.items():
            found = _apart(name)
            if found is not None:
                runs.append(found)
    arms = {name: runs for name, runs in arms.items() if runs}
    dense = arms["dense"][0]
    peak = {name: round(statistics.median(run["peak_mib"] for run in runs)) for name, runs in arms.items()}
    seconds = {name: round(statistics.median(run["seconds"] for run in runs), 2) for name, runs in arms.items()}
    found = {
        **{name: getattr(options, name) for name in ("positions", "vocabulary", "hidden", "divergence", "rounds")},
        "machine": f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}",
        "peak_mib": peak,
        "seconds": seconds,
        "memory_against_dense": {name: round(value / peak["dense"], 3) for name, value in peak.items()},
        "time_against_dense": {name: round(value / seconds["dense"], 3) for name, value in seconds.items()},
        "relative_error": {
            name: {what: abs(runs[0][what] / dense[what] - 1) for what in ("loss", "head_gradient", "body_gradient")}
            for name, runs in arms.items()
        },
    }
    print(json.dumps(found, indent=1))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


def _apart(arm: str) -> dict[str, Any] | None:
    """One arm in a fresh process; None where TRL has no such function."""
    run = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--arm", arm], capture_output=True, text=True)
    if run.returncode and arm == "trl" and "ModuleNotFoundError" in run.stderr:
        return None
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


def _measure(options: argparse.Namespace) -> dict[str, float]:
    torch.set_num_threads(options.threads)
    student, teacher = _model(options, seed=0), _model(options, seed=1).requires_grad_(False)
    batch = _batch(options)
    step = {"ours": _ours, "dense": _dense, "trl": _trl}[options.arm](student, teacher, batch, options)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    loss = step()
    loss.backward()
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    body = student.model.layers[0].self_attn.q_proj.weight
    return {
        "peak_mib": (peak - before) / 1024,
        "seconds": seconds,
        "loss": loss.item(),
        "head_gradient": student.lm_head.weight.grad.double().norm().item(),
        "body_gradient": body.grad.double().norm().item(),
    }


def _ours(student: Any, teacher: Any, batch: dict[str, torch.Tensor], options: argparse.Namespace) -> Any:
    from harness.config.recipe import TrainingPhase
    from harness.teachers.signals import LiveTeacher
    from harness.training.losses.objectives import Distributions

    signal = LiveTeacher.__new__(LiveTeacher)  # a teacher without the tokenizers it would check
    signal.model, signal.parameters = teacher.eval(), 0
    objective = Distributions(TrainingPhase(divergence=options.divergence), signal, options.vocabulary)
    return lambda: objective.compare(student, batch).sum


def _dense(student: Any, teacher: Any, batch: dict[str, torch.Tensor], options: argparse.Namespace) -> Any:
    def step() -> torch.Tensor:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        scored = batch["labels"][:, 1:] != -100
        with torch.no_grad():
            p = teacher(**inputs).logits[:, :-1][scored].log_softmax(-1)
        q = student(**inputs).logits[:, :-1][scored].log_softmax(-1)
        if options.divergence == "forward_kl":
            return (p.exp() * (p - q)).sum()
        if options.divergence == "reverse_kl":
            return (q.exp() * (q - p)).sum()
        m = torch.log((p.exp() + q.exp()) / 2)
        return ((p.exp() * (p - m)).sum() + (q.exp() * (q - m)).sum()) / 2

    return step


def _trl(student: Any, teacher: Any, batch: dict[str, torch.Tensor], options: argparse.Namespace) -> Any:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    def step() -> torch.Tensor:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        scored = batch["labels"][:, 1:] != -100
        with torch.no_grad():
            wise = teacher.model(**inputs).last_hidden_state[:, :-1][scored]
        states = student.model(**inputs).last_hidden_state[:, :-1][scored]
        heads = student.lm_head.weight, None, wise, teacher.lm_head.weight, None
        return ChunkedDivergenceFunction.apply(states, *heads, DIVERGENCES[options.divergence], 1.0)[0].sum()

    return step


def _model(options: argparse.Namespace, seed: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=options.vocabulary,
            hidden_size=options.hidden,
            intermediate_size=2 * options.hidden,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            initializer_range=0.2,
            tie_word_embeddings=True,
        )
    )


def _batch(options: argparse.Namespace) -> dict[str, torch.Tensor]:
    """Rows of 256 scored tokens after a short prompt."""
    rows, length = max(1, options.positions // 256), min(options.positions, 256)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, options.vocabulary, (rows, PROMPT + length), generator=generator)
    labels = ids.clone()
    labels[:, :PROMPT] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


if __name__ == "__main__":
    main()
