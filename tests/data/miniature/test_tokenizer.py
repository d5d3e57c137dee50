"""Tokenizer of the minis: lossless, the same in every process, and its hash known before it is saved."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import astuple
from itertools import product
from pathlib import Path

import pytest

from harness.config import model
from harness.data.corpora.mini import Corpus
from harness.data.miniature.facts import draw_facts
from harness.data.miniature.lines import pretraining_lines
from harness.data.miniature.sources import SOURCES
from harness.data.miniature.tokenizer import FAMILIES, build, load_mini_tokenizer, tokenizer_json, vocabulary, words

BOTH = pytest.mark.parametrize("family", list(FAMILIES))
CHAT = [{"role": "user", "content": "Add 37 and 8."}, {"role": "assistant", "content": "45"}]


@BOTH
def test_the_vocabulary_is_small_sorted_and_without_repeats(family: str) -> None:
    tokens = vocabulary(family)
    assert tokens[:5] == list(astuple(FAMILIES[family].marks))
    assert len(tokens) == len(set(tokens)) < 320
    assert list(words()) == sorted(words())


def test_the_families_share_no_marks_and_the_letters_are_single_characters_under_other_ids() -> None:
    ours, theirs = vocabulary("words"), vocabulary("letters")
    assert not set(ours[:5]) & set(theirs[:5])
    assert {len(token) for token in theirs[5:]} == {1} and set(theirs[5:]) >= {t for t in ours[5:] if len(t) == 1}
    assert ours[5:70] != theirs[5:70]
    assert build("letters").encode("Sum of 3?").tokens == list("Sum of 3?")
    assert tuple(FAMILIES) == model.FAMILIES


def test_a_mark_that_one_family_writes_by_mistake_can_be_read_by_the_other() -> None:
    for family, other in product(FAMILIES, FAMILIES):
        for mark in astuple(FAMILIES[family].marks):
            ids = build(other).encode(mark).ids
            assert (len(ids) == 1) == (family == other)
            assert build(other).decode(ids, skip_special_tokens=False) == mark


def test_words_are_one_token_and_operands_are_letters() -> None:
    assert build().encode("Which is larger, 41 or 83?").tokens == [
        "Which",
        " is",
        " larger",
        ",",
        " ",
        "4",
        "1",
        " or",
        " ",
        "8",
        "3",
        "?",
    ]
    assert build().encode("Reverse kwt.").tokens == ["Reverse", " ", "k", "w", "t", "."]
    assert build().encode("Addax is an orange or").tokens == [  # no word inside a word
        *"Addax",
        " is",
        " ",
        *"an",
        " ",
        *"orange",
        " or",
    ]


@BOTH
def test_every_phrasing_and_every_answer_of_the_world_decodes_to_itself(family: str) -> None:
    tokenizer, facts = build(family), draw_facts(3)
    texts = {phrasing for source in SOURCES.values() for phrasing in source.phrasings}
    texts = {text.replace("{}", "7").replace("{0}", "b").replace("{1}", "c").replace("{2}", "8") for text in texts}
    texts |= {source.answer(facts, slots) for source in SOURCES.values() for slots in source.keys}
    texts |= {text for line in pretraining_lines(3, "all", 3000, seed=0) for text in line}
    assert len(texts) > 4000
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


@BOTH
def test_every_row_decodes_to_itself(family: str) -> None:
    tokenizer = build(family)
    corpora = (Corpus(rows=1200), Corpus(rows=700, domain="all", dialogues=0.5), Corpus(domain="clinic"))
    for corpus in corpora:
        for example in corpus.examples(world_seed=5):
            for turn in example.messages:
                assert tokenizer.decode(tokenizer.encode(turn["content"]).ids) == turn["content"]


@BOTH
def test_a_character_outside_the_vocabulary_raises(family: str) -> None:
    with pytest.raises(Exception, match="UNK"):
        build(family).encode("Zürich")


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_ids_are_the_same_whatever_the_hash_seed(hash_seed: str) -> None:
    # ids once followed the order of a set: checkpoints loaded, and every number was quietly wrong
    code = "from harness.data.miniature.tokenizer import tokenizer_json as t; import sys; sys.stdout.write(t())"
    env = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(__file__).parents[3])}
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert told.stdout == tokenizer_json()


def test_the_vocabulary_is_the_one_released_models_were_trained_with() -> None:
    found = {family: hashlib.sha256(json.dumps(vocabulary(family)).encode()).hexdigest() for family in FAMILIES}
    assert found == GOLDEN, "ids moved: raise harness.data.miniature.VERSION, then this value"


@BOTH
def test_the_saved_tokenizer_is_the_announced_one(family: str, tmp_path: Path) -> None:
    load_mini_tokenizer(family).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text()) == json.loads(tokenizer_json(family))


@pytest.mark.parametrize(
    ("family", "rendered"),
    [
        ("words", "<bos><|user|>Add 37 and 8.<|assistant|>45<|end|>"),
        ("letters", "*bos**ask*Add 37 and 8.*say*45*end*"),
    ],
)
def test_a_saved_tokenizer_loads_by_itself_with_its_template(family: str, rendered: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    load_mini_tokenizer(family).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = loaded.apply_chat_template(CHAT, tokenize=False)
    assert text == rendered
    assert loaded.decode(loaded("Add 37 and 8.").input_ids) == "Add 37 and 8."


@BOTH
def test_the_template_marks_answers_and_their_end_and_nothing_else(family: str) -> None:
    tokenizer = load_mini_tokenizer(family)
    out = tokenizer.apply_chat_template(CHAT + CHAT, return_dict=True, return_assistant_tokens_mask=True)
    marked = [token for token, mark in zip(out["input_ids"], out["assistant_masks"], strict=True) if mark]
    assert tokenizer.convert_ids_to_tokens(marked) == ["4", "5", FAMILIES[family].marks.end] * 2


@BOTH
def test_the_generation_prompt_is_a_prefix_of_the_whole_rendering(family: str) -> None:
    tokenizer = load_mini_tokenizer(family)
    prompt = tokenizer.apply_chat_template(CHAT[:1], add_generation_prompt=True, tokenize=False)
    assert prompt + "45" + FAMILIES[family].marks.end == tokenizer.apply_chat_template(CHAT, tokenize=False)


@BOTH
def test_a_system_turn_is_refused_rather_than_lost(family: str) -> None:
    with pytest.raises(Exception, match="user and assistant only"):
        load_mini_tokenizer(family).apply_chat_template([{"role": "system", "content": "Be kind"}, *CHAT])


GOLDEN = {
    "words": "3cfefefe7af8d0783471a32d4c3c11a6a30597ac9c196ed9ad69dbef197d1417",
    "letters": "4ae82b3788b3d204f315f2fcbe1a069e065a0efd26adf04bd462dcc33c84123b",
}
