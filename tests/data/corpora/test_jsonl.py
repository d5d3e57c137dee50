import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.config.checks import SettingsError
from harness.data.corpora import Size
from harness.data.corpora._files import data_files
from harness.data.corpora._rows import bad_turns, prompt_hash, row_hash
from harness.data.corpora.jsonl import Corpus

GOOD = {
    "id": "a",
    "source": "one",
    "messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}],
}


def turns(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path, **settings):
    return list(Corpus(path=str(path), **settings).examples(0))


def test_rows_of_jsonl_parquet_and_a_saved_data_set_are_the_same(tmp_path):
    from datasets import Dataset

    rows = [{**GOOD, "id": f"r{i}"} for i in range(5)]
    write(tmp_path / "rows.jsonl", *rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    expected = [(f"r{i}", GOOD["messages"], "one") for i in range(5)]
    for name in ("rows.jsonl", "rows.parquet", "saved"):
        assert [(e.id, e.messages, e.source) for e in read(tmp_path / name)] == expected, name


def test_the_licence_of_the_rows_is_no_part_of_their_identity(tmp_path):
    path = str(write(tmp_path / "rows.jsonl", GOOD))
    assert Corpus(path=path, license="CC-BY-4.0").identity(0) == Corpus(path=path).identity(0)


def test_prompt_and_completion_columns_become_one_exchange(tmp_path):
    path = write(tmp_path / "qa.jsonl", {"question": "2+2?", "answer": "#### 4"})
    (row,) = read(path, prompt_column="question", completion_column="answer", truth_column="answer", name="gsm8k")
    assert row.messages == turns(("user", "2+2?"), ("assistant", "#### 4"))
    assert (row.id, row.source, row.truth) == ("gsm8k-1", "gsm8k", "#### 4")


def test_prompt_and_completion_may_be_lists_of_messages(tmp_path):
    path = write(
        tmp_path / "trl.jsonl",
        {"prompt": turns(("system", "Be brief."), ("user", "Hi")), "completion": turns(("assistant", "Hi."))},
    )
    assert read(path)[0].messages == turns(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hi."))


def test_prompts_alone_are_read_however_they_are_spelt(tmp_path):
    asked = turns(("system", "Be brief."), ("user", "Hi"))
    history = turns(("user", "Hi"), ("assistant", "Hi."), ("user", "2+2?"))
    rows = [
        ({"messages": asked}, asked),
        ({"messages": history}, history),
        ({"prompt": "2+2?"}, turns(("user", "2+2?"))),
        ({"prompt": "2+2?", "completion": None}, turns(("user", "2+2?"))),
        ({"prompt": asked, "completion": ""}, asked),
        (GOOD, GOOD["messages"]),
    ]
    path = write(tmp_path / "rows.jsonl", *(row for row, _ in rows))
    assert [row.messages for row in read(path, answers="none")] == [messages for _, messages in rows]
    for row, _ in rows[:2]:
        with pytest.raises(SettingsError, match=r"corpus\.answers=none to train on prompts alone"):
            read(write(tmp_path / "one.jsonl", row))


def test_prompts_alone_still_have_to_be_conversations(tmp_path):
    for messages in (turns(("system", "x")), turns(("user", "x"), ("user", "y")), turns(("user", " "))):
        with pytest.raises(SettingsError, match="cannot be used"):
            read(write(tmp_path / "rows.jsonl", {"messages": messages}), answers="none")


def test_prompts_alone_without_one_answer_to_score_on_are_refused_before_anything_runs(tmp_path):
    alone = write(tmp_path / "alone.jsonl", {"prompt": "2+2?"}, {"prompt": "3+3?"})
    with pytest.raises(SettingsError, match="no row of the corpus has an answer, so there is nothing to score"):
        Corpus(path=str(alone), answers="none").check()
    Corpus(path=str(write(tmp_path / "mixed.jsonl", {"prompt": "2+2?"}, GOOD)), answers="none").check()
    with pytest.raises(SettingsError, match=r"its columns are prompt.*corpus.answers=none"):
        Corpus(path=str(alone)).check()
    with pytest.raises(SettingsError, match="allowed are given, none"):
        Corpus(path=str(alone), answers="some")


def test_answers_are_identity_only_where_there_may_be_none(tmp_path):
    path = str(write(tmp_path / "rows.jsonl", GOOD))
    assert "answers" not in Corpus(path=path).identity(0)
    assert Corpus(path=path, answers="none").identity(0) == Corpus(path=path).identity(0) | {"answers": "none"}


def test_an_answer_that_is_not_there_is_expected_to_be_as_long_as_text_may_get(tmp_path):
    path = write(tmp_path / "rows.jsonl", {"prompt": "x" * 40}, {"prompt": "x" * 40})
    size = Corpus(path=str(path), answers="none", max_new_tokens=30, heldout_rows=1).size()
    assert size == Size(1, 30.0, 40.0, 1)


def test_a_folder_of_shards_is_read_in_the_order_of_names(tmp_path):
    write(tmp_path / "b.jsonl", {**GOOD, "id": "second"})
    write(tmp_path / "a.jsonl", {**GOOD, "id": "first"})
    assert [row.id for row in read(tmp_path)] == ["first", "second"]


BAD = {
    "no messages": {**GOOD, "messages": []},
    "a message without role or content": {**GOOD, "messages": [{"role": "user"}]},
    "a role other than system, user, assistant": {**GOOD, "messages": turns(("tool", "x"), ("assistant", "y"))},
    "empty content": {**GOOD, "messages": turns(("user", "x"), ("assistant", " \n"))},
    "the assistant's turn is missing": {**GOOD, "messages": turns(("user", "x"))},
    "the last turn is not the assistant's": {
        **GOOD,
        "messages": turns(("user", "x"), ("assistant", "y"), ("user", "z")),
    },
    "user and assistant do not take turns": {
        **GOOD,
        "messages": turns(("user", "x"), ("user", "y"), ("assistant", "z")),
    },
    "not UTF-8": {**GOOD, "messages": turns(("user", "\ud800"), ("assistant", "y"))},
    "not a JSON object": ["x"],
    "content is a number, not text": {**GOOD, "messages": turns(("user", 3), ("assistant", "y"))},
    "its messages are text, not a list": {**GOOD, "messages": "[]"},
    "content has a part of type 'image_url', which is not read": {
        **GOOD,
        "messages": turns(("user", [{"type": "image_url"}]), ("assistant", "y")),
    },
    "a message with from and value (ShareGPT's form) in place of role and content": {
        **GOOD,
        "messages": [{"from": "human", "value": "q"}],
    },
    "the row has the field tools, which is not read": {**GOOD, "tools": [{"type": "function"}]},
    "the row has the field input, which is not read": {"prompt": "Translate.", "completion": "b", "input": "a"},
    "the source is called 'all', which is a row of every table of scores": {**GOOD, "source": "all"},
}
for field, value in (
    ("tool_calls", [{"id": "c1"}]),
    ("function_call", {"name": "f"}),
    ("reasoning_content", "because"),
    ("name", "Ann"),
    ("weight", 0),
    ("train", False),
    ("loss", 0.0),
    ("images", ["x.png"]),
):
    answer = {"role": "assistant", "content": "y", field: value}
    BAD[f"a message has the field {field}, which is not read"] = {**GOOD, "messages": [*turns(("user", "x")), answer]}
BAD["longer than 10,000,000 characters"] = {**GOOD, "messages": turns(("user", "x"), ("assistant", "y" * 10_000_001))}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_row_is_refused_by_file_line_and_reason_or_dropped_and_counted(tmp_path, reason):
    path = write(tmp_path / "rows.jsonl", GOOD, BAD[reason])
    with pytest.raises(SettingsError) as refusal:
        read(path)
    assert f"rows.jsonl line 2 cannot be used: {reason};" in str(refusal.value)
    assert "corpus.on_bad_row=drop" in str(refusal.value)
    corpus = Corpus(path=str(path), on_bad_row="drop")
    assert [row.id for row in corpus.examples(0)] == ["a"]
    assert corpus.provenance()["dropped"] == {reason: 1}


def test_parts_of_text_are_joined_and_fields_without_meaning_or_value_are_read_over(tmp_path):
    parts = [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]
    messages = [
        {"role": "user", "content": parts, "weight": 0, "time": "now", "tool_calls": []},
        {"role": "assistant", "content": "4", "weight": 1, "train": True, "reasoning_content": None, "name": ""},
    ]
    corpus = Corpus(
        path=str(write(tmp_path / "rows.jsonl", {**GOOD, "messages": messages, "weight": 1.0, "tools": []}))
    )
    assert next(corpus.examples(0)).messages == GOOD["messages"]
    assert list(corpus.examples(0)) and corpus.provenance()["warnings"] == [
        "fields of messages that are not read: time (1 rows)"
    ]


def test_a_message_that_calls_a_tool_and_says_nothing_is_refused_by_the_call(tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]}
    assert "tool_calls" in bad_turns([*turns(("user", "x")), call])
    del call["content"]
    assert "tool_calls" in bad_turns([*turns(("user", "x")), call])


def test_what_every_row_has_is_refused_before_anything_runs(tmp_path):
    path = write(tmp_path / "rows.jsonl", *[{**GOOD, "tools": ["f"]}] * 3)
    with pytest.raises(SettingsError, match=r"line 1 cannot be used: the row has the field tools"):
        Corpus(path=str(path)).check()
    Corpus(path=str(path), on_bad_row="drop").check()
    share_gpt = write(tmp_path / "gpt.jsonl", {"conversations": [{"from": "human", "value": "q"}]})
    with pytest.raises(SettingsError, match="ShareGPT's form"):
        Corpus(path=str(share_gpt)).check()


def test_numbers_of_any_size_are_read_or_named(tmp_path):
    path = write(tmp_path / "rows.jsonl", {**GOOD, "id": 2**200, "truth": 10**60})
    (row,) = read(path, truth_column="truth")
    assert (row.id, row.truth) == (str(2**200), str(10**60))
    path.write_text('{"id": ' + "9" * 5000 + "}\n")
    with pytest.raises(SettingsError, match="no readable row"):
        Corpus(path=str(path)).check()


def test_a_truth_that_is_an_object_makes_a_bad_row(tmp_path):
    with pytest.raises(SettingsError, match="the truth is an object"):
        read(write(tmp_path / "rows.jsonl", {**GOOD, "truth": {"a": 1}}), truth_column="truth")


def test_lines_that_are_no_json_or_no_utf8_are_bad_rows_and_blank_lines_are_none(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b'\n\n{"id": \n"\xff"\n')
    corpus = Corpus(path=str(path), on_bad_row="drop")
    assert len(list(corpus.examples(0))) == 1
    assert corpus.provenance()["dropped"] == {"not JSON": 1, "not UTF-8": 1}
    with pytest.raises(SettingsError, match=r"rows\.jsonl line 3 cannot be used: not JSON"):
        read(path)


def test_a_parquet_string_that_is_not_utf8_spoils_its_row_only(tmp_path):
    texts = pa.array([b"good", b"\xff"]).view(pa.string())
    pq.write_table(pa.table({"prompt": ["p", "q"], "completion": texts}), tmp_path / "rows.parquet")
    corpus = Corpus(path=str(tmp_path / "rows.parquet"), on_bad_row="drop")
    assert [row.messages[-1]["content"] for row in corpus.examples(0)] == ["good"]
    assert corpus.provenance()["dropped"] == {"not UTF-8": 1}


def test_sources_are_filtered_and_a_misspelt_one_is_refused_with_the_real_ones(tmp_path):
    path = write(tmp_path / "rows.jsonl", GOOD, {**GOOD, "source": "two", "id": "b"})
    assert [row.id for row in read(path, sources=["two"])] == ["b"]
    with pytest.raises(SettingsError, match=r"\['tow'\].*the sources here are one, two"):
        read(path, sources=["tow"])


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda tmp: tmp / "absent.jsonl", "no such file or folder"),
        (lambda tmp: (tmp / "empty").mkdir() or tmp / "empty", "holds no .jsonl or .parquet"),
        (lambda tmp: write(tmp / "rows.csv", GOOD), "a data file ends in"),
        (lambda tmp: write(tmp / "none.jsonl"), "no readable row"),
        (lambda tmp: write(tmp / "columns.jsonl", {"question": "x"}), "its columns are question"),
        (lambda tmp: write(tmp / "broken.parquet", GOOD), "the file cannot be read"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_sentence_before_anything_runs(tmp_path, make, said):
    with pytest.raises(SettingsError, match=said) as refusal:
        Corpus(path=str(make(tmp_path))).check()
    assert str(refusal.value).count("\n") == 0


def test_a_data_set_with_several_splits_asks_for_one(tmp_path):
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(SettingsError, match=r"the splits train, test; choose one, e\.g\. .*train"):
        data_files("corpus.path", tmp_path)


def test_another_folder_keeps_the_identity_and_another_row_changes_it(tmp_path):
    (tmp_path / "x").mkdir()
    here, there = write(tmp_path / "rows.jsonl", GOOD), write(tmp_path / "x" / "other.jsonl", GOOD)
    more = write(tmp_path / "more.jsonl", GOOD, GOOD)
    identity = Corpus(path=str(here)).identity(0)
    assert identity == Corpus(path=str(there), max_length=99).identity(0)
    assert identity != Corpus(path=str(more)).identity(0)
    assert identity != Corpus(path=str(here), name="other").identity(0)
    assert str(tmp_path) not in json.dumps(identity)


def test_prompts_that_differ_in_case_width_or_spaces_are_one_prompt():
    one = turns(("user", "Add ３ and\n 4. Straße"), ("assistant", "7"))
    other = turns(("system", "Be brief."), ("user", "  add 3 AND 4. STRASSE "), ("assistant", "seven"))
    assert prompt_hash(one) == prompt_hash(other)
    assert row_hash(one) != row_hash(other)
    assert prompt_hash(one) != prompt_hash(turns(("user", "Add 3 and 5. Straße"), ("assistant", "7")))


def test_a_system_turn_may_open_a_conversation_but_not_stand_within():
    assert bad_turns(turns(("system", "s"), ("user", "u"), ("assistant", "a"))) == ""
    assert bad_turns(turns(("user", "u"), ("system", "s"), ("assistant", "a"))) != ""


def test_the_size_is_estimated_from_metadata_and_the_first_rows(tmp_path):
    rows = [{"prompt": "x" * 40, "completion": "y" * 80}] * 3000
    write(tmp_path / "rows.jsonl", *rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    for name in ("rows.jsonl", "rows.parquet"):
        assert Corpus(path=str(tmp_path / name), heldout_rows=500).size() == Size(2500, 20.0, 30.0, 500)


def test_planning_with_file_corpora_imports_neither_torch_nor_transformers():
    code = (
        "import sys; import harness.data.corpora.jsonl, harness.data.corpora.tulu3 as t; t.Corpus().identity(0); "
        "sys.exit(bool({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
