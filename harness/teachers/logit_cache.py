"""Logit caches: a teacher's sparse logits at the scored positions of given rows, on disk, by row number.

`sparse_logits.py` defines them; here they are stored and read back. Only scored positions are stored, raw at
temperature 1, so order, batch and fraction are free: one cache serves every cell whose rows are in it. A row is
served only if its tokens and its scored positions are those the teacher scored.

    meta.json           teacher, tokenizer, kind of signal, counts; written last, so its presence means complete
    shards/00000.arrow  512 rows, one memory-mapped Arrow record batch each
        row, tokens_hash, scored_hash
        ids             the low 16 bits of each stored token's id
        high            planes of the bits above 16, packed by row: V = 128256 needs 17 bits, so one plane
        values          `top_k`: log-probabilities (float16), not a number in a place without a token. `sampled`:
                        draws of the token (uint8)
        per_position    `top_k`: log of the mass outside the K tokens (float16). `sampled`: distinct tokens (uint8)

A position takes 4 K + 2 + K/8 bytes as top-K at that vocabulary, 266 at K = 64; 3.1 a distinct token if sampled.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from harness.config.checks import refuse
from harness.config.file_hash import file_sha256
from harness.data.sequences import IGNORED
from harness.store.partial_output import read_batch
from harness.store.store import write_json
from harness.teachers.sparse_logits import SparseLogits

ROWS_PER_SHARD = 512
FORMAT = 1


def batch_hashes(batch: Mapping[str, torch.Tensor]) -> list[tuple[int, int]]:
    """For each row of `collate`'s batch a 64-bit hash of its tokens and one of which of them are scored."""
    # little-endian, so that hashes are the same on every machine
    ids = batch["input_ids"].cpu().numpy().astype("<i4")
    scored = batch["labels"].cpu().numpy() != IGNORED
    lengths = batch["attention_mask"].sum(1).tolist()
    return [
        (_hash64(ids[i, :length].tobytes()), _hash64(np.packbits(scored[i, :length]).tobytes()))
        for i, length in enumerate(lengths)
    ]


@dataclass(frozen=True)
class StoredRow:
    """One row as it is stored: see the columns above."""

    row: int
    tokens_hash: int
    scored_hash: int
    ids: np.ndarray
    high: np.ndarray
    values: np.ndarray
    per_position: np.ndarray


def stored_row(number: int, hashes: tuple[int, int], sparse: SparseLogits, samples: int, vocabulary: int) -> StoredRow:
    """Pack the sparse logits of one row's n scored positions; `samples` is the number of draws, 0 for `top_k`."""
    used = (sparse.logprobs > -torch.inf) if samples else torch.ones_like(sparse.ids, dtype=torch.bool)  # (n, K)
    ids = sparse.ids[used].cpu().numpy()  # (stored tokens,), position after position
    if samples:
        # counts instead of shares: whole numbers up to 255 take one byte and lose nothing
        values = (sparse.logprobs[used].double().exp() * samples).round().to(torch.uint8)  # (stored tokens,)
        per_position = used.sum(-1).to(torch.uint8)  # (n,)
    else:
        # an unused place has no token: not a number stands for it, and any id
        known = sparse.logprobs.masked_fill(sparse.ids < 0, torch.nan)  # (n, K)
        values, per_position = known.half().ravel(), sparse.tail.half()  # (n K,), (n,)
        ids = np.maximum(ids, 0)
    return StoredRow(
        number,
        *hashes,
        ids=(ids & 0xFFFF).astype(np.uint16),
        high=_packed(ids, _planes(vocabulary)),
        values=values.cpu().numpy(),
        per_position=per_position.cpu().numpy(),
    )


def shard_batch(rows: Sequence[StoredRow]) -> pa.RecordBatch:
    """Rows as the one record batch of a shard."""
    columns = {
        "row": pa.array([row.row for row in rows], pa.int64()),
        "tokens_hash": pa.array([row.tokens_hash for row in rows], pa.uint64()),
        "scored_hash": pa.array([row.scored_hash for row in rows], pa.uint64()),
    }
    for name in ("ids", "high", "values", "per_position"):
        parts = [getattr(row, name) for row in rows]
        # 64-bit offsets, because 512 long rows may have more values than 32 bits count
        offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])])  # (rows + 1,)
        columns[name] = pa.LargeListArray.from_arrays(offsets, pa.array(np.concatenate(parts)))
    return pa.record_batch(columns)


def write_cache(
    folder: Path, about: Mapping[str, Any], made: Sequence[Path], versions: Mapping[str, Any]
) -> dict[str, Any]:
    """Make a cache of shards that lie elsewhere on the disk; returns its `meta.json`, written last.

    `about`: teacher, signal and tokenizer (see `stages/logit_cache.py`); `made`: files of `shard_batch`es, in the
    rows' order; `versions`: of the libraries. Raises OSError where a shard cannot be linked, copied or read.
    """
    (folder / "shards").mkdir()
    paths = [folder / "shards" / f"{number:05d}.arrow" for number in range(len(made))]
    for one, path in zip(made, paths, strict=True):
        _place(one, path)
    opened = [Shard(path) for path in paths]
    sizes = [path.stat().st_size for path in paths]
    meta = {
        **about,
        "format": FORMAT,
        "rows": sum(len(shard.rows) for shard in opened),
        "positions": sum(shard.positions for shard in opened),
        "kept_tokens": sum(shard.kept_tokens for shard in opened),
        "bytes": sum(sizes),
        "versions": versions,
        "shards": [
            {"name": path.name, "size": size, "sha256": file_sha256(path, remember=False)}
            for path, size in zip(paths, sizes, strict=True)
        ],
    }
    write_json(folder / "meta.json", meta)
    return meta


class Shard:
    """One shard, memory-mapped: a row's values are read where they lie."""

    def __init__(self, path: Path) -> None:
        batch = read_batch(path)
        self.rows, self.tokens_hashes, self.scored_hashes = (
            batch.column(name).to_numpy() for name in ("row", "tokens_hash", "scored_hash")
        )
        self._columns = {
            name: (batch.column(name).values.to_numpy(), batch.column(name).offsets.to_numpy())
            for name in ("ids", "high", "values", "per_position")
        }

    def column(self, name: str, at: int) -> np.ndarray:
        """The values of one column in row `at` of the shard."""
        values, offsets = self._columns[name]
        return values[offsets[at] : offsets[at + 1]]

    @property
    def positions(self) -> int:
        """Scored positions in this shard."""
        return len(self._columns["per_position"][0])

    @property
    def kept_tokens(self) -> int:
        """Tokens stored at these positions together."""
        return len(self._columns["ids"][0])


def read_meta(folder: Path) -> dict[str, Any]:
    """The `meta.json` of a cache. Raises SettingsError where it is not complete or a shard is missing or cut short."""
    if not (folder / "meta.json").is_file():
        raise refuse("cache", str(folder), "it is not complete: it has no meta.json", "let the stage that makes it end")
    meta = json.loads((folder / "meta.json").read_text())
    for shard in meta["shards"]:
        path = folder / "shards" / shard["name"]
        # sizes alone: hashing all shards would read the whole cache at each start
        if not path.is_file() or path.stat().st_size != shard["size"]:
            raise refuse("cache", str(folder), f"{shard['name']} is missing or not whole", "make the cache again")
    return meta


def sparse_logits_from(signal: Mapping[str, Any], vocabulary: int, rows: Sequence[tuple[Shard, int]]) -> SparseLogits:
    """Sparse logits at the N scored positions of these rows, one after another; `signal` is `Signal.stored()`."""
    low, values, per_position = (
        np.concatenate([shard.column(name, at) for shard, at in rows]) for name in ("ids", "values", "per_position")
    )
    ids = low.astype(np.int64)
    if planes := _planes(vocabulary):
        sizes = [len(shard.column("ids", at)) for shard, at in rows]
        high = [
            _unpacked(shard.column("high", at), planes, size) for (shard, at), size in zip(rows, sizes, strict=True)
        ]
        ids |= np.concatenate(high)
    if signal["kind"] == "top_k":
        shape = (-1, signal["top_k"])
        ids[np.isnan(values)] = -1
        values = np.nan_to_num(values, nan=-np.inf, neginf=-np.inf)
        logprobs, tail = (torch.from_numpy(array.astype(np.float32)) for array in (values, per_position))
        return SparseLogits("top_k", torch.from_numpy(ids).view(shape), logprobs.view(shape), tail)
    # positions have different numbers of tokens: the first places of each row of (N, K) are used, K the largest number
    used = torch.arange(int(per_position.max(initial=1))) < torch.from_numpy(per_position.astype(np.int64))[:, None]
    padded = torch.zeros(used.shape, dtype=torch.int64)  # (N, K)
    padded[used] = torch.from_numpy(ids)
    shares = torch.zeros(used.shape)  # (N, K)
    shares[used] = torch.from_numpy(values.astype(np.float32)) / signal["samples"]
    return SparseLogits("sampled", padded, shares.log(), torch.full((len(used),), -torch.inf))


def _planes(vocabulary: int) -> int:
    """Bits of an id above the sixteenth."""
    return max(0, (vocabulary - 1).bit_length() - 16)


def _packed(ids: np.ndarray, planes: int) -> np.ndarray:
    bits = (ids[None, :] >> (16 + np.arange(planes))[:, None]) & 1  # (planes, tokens)
    return np.packbits(bits.astype(np.uint8), axis=1).ravel()


def _unpacked(packed: np.ndarray, planes: int, count: int) -> np.ndarray:
    # `packbits` fills the last byte of each plane with zeros; `count` cuts them off
    bits = np.unpackbits(packed.reshape(planes, -1), axis=1, count=count)  # (planes, tokens)
    return sum((bits[plane].astype(np.int64) << (16 + plane) for plane in range(planes)), np.zeros(count, np.int64))


def _place(made: Path, path: Path) -> None:
    """Give a finished file its name here: one more link to it, so that no byte is written twice."""
    try:
        os.link(made, path)
    except OSError:  # another disk, or one without links
        shutil.copyfile(made, path)


def _hash64(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
