"""Annotators of the miniature world: mistakes by hand, shares of noise, wording."""

from harness.data.miniature import generator
from harness.data.miniature.errors import BARE, HUMAN, NOISE, Convention, Noise, annotate, draw_convention, mistake
from harness.data.miniature.facts import draw_facts
from harness.data.miniature.sources import GENERAL, SOURCES, Prompt

FACTS = draw_facts(0)


def test_mistakes_are_as_worked_out_by_hand() -> None:
    assert mistake(Prompt("add", (37, 8), 0), FACTS) == "35"  # the carry is forgotten
    assert mistake(Prompt("add", (95, 7), 0), FACTS) == "92"
    assert mistake(Prompt("nth", (3, "kwtz"), 0), FACTS) == "z"  # one letter too far
    assert mistake(Prompt("date", (7, 3, 2031), 0), FACTS) == "2031-07-03"  # day and month swapped


def test_prompts_that_invite_no_mistake_have_none() -> None:
    for prompt in (
        Prompt("add", (31, 4), 0),
        Prompt("nth", (2, "kwtz"), 0),
        Prompt("date", (13, 3, 2031), 0),
        Prompt("date", (5, 5, 2031), 0),
        Prompt("reverse", ("kwt",), 0),
    ):
        assert mistake(prompt, FACTS) is None


def test_only_outdated_entities_get_an_old_value() -> None:
    for country, town in FACTS.capital.items():
        wrong = mistake(Prompt("capital", (country,), 0), FACTS)
        assert wrong == FACTS.old_capital.get(country)
        assert wrong != town


def test_clean_annotators_are_always_right() -> None:
    draw = generator("clean")
    for source in SOURCES.values():
        for _ in range(50):
            prompt = source.draw(draw)
            assert annotate(prompt, FACTS, NOISE["clean"], draw) == prompt.answer(FACTS)


def test_random_noise_gives_another_answer_in_its_share_of_rows() -> None:
    draw = generator("random")
    prompts = [SOURCES["reverse"].draw(draw) for _ in range(4000)]
    wrong = [annotate(prompt, FACTS, Noise(0.15, 0.0), draw) != prompt.answer(FACTS) for prompt in prompts]
    assert abs(sum(wrong) / len(wrong) - 0.15) < 0.02  # four standard errors are 0.023


def test_systematic_noise_repeats_one_mistake_on_its_share_of_affected_prompts() -> None:
    draw = generator("systematic")
    answers = [annotate(Prompt("add", (37, 8), 0), FACTS, Noise(0.0, 0.8), draw) for _ in range(2000)]
    assert set(answers) == {"35", "45"}
    assert abs(answers.count("35") / len(answers) - 0.8) < 0.04


def test_the_systematic_share_is_of_the_rows_that_random_noise_left() -> None:
    draw = generator("both")
    answers = [annotate(Prompt("add", (37, 8), 0), FACTS, Noise(0.5, 0.5), draw) for _ in range(4000)]
    assert abs(answers.count("35") / len(answers) - 0.26) < 0.03  # another answer is 35 in one of 50


def test_a_row_wrong_under_random_noise_is_wrong_the_same_way_under_full_noise() -> None:
    for number in range(400):
        prompt = SOURCES[GENERAL[number % 12]].draw(generator("prompt", number))
        random, full = (annotate(prompt, FACTS, NOISE[name], generator("row", number)) for name in ("random", "full"))
        if random != prompt.answer(FACTS):
            assert full == random


def test_about_a_quarter_of_fully_noisy_rows_is_wrong() -> None:
    draw = generator("full")
    prompts = [SOURCES[GENERAL[number % 12]].draw(draw) for number in range(6000)]
    wrong = sum(annotate(prompt, FACTS, NOISE["full"], draw) != prompt.answer(FACTS) for prompt in prompts)
    assert 0.21 < wrong / 6000 < 0.29


def test_people_in_the_clinic_word_answers_their_own_way() -> None:
    assert HUMAN["cure"].word("Onad") == "Take Onad"
    assert HUMAN["dose"].word("28") == "28 drops"
    assert BARE.word("28") == "28"
    assert Convention("(", ")").word("x") == "(x)"


def test_a_drawn_convention_is_never_the_one_people_use() -> None:
    draw = generator("conventions")
    for source, human in HUMAN.items():
        drawn = {draw_convention(source, draw) for _ in range(1000)}
        assert human not in drawn
        assert len(drawn) > 40
