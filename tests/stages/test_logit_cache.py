"""The cache stage: stopped and begun again it ends with the same files, and a server's is a model's own; what would
be stored in vain is refused first."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset, load_from_disk

from harness.config.checks import SettingsError
from harness.config.machine import Machine
from harness.config.teacher_signal import Signal
from harness.models.loading import load_tokenizer
from harness.stages import logit_cache as cache
from harness.stages.logit_cache import batches_of_like_length, make_cache
from harness.teachers import logit_cache, sparse_logits
from harness.teachers.signals import CachedTeacher
from tests.doubles import byte_tokenizer, save_tiny, tiny_llama
from tests.fake_server import FakeServer, adopt
from tests.stages.small_world import files, stopped
from tests.teachers.test_cached_teacher import rows_of

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


@pytest.mark.parametrize(
    ("kind", "after", "seen"), [("top_k", (1,), [4, 4, 2]), ("sampled", (1, 1), [4, 4, 2]), ("top_k", (3,), [4, 4, 2])]
)
def test_stopped_after_some_shards_and_begun_again_it_ends_with_the_same_files(
    world, tmp_path, monkeypatch, kind, after, seen
):
    signal, rows = Signal(kind=kind, top_k=5, samples=8), []
    facts = run(world, tmp_path / "straight", signal)
    monkeypatch.setattr(cache, "score", lambda *args: (rows.append(len(args[1])), score(*args))[1])
    again = stopped(monkeypatch, tmp_path / "kept", after, lambda name: run(world, tmp_path / name, signal))
    assert rows == seen, "in all attempts together no shard is read twice"
    assert files(tmp_path / "last") == files(tmp_path / "straight")
    assert again.pop("earlier_seconds") > 0
    assert again == facts, "counts and cost are of the whole cache, not of the last attempt"
    assert not (tmp_path / "attempt-0" / "meta.json").exists()


score = cache.score


@pytest.fixture
def served(world, tmp_path):
    """The same teacher behind a server, and the server."""
    with FakeServer(tiny_llama(seed=1)) as fake:
        folder, _ = adopt(fake, world["teacher"], tmp_path / "served")
        yield world | {"teacher": folder}, fake


@pytest.mark.parametrize("top_k", [1, 5, 262])
def test_a_cache_made_by_a_server_is_the_live_models_own(world, served, tmp_path, top_k):
    signal = Signal(kind="top_k", top_k=top_k)
    live, asked = run(world, tmp_path / "live", signal), run(served[0], tmp_path / "asked", signal)
    assert asked["counts"] == live["counts"] and asked["metrics"] == live["metrics"]
    assert asked["cost"] == live["cost"] | {"flops": 0} and "FLOPs are not counted" in asked["warnings"][0]
    for number in range(3):
        one, other = (
            logit_cache.Shard(tmp_path / name / "shards" / f"{number:05d}.arrow") for name in ("live", "asked")
        )
        for name in ("rows", "tokens_hashes", "scored_hashes"):
            assert (getattr(one, name) == getattr(other, name)).all()
        places = [[(shard, at) for at in range(len(one.rows))] for shard in (one, other)]
        said, told = (logit_cache.sparse_logits_from(signal.stored(), 262, rows) for rows in places)
        assert torch.equal(said.ids, told.ids)
        # 16 bits: a value of about 8 is stored to 2**-8, and the two may be rounded to either side
        torch.testing.assert_close(told.logprobs, said.logprobs, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(told.tail, said.tail, rtol=2e-3, atol=1e-4)
    meta = [json.loads((tmp_path / name / "meta.json").read_text()) for name in ("live", "asked")]
    assert meta[0].keys() == meta[1].keys() and meta[0]["teacher"] != meta[1]["teacher"]
    assert (meta[1]["parameters"], meta[1]["precision"]) == (0, None)
    assert len(CachedTeacher([tmp_path / "asked"], signal, byte_tokenizer())) == ROWS


def test_a_tail_too_small_for_32_bits_is_small_and_not_none():
    logprobs = np.log(np.array([[0.75, 0.25], [0.5, 0.25]], dtype=np.float32))
    ids = np.array([[1, 0], [2, 1]], dtype=np.int32)
    tail = sparse_logits.top_k_named(ids, logprobs, vocabulary=3).tail
    assert tail.tolist() == pytest.approx([np.log(sparse_logits.LEAST_TAIL), np.log(0.25)])
    assert sparse_logits.top_k_named(ids, logprobs, vocabulary=2).tail.tolist() == [-np.inf, -np.inf]


def refused(served, tmp_path, said, **changes):
    with pytest.raises(SettingsError, match=said) as refusal:
        run(served, tmp_path / "out", **changes)
    assert str(refusal.value).count("cannot be run") == 1 and not (tmp_path / "out" / "meta.json").exists()


def test_a_server_that_names_fewer_tokens_than_asked_is_refused(served, tmp_path):
    served[1].without = {"one_of_k"}
    refused(served[0], tmp_path, r"top_k=5 .* gave 4 of 5 log-probabilities .*--max-logprobs 5")


def test_draws_of_a_server_are_refused_before_it_is_asked_for_a_row(served, tmp_path):
    asked = served[1].asked
    refused(served[0], tmp_path, r"signal.kind='sampled' .*signal.kind=top_k", signal=Signal(kind="sampled"))
    assert served[1].asked == asked + 1, "the probe alone"


def test_rows_beyond_a_servers_context_are_refused_before_it_is_asked_for_a_row(served, tmp_path):
    row = {"row": [0], "id": ["r0"], "input_ids": [[7] * 100], "starts": [[50]], "ends": [[100]]}
    Dataset.from_dict(row).save_to_disk(tmp_path / "long" / "train")
    served[1].context, asked = 100, served[1].asked
    long = served[0] | {"rows": tmp_path / "long"}
    refused(long, tmp_path, r"the teacher's context=99 .* a row has 100 tokens", max_length=200)
    assert served[1].asked == asked + 1, "the probe alone"


def test_a_server_that_serves_another_model_now_is_refused(served, tmp_path):
    served[1].model = tiny_llama(seed=2)
    refused(served[0], tmp_path, "serves another model now")


def test_a_server_that_names_tokens_its_declared_tokenizer_lacks_is_refused(world, tmp_path):
    with FakeServer(tiny_llama(vocab_size=320, seed=2)) as fake:
        folder, _ = adopt(fake, world["teacher"], tmp_path / "served")
        signal = Signal(kind="top_k", top_k=262)
        refused(world | {"teacher": folder}, tmp_path, r"has 262 tokens and the server .* names token", signal=signal)


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
    shards = [logit_cache.Shard(tmp_path / name / "shards" / "00001.arrow") for name in "abc"]
    fewer = logit_cache.Shard(tmp_path / "d" / "shards" / "00000.arrow")
    drawn = [[shard.column("ids", at).tolist() for at in range(4)] for shard in (*shards, fewer)]
    assert drawn[0] == drawn[1] == drawn[3] != drawn[2]


def test_rows_are_read_in_batches_of_like_length_within_their_limits():
    lengths = [5, 300, 7, 6, 4000, 299]
    batches = list(batches_of_like_length(lengths, vocabulary=2**26 // 900))
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
    monkeypatch.setattr(cache, "score", None)
    with pytest.raises(SettingsError, match=said):
        run(world, tmp_path / "out", **changes)


def test_rows_of_another_tokenizer_are_refused_before_the_teacher_reads(world, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "score", None)
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
    shard = logit_cache.Shard(tmp_path / "out" / "shards" / "00000.arrow")
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
