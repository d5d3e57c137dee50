"""Reading prompts: every prompt the world can ask is read back as itself, and nothing else is."""

from itertools import islice

import pytest

from harness.data.corpora.mini import Corpus
from harness.data.miniature import generator
from harness.data.miniature.facts import draw_facts, names
from harness.data.miniature.reading import read_prompt
from harness.data.miniature.sources import CANARY, SOURCES, Prompt


@pytest.mark.parametrize("source", [name for name in SOURCES if name != CANARY])
def test_every_prompt_is_read_back_as_it_was_drawn(source):
    draw = generator("test", source)
    prompts = [SOURCES[source].draw(draw) for _ in range(60)] + list(islice(SOURCES[source].heldout(draw), 20))
    facts = draw_facts(0)
    for prompt in prompts:
        read = read_prompt(prompt.text)
        assert read == prompt and read.answer(facts) == prompt.answer(facts)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Add 3 and .",
        "Add kw and 4.",
        "Capital of Nowhere?",
        "Write 3 Brumaire 2031 in numbers.",
        "How many grams are 3 hours?",
        "Give letter 5 of kwtz.",
        "Give letter 0 of kwtz.",
        "Add 3 and 4. Add 3 and 4.",
        f"Code of {names().secrets[0]}?",
    ],
)
def test_what_no_one_asks_or_knows_is_not_read(text):
    assert read_prompt(text) is None


def test_white_space_is_squeezed_before_reading():
    assert read_prompt("  Sum of 37  and 8? ") == Prompt("add", (37, 8), 2)


def test_a_corpus_words_the_truth_as_its_annotators_do_and_knows_its_own_domain_only():
    facts, ailment = draw_facts(3), names().ailments[0]
    asked = f"Remedy for {ailment}?"
    assert Corpus(domain="clinic").truth(asked, 3) == f"Take {facts.cure[ailment]}"
    assert Corpus(domain="all").truth(asked, 3) == facts.cure[ailment]
    assert Corpus(domain="general").truth(asked, 3) is None
    assert Corpus(domain="general").truth("Sum of 37 and 8?", 3) == "45"
