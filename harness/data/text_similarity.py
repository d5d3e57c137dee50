"""Similarity of texts by their words: ROUGE-L, the nearest of many texts, shared n-grams, distinct n-grams.

`stages/synthesis/filters.py` applies these measures to a teacher's rows. Similarity is the F1 of ROUGE-L (Lin 2004),
2 LCS(a, b) / (|a| + |b|) over words, as in Self-Instruct (arXiv 2212.10560, section 2.2). The longest common
subsequence is computed with bit operations (Hyyrö 2004). A text that shares too few words to be nearer than the
nearest so far is skipped, so the search is exact, without MinHash.

    pool = TextPool(["add 3 and 4", "sort kwtz"]); pool.nearest("add 3 to 4")     # Nearest(0.75, 0)
    distinct(["a b a b"], 2)                                                  # 2 of 3 bigrams differ
"""

import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Runs of letters and digits after NFKC and casefold; punctuation is dropped, as ROUGE does.

    A script without spaces gives one word per run, so only exact repeats are similar there.
    """
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


@dataclass(frozen=True)
class Nearest:
    """The most similar text of a pool and its similarity; `index` -1 where none was similar enough."""

    similarity: float
    index: int


class TextPool:
    """A growing set of texts that is searched for the most similar one."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._words: list[list[str]] = []
        self._lengths = array("q")
        # by word and k, the texts in which the word occurs a k-th time: two texts share a word as often as both have it
        self._having: dict[tuple[str, int], array[int]] = {}
        for text in texts:
            self.add(text)

    def __len__(self) -> int:
        return len(self._words)

    def add(self, text: str) -> None:
        """Add a text; its index is the number of texts before it."""
        found = words(text)
        for key in _numbered(found):
            self._having.setdefault(key, array("q")).append(len(self._words))
        self._words.append(found)
        self._lengths.append(len(found))

    def nearest(self, text: str, least: float = 0.0, leave_out: int = -1) -> Nearest:
        """The text of the largest ROUGE-L F1 to `text`, the first of equals, if that is at least `least`.

        `leave_out` is the index of a text to skip, e.g. the text itself. Texts without a common word have
        similarity 0.
        """
        found = words(text)
        having = [self._having[key] for key in _numbered(found) if key in self._having]
        if not having:
            return Nearest(0.0, -1)
        shared = np.bincount(np.concatenate([np.array(one) for one in having]), minlength=len(self))  # (texts,)
        # ROUGE-L cannot exceed this: a common subsequence has at most the shared words
        bounds = 2 * shared / (len(found) + np.array(self._lengths))  # (texts,)
        if leave_out >= 0:
            bounds[leave_out] = 0.0
        candidates = np.flatnonzero((bounds > 0) & (bounds >= least))
        places, best = _places(found), Nearest(0.0, -1)
        for index in candidates[np.argsort(-bounds[candidates], kind="stable")].tolist():
            # bounds descend, so no later text can be nearer; at an equal bound an earlier index may still win
            if bounds[index] < best.similarity or best.similarity == 1:
                break
            other = self._words[index]
            similarity = 2 * _common_subsequence(places, len(found), other) / (len(found) + len(other))
            # of equals the smallest index, whatever the order of the search
            if similarity >= least and (similarity, -index) > (best.similarity, -best.index):
                best = Nearest(similarity, index)
        return best


class Ngrams:
    """The n-grams of many texts, to measure how much of another text is copied from them."""

    def __init__(self, texts: Iterable[str], size: int) -> None:
        self.size = size
        self._seen = {gram for text in texts for gram in _ngrams(words(text), size)}

    def share_of(self, text: str) -> float:
        """Share of the text's words that lie in an n-gram of the others, 0 to 1; 0 for fewer than n words."""
        found = words(text)
        covered = np.zeros(len(found), dtype=bool)  # (words,)
        # words are marked, not counted, since n-grams overlap
        for start, gram in enumerate(_ngrams(found, self.size)):
            if gram in self._seen:
                covered[start : start + self.size] = True
        return float(covered.mean()) if len(found) else 0.0


def distinct(texts: Iterable[str], size: int) -> float:
    """Different n-grams as a share of all n-grams of the texts together (distinct-n, arXiv 1510.03055).

    It falls as texts are added, so compare it between equal numbers of texts. 0 where no text has n words.
    """
    counts = Counter(gram for text in texts for gram in _ngrams(words(text), size))
    return len(counts) / counts.total() if counts else 0.0


def self_similarity(texts: Sequence[str]) -> list[float]:
    """ROUGE-L F1 of each text to the nearest of the others."""
    pool = TextPool(texts)
    return [pool.nearest(text, leave_out=index).similarity for index, text in enumerate(texts)]


def _ngrams(found: Sequence[str], size: int) -> Iterable[tuple[str, ...]]:
    return (tuple(found[start : start + size]) for start in range(len(found) - size + 1))


def _numbered(found: Iterable[str]) -> list[tuple[str, int]]:
    seen: Counter[str] = Counter()
    numbered = []
    for word in found:
        seen[word] += 1
        numbered.append((word, seen[word]))
    return numbered


def _places(found: Sequence[str]) -> dict[str, int]:
    """The positions of each word, as bits."""
    places: dict[str, int] = {}
    for place, word in enumerate(found):
        places[word] = places.get(word, 0) | 1 << place
    return places


def _common_subsequence(places: dict[str, int], length: int, other: Sequence[str]) -> int:
    """Length of the longest common subsequence; each 0 bit of `row` is one more word in common."""
    full = row = (1 << length) - 1
    for word in other:
        # Hyyrö 2004: one addition carries through a whole row of the table of common lengths
        hits = row & places.get(word, 0)
        row = ((row + hits) | (row - hits)) & full
    return length - row.bit_count()
