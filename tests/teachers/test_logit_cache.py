"""The cache's files: what is written is read back by row, a shard is there whole or not at all."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from harness.config.checks import SettingsError
from harness.data.sequences import Row, collate
from harness.teachers import logit_cache
from harness.teachers.logit_cache import (
    Shard,
    batch_hashes,
    read_meta,
    shard_batch,
    sparse_logits_from,
    stored_row,
    write_cache,
)
from harness.teachers.sparse_logits import SparseLogits, sampled_of, top_k_of

VERSIONS = {"torch": "2"}


def sparse_rows(kind, vocabulary, lengths=(3, 1, 0, 5)):
    """Sparse logits at `lengths` positions of some rows, with ids over the whole vocabulary."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for length in lengths:
        logits = 3 * torch.randn(length, vocabulary, generator=generator)
        uniforms = np.random.default_rng(length).random((length, 20))
        found.append(top_k_of(logits, 7) if kind == "top_k" else sampled_of(logits, uniforms))
    return found


def write(folder, kind, vocabulary, *shards):
    """A cache of these shards of rows; returns its signal."""
    signal, paths = {"kind": kind} | ({"top_k": 7} if kind == "top_k" else {"samples": 20}), []
    for number, rows in enumerate(shards):
        samples, first = signal.get("samples", 0), 4 * number
        stored = [stored_row(first + i, (i, i + 1), sparse, samples, vocabulary) for i, sparse in enumerate(rows)]
        paths.append(folder / f"made-{number}")
        batch = shard_batch(stored)
        with pa.OSFile(str(paths[-1]), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
    (folder / "cache").mkdir()
    write_cache(folder / "cache", {"signal": signal}, paths, VERSIONS)
    return signal


@pytest.mark.parametrize("kind", ["top_k", "sampled"])
@pytest.mark.parametrize("vocabulary", [300, 70_000, 300_000])
def test_rows_are_read_back_in_any_order_to_the_precision_of_16_bits(tmp_path, kind, vocabulary):
    rows = sparse_rows(kind, vocabulary)
    signal = write(tmp_path, kind, vocabulary, rows)
    shard = Shard(tmp_path / "cache" / "shards" / "00000.arrow")
    order = [3, 0, 2, 1]
    found, expected = (
        sparse_logits_from(signal, vocabulary, [(shard, at) for at in order]),
        SparseLogits.of([rows[at] for at in order]),
    )
    assert found.kind == kind and torch.equal(found.ids, expected.ids)
    assert vocabulary < 2**16 or int(found.ids.max()) >= 2**16, "no id was too large for 16 bits"
    if kind == "sampled":
        torch.testing.assert_close(found.logprobs, expected.logprobs)
        torch.testing.assert_close(found.tail, expected.tail)
    else:
        assert torch.equal(found.logprobs, expected.logprobs.half().float())
        assert torch.equal(found.tail, expected.tail.half().float())
    assert shard.rows.tolist() == [0, 1, 2, 3] and shard.tokens_hashes.tolist() == [0, 1, 2, 3]


def test_top_64_at_a_vocabulary_of_128256_takes_266_bytes_a_position():
    logits = torch.randn(16, 128_256, generator=torch.Generator().manual_seed(0))
    row = stored_row(0, (0, 0), top_k_of(logits, 64), 0, 128_256)
    assert sum(array.nbytes for array in (row.ids, row.high, row.values, row.per_position)) == 16 * 266


def test_hashes_see_tokens_and_scored_positions_apart_and_no_padding():
    rows = [
        Row(np.array([7, 8, 9, 10], dtype=np.int32), [2], [4]),
        Row(np.array([7, 8, 9, 10], dtype=np.int32), [1], [4]),
        Row(np.array([7, 8, 9, 11], dtype=np.int32), [2], [4]),
    ]
    longer = Row(np.arange(20, dtype=np.int32), [2], [20])
    first, other_span, other_token = batch_hashes(collate(rows, pad_id=0))
    assert first[0] == other_span[0] != other_token[0]
    assert first[1] == other_token[1] != other_span[1]
    assert batch_hashes(collate([longer, rows[0]], pad_id=3))[1] == first


def test_a_cache_is_complete_when_its_meta_is_there_and_says_what_it_holds(tmp_path):
    rows, folder = sparse_rows("top_k", 300), tmp_path / "cache"
    write(tmp_path, "top_k", 300, rows, rows)
    meta = read_meta(folder)
    assert (meta["rows"], meta["positions"], meta["kept_tokens"]) == (8, 18, 126)
    assert meta["bytes"] == sum(path.stat().st_size for path in (folder / "shards").iterdir())
    assert sorted(path.name for path in folder.iterdir()) == ["meta.json", "shards"]
    (folder / "meta.json").unlink()
    with pytest.raises(SettingsError, match="not complete"):
        read_meta(folder)


@pytest.mark.parametrize("linked", [True, False])
def test_shards_are_linked_into_a_cache_and_copied_where_a_disk_has_no_links(tmp_path, monkeypatch, linked):
    def without_links(*_):
        raise OSError

    if not linked:
        monkeypatch.setattr(logit_cache.os, "link", without_links)
    write(tmp_path, "top_k", 300, sparse_rows("top_k", 300))
    made, placed = tmp_path / "made-0", tmp_path / "cache" / "shards" / "00000.arrow"
    assert made.samefile(placed) == linked and made.read_bytes() == placed.read_bytes()


def test_a_shard_that_is_missing_or_cut_is_refused(tmp_path):
    write(tmp_path, "top_k", 300, sparse_rows("top_k", 300))
    folder = tmp_path / "cache"
    shard = folder / "shards" / "00000.arrow"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(SettingsError, match="missing or not whole"):
        read_meta(folder)
    shard.unlink()
    with pytest.raises(SettingsError, match="missing or not whole"):
        read_meta(folder)
