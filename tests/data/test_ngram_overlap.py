"""Which rows repeat items: against a slow search by hand, planted copies, and in time linear in the rows."""

import random
import time

import numpy as np
import pytest

from harness.data.ngram_overlap import ItemIndex, own_words
from harness.data.text_similarity import words

CRETE = "What is the tallest mountain of the island of Crete, and who climbed it first?"


def pairs(items, rows, **rule):
    return [tuple(pair) for pair in zip(*map(np.ndarray.tolist, ItemIndex(items, **rule).overlaps(rows)), strict=True)]


def by_hand(items, rows, size, share):
    """The rule, word by word."""
    found = []
    for row, turns in enumerate(rows):
        spoken = [words(turn) for turn in turns]
        grams = {tuple(turn[k : k + size]) for turn in spoken for k in range(len(turn) - size + 1)}
        for number, item in enumerate(items):
            starts = [k for k in range(len(item) - size + 1) if tuple(item[k : k + size]) in grams]
            covered = {place for k in starts for place in range(k, k + size)}
            if len(item) >= size and len(covered) / len(item) > share:
                found.append((row, number, len(covered) / len(item)))
            elif 0 < len(item) < size:
                whole = (turn for turn in spoken if 2 * len(item) > len(turn))
                if any(item == turn[k : k + len(item)] for turn in whole for k in range(len(turn))):
                    found.append((row, number, 1.0))
    return found


@pytest.mark.parametrize("seed", range(10))
def test_the_pairs_are_those_of_a_search_word_by_word(seed):
    draw = random.Random(seed)
    few = [f"w{number}" for number in range(6)]
    items = [draw.choices(few, k=draw.randint(0, 12)) for _ in range(20)]
    rows = [
        [" ".join(draw.choices([*few, "x"], k=draw.randint(0, 30))) for _ in range(draw.randint(0, 3))]
        for _ in "r" * 30
    ]
    expected = by_hand(items, rows, 3, 0.5)
    assert pairs(items, rows, size=3) == expected != []


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (["Tell me: WHAT is the tallest  mountain of the island of\nCrete - and who climbed it first"], True),
        (["hi", "hello", f"(1) {CRETE.upper()}", "Psiloritis"], True),
        (["hi", "You ask: what is the tallest mountain of the island of Crete?"], True),  # 11 of its 15 words
        (["What is the tallest mountain of the mainland? And who climbed it first?"], False),
        (["What is the tallest mountain of", "the island of Crete, and who climbed it first?"], True),  # 9 of 15
        (["What is the tallest mountain of", "the island of Samos, and who climbed it first?"], False),
        ([" ".join(sorted(words(CRETE)))], False),
    ],
)
def test_a_copy_is_found_in_any_turn_whatever_its_case_and_punctuation(row, found):
    assert bool(pairs([words(CRETE)], [["Add 3 and 4.", "7"], row])) == found


def test_what_is_covered_must_lie_in_one_row():
    halves = ["What is the tallest mountain of the island?"], ["Of the island of Crete, and who climbed it first?"]
    assert pairs([words(CRETE)], [["what is the tallest mountain of the"], ["crete and who climbed it first"]]) == []
    both = pairs([words(CRETE)], [[*halves[0], *halves[1]]])
    assert both == [(0, 0, 1.0)]


def test_a_short_item_must_be_most_of_a_turn():
    item = words("Coin of Kojori?")
    rows = [
        ["Name the coin of Kojori."],
        ["The coin of Kojori was minted for three hundred years."],
        ["Kojori: coin of?"],
    ]
    assert pairs([item], rows) == [(0, 0, 1.0)]


def test_nothing_is_found_where_there_is_nothing():
    assert pairs([], [["a b c"]]) == pairs([[]], [["a b c"]]) == pairs([["a"]], []) == pairs([["a"]], [[], [""]]) == []


def test_the_wording_that_all_items_share_is_no_part_of_them():
    asked = [
        f"Question: what is {thing}?\nAnswer: let us think step by step." for thing in ("it", "a big tree", "a cow")
    ]
    assert own_words(asked) == [["it"], ["a", "big", "tree"], ["a", "cow"]]
    assert own_words(["one alone"]) == [["one", "alone"]] and own_words([]) == []
    assert own_words(["same same", "same same"]) == [["same"], ["same"]], "never nothing at all"
    assert own_words(["", "a"]) == [[], ["a"]]


def test_time_is_linear_in_the_rows_and_common_wording_does_not_change_that():
    """Every row and every item have the same sixteen words: as many pairs of places as rows times items."""
    common = " ".join(f"c{number}" for number in range(16))
    items = ItemIndex([words(f"{common} " + " ".join(f"i{n}x{k}" for k in range(20))) for n in range(300)])

    def seconds(count):
        rows = [[f"{common} and row {n} says " + " ".join(f"r{n}x{k}" for k in range(80))] for n in range(count)]
        start = time.process_time()
        assert not len(items.overlaps(rows).row)
        return time.process_time() - start

    seconds(100)
    assert min(seconds(1000) for _ in range(3)) < 5 * min(seconds(400) for _ in range(3))
