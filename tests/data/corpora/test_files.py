"""Which files of a folder are a corpus: the training split, whole, and nothing else."""

import json

import pytest

from harness.config.checks import SettingsError
from harness.data.corpora._files import absent_shards, choose_files, split_of
from harness.data.corpora.jsonl import Corpus

ROW = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}


def put(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(ROW) + "\n")
    return folder


def names(folder):
    return [file.relative_to(folder).as_posix() for file in choose_files("corpus.path", folder).files]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00003", "train"),
        ("test", "test"),
        ("my_test_data", "test"),
        ("gsm8k-dev", "validation"),
        ("validation-00000-of-00001-0f3a", "validation"),
        ("eval", "test"),
        ("val", "validation"),
        ("TEST", "test"),
        ("latest", ""),
        ("contest", ""),
        ("train_test_mix", ""),
        ("rows", ""),
    ],
)
def test_a_name_states_a_split_by_its_words(name, split):
    assert split_of(name) == split


@pytest.mark.parametrize(
    ("held", "read"),
    [
        (("train.jsonl", "test.jsonl"), ["train.jsonl"]),
        (("train.jsonl", "dev.jsonl", "validation.jsonl"), ["train.jsonl"]),
        (("train-a.jsonl", "train-b.jsonl", "rows.jsonl"), ["train-a.jsonl", "train-b.jsonl"]),
        (("train/a.jsonl", "test/a.jsonl"), ["train/a.jsonl"]),
        (("data/train-0.jsonl", "data/test-0.jsonl"), ["data/train-0.jsonl"]),
        (("train.jsonl", "validation/part.jsonl"), ["train.jsonl"]),
        (("a.jsonl", "b.jsonl"), ["a.jsonl", "b.jsonl"]),
        (("rows.jsonl", "other/more.jsonl"), ["rows.jsonl"]),
        (("train.jsonl", ".cache/train.jsonl"), ["train.jsonl"]),
    ],
)
def test_the_training_split_alone_is_read_and_the_rest_is_named(tmp_path, held, read):
    put(tmp_path, *held)
    assert names(tmp_path) == read
    left = {one for one in held if not one.startswith((".", "other"))} - set(read)
    notes = choose_files("corpus.path", tmp_path).notes
    assert bool(left) == bool(notes) and all(one in notes[0] for one in left)
    corpus = Corpus(path=str(tmp_path))
    assert len(list(corpus.examples(0))) == len(read)
    assert corpus.provenance().get("warnings", []) == list(notes)


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (("rows.jsonl", "test.jsonl"), r"holds test or validation data \(test.jsonl\) and no file"),
        (("test.jsonl",), "holds test or validation data"),
        (("dev/rows.jsonl", "rows.jsonl"), "holds test or validation data"),
        (("math/rows.jsonl", "code/rows.jsonl"), r"several folders of data \(code, math\)"),
        (("train-00000-of-00003.jsonl", "train-00002-of-00003.jsonl"), "missing: train-00001-of-00003.jsonl;"),
        (("rows.json",), "one JSON object a line"),
    ],
)
def test_a_folder_whose_training_rows_cannot_be_told_is_refused(tmp_path, held, said):
    with pytest.raises(SettingsError, match=said) as refusal:
        choose_files("corpus.path", put(tmp_path, *held))
    assert "\n" not in str(refusal.value)


def test_shards_are_counted_from_zero_or_from_one_and_each_kind_by_itself():
    assert absent_shards(["train-00000-of-00002-ab12.parquet", "train-00001-of-00002-cd34.parquet"]) == []
    assert absent_shards(["a-1-of-2.jsonl", "a-2-of-2.jsonl"]) == []
    assert absent_shards(["a-0-of-2.jsonl", "b-1-of-2.jsonl"]) == ["a-1-of-2.jsonl", "b-0-of-2.jsonl"]
    assert absent_shards(["rows.jsonl"]) == []


def test_a_file_given_by_its_name_is_read_and_what_the_name_says_is_told(tmp_path):
    put(tmp_path, "test.jsonl", "train-00000-of-00003.jsonl")
    assert "test data" in choose_files("corpus.path", tmp_path / "test.jsonl").notes[0]
    assert "one of 3 shards" in choose_files("corpus.path", tmp_path / "train-00000-of-00003.jsonl").notes[0]


def test_a_saved_data_set_without_one_of_its_files_is_refused_by_name(tmp_path):
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    with pytest.raises(SettingsError, match=r"missing: data-00000-of-00001\.arrow"):
        choose_files("corpus.path", tmp_path)
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(SettingsError, match=r"its state\.json has no list"):
        choose_files("corpus.path", tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x1f\x8b\x08\x00", "compressed file"),
        (b"PAR1\x15\x04", "a Parquet file; name it .parquet"),
        ('{"prompt": "p"}'.encode("utf-16"), "UTF-16"),
        (b'[{"prompt": "p", "completion": "c"}]', "one JSON array"),
        (b'{\n "prompt": "p"\n}\n', "each row on one line"),
    ],
)
def test_a_file_without_a_readable_row_is_refused_with_what_it_is(tmp_path, content, said):
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(SettingsError, match=said):
        Corpus(path=str(tmp_path / "rows.jsonl")).check()
