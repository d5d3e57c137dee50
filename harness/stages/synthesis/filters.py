"""Filters of synthetic rows: which of a teacher's rows are kept, and measures of the kept ones.

`prompting.py` generates the rows, `synthesize.py` runs both. A filter is a pure function from texts to a reason, ""
for none; a row is counted under its first reason, in the order of `FILTERS`. Defaults drop rows that are malformed, of
a wrong length, copies, repeats, or held out. Similarity is ROUGE-L over words. Self-Instruct keeps a prompt below 0.7
(arXiv 2212.10560, section 2.2), which suits open-ended prompts; it would drop nearly all rows of a corpus of
templates, whose prompts differ by one name, so there it is off.

    judge = Judge(Limits(near_duplicate=0.7), human=human, validation=[], heldout=prompts)
    judge.reason(Candidate("Add 3 and 4.", "7"))           # "" or e.g. "copy of a human row"
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.data.corpora._rows import prompt_hash, row_hash
from harness.data.ngram_overlap import ItemIndex
from harness.data.text_similarity import Ngrams, TextPool, distinct, self_similarity
from harness.data.truth import normalise
from harness.evals.corpus.verified import verify
from harness.evals.grading.math_answers import final_number
from harness.stages.synthesis.prompting import Pair, turns

COPIED_NGRAM, COPIED_SHARE = 8, 0.5
"""A text is a copy when more than half of its words lie in 8-grams of the other: Tülu 3's rule for evaluation prompts
in training data (arXiv 2411.15124, section 3.2)."""
ALIKE = 0.7
"""Self-Instruct's bound; `alike_share` is the share of rows at least as similar to another row."""
MEASURED_ROWS, MEASURED_WORDS = 500, 64
"""Similarity is measured on the first rows and the first words of their prompts: its cost grows with their square."""


@dataclass(frozen=True)
class Limits:
    """Settings of the filters; see `TrainingPhase`."""

    least_prompt_tokens: int = 1
    least_answer_tokens: int = 1
    near_duplicate: float = 0.0
    verified: bool = False
    self_consistency: float = 0.0


@dataclass(frozen=True)
class Candidate:
    """A row the teacher generated; an empty prompt or answer was malformed."""

    prompt: str
    answer: str
    examples: Sequence[Pair] = ()
    """The human rows in the teacher's context."""
    prompt_tokens: int = 1
    answer_tokens: int = 1
    """Tokens of the answer as it is trained, end-of-turn token included."""
    truncated: bool = False
    """Whether the row is longer than `max_length`."""
    truth: str | None = None
    """The right answer, where the corpus knows it."""


FILTERS = (
    "malformed prompt",
    "malformed answer",
    "too long",
    "too short",
    "held-out prompt",
    "like a held-out prompt",
    "validation prompt",
    "like a validation prompt",
    "repeats a scored item",
    "copy of a human row",
    "like a human row",
    "copies its examples",
    "truth unknown",
    "wrong answer",
    "repeat",
    "near-duplicate",
    "inconsistent answer",
)
"""Reasons to drop a row, in the order in which they are checked."""
CONTAMINATION = FILTERS[4:9]
"""Reasons of rows that would have brought evaluation items into training."""


def wrong_length(row: Candidate, least_prompt_tokens: int, least_answer_tokens: int) -> str:
    """A row that was cut, or has too few tokens in prompt or answer."""
    if row.truncated:  # what was cut off may be the whole answer
        return "too long"
    short = row.prompt_tokens < least_prompt_tokens or row.answer_tokens < least_answer_tokens
    return "too short" if short else ""


def copied(row: Candidate) -> str:
    """A prompt or answer most of whose words are copied from the human rows in the teacher's context.

    A text of fewer than eight words counts as no copy: two rows may have the same short answer.
    """
    for place, text in enumerate((row.prompt, row.answer)):
        if Ngrams([pair[place] for pair in row.examples], COPIED_NGRAM).share_of(text) > COPIED_SHARE:
            return "copies its examples"
    return ""


def unverified(row: Candidate) -> str:
    """An answer that differs from the truth, or whose truth is not known."""
    # without a truth the answer may be right, and still cannot be trusted
    if row.truth is None:
        return "truth unknown"
    return "" if verify(row.answer, row.truth) else "wrong answer"


def inconsistent(answer: str, samples: Sequence[str], least: float) -> str:
    """An answer that fewer than `least` of the samples agree with, or that another answer outvotes.

    The vote of self-consistency (arXiv 2203.11171): equal final numbers or equal texts agree; an empty
    sample (cut by the length limit) agrees with nothing.
    """
    # an answer that is tied with another for the most votes is kept
    votes = Counter(_vote(sample) for sample in samples if sample)
    mine = votes[_vote(answer)]
    agreed = mine >= least * len(samples) and mine == max(votes.values(), default=0)
    return "" if agreed else "inconsistent answer"


class Known:
    """Prompts that a synthetic one must not repeat: equal ones, copies, and with `near_duplicate` similar ones."""

    def __init__(self, prompts: Sequence[str], near_duplicate: float) -> None:
        self._hashes = {_hash(prompt) for prompt in prompts}
        self._near_duplicate = near_duplicate
        # the pool is filled only where it is searched: every word of every text is indexed
        self._pool = TextPool(prompts) if near_duplicate else TextPool()
        self._ngrams = Ngrams(prompts, COPIED_NGRAM)

    def has(self, prompt: str) -> bool:
        """Whether the prompt is known, apart from case and white space."""
        return _hash(prompt) in self._hashes

    def like(self, prompt: str) -> bool:
        """Whether the prompt is copied from known ones, or within `near_duplicate` of one."""
        # n-grams too: they find a prompt that is a piece of a longer known one, which ROUGE-L rates low
        if self._ngrams.share_of(prompt) > COPIED_SHARE:
            return True
        return bool(self._near_duplicate) and self._pool.nearest(prompt, self._near_duplicate).index >= 0


class Judge:
    """The filters with the texts that they compare against, and the rows that were kept."""

    def __init__(
        self,
        limits: Limits,
        human: Sequence[Pair],
        validation: Sequence[str],
        heldout: Sequence[str],
        items: ItemIndex | None = None,
    ) -> None:
        """`human`: the cell's training rows; `validation`, `heldout`: scored prompts; `items`: other evaluation items
        that no row may repeat."""
        self.limits = limits
        self.items = items or ItemIndex([])
        self.heldout = Known(heldout, limits.near_duplicate)
        self.validation = Known(validation, limits.near_duplicate)
        self.human_prompts = {_hash(prompt) for prompt, _ in human}
        self.human_pool = TextPool(prompt for prompt, _ in human) if limits.near_duplicate else TextPool()
        self.kept: list[Pair] = []
        self._kept_pool, self._kept_rows = TextPool(), set[str]()
        self.rejected: Counter[str] = Counter()

    def reason(self, row: Candidate) -> str:
        """Why this row is dropped, independently of the rows kept so far; "" where it passes."""
        if not row.prompt or not row.answer:
            return "malformed answer" if row.prompt else "malformed prompt"
        limits = self.limits
        if reason := wrong_length(row, limits.least_prompt_tokens, limits.least_answer_tokens):
            return reason
        # before the comparison with human rows: a row that is like both is counted as contamination
        for name, known in (("held-out", self.heldout), ("validation", self.validation)):
            if known.has(row.prompt):
                return f"{name} prompt"
            if known.like(row.prompt):
                return f"like a {name} prompt"
        if len(self.items.overlaps([(row.prompt, row.answer)]).row):
            return "repeats a scored item"
        if _hash(row.prompt) in self.human_prompts:
            return "copy of a human row"
        # only with a limit: prompts of a corpus of templates are all alike
        if limits.near_duplicate and self.human_pool.nearest(row.prompt, limits.near_duplicate).index >= 0:
            return "like a human row"
        return copied(row) or (unverified(row) if limits.verified else "")

    def repeats(self, row: Candidate) -> str:
        """`repeat` or `near-duplicate` where the row is like one that was kept; "" elsewhere."""
        if row_hash(turns((row.prompt, row.answer))) in self._kept_rows:
            return "repeat"
        least = self.limits.near_duplicate
        return "near-duplicate" if least and self._kept_pool.nearest(row.prompt, least).index >= 0 else ""

    def reject(self, reason: str) -> None:
        """Count a dropped row."""
        assert reason in FILTERS, reason
        self.rejected[reason] += 1

    def keep(self, row: Candidate) -> None:
        """Keep a row; later rows must differ from it."""
        self.kept.append((row.prompt, row.answer))
        self._kept_rows.add(row_hash(turns((row.prompt, row.answer))))
        if self.limits.near_duplicate:
            self._kept_pool.add(row.prompt)


def measures(kept: Sequence[Pair], human: Sequence[Pair]) -> dict[str, float]:
    """Diversity of the kept rows beside the human ones; every value between 0 and 1.

    `distinct_n` over prompts and answers, of all rows and (`_matched`) of as many rows of either kind as
    both have, because it falls with size. `self_similarity` is the mean ROUGE-L F1 of a prompt to the
    nearest other one, `human_similarity` to the nearest human one, `alike_share` the share of prompts
    within 0.7 of another, `distinct_share` different prompts as a share of rows.
    """
    found: dict[str, float] = {"distinct_share": len({_hash(prompt) for prompt, _ in kept}) / max(len(kept), 1)}
    # distinct-n falls as rows are added, so it is compared at equal numbers
    matched = min(len(kept), len(human))
    for name, pairs in (("", kept), ("human_", human)):
        for size in (1, 2, 3):
            found[f"{name}distinct_{size}"] = distinct(_texts(pairs), size)
            found[f"{name}distinct_{size}_matched"] = distinct(_texts(pairs[:matched]), size)
        nearest = self_similarity(_beginnings(pairs))
        found[f"{name}self_similarity"] = _mean(nearest)
        found[f"{name}alike_share"] = _mean([float(one >= ALIKE) for one in nearest])
    humans = TextPool(_beginnings(human))
    found["human_similarity"] = _mean([humans.nearest(prompt).similarity for prompt in _beginnings(kept)])
    return found


def rejected_shares(rejected: Mapping[str, int], asked: int) -> dict[str, float]:
    """Share of the generated rows that each filter dropped, and share of those that were contamination."""
    shares = {f"rejected.{reason}": count / max(asked, 1) for reason, count in rejected.items()}
    contaminated = sum(rejected.get(reason, 0) for reason in CONTAMINATION)
    return {"contaminated_share": contaminated / max(asked, 1), **shares}


def _hash(prompt: str) -> str:
    return prompt_hash([{"role": "user", "content": prompt}])


def _vote(answer: str) -> object:
    number = final_number(answer)
    return normalise(answer) if number is None else number


def _texts(pairs: Sequence[Pair]) -> list[str]:
    return [text for pair in pairs for text in pair]


def _beginnings(pairs: Sequence[Pair]) -> list[str]:
    return [" ".join(prompt.split()[:MEASURED_WORDS]) for prompt, _ in pairs[:MEASURED_ROWS]]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)
