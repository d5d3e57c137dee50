"""Stage `cache`: what a teacher says about the scored positions of given rows, stored for every student.

One forward pass of the teacher over each row, as the live teacher makes it: `caches.py` is the format,
`kept.py` says what is kept. A shard is 512 rows in the rows' order; within it rows are read in batches of like
length. A killed stage that finds its shards again goes on after the last complete one and ends with the same
files: what a batch holds follows from the shard, and draws are seeded by the row's id.

    meta.json, shards/     see `caches.py`
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import load_from_disk

from harness import track
from harness.cached_teacher import hashes_of, teacher_fingerprint
from harness.caches import ROWS_PER_SHARD, CacheWriter, StoredRow, batch_hashes, stored_row
from harness.checks import SettingsError, refuse
from harness.config import Machine
from harness.cost import forward_flops
from harness.divergences import scored_positions
from harness.heads import logits_at
from harness.kept import Kept, sampled_of, top_k_of
from harness.models import count_parameters, device_of, load_model, load_tokenizer
from harness.provenance import provenance
from harness.sequences import Row, Rows, collate, draw_seed
from harness.signal_kinds import Signal

LOGITS_AT_ONCE = 2**26  # numbers in a batch's logits, padding included: 256 MiB, 500 positions of 128k tokens
TOKENS_AT_ONCE = 2**13


def make_cache(settings: dict[str, Any], inputs: Mapping[str, Path], out: Path, machine: Machine) -> dict[str, Any]:
    """Store what the teacher says about every row of `inputs["rows"]`.

    `settings`: `signal` (`Signal.stored()`), `seed` (of drawn tokens), `max_length` (tokens of a row), optionally
    `precision` (`fp32`). `inputs`: `rows` (a folder with a data set `train/` like a subset's, of row, id,
    input_ids, starts, ends), `teacher` (a model folder). Continues where shards are in `out` already. Returns
    cost, counts and bytes per scored token. Raises SettingsError where the teacher has another tokenizer than
    the rows, too short a context or a vocabulary smaller than `top_k`.
    """
    signal, seed = Signal(**settings["signal"]), settings["seed"]
    assert signal.kind != "live", "a live teacher is not cached"
    dataset = load_from_disk(inputs["rows"] / "train")
    rows, ids = Rows(dataset), dataset["id"]
    tokenizer = load_tokenizer(inputs["teacher"])
    precision = settings.get("precision", "fp32")
    model: Any = load_model(inputs["teacher"], device=device_of(machine), dtype=precision)
    about = {
        "signal": signal.stored(),
        "seed": seed if signal.kind == "sampled" else None,
        "teacher": teacher_fingerprint(inputs["teacher"]),
        "parameters": count_parameters(model),
        "precision": precision,
        "vocabulary": len(tokenizer),
        "max_length": settings["max_length"],
        "rows_per_shard": ROWS_PER_SHARD,
        **hashes_of(tokenizer),
    }
    _check(inputs["rows"], rows, signal, model, about)
    writer = CacheWriter(out, about)
    for shard, first in enumerate(range(0, len(rows), ROWS_PER_SHARD)):
        if not writer.has(shard):
            part = range(first, min(first + ROWS_PER_SHARD, len(rows)))
            seeds = [draw_seed(seed, "sampled logits", ids[index]) for index in part]
            writer.write(shard, read(model, [rows[index] for index in part], signal, seeds, len(tokenizer)))
        track.report(min(first + ROWS_PER_SHARD, len(rows)), len(rows), note="what the teacher says")
    meta = writer.finish(provenance()["versions"])
    tokens = sum(len(rows[index].input_ids) for index in range(len(rows)))
    return {
        "cost": {"teacher_tokens": tokens, "flops": forward_flops(count_parameters(model), tokens)},
        "counts": {name: meta[name] for name in ("rows", "positions", "bytes")},
        "metrics": {
            "bytes_per_token": meta["bytes"] / max(meta["positions"], 1),
            "kept_tokens_per_token": meta["kept_tokens"] / max(meta["positions"], 1),
        },
    }


def read(model: Any, rows: list[Row], signal: Signal, seeds: list[int], vocabulary: int) -> list[StoredRow]:
    """What the teacher says about these rows, in their order; `seeds`, one a row, are only for drawn tokens."""
    found: dict[int, StoredRow] = {}
    samples = signal.samples if signal.kind == "sampled" else 0
    for indices in _batches([len(row.input_ids) for row in rows], vocabulary):
        batch = collate([rows[index] for index in indices], pad_id=0)
        scored = scored_positions(batch["labels"])
        ends = scored.sum(1).cumsum(0).tolist()
        counts = np.diff([0, *ends])
        uniforms = np.concatenate(
            [np.random.default_rng(seeds[index]).random((n, samples)) for index, n in zip(indices, counts, strict=True)]
        )
        with torch.no_grad():
            tensors = (tensor.to(model.device) for tensor in (batch["input_ids"], batch["attention_mask"], scored))
            logits = logits_at(model, *tensors)[:, :vocabulary]
            kept = _kept(logits, signal, uniforms).to("cpu")
        for index, hashes, end, n in zip(indices, batch_hashes(batch), ends, counts, strict=True):
            found[index] = stored_row(rows[index].number, hashes, kept[end - n : end], samples, vocabulary)
    return [found[index] for index in range(len(rows))]


def _kept(logits: torch.Tensor, signal: Signal, uniforms: np.ndarray) -> Kept:
    """What is kept of logits (N, V), some positions at a time: drawing needs the distribution twice in fp64."""
    step = max(1, LOGITS_AT_ONCE // 4 // logits.shape[1])
    parts = []
    for first in range(0, max(1, len(logits)), step):
        some = slice(first, first + step)
        sampled = signal.kind == "sampled"
        parts.append(sampled_of(logits[some], uniforms[some]) if sampled else top_k_of(logits[some], signal.top_k))
    return Kept.of(parts)


def _batches(lengths: list[int], vocabulary: int) -> Iterator[list[int]]:
    """Rows in batches of like length, at most `TOKENS_AT_ONCE` tokens with padding, and `LOGITS_AT_ONCE`."""
    most = min(TOKENS_AT_ONCE, LOGITS_AT_ONCE // vocabulary)
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if batch and lengths[index] * (len(batch) + 1) > most:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _check(folder: Path, rows: Rows, signal: Signal, model: Any, about: Mapping[str, Any]) -> None:
    """Refuse, before the first forward pass, what would be stored in vain."""
    if len(rows) and rows[0].number < 0:
        raise ValueError(f"{folder} has no rows with numbers: a cache finds them by the column 'row'")
    if signal.kind == "top_k" and signal.top_k > about["vocabulary"]:
        raise refuse("signal.top_k", signal.top_k, f"the teacher's vocabulary has only {about['vocabulary']} tokens")
    described = folder / "subset.json"
    if described.is_file():
        rendered = json.loads(described.read_text())["tokenizer_hash"]
        if rendered != about["tokenizer"]:
            raise SettingsError(
                f"what the teacher says cannot be stored: the rows were rendered with tokenizer {rendered[:12]} and "
                f"the teacher has {about['tokenizer'][:12]}; choose a teacher and a student with the same tokenizer."
            )
    longest = max((len(row.input_ids) for row in rows), default=0)  # a block may hold no rows
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or longest
    for name, limit in (("corpus.max_length", about["max_length"]), ("the teacher's context", context)):
        if longest > limit:
            raise refuse(name, limit, f"a row has {longest} tokens", "render the rows with a smaller corpus.max_length")
