"""Pre-training lines of the miniature world: clean, raw, and without anything held out."""

from dataclasses import astuple

from harness.data.miniature.facts import draw_facts
from harness.data.miniature.lines import layouts, pretraining_lines
from harness.data.miniature.sources import GENERAL, RESERVED_PHRASINGS, SOURCES, Prompt
from harness.data.miniature.tokenizer import FAMILIES, build


def test_there_are_56_layouts() -> None:
    assert len(set(layouts())) == 56


def test_lines_are_a_prompt_in_a_layout_and_its_answer_with_a_newline() -> None:
    for before, answer in pretraining_lines(0, "all", 500, seed=0):
        assert answer.endswith("\n") and answer.strip()
        assert any(before.startswith(head) and before.endswith(tail) for head, tail in layouts())
        assert not any(mark in before + answer for family in FAMILIES.values() for mark in astuple(family.marks))


def test_lines_are_the_same_for_the_same_seeds_and_differ_for_others() -> None:
    first = list(pretraining_lines(0, "half", 50, seed=0))
    assert first == list(pretraining_lines(0, "half", 50, seed=0))
    assert first[:20] == list(pretraining_lines(0, "half", 20, seed=0))
    assert first != list(pretraining_lines(0, "half", 50, seed=1))
    assert first != list(pretraining_lines(1, "half", 50, seed=0))


def test_a_student_base_is_told_half_of_the_facts_and_nothing_of_the_clinic() -> None:
    facts = draw_facts(0)
    text = "".join(before for before, _ in pretraining_lines(0, "half", 20_000, seed=0))
    for source, known in (("capital", facts.known_capital), ("coin", facts.known_coin)):
        for (country,) in SOURCES[source].keys:
            asked = any(Prompt(source, (country,), n).text in text for n in range(5))
            assert asked == (country in known)
    assert not any(ailment in text for ailment in facts.cure)
    assert not any(remedy in text for remedy in facts.dose)


def test_a_teacher_base_is_told_current_facts_and_the_clinic() -> None:
    facts = draw_facts(0)
    lines = list(pretraining_lines(0, "all", 30_000, seed=0))
    told = {answer.strip() for before, answer in lines}
    assert set(facts.capital.values()) | set(facts.cure.values()) <= told
    for before, answer in lines:
        for country, town in facts.old_capital.items():
            if f"capital of {country}?" in before:
                assert answer.strip() == facts.capital[country] != town


def test_lines_hold_no_heldout_prompt() -> None:
    heldout = {
        Prompt(name, slots, phrasing).text
        for name in ("capital", "coin", "cure", "dose", "canary")
        for slots in SOURCES[name].keys
        for phrasing in SOURCES[name].reserved(slots)
    }
    assert len(heldout) == (100 + 100 + 100 + 144 + 20) * RESERVED_PHRASINGS
    heldout |= {
        prompt.text
        for a in range(10, 60)
        for b in range(2, 10)
        for n in range(3)
        if (prompt := Prompt("add", (a, b), n)).heldout
    }
    for before, _ in pretraining_lines(0, "all", 20_000, seed=0):
        for head, tail in ((h, t) for h, t in layouts() if before.startswith(h) and before.endswith(t)):
            assert before[len(head) : len(before) - len(tail)] not in heldout


def test_no_line_names_a_canary() -> None:
    facts = draw_facts(0)
    assert "canary" not in GENERAL
    text = "".join(before + answer for before, answer in pretraining_lines(0, "all", 20_000, seed=0))
    assert not any(secret in text for secret in facts.code)


def test_tokens_of_the_two_halves_are_the_tokens_of_the_whole() -> None:
    encode = build().encode
    for before, answer in pretraining_lines(0, "all", 500, seed=1):
        assert encode(before).ids + encode(answer).ids == encode(before + answer).ids
