"""A fresh student: its tokenizer has seen training rows alone, it is the same every time, and the harness trains it."""

import json

import pytest

from harness.config.model import Student
from harness.data.chat import end_of_turn_id, render
from harness.execution.model_checks import check_model
from harness.models.kinds import model_of
from harness.models.loading import load_model, load_tokenizer
from harness.new_student import LEAST_VOCABULARY, MARKS, main, train_tokenizer

SMALL = ["--vocabulary", "400", "--hidden", "64", "--layers", "1"]


def rows_file(folder, count=60):
    lines = [
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"zebra{n} " * 3}]}
        for n in range(count)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return f"corpus.path={folder / 'rows.jsonl'}"


def make(folder, name, *more):
    words = ["corpus=jsonl", rows_file(folder), "corpus.heldout_rows=12", "corpus.max_length=128"]
    return main([str(folder / name), *words, *SMALL, *more])


def test_a_fresh_student_is_a_small_model_folder_the_harness_takes_and_the_same_every_time(tmp_path, capsys):
    assert make(tmp_path, "one") == make(tmp_path, "two") == 0
    told = json.loads(capsys.readouterr().out.splitlines()[0])
    assert told["rows"] == 48, "the held-out rows are not read"
    one, two = (Student(name="s", kind="hf", path=str(tmp_path / name)) for name in ("one", "two"))
    check_model(one)
    assert model_of(one).identity(0) == model_of(two).identity(0)
    model, tokenizer = load_model(tmp_path / "one"), load_tokenizer(tmp_path / "one")
    assert model.config.vocab_size == len(tokenizer) == told["vocabulary"] <= 400
    assert model.config.max_position_embeddings == 128
    assert sum(weight.numel() for weight in model.parameters()) == told["parameters"]
    assert make(tmp_path, "three", "--seed", "1") == 0
    other = Student(name="s", kind="hf", path=str(tmp_path / "three"))
    changed = {name for name, sha in model_of(one).identity(0)["files"].items()
               if model_of(other).identity(0)["files"][name] != sha}  # fmt: skip
    assert changed == {"model.safetensors"}


def test_its_tokenizer_is_trained_on_the_rows_a_grid_trains_on_and_on_no_held_out_one():
    texts = ["kangaroo kangaroo kangaroo", "naïve 1250"]
    learnt, blind = (train_tokenizer(some, 330, 64) for some in (texts, texts[1:]))
    assert len(learnt.tokenize("kangaroo")) < len(blind.tokenize("kangaroo")) == len("kangaroo")


def test_every_turn_ends_with_the_end_of_turn_and_any_text_comes_back():
    tokenizer = train_tokenizer(["hello"], LEAST_VOCABULARY + 3, 64)
    turns = [{"role": "user", "content": "é\n"}, {"role": "assistant", "content": " 日本 <|end|>🙂"[:3]}]
    found = render(tokenizer, turns, 64)
    assert tokenizer.decode(found.input_ids) == "<|user|>é\n<|end|><|assistant|> 日本<|end|>"
    assert found.input_ids[-1] == end_of_turn_id(tokenizer) == tokenizer.eos_token_id
    assert tokenizer.convert_tokens_to_ids(list(MARKS)) == [2, 3, 4] and tokenizer.pad_token_id == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--vocabulary", "200"], "--vocabulary=200"),
        (["--hidden", "100"], "--hidden=100"),
        (["--layers", "0"], "--layers=0"),
        (["corpus.path=/nonesuch.jsonl"], "nonesuch"),
        (["bugdet=3"], "bugdet"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(tmp_path, capsys, more, said):
    assert make(tmp_path, "x", *more) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("harness: ") and not (tmp_path / "x").exists()


def test_a_folder_that_is_there_is_not_written_over(tmp_path, capsys):
    (tmp_path / "x").mkdir()
    assert make(tmp_path, "x") == 2
    assert "out=" in capsys.readouterr().err and not list((tmp_path / "x").iterdir())
