"""Vocabularies: when two tokenizers give one id one meaning."""

import json

import pytest

from harness.models.vocabulary import vocabulary_of_folder, vocabulary_of_json
from tests.doubles import bpe_tokenizer, byte_tokenizer


def vocabulary(tokenizer):
    return vocabulary_of_json(tokenizer.backend_tokenizer.to_str())


def with_tokens(*tokens):
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(list(tokens))
    return tokenizer


def test_added_tokens_of_one_side_leave_the_vocabulary_shared():
    plain, padded, marked = (vocabulary(with_tokens(*tokens)) for tokens in ((), ("<pad2>",), ("<mark>", "<pad2>")))
    assert plain.difference(padded) is padded.difference(plain) is None
    assert padded.missing_from(plain) == {262: "<pad2>"} and plain.missing_from(padded) == {}
    # one id has two meanings, and one token two ids
    assert marked.difference(padded) == "the token <pad2> has the id 263 in one and 262 in the other"
    renamed = vocabulary(with_tokens("<other>"))
    assert padded.difference(renamed) is None
    assert padded.missing_from(renamed) == {262: "<pad2>"} and renamed.missing_from(padded) == {262: "<other>"}


def changed(part, value):
    values = json.loads(byte_tokenizer().backend_tokenizer.to_str())
    values[part] = value(values[part])
    return vocabulary_of_json(json.dumps(values))


@pytest.mark.parametrize(
    ("part", "value", "named"),
    [
        ("normalizer", lambda _: {"type": "Lowercase"}, "normaliser"),
        ("pre_tokenizer", lambda _: {"type": "Whitespace"}, "pre-tokeniser"),
        ("model", lambda model: {**model, "merges": [["a", "b"]], "vocab": {**model["vocab"], "ab": 262}}, "merges"),
    ],
)
def test_other_rules_are_another_vocabulary_and_named(part, value, named):
    difference = vocabulary(byte_tokenizer()).difference(changed(part, value))
    assert named in difference and difference.endswith("differ")


def test_padding_truncation_and_post_processing_change_no_id_of_a_chat():
    for part in ("padding", "truncation", "post_processor", "decoder"):
        assert vocabulary(byte_tokenizer()) == changed(part, lambda _: None)


def test_a_token_of_the_model_is_no_added_one(tmp_path):
    # byte_tokenizer declares six of its model's tokens as special
    assert vocabulary(byte_tokenizer()).added == {}
    assert vocabulary_of_folder(tmp_path) is None
    bpe_tokenizer("byte-level").save_pretrained(tmp_path)
    assert vocabulary_of_folder(tmp_path) == vocabulary(bpe_tokenizer("byte-level"))
