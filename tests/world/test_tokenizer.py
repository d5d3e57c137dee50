"""Tokenizer of the minis: lossless, the same in every process, and its hash known before it is saved."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.corpora.mini import Corpus
from harness.world.tokenizer import SPECIAL, build, load_mini_tokenizer, tokenizer_json, vocabulary, words

CHAT = [{"role": "user", "content": "Add 37 and 8."}, {"role": "assistant", "content": "45"}]


def test_the_vocabulary_is_small_sorted_and_without_repeats() -> None:
    assert vocabulary()[:5] == list(SPECIAL)
    assert len(vocabulary()) == len(set(vocabulary())) < 320
    assert list(words()) == sorted(words())


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


def test_every_row_decodes_to_itself() -> None:
    tokenizer = build()
    corpora = (Corpus(rows=1200), Corpus(rows=700, domain="all", dialogues=0.5), Corpus(domain="clinic"))
    for corpus in corpora:
        for example in corpus.examples(world_seed=5):
            for turn in example.messages:
                assert tokenizer.decode(tokenizer.encode(turn["content"]).ids) == turn["content"]


def test_a_character_outside_the_vocabulary_raises() -> None:
    with pytest.raises(Exception, match="UNK"):
        build().encode("Zürich")


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_ids_are_the_same_whatever_the_hash_seed(hash_seed: str) -> None:
    # ids once followed the order of a set: checkpoints loaded, and every number was quietly wrong
    code = "from harness.world.tokenizer import tokenizer_json as t; import sys; sys.stdout.write(t())"
    env = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(__file__).parents[2])}
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert told.stdout == tokenizer_json()


def test_the_vocabulary_is_the_one_released_models_were_trained_with() -> None:
    text = json.dumps(vocabulary()).encode()
    assert hashlib.sha256(text).hexdigest() == GOLDEN, "ids moved: raise harness.world.VERSION, then this value"


def test_the_saved_tokenizer_is_the_announced_one(tmp_path: Path) -> None:
    load_mini_tokenizer().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text()) == json.loads(tokenizer_json())


def test_a_saved_tokenizer_loads_by_itself_with_its_template(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    load_mini_tokenizer().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = loaded.apply_chat_template(CHAT, tokenize=False)
    assert text == "<bos><|user|>Add 37 and 8.<|assistant|>45<|end|>"
    assert loaded.decode(loaded("Add 37 and 8.").input_ids) == "Add 37 and 8."


def test_the_template_marks_answers_and_their_end_and_nothing_else() -> None:
    tokenizer = load_mini_tokenizer()
    out = tokenizer.apply_chat_template(CHAT + CHAT, return_dict=True, return_assistant_tokens_mask=True)
    marked = [token for token, mark in zip(out["input_ids"], out["assistant_masks"], strict=True) if mark]
    assert tokenizer.convert_ids_to_tokens(marked) == ["4", "5", "<|end|>"] * 2


def test_the_generation_prompt_is_a_prefix_of_the_whole_rendering() -> None:
    tokenizer = load_mini_tokenizer()
    prompt = tokenizer.apply_chat_template(CHAT[:1], add_generation_prompt=True, tokenize=False)
    assert prompt == "<bos><|user|>Add 37 and 8.<|assistant|>"


def test_a_system_turn_is_refused_rather_than_lost() -> None:
    with pytest.raises(Exception, match="user and assistant only"):
        load_mini_tokenizer().apply_chat_template([{"role": "system", "content": "Be kind"}, *CHAT])


GOLDEN = "3cfefefe7af8d0783471a32d4c3c11a6a30597ac9c196ed9ad69dbef197d1417"
