"""The cache stage: killed and begun again it ends with the same files; what is stored in vain is refused first."""

import json

import pytest
from datasets import load_from_disk

from harness import caches
from harness.cached_teacher import CachedTeacher
from harness.checks import SettingsError
from harness.config import Machine
from harness.models import load_tokenizer
from harness.signal_kinds import Signal
from harness.stages import cache
from harness.stages.cache import _batches, make_cache
from tests.doubles import byte_tokenizer, save_tiny, tiny_llama
from tests.test_cached_teacher import rows_of

CPU = Machine(device="cpu")
ROWS = 10


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A teacher and ten rows, in shards of four."""
    monkeypatch.setattr(cache, "ROWS_PER_SHARD", 4)
    rows_of(range(ROWS)).save_to_disk(tmp_path / "rows" / "train")
    return {"rows": tmp_path / "rows", "teacher": save_tiny(tmp_path / "teacher", seed=1)}


def run(inputs, out, signal=None, **changes):
    signal = signal or Signal(kind="top_k", top_k=5)
    out.mkdir(exist_ok=True)
    settings = {"signal": signal.stored(), "seed": 0, "max_length": 64} | changes
    return make_cache(settings, inputs, out, CPU)


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["top_k", "sampled"])
@pytest.mark.parametrize("done", [0, 1, 2])
def test_killed_in_the_middle_and_begun_again_it_ends_with_the_same_files(world, tmp_path, monkeypatch, kind, done):
    signal = Signal(kind=kind, top_k=5, samples=8)
    facts = run(world, tmp_path / "straight", signal)
    real, written = caches.CacheWriter.write, []

    def write(writer, shard, rows):
        if len(written) == done:  # half a shard is on disk under its temporary name
            (writer.folder / "shards" / f".{shard:05d}.arrow.x").write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(shard)
        real(writer, shard, rows)

    with monkeypatch.context() as patched:
        patched.setattr(caches.CacheWriter, "write", write)
        with pytest.raises(KeyboardInterrupt):
            run(world, tmp_path / "killed", signal)
    seen = []
    monkeypatch.setattr(cache, "read", lambda *args: (seen.append(len(args[1])), read(*args))[1])
    again = run(world, tmp_path / "killed", signal)
    assert seen == [4, 4, 2][done:], "shards that were there are not read again"
    assert files(tmp_path / "killed") == files(tmp_path / "straight")
    assert again == facts, "counts and cost are of the whole cache, not of the last attempt"


read = cache.read


def test_facts_count_rows_positions_tokens_the_teacher_read_and_bytes(world, tmp_path):
    facts = run(world, tmp_path / "out")
    rows = rows_of(range(ROWS))
    read = sum(map(len, rows["input_ids"]))
    scored = sum(sum(ends) - sum(starts) for starts, ends in zip(rows["starts"], rows["ends"], strict=True))
    size = sum(path.stat().st_size for path in (tmp_path / "out" / "shards").iterdir())
    parameters = sum(weight.numel() for weight in tiny_llama().parameters())
    assert facts["counts"] == {"rows": ROWS, "positions": scored, "bytes": size}
    assert facts["cost"] == {"teacher_tokens": read, "flops": 2.0 * parameters * read}
    assert facts["metrics"]["bytes_per_token"] == pytest.approx(size / scored)
    assert facts["metrics"]["kept_tokens_per_token"] == 5


def test_drawn_tokens_follow_from_the_seed_and_the_rows_id(world, tmp_path):
    signal = Signal(kind="sampled", samples=8)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(world, tmp_path / name, signal, seed=seed)
    rows_of(range(4, ROWS)).save_to_disk(tmp_path / "fewer" / "train")
    run(world | {"rows": tmp_path / "fewer"}, tmp_path / "d", signal)
    shards = [caches.Shard(tmp_path / name / "shards" / "00001.arrow") for name in "abc"]
    fewer = caches.Shard(tmp_path / "d" / "shards" / "00000.arrow")
    drawn = [[shard.column("ids", at).tolist() for at in range(4)] for shard in (*shards, fewer)]
    assert drawn[0] == drawn[1] == drawn[3] != drawn[2]


def test_rows_are_read_in_batches_of_like_length_within_their_limits():
    lengths = [5, 300, 7, 6, 4000, 299]
    batches = list(_batches(lengths, vocabulary=2**26 // 900))
    assert batches == [[0, 3, 2], [5, 1], [4]]
    assert sorted(index for batch in batches for index in batch) == list(range(6))


def test_a_meta_file_says_whose_words_these_are(world, tmp_path):
    run(world, tmp_path / "out")
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert meta["signal"] == {"kind": "top_k", "top_k": 5} and meta["vocabulary"] == 262
    assert [len(meta[name]) for name in ("teacher", "tokenizer", "chat_template")] == [64, 64, 64]
    assert len(meta["shards"]) == 3 and meta["versions"]["torch"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"signal": Signal(kind="top_k", top_k=263)}, "signal.top_k=263 .* only 262 tokens"),
        ({"max_length": 20}, "corpus.max_length=20 .* a row has"),
    ],
)
def test_what_would_be_stored_in_vain_is_refused_before_the_teacher_reads(world, tmp_path, monkeypatch, changes, said):
    monkeypatch.setattr(cache, "read", None)
    with pytest.raises(SettingsError, match=said):
        run(world, tmp_path / "out", **changes)


def test_rows_of_another_tokenizer_are_refused_before_the_teacher_reads(world, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "read", None)
    (world["rows"] / "subset.json").write_text(json.dumps({"tokenizer_hash": "0" * 64}))
    with pytest.raises(SettingsError, match="rendered with tokenizer 000000000000"):
        run(world, tmp_path / "out")


def test_rows_without_numbers_are_an_error(world, tmp_path):
    rows_of(range(3)).remove_columns("row").save_to_disk(tmp_path / "plain" / "train")
    with pytest.raises(ValueError, match="column 'row'"):
        run(world | {"rows": tmp_path / "plain"}, tmp_path / "out")


def test_a_teacher_with_another_head_size_is_kept_to_the_tokenizers_vocabulary(world, tmp_path):
    padded = tmp_path / "padded"
    tiny_llama(vocab_size=320, seed=1).save_pretrained(padded)
    byte_tokenizer().save_pretrained(padded)
    run(world | {"teacher": padded}, tmp_path / "out", Signal(kind="top_k", top_k=262))
    shard = caches.Shard(tmp_path / "out" / "shards" / "00000.arrow")
    assert max(shard.column("ids", at).max() for at in range(4)) == 261


def test_a_block_without_rows_is_a_cache_that_joins_the_others(world, tmp_path):
    dataset = load_from_disk(world["rows"] / "train")
    dataset.select([]).save_to_disk(tmp_path / "none" / "train", num_shards=1)
    facts = run(world | {"rows": tmp_path / "none"}, tmp_path / "empty")
    assert facts["counts"]["rows"] == 0 and facts["cost"]["flops"] == 0
    run(world, tmp_path / "whole")
    tokenizer = load_tokenizer(world["teacher"])
    signal = Signal(**json.loads((tmp_path / "whole" / "meta.json").read_text())["signal"])
    assert len(CachedTeacher([tmp_path / "empty", tmp_path / "whole"], signal, tokenizer)) == len(dataset)
