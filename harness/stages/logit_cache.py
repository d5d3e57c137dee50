"""Stage `cache`: a teacher's sparse logits at the scored positions of given rows, stored for every student.

One forward pass of the teacher over each row, as the live teacher makes it, or one request to a server, which
returns its top-k tokens. `teachers/logit_cache.py` is the format. A shard is 512 rows in the rows' order; within it
a model scores rows in batches of like length. A stopped stage resumes after its last whole shard
(`store/partial_output.py`) and ends with the same files: the rows of a batch follow from the shard, and draws are
seeded by the row's id.

    meta.json, shards/     see `teachers/logit_cache.py`
"""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import load_from_disk
from torch.nn import functional

from harness.config.checks import SettingsError, refuse
from harness.config.machine import Machine
from harness.config.teacher_signal import Signal, check_served
from harness.data.sequences import IGNORED, Row, Rows, collate, draw_seed
from harness.models.diverged import TeacherDivergedError
from harness.models.flops import forward_flops
from harness.models.loading import device_of, load_tokenizer
from harness.models.logits import logits_at, scored_positions
from harness.runtime import progress
from harness.runtime.provenance import provenance
from harness.store.partial_output import PartialOutput
from harness.teachers.logit_cache import ROWS_PER_SHARD, StoredRow, batch_hashes, shard_batch, stored_row, write_cache
from harness.teachers.reading import Reading
from harness.teachers.served_signal import scored_by_server
from harness.teachers.signals import hashes_of, teacher_fingerprint
from harness.teachers.sparse_logits import SparseLogits, sampled_of, top_k_of
from harness.teachers.teacher import LocalTeacher, ServedTeacher, open_teacher
from harness.training.training_report import outside_warnings

LOGITS_AT_ONCE = 2**26  # numbers in a batch's logits, padding included: 256 MiB, 500 positions of 128k tokens
TOKENS_AT_ONCE = 2**13


def make_cache(settings: dict[str, Any], inputs: Mapping[str, Path], out: Path, machine: Machine) -> dict[str, Any]:
    """Store the teacher's sparse logits of every row of `inputs["rows"]`.

    `settings`: `signal` (`Signal.stored()`), `seed` (of drawn tokens), `max_length` (tokens of a row), optionally
    `precision` (`fp32`) of a model in memory, and `where.teacher_url` where a server listens now. `inputs`: `rows`
    (a folder with a data set `train/` like a subset's, of row, id, input_ids, starts, ends), `teacher` (a model
    folder). Where teacher and student may render rows differently, also `student` (a folder with its tokenizer), in
    whose tokens the logits are then kept, and `teacher_rows` (the same rows as the teacher renders them), or the
    setting `rendering` (`student`). Returns cost, counts and bytes per scored token. Raises SettingsError where the
    teacher shares no vocabulary with the rows' tokenizer or has too short a context or a vocabulary smaller than
    `top_k`, and where a server returns fewer tokens, serves another model than before or cannot give the kind of
    signal; Preempted when it is to stop.
    """
    signal = Signal(**settings["signal"])
    assert signal.kind != "live", "a live teacher is not cached"
    dataset = load_from_disk(inputs["rows"] / "train")
    rows, ids = Rows(dataset), dataset["id"]
    precision, where = settings.get("precision", "fp32"), settings.get("where", {})
    url, access = where.get("teacher_url"), where.get("teacher_server")
    teacher = open_teacher(inputs["teacher"], device_of(machine), precision, url, access)
    served = isinstance(teacher, ServedTeacher)
    if served:
        check_served(signal)
    student = load_tokenizer(inputs["student"]) if "student" in inputs else teacher.tokenizer
    own_rows = [Rows(load_from_disk(inputs["teacher_rows"] / "train"))] if "teacher_rows" in inputs else []
    reading = Reading(student, teacher.tokenizer, own_rows, settings.get("rendering", "own"))
    vocabulary = len(student)
    about = {
        "signal": signal.stored(),
        "seed": settings["seed"] if signal.kind == "sampled" else None,
        "teacher": teacher_fingerprint(inputs["teacher"]),
        "parameters": teacher.parameters,
        "precision": None if served else precision,
        "vocabulary": vocabulary,
        "max_length": settings["max_length"],
        "rows_per_shard": ROWS_PER_SHARD,
        **hashes_of(student),
    }
    # before the first pass: a cache that no student can read would cost the teacher's whole work
    _check(inputs["rows"], rows, signal, teacher, about, reading)
    outside = MassOutside()

    def scored(part: range) -> pa.RecordBatch:
        some = [rows[index] for index in part]
        if isinstance(teacher, ServedTeacher):
            return shard_batch(score_served(teacher, some, signal.top_k, vocabulary, reading, outside))
        seeds = [draw_seed(settings["seed"], "sampled logits", ids[index]) for index in part]
        return shard_batch(score(teacher.model, some, signal, seeds, vocabulary, reading, outside))

    shards = PartialOutput(settings, inputs, ROWS_PER_SHARD)
    made: list[Path] = []
    for first in range(0, len(rows), ROWS_PER_SHARD):
        part = range(first, min(first + ROWS_PER_SHARD, len(rows)))
        made.append(shards.made(f"{len(made):05d}", partial(scored, part)))
        progress.report(part.stop, len(rows), note="the teacher's logits")
    meta = write_cache(out, about, made, provenance()["versions"])
    tokens = sum(len(rows[index].input_ids) for index in range(len(rows)))
    return {
        "cost": {"teacher_tokens": tokens, "flops": forward_flops(teacher.parameters, tokens)},
        "counts": {name: meta[name] for name in ("rows", "positions", "bytes")},
        "metrics": {
            "bytes_per_token": meta["bytes"] / max(meta["positions"], 1),
            "kept_tokens_per_token": meta["kept_tokens"] / max(meta["positions"], 1),
            **outside.metrics,
        },
        "warnings": teacher.warnings + outside_warnings(outside.metrics),
        **({"earlier_seconds": shards.earlier_seconds} if shards.earlier_seconds else {}),
    }


class MassOutside:
    """The teacher's probability of tokens that the student does not have, over the positions scored here."""

    def __init__(self) -> None:
        self.sum, self.positions = 0.0, 0

    def add(self, mass: torch.Tensor | None) -> None:
        """Take in the mass (n,) of some positions; None where every token is the student's."""
        if mass is not None:
            self.sum, self.positions = self.sum + float(mass.sum()), self.positions + len(mass)

    @property
    def metrics(self) -> dict[str, float]:
        """`teacher_mass_outside`, the mean; nothing where there is no such token."""
        return {"teacher_mass_outside": self.sum / self.positions} if self.positions else {}


def score(
    model: Any,
    rows: list[Row],
    signal: Signal,
    seeds: list[int],
    vocabulary: int,
    reading: Reading,
    outside: MassOutside,
) -> list[StoredRow]:
    """Sparse logits of a model in memory for these rows, in their order; `seeds`, one a row, are for `sampled` alone.

    `vocabulary` is the student's: the logits are cut to it, and what the teacher gives other tokens goes to `outside`.
    """
    found: dict[int, StoredRow] = {}
    samples = signal.samples if signal.kind == "sampled" else 0
    for indices in batches_of_like_length([len(row.input_ids) for row in rows], vocabulary):
        batch = collate([rows[index] for index in indices], pad_id=0)
        scored = scored_positions(batch["labels"])  # (B, T)
        ends = scored.sum(1).cumsum(0).tolist()  # where each row's positions end among the batch's N
        counts = np.diff([0, *ends])
        # each row has a generator of its own, so its draws do not depend on the batch it is in; (N, draws)
        uniforms = np.concatenate(
            [np.random.default_rng(seeds[index]).random((n, samples)) for index, n in zip(indices, counts, strict=True)]
        )
        with torch.no_grad():
            read = batch | reading.tensors([rows[index] for index in indices], pad_id=0)
            names = ("input_ids", "attention_mask", "labels")
            ids, mask, labels = (read.get(f"teacher_{name}", batch[name]).to(model.device) for name in names)
            whole = logits_at(model, ids, mask, scored_positions(labels))  # (N, W)
            outside.add(reading.shared.mass_outside(whole))
            logits = reading.shared.of_teacher(whole)  # (N, V)
            if bool(logits.isnan().any()):
                numbers = ", ".join(str(rows[index].number) for index in indices)
                raise TeacherDivergedError(f"the teacher's logits are NaN in the rows {numbers}")
            sparse = _sparse(logits, signal, uniforms).to("cpu")
        for index, hashes, end, n in zip(indices, batch_hashes(batch), ends, counts, strict=True):
            found[index] = stored_row(rows[index].number, hashes, sparse[end - n : end], samples, vocabulary)
    return [found[index] for index in range(len(rows))]


def score_served(
    teacher: ServedTeacher, rows: list[Row], top_k: int, vocabulary: int, reading: Reading, outside: MassOutside
) -> list[StoredRow]:
    """Top-k logits that a server returns for these rows, in their order; see `score` for the other arguments.

    Raises SettingsError where it returns fewer than `top_k` tokens, or a token id that its tokenizer does not have.
    """
    read = [reading.rows(row) for row in rows]
    texts = [one for sequences in read for one in sequences]
    labels = [collate([one], pad_id=0)["labels"][0].numpy() for one in texts]  # (T,) each
    ids, scored = [one.input_ids.tolist() for one in texts], [one[1:] != IGNORED for one in labels]
    sparse = scored_by_server(teacher, ids, scored, top_k, reading, own_token=False)
    outside.add(sparse.outside)
    # the place of a token that the student does not have stays in the file, unused
    missing = top_k - sparse.ids.shape[1]
    wide = functional.pad(sparse.ids, (0, missing), value=-1)  # (N, K)
    kept = SparseLogits("top_k", wide, functional.pad(sparse.logprobs, (0, missing), value=-torch.inf), sparse.tail)
    found, first = [], 0
    for row in rows:
        batch = collate([row], pad_id=0)
        last = first + int((batch["labels"] != IGNORED).sum())
        found.append(stored_row(row.number, batch_hashes(batch)[0], kept[first:last], 0, vocabulary))
        first = last
    return found


def _sparse(logits: torch.Tensor, signal: Signal, uniforms: np.ndarray) -> SparseLogits:
    """Sparse logits of logits (N, V), some positions at a time: drawing needs the distribution twice in fp64."""
    # fp64 takes twice the bytes, and softmax and sum are there together
    step = max(1, LOGITS_AT_ONCE // 4 // logits.shape[1])
    parts = []
    for first in range(0, max(1, len(logits)), step):
        some = slice(first, first + step)
        sampled = signal.kind == "sampled"
        parts.append(sampled_of(logits[some], uniforms[some]) if sampled else top_k_of(logits[some], signal.top_k))
    return SparseLogits.of(parts)


def batches_of_like_length(lengths: list[int], vocabulary: int) -> Iterator[list[int]]:
    """Indices of rows of these lengths (tokens), in batches of like length.

    A batch has at most `TOKENS_AT_ONCE` tokens with padding, and at most `LOGITS_AT_ONCE` logits.
    """
    most = min(TOKENS_AT_ONCE, LOGITS_AT_ONCE // vocabulary)
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        # lengths ascend, so the newest row is the longest and sets the padding
        if batch and lengths[index] * (len(batch) + 1) > most:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _check(
    folder: Path,
    rows: Rows,
    signal: Signal,
    teacher: LocalTeacher | ServedTeacher,
    about: Mapping[str, Any],
    reading: Reading,
) -> None:
    """Raise SettingsError, before the first forward pass, where the cache could not be used."""
    if len(rows) and rows[0].number < 0:
        raise ValueError(f"{folder} has no rows with numbers: a cache finds them by the column 'row'")
    if signal.kind == "top_k" and signal.top_k > about["vocabulary"]:
        raise refuse("signal.top_k", signal.top_k, f"the teacher's vocabulary has only {about['vocabulary']} tokens")
    described = folder / "subset.json"
    if described.is_file():
        rendered = json.loads(described.read_text())["tokenizer_hash"]
        if rendered != about["tokenizer"]:
            raise SettingsError(
                f"the teacher's logits cannot be stored: the rows were rendered with tokenizer {rendered[:12]} and "
                f"the teacher has {about['tokenizer'][:12]}; choose a teacher and a student with the same tokenizer."
            )
    reading.check(rows)
    longest = max((len(row.input_ids) for row in rows), default=0)  # a block may hold no rows
    read = longest
    if reading.own:
        read = max((len(one.input_ids) for row in rows for one in reading.rows(row)), default=0)
    limits = {
        "corpus.max_length": (longest, about["max_length"]),
        "the teacher's context": (read, teacher.longest_row or read),
    }
    for name, (length, limit) in limits.items():
        if length > limit:
            raise refuse(name, limit, f"a row has {length} tokens", "render the rows with a smaller corpus.max_length")
