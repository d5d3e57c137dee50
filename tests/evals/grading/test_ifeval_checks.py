"""IFEval's checks run without a network, on every real prompt, and grade known answers as they should."""

import random
import subprocess
import sys

import pytest

from harness.evals.grading.ifeval_checks import PUNKT_FILES, Followed, follow
from tests.real import benchmark

OFFLINE = """
import socket, sys
def refuse(*_): raise AssertionError("the network was asked")
socket.socket.connect = socket.getaddrinfo = refuse
import nltk
nltk.download = refuse
from harness.evals.grading.ifeval_checks import prepare
before = list(nltk.data.path)
def show(untrained):
    from lm_eval.tasks.ifeval.instructions_util import count_sentences
    tokens = nltk.word_tokenize("He came. Dr. Smith saw.")
    print(untrained, count_sentences("He came. She saw! Did they?"), count_sentences("Dr. Smith came."), len(tokens))
show(prepare())
assert nltk.data.path == before
sys.modules["lm_eval.tasks.ifeval.instructions_util"]._get_sentence_tokenizer.cache_clear()
nltk.tokenize._get_punkt_tokenizer.cache_clear()
nltk.data.path.insert(0, sys.argv[1])
show(prepare.__wrapped__())
"""


def asked(what: str, answer: str, **settings) -> Followed:
    """One instruction on its own."""
    row = {"key": 1, "prompt": "Write.", "instruction_id_list": [what], "kwargs": [settings]}
    return follow(row, answer)


def test_lm_evals_module_is_imported_without_a_network_and_the_splitter_in_use_is_told(tmp_path):
    english = tmp_path / "tokenizers" / "punkt_tab" / "english"
    english.mkdir(parents=True)
    for name in PUNKT_FILES:
        (english / name).write_text("dr\n" if name == "abbrev_types.txt" else "")
    command = [sys.executable, "-c", OFFLINE, str(tmp_path)]
    answer = subprocess.run(command, capture_output=True, text=True, env={"HOME": str(tmp_path), "PATH": ""})
    bare, trained = answer.stdout.splitlines() or [answer.stderr] * 2
    assert bare in ("True 3 2 8", "False 3 1 7"), "without training `Dr.` ends a sentence"
    assert trained == "False 3 1 7"


@pytest.mark.parametrize(
    ("what", "settings", "good", "bad"),
    [
        ("punctuation:no_comma", {}, "No comma here.", "One, two."),
        ("length_constraints:number_words", {"relation": "at least", "num_words": 4}, "one two three four", "one two"),
        (
            "length_constraints:number_sentences",
            {"relation": "less than", "num_sentences": 3},
            "He came. She saw.",
            "One did. Two did. Three did.",
        ),
        ("keywords:existence", {"keywords": ["kiwi"]}, "A kiwi.", "A plum."),
        ("keywords:forbidden_words", {"forbidden_words": ["kiwi"]}, "A plum.", "A kiwi."),
        ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n* b", "* a"),
        ("detectable_format:title", {}, "<<Title>>\ntext", "Title\ntext"),
        ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1"),
        ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "a *b c* d", "a b"),
        ("change_case:english_lowercase", {}, "this is a sentence in english.", "This is a sentence in English."),
        ("change_case:english_capital", {}, "THIS IS A SENTENCE IN ENGLISH.", "This is a sentence in English."),
        ("language:response_language", {"language": "de"}, "Das ist ein deutscher Satz.", "This is English text."),
        ("startend:end_checker", {"end_phrase": "The end."}, "Once. The end.", "Once."),
        ("startend:quotation", {}, '"Quoted."', "Not quoted."),
        ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, "Say it. Yes.", "Yes."),
    ],
)
def test_known_answers_are_graded_as_they_should(what, settings, good, bad):
    assert asked(what, good, **settings) == Followed(True, True, (True,), (True,))
    assert not asked(what, bad, **settings).prompt_strict
    assert asked(what, "", **settings) == Followed(False, False, (False,), (False,))


def test_loose_grading_forgives_an_opening_line_and_strict_does_not():
    answer = "Sure, here it is:\nNo comma in this line."
    assert asked("punctuation:no_comma", answer) == Followed(False, True, (False,), (True,))


def test_a_prompt_is_followed_when_each_of_its_instructions_is():
    row = {
        "key": 1,
        "prompt": "Write.",
        "instruction_id_list": ["punctuation:no_comma", "keywords:existence"],
        "kwargs": [{}, {"keywords": ["kiwi"], "num_words": None}],
    }
    assert follow(row, "A kiwi.") == Followed(True, True, (True, True), (True, True))
    assert follow(row, "A kiwi, a plum.") == Followed(False, False, (False, True), (False, True))


def test_every_real_prompt_can_be_graded_and_grades_repeat():
    rows = benchmark("ifeval")
    assert len(rows) == 541
    answer = "<<A title>>\n\n* One kiwi. Dr. Smith came.\n* Two!\n\nP.S. *the* [end]"
    random.seed(1)
    first = [follow(row, answer) for row in rows]
    state = random.getstate()
    random.seed(2)
    assert [follow(row, answer) for row in reversed(rows)][::-1] == first
    random.seed(1)
    assert random.getstate() == state, "the caller's draws are its own"
    assert 0 < sum(found.prompt_strict for found in first) <= sum(found.prompt_loose for found in first) < 541
    assert not any(follow(row, "").prompt_loose for row in rows)
    assert all(len(found.loose) == len(row["kwargs"]) for found, row in zip(first, rows, strict=True))


def test_real_instructions_are_followed_by_answers_written_for_them():
    rows = {row["key"]: row for row in benchmark("ifeval")}
    assert rows[1001]["instruction_id_list"] == ["punctuation:no_comma"]
    assert follow(rows[1001], "Hark! Thy journey to Japan doth begin.").prompt_strict
    assert not follow(rows[1001], "Hark, thy journey doth begin.").prompt_strict
    sections = "*highlighted section part 1* *highlighted section part 2* *highlighted section part 3* "
    assert follow(rows[1000], sections + "word " * 300) == Followed(True, True, (True,) * 3, (True,) * 3)
    assert follow(rows[1000], sections + "word, " * 100).strict == (False, True, False)
