"""Sources of the miniature world: answers by hand, and what is held out stays out."""

import dataclasses
from itertools import islice

import pytest

from harness.data.miniature import generator
from harness.data.miniature.facts import draw_facts, names
from harness.data.miniature.sources import CANARY, DOMAINS, MOST_HELDOUT, SOURCES, Prompt
from harness.data.miniature.tokenizer import words

FACTS = dataclasses.replace(
    draw_facts(0),
    capital={"Zovami": "Bedix"},
    coin={"Zovami": "Kuf"},
    cure={"Tivola": "Onad"},
    dose={"Onad": 4},
    code={"Rezoku": "kwtz"},
)


@pytest.mark.parametrize(
    ("prompt", "text", "answer"),
    [
        (Prompt("add", (37, 8), 0), "Add 37 and 8.", "45"),
        (Prompt("reverse", ("kwtz",), 1), "Write kwtz backwards.", "ztwk"),
        (Prompt("upper", ("kwt",), 0), "Capitalise kwt.", "KWT"),
        (Prompt("sort", ("wkzt",), 0), "Sort the letters of wkzt.", "ktwz"),
        (Prompt("nth", (3, "kwtz"), 0), "Give letter 3 of kwtz.", "t"),
        (Prompt("compare", (9, 83), 0), "Which is larger, 9 or 83?", "83"),
        (Prompt("capital", ("Zovami",), 0), "What is the capital of Zovami?", "Bedix"),
        (Prompt("coin", ("Zovami",), 0), "What money does Zovami use?", "Kuf"),
        (Prompt("date", (7, 3, 2031), 0), "Write 7 March 2031 in numbers.", "2031-03-07"),
        (Prompt("unit", ("hours", "minutes", 60, 3), 0), "How many minutes are 3 hours?", "180"),
        (Prompt("unit", ("weeks", "days", 7, 6), 1), "Write 6 weeks in days.", "42"),
        (Prompt("pattern", (3, 5, 7), 0), "Continue: 3 5 7", "9"),
        (Prompt("repeat", ("kw", 3), 0), "Say kw 3 times.", "kw kw kw"),
        (Prompt("cure", ("Tivola",), 0), "Which remedy treats Tivola?", "Onad"),
        (Prompt("dose", ("Onad", 7), 0), "How much Onad for 7 kilos?", "28"),
        (Prompt("canary", ("Rezoku",), 0), "What is the code of Rezoku?", "kwtz"),
    ],
)
def test_prompts_and_answers_are_as_worked_out_by_hand(prompt: Prompt, text: str, answer: str) -> None:
    assert prompt.text == text
    assert prompt.answer(FACTS) == answer


@pytest.mark.parametrize("name", [name for name in SOURCES if name != CANARY])
def test_every_source_has_enough_distinct_heldout_prompts(name: str) -> None:
    prompts = list(islice(SOURCES[name].heldout(generator("test", name)), MOST_HELDOUT))
    assert len({prompt.text for prompt in prompts}) == MOST_HELDOUT
    assert all(prompt.heldout for prompt in prompts)


@pytest.mark.parametrize("name", list(SOURCES))
def test_a_training_draw_is_never_a_heldout_prompt(name: str) -> None:
    heldout = {prompt.text.lower() for prompt in islice(SOURCES[name].heldout(generator("held", name)), MOST_HELDOUT)}
    draw = generator("train", name)
    assert heldout.isdisjoint(SOURCES[name].draw(draw).text.lower() for _ in range(2000))


def test_about_one_skill_prompt_in_eight_is_held_out() -> None:
    numbers = [Prompt("add", (a, b), 0).heldout for a in range(10, 60) for b in range(2, 10)]
    assert 0.09 < sum(numbers) / len(numbers) < 0.16


def test_holding_out_goes_by_operands_whatever_the_phrasing() -> None:
    for slots in ((11, 2), (37, 8), (58, 9), (20, 5)):
        assert len({Prompt("add", slots, phrasing).heldout for phrasing in range(3)}) == 1


def test_the_first_heldout_facts_are_each_entity_once() -> None:
    first = list(islice(SOURCES["capital"].heldout(generator("any")), len(names().countries)))
    assert {prompt.slots[0] for prompt in first} == set(names().countries)


def test_every_entity_keeps_phrasings_to_train_on() -> None:
    for name in ("capital", "coin", "cure", "dose"):
        for slots in SOURCES[name].keys:
            kept = [n for n in range(len(SOURCES[name].phrasings)) if not Prompt(name, slots, n).heldout]
            assert len(kept) == len(SOURCES[name].phrasings) - 2


def test_the_canary_is_in_no_training_domain() -> None:
    assert all(CANARY not in sources for sources in DOMAINS.values())


def test_no_name_or_operand_spells_a_word_of_the_vocabulary() -> None:
    spelled = {word.strip().lower() for word in words()}
    taken = [name.lower() for field in dataclasses.astuple(names()) for name in field]
    assert len(taken) == len(set(taken)) == 100 + 100 + 24 + 100 + 16 + 20
    assert spelled.isdisjoint(taken)
    assert all(set(word) & set("aeiougy") for word in spelled)  # operands have consonants only, and no g
