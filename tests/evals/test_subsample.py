"""Samples: in proportion, seeded, nested."""

from collections import Counter

from harness.evals.subsample import in_proportion


def test_a_limit_takes_each_kind_in_proportion_and_nests():
    names = [("large" if i % 4 else "small", f"r{i}") for i in range(80)]
    ten, forty = in_proportion(names, 8, seed=0), in_proportion(names, 40, seed=0)
    assert Counter(names[i][0] for i in ten) == {"large": 6, "small": 2}
    assert Counter(names[i][0] for i in forty) == {"large": 30, "small": 10}
    assert set(ten) <= set(forty) and ten == sorted(ten)
    assert in_proportion(names, 8, seed=1) != ten
    assert in_proportion(names, None, 0) == in_proportion(names, 99, 0) == list(range(80))


def test_which_are_taken_depends_on_their_names_and_not_on_their_places():
    names = [("a", str(i)) for i in range(50)]
    taken = {names[i] for i in in_proportion(names, 10, 0)}
    assert {names[::-1][i] for i in in_proportion(names[::-1], 10, 0)} == taken
