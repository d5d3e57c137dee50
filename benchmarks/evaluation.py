"""Evaluation throughput: our model behind lm-eval beside lm-eval's own Hugging Face back end, on the same items.

Both run the same cards through the same lm-eval on one loaded model, one after the other, several rounds; the
order changes every round. Scores are compared item by item. Prints JSON with ratios of medians.

    PYTHONPATH=. python benchmarks/evaluation.py --model FOLDER --data FOLDER --limit 8 --names gsm8k pubmedqa
"""

import argparse
import json
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from lm_eval.models.huggingface import HFLM

from harness.evals.benchmarks import data_files, load_benchmark
from harness.evals.lm_evaluation.model import ROWS_AT_ONCE, LmEvalModel
from harness.evals.lm_evaluation.run import Data, run_benchmark, summary
from harness.models.generate import context_of
from harness.models.loading import load_model, load_tokenizer


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a Hugging Face folder")
    parser.add_argument("--data", type=Path, required=True, help="folder of JSON lines (harness/cards)")
    parser.add_argument("--names", nargs="+", default=["gsm8k", "pubmedqa"])
    parser.add_argument("--limit", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, help="shorter answers than the benchmark's")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model(options.model, "cpu" if not torch.cuda.is_available() else "cuda", dtype="fp32")
    tokenizer = load_tokenizer(options.model)
    found: dict[str, Any] = {"machine": platform.processor(), "torch": torch.__version__, "threads": options.threads}
    for name in options.names:
        found[name] = _compare(name, model, tokenizer, options)
    print(json.dumps(found, indent=2))


def _compare(name: str, model: Any, tokenizer: Any, options: argparse.Namespace) -> dict[str, Any]:
    benchmark = load_benchmark(name)
    if options.max_new_tokens and benchmark.max_new_tokens:
        benchmark = replace(benchmark, max_new_tokens=options.max_new_tokens)
    data = Data(tuple(data_files(name, options.data)))
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=ROWS_AT_ONCE, max_length=context_of(model))
    theirs.tally = LmEvalModel(model, tokenizer, benchmark.chat).tally  # lm-eval's keeps no such counts
    seconds: dict[str, list[float]] = {"ours": [], "lm_eval": []}
    items: dict[str, Any] = {}
    for turn in range(options.rounds):
        for arm in sorted(seconds, reverse=bool(turn % 2)):
            own = LmEvalModel if arm == "ours" else lambda *_: theirs
            started = time.perf_counter()
            with patch("harness.evals.lm_evaluation.run.LmEvalModel", own):
                scored, _ = run_benchmark(name, benchmark, data, model, tokenizer, options.limit)
            seconds[arm].append(time.perf_counter() - started)
            items[arm] = scored.items
    medians = {arm: statistics.median(times) for arm, times in seconds.items()}
    same = [one.score == other.score for one, other in zip(items["ours"], items["lm_eval"], strict=True)]
    written = sum(item.tokens or 0 for item in items["ours"])
    return {
        "items": len(same),
        "written_tokens": written,
        "seconds": {arm: [round(one, 2) for one in times] for arm, times in seconds.items()},
        "times_faster": round(medians["lm_eval"] / medians["ours"], 2),
        "equal_scores": sum(same),
        "score": next(one.score for one in summary(name, benchmark, items["ours"]) if one.source == "all"),
    }


if __name__ == "__main__":
    main()
