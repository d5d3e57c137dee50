"""8-gram overlap: finds training rows that repeat evaluation items, for decontamination.

The rule is Tülu 3's (arXiv 2411.15124, section 3.2): a row overlaps an item when more than half of the item's words
lie in 8-grams that this one row has too. GPT-3's rule (arXiv 2005.14165, appendix C), any one common 13-gram, would
flag every item whose wording many rows share, which is usual in instruction data. One row that covers half of an item
is a copy, and 8-grams miss fewer copies (arXiv 2411.03923). An item of fewer than 8 words has no 8-gram: a turn
repeats it when it has all its words in one piece and more than half of the turn's words are the item's. Words are
those of `text_similarity.words`, which ignores case, punctuation and white space.

Not found are paraphrases, translations, texts in scripts without spaces, and items with a long passage of which a row
has the question alone. Items that differ in a word or two of one template count as repeats of each other.

N-grams are looked up by hash and compared by their words, so no pair is flagged by a collision. Time is linear in
the words of the rows (one to two million per second on one core), memory in the words of the items.

    items = ItemIndex([words("What is the tallest mountain of the island of Crete?")])
    items.overlaps([["hi"], ["Tell me: what is THE tallest mountain, of the island of Crete?", "Psiloritis."]])
"""

from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import NamedTuple

import numpy as np

from harness.data.text_similarity import words

HELDOUT = "heldout"
"""The name under which all evaluations of held-out rows are listed, because their items are the same."""
SIZE = 8
"""Words of an n-gram."""
SHARE = 0.5
"""More than this share of an item's words must lie in n-grams that one row shares with it."""
AT_ONCE = 1 << 21  # n-grams processed together, which bounds memory
MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so that powers of it lose no bit


class Overlaps(NamedTuple):
    """Pairs of a row and an item it overlaps (m,), and the share of the item's words that it covers (m,)."""

    row: np.ndarray
    item: np.ndarray
    share: np.ndarray


class ItemIndex:
    """The items of evaluations, indexed by their n-grams."""

    def __init__(self, items: Sequence[Sequence[str]], size: int = SIZE, share: float = SHARE) -> None:
        """`items`: the words of each; an item without words overlaps nothing."""
        self.size, self.share = size, share
        self._lengths = np.array([len(item) for item in items], dtype=np.int64)  # (items,)
        self._numbers: dict[str, int] = {}
        for item in items:
            for word in item:
                self._numbers.setdefault(word, len(self._numbers) + 1)
        # a word's contribution to a hash; number 0 is a word that no item has, or the end of a turn
        self._codes = np.random.default_rng(0).integers(0, 1 << 64, len(self._numbers) + 1, dtype=np.uint64)
        by_size: dict[int, list[int]] = {}
        for number, length in enumerate(self._lengths.tolist()):
            if length:
                by_size.setdefault(min(length, size), []).append(number)
        self._tables = {n: self._table(n, items, numbers) for n, numbers in sorted(by_size.items())}

    def overlaps(self, rows: Sequence[Sequence[str]]) -> Overlaps:
        """The overlapping pairs of these rows, each row the texts of its turns; rows are numbered by position."""
        ids, turn_of, lengths, row_of = self._read(rows)
        pairs = []
        for n, at, hashes in _windows(ids, self._codes, list(self._tables)):
            table = self._tables[n]
            at, gram = table.find(ids, at, hashes)
            turn = turn_of[at]
            # a short item is repeated within one turn, which must consist mostly of it
            if n < self.size:
                mostly = 2 * n > lengths[turn]
                row, item, _ = table.postings(row_of[turn[mostly]], gram[mostly])
                row, item = np.unique(np.stack([row, item]), axis=1)
                pairs.append(Overlaps(row, item, np.ones(len(row))))
            else:
                pairs.append(self._half(table, row_of[turn], gram))
        found = Overlaps(*(np.concatenate(column) for column in zip(NONE, *pairs, strict=True)))
        # pairs were found by size of n-gram; callers get them by row, then by item
        order = np.lexsort((found.item, found.row))
        return Overlaps(*(column[order] for column in found))

    def _read(self, rows: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Word numbers (W,) with a 0 after each turn, their turns (W,), words by turn (U,), rows by turn (U,)."""
        ids: list[int] = []
        lengths, row_of = [], []
        for row, turns in enumerate(rows):
            for turn in turns:
                own = words(turn)
                ids.extend(map(self._numbers.get, own, repeat(0)))
                ids.append(0)
                lengths.append(len(own))
                row_of.append(row)
        counts = np.array(lengths, dtype=np.int64)  # (U,)
        turn_of = np.repeat(np.arange(len(counts)), counts + 1)  # (W,)
        return np.array(ids, dtype=np.int64), turn_of, counts, np.array(row_of, dtype=np.int64)

    def _table(self, size: int, items: Sequence[Sequence[str]], numbers: Sequence[int]) -> "_Table":
        ids = np.array([self._numbers.get(word, 0) for one in numbers for word in (*items[one], "")], dtype=np.int64)
        lengths = self._lengths[numbers] + 1  # (items of this size,), a 0 after each item
        item_of, first = np.repeat(numbers, lengths), np.repeat(np.cumsum(lengths) - lengths, lengths)
        ((_, at, hashes),) = _windows(ids, self._codes, [size])
        return _Table(size, hashes, ids[at[:, None] + np.arange(size)], item_of[at], at - first[at])

    def _half(self, table: "_Table", row: np.ndarray, gram: np.ndarray) -> Overlaps:
        """Pairs whose items are covered by more than `share`, from the rows' n-grams (m,).

        Rows with the same set of n-grams are compared once, so common wording costs no more in many rows than in one.
        """
        # row and n-gram as one number: an n-gram that a row has twice counts once
        row, gram = np.divmod(np.unique(row * len(table.grams) + gram), len(table.grams))
        begins = np.flatnonzero(np.diff(row, prepend=-1))  # (rows,)
        if not len(begins):
            return NONE
        # a set of n-grams is known by the sum of random 64-bit numbers, which does not depend on their order
        sets = np.add.reduceat(table.codes[gram], begins)  # (rows,)
        _, first, set_of = np.unique(sets, return_index=True, return_inverse=True)
        taken = np.repeat(np.isin(np.arange(len(begins)), first), np.diff(np.append(begins, len(row))))
        number = np.repeat(set_of, np.diff(np.append(begins, len(row))))
        parts = [self._covered(*found) for found in _portions(table, number[taken], gram[taken])]
        one, item, share = (np.concatenate(column) for column in zip(*parts, strict=True))
        rows, counts = row[begins][np.argsort(set_of, kind="stable")], np.bincount(set_of)
        at = _spread(counts[one], (np.cumsum(counts) - counts)[one])
        return Overlaps(rows[at], np.repeat(item, counts[one]), np.repeat(share, counts[one]))

    def _covered(self, row: np.ndarray, item: np.ndarray, place: np.ndarray) -> Overlaps:
        """Pairs whose items are covered by more than `share`, from n-grams (m,) by row, item and first word's place."""
        longest = int(self._lengths.max())
        keys = np.unique((row * len(self._lengths) + item) * longest + place)
        pair, place = np.divmod(keys, longest)
        begins = np.flatnonzero(np.diff(pair, prepend=-1))  # (pairs,)
        new = np.minimum(np.diff(place, append=0), self.size)  # words up to the next n-gram, which covers the rest
        # the last n-gram of a pair covers all its words; the difference to the next pair's place means nothing
        new[np.append(begins[1:], len(pair)) - 1] = self.size
        row, item = np.divmod(pair[begins], len(self._lengths))
        share = np.add.reduceat(new, begins) / self._lengths[item]  # (pairs,)
        enough = share > self.share
        return Overlaps(row[enough], item[enough], share[enough])


def own_words(texts: Sequence[str]) -> list[list[str]]:
    """The words of each text without the common first and last words of all texts, i.e. without their template.

    A single text is left whole.
    """
    found = [words(text) for text in texts]
    if len(found) < 2:
        return found
    begin = _in_common(found)
    found = [one[begin:] for one in found]
    end = _in_common([one[::-1] for one in found])
    return [one[: len(one) - end] for one in found]


class _Table:
    """The items' n-grams of one size, with the items and places in which they occur."""

    def __init__(self, size: int, hashes: np.ndarray, grams: np.ndarray, item: np.ndarray, place: np.ndarray) -> None:
        self.size = size
        order = np.argsort(hashes, kind="stable")
        self._hashes, first, number = np.unique(hashes[order], return_index=True, return_inverse=True)
        self.grams, self._item, self._place = grams[order[first]], item[order], place[order]
        assert (self.grams[number] == grams[order]).all(), "two n-grams of items have one hash"
        self._first = np.append(first, len(hashes))
        self._shift = np.uint64(64 - max(16, (8 * len(self._hashes)).bit_length()))
        # a table of the hashes' first bits: most words of rows are in no item, and one look-up drops them before the
        # binary search
        self._maybe = np.zeros(1 << (64 - int(self._shift)), dtype=bool)
        self._maybe[self._hashes >> self._shift] = True
        self.codes = np.random.default_rng(1).integers(0, 1 << 64, len(self.grams), dtype=np.uint64)
        """(n-grams,) random numbers whose sum identifies a set of n-grams."""

    def find(self, ids: np.ndarray, at: np.ndarray, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places in `ids` where an n-gram of an item begins, and the n-gram's number."""
        maybe = self._maybe[hashes >> self._shift]  # (m,)
        at, hashes = at[maybe], hashes[maybe]
        gram = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)  # (m,)
        # hashes may collide, so the words decide
        same = (ids[at[:, None] + np.arange(self.size)] == self.grams[gram]).all(1)
        return at[same], gram[same]

    def count(self, gram: np.ndarray) -> np.ndarray:
        """The number of places in items at which each n-gram occurs."""
        return self._first[gram + 1] - self._first[gram]

    def postings(self, row: np.ndarray, gram: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows, items and places (m,): one for each place in an item at which a row's n-gram occurs."""
        counts = self.count(gram)
        at = _spread(counts, self._first[gram])
        return np.repeat(row, counts), self._item[at], self._place[at]


NONE = Overlaps(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0))


def _windows(ids: np.ndarray, codes: np.ndarray, sizes: Sequence[int]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """For each size (ascending) the places at which n-grams without a 0 begin, and their hashes."""
    coded, hashes = codes[ids], np.zeros(len(ids), dtype=np.uint64)  # both (W,)
    ends = np.where(ids == 0, np.arange(len(ids)), len(ids))  # (W,)
    known = np.minimum.accumulate(ends[::-1])[::-1] - np.arange(len(ids))  # words up to the next 0
    for n in range(1, max(sizes, default=0) + 1):
        # the hash of n words is that of n - 1 words and one term more, so all sizes cost one pass
        hashes[: len(ids) - n + 1] += coded[n - 1 :] * np.uint64(pow(MULTIPLIER, n - 1, 1 << 64))
        if n in sizes:
            at = np.flatnonzero(known >= n)
            yield n, at, hashes[at]


def _portions(table: _Table, row: np.ndarray, gram: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The postings of rows' n-grams, about `AT_ONCE` at a time, all those of one row together."""
    before = np.cumsum(table.count(gram)) - table.count(gram)
    begins = np.flatnonzero(np.diff(row, prepend=-1))
    # a row's postings stay together: its share of an item is counted over all its n-grams
    portion = np.repeat(before[begins] // AT_ONCE, np.diff(np.append(begins, len(row))))
    for number in np.unique(portion):
        mine = portion == number
        yield table.postings(row[mine], gram[mine])


def _spread(counts: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Concatenated ranges, each of `counts` numbers from `first` on."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts - first, counts)


def _in_common(lists: Sequence[Sequence[str]]) -> int:
    """The number of first words common to all lists; at most one fewer than the shortest list has."""
    # one word at least is left of every text
    shortest = min(map(len, lists)) - 1
    first = lists[0]
    return next((n for n in range(shortest) if any(one[n] != first[n] for one in lists)), max(shortest, 0))
