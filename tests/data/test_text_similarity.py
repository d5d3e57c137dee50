"""Similarity: ROUGE-L against the textbook table, the nearest against trying all, shares counted by hand."""

import random
from itertools import pairwise

import pytest

from harness.data.text_similarity import Ngrams, TextPool, distinct, self_similarity, words


def by_table(one, other):
    """ROUGE-L's F1 by the table of longest common subsequences of all beginnings."""
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    return 2 * table[-1][-1] / (len(one) + len(other))


def some_texts(count, seed, letters="abcdef", longest=12):
    draw = random.Random(seed)
    return [" ".join(draw.choices(letters, k=draw.randint(1, longest))) for _ in range(count)]


def test_words_know_neither_case_nor_punctuation():
    assert words("Take  Ünit-7, please!") == ["take", "ünit", "7", "please"]
    assert words("ＡＢ é") == words("ab e\u0301"), "one spelling of each character"


def likeness(one, other):
    return TextPool([other]).nearest(one).similarity


def test_rouge_l_by_hand():
    police, other = "police killed the gunman", "the gunman kill police"
    assert likeness(police, other) == 2 * 2 / 8  # "the gunman"
    assert likeness(police, "police kill the gunman") == 0.75
    assert likeness(police, police) == 1.0 and likeness(police, "") == 0.0


def test_rouge_l_is_that_of_the_table():
    for one, other in pairwise(some_texts(200, seed=0, longest=90)):
        assert likeness(one, other) == pytest.approx(by_table(one.split(), other.split()))


def test_the_nearest_is_the_one_that_trying_all_finds():
    texts = some_texts(80, seed=1)
    pool = TextPool(texts)
    for text in some_texts(80, seed=2):
        every = [by_table(text.split(), one.split()) for one in texts]
        assert pool.nearest(text).similarity == pytest.approx(max(every))
        assert pool.nearest(text).index == every.index(max(every))


def test_a_text_below_the_least_likeness_is_not_near_and_itself_can_be_left_out():
    pool = TextPool(["add 3 and 4", "sort kwtz", "add 3 and 5"])
    assert pool.nearest("add 3 to 4", least=0.75).index == 0
    assert pool.nearest("add 3 to 4", least=0.76).index == -1
    assert pool.nearest("nothing shared").index == -1
    assert (pool.nearest("add 3 and 4").index, pool.nearest("add 3 and 4", leave_out=0).index) == (0, 2)
    assert self_similarity(["add 3 and 4", "sort kwtz", "add 3 and 5"]) == [0.75, 0.0, 0.75]


def test_a_repeated_word_is_shared_as_often_as_both_have_it():
    assert TextPool(["a a a b"]).nearest("a b b b").similarity == 0.5  # a, b


def test_a_pool_may_grow_after_it_was_searched():
    pool = TextPool(["a b"])
    assert pool.nearest("a c").index == 0
    pool.add("a c")
    assert pool.nearest("a c").index == 1 and len(pool) == 2


def test_distinct_n_grams_by_hand():
    assert distinct(["a b a b"], 1) == 2 / 4
    assert distinct(["a b a b"], 2) == 2 / 3  # ab, ba, ab
    assert distinct(["a b", "A, b.", "c"], 2) == 1 / 2, "no n-gram crosses from one text to the next"
    assert distinct(["a"], 3) == 0.0


def test_a_copied_share_counts_words_in_shared_n_grams():
    grams = Ngrams(["the cat sat on the mat", "birds fly"], size=3)
    assert grams.share_of("today the cat sat down") == 3 / 5
    assert grams.share_of("Sat on the mat") == 1.0
    assert grams.share_of("birds fly") == 0.0, "fewer than three words copy nothing"
    assert grams.share_of("") == 0.0
