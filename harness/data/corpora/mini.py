"""Corpus `mini`: instruction rows of the miniature corpus, generated on demand, scored against the truth.

Unlike the other corpora it reads no file, sets its own held-out split, and knows the true answer of every row besides
its annotators' answer. The prompts of a source do not depend on the noise.

    Corpus()                                              # 16,000 noisy rows of the 12 general sources
    Corpus(noise="clean", rows=48_000, domain="all")      # the training rows of the strong teacher
    Corpus(domain="clinic", human_rows=64)                # the scarce domain, in human annotators' wording
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Any, ClassVar

from harness.config.checks import check_choice, check_positive, refuse
from harness.data.corpora import CorpusSettings, Example, Size
from harness.data.miniature import VERSION, generator
from harness.data.miniature.errors import BARE, HUMAN, NOISE, Convention, Noise, annotate, draw_convention
from harness.data.miniature.facts import Facts, draw_facts
from harness.data.miniature.lines import pretraining_facts
from harness.data.miniature.reading import read_prompt
from harness.data.miniature.sources import CANARY, DOMAINS, MOST_HELDOUT, SOURCES, Prompt
from harness.data.miniature.tokenizer import build

LICENSE = "Apache-2.0"
DIALOGUE_TURNS = 4
DIALOGUE_LENGTH = {"words": 128, "letters": 264}  # room for every conversation, by family of the mini that reads it


@dataclass
class Corpus(CorpusSettings):
    """Settings of the miniature's rows."""

    knows_truth: ClassVar[bool] = True
    """Prompts are parsed, so rows that a teacher generated can be verified too."""
    knows_questions: ClassVar[bool] = True
    """A question is the fact or the operands, in whatever wording."""
    max_length: int = 64
    """Longest rendered row in tokens, enough for both families of minis. With dialogues it is raised to 128, enough for
    the family `words`; for the family `letters` set it to 264."""
    max_new_tokens: int = 16
    """Length limit of generated text in tokens. In the family `words` the longest wording of the longest answer has 16;
    in `letters` 16 suffice for the bare answers of every source and for the clinic's human wording."""
    noise: str = "full"
    """How annotators err: `clean` (never), `random` (15 % of rows carry another row's answer) or `full`
    (also systematic mistakes in 80 % of the prompts that invite them)."""
    random_noise: float | None = None
    """Share of rows with a random wrong answer, 0-1; null takes the preset's."""
    systematic_noise: float | None = None
    """Share of the prompts with a systematic mistake that are answered with it, 0-1; null takes the preset's."""
    rows: int = 16_000
    """Train rows of all sources together, in equal numbers; not used by the domain `clinic`."""
    heldout_per_source: int = 100
    """Held-out rows per source, at most 120 (the canary has 40); this corpus uses it in place of `heldout_rows`."""
    domain: str = "general"
    """`general` (12 sources), `clinic` (the scarce domain alone, in human annotators' wording) or `all`
    (both; the clinic in a teacher's own wording)."""
    human_rows: int = 64
    """Train rows of the domain `clinic`: the human rows of the scarce domain."""
    dialogues: float = 0.0
    """Share of train rows that are conversations of four exchanges within one source, each with a wording
    of its own: from them a teacher learns to follow its context and to generate prompts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("corpus.noise", self.noise, tuple(NOISE))
        check_choice("corpus.domain", self.domain, tuple(DOMAINS))
        for name in ("random_noise", "systematic_noise", "dialogues"):
            share = getattr(self, name)
            if share is not None and not (math.isfinite(share) and 0 <= share <= 1):
                raise refuse(f"corpus.{name}", share, "a share lies between 0 and 1")
        check_positive("corpus.rows", self.rows)
        check_positive("corpus.human_rows", self.human_rows)
        if not 1 <= self.heldout_per_source <= MOST_HELDOUT:
            raise refuse(
                "corpus.heldout_per_source",
                self.heldout_per_source,
                f"a source has 1 to {MOST_HELDOUT} distinct held-out prompts",
            )
        for source in self.sources or ():
            check_choice("corpus.sources", source, (*DOMAINS[self.domain], CANARY))
        if self.dialogues:
            self.max_length = max(self.max_length, DIALOGUE_LENGTH["words"])

    @property
    def annotators(self) -> Noise:
        """The noise in force: the preset's shares, replaced by those that are set."""
        preset = NOISE[self.noise]
        return Noise(
            preset.random if self.random_noise is None else float(self.random_noise),
            preset.systematic if self.systematic_noise is None else float(self.systematic_noise),
        )

    def identity(self, world_seed: int) -> dict[str, Any]:
        """Settings that change rows, in a normal form that `Corpus` accepts, with world seed and version."""
        noise = self.annotators
        # the other of the two changes no row of this domain, so it must not change the address
        rows = {"human_rows": self.human_rows} if self.domain == "clinic" else {"rows": self.rows}
        return {
            "kind": "mini",
            "world_version": VERSION,
            "world_seed": world_seed,
            "sources": None if self.sources is None else sorted(set(self.sources)),
            "random_noise": noise.random,
            "systematic_noise": noise.systematic,
            **rows,
            "heldout_per_source": self.heldout_per_source,
            "domain": self.domain,
            "dialogues": float(self.dialogues),
        }

    def known_sources(self) -> tuple[str, ...]:
        """The sources of its domain that are kept; the canary has held-out rows alone."""
        return tuple(source for source in DOMAINS[self.domain] if self._keeps(source))

    def examples(self, world_seed: int) -> Iterator[Example]:
        """Train rows, the sources alternating, then held-out rows; the same in any process.

        A held-out row's messages have the annotators' answer, its `truth` the right one.
        """
        facts = draw_facts(world_seed)
        train_sources = DOMAINS[self.domain]
        for row in range(self._train_rows()):
            # rows are numbered before sources are left out, so a filtered corpus keeps its sources' rows
            source = train_sources[row % len(train_sources)]
            if self._keeps(source):
                yield self._train_row(source, row // len(train_sources), world_seed, facts)
        # the canary has held-out rows alone
        for source in (*train_sources, CANARY):
            if self._keeps(source):
                yield from self._heldout_rows(source, world_seed, facts)

    def truth(self, prompt: str, world_seed: int) -> str | None:
        """The right answer to a prompt of the corpus's domain, as its annotators word it; None for other text."""
        read = read_prompt(prompt)
        if read is None or read.source not in DOMAINS[self.domain]:
            return None
        return self._convention(read.source).word(read.answer(draw_facts(world_seed)))

    @staticmethod
    def asks(prompt: str) -> str | None:
        """The fact or the operands that a prompt asks for; None for other text and for the canary."""
        read = read_prompt(prompt)
        return None if read is None else read.question

    @staticmethod
    def pretraining_facts(world_seed: int, knows: str) -> frozenset[str]:
        """The questions that a miniature's pre-training answered (`asks`); see `miniature.lines.pretraining_facts`.

        Raises SettingsError for another `knows` than `half` and `all`.
        """
        return pretraining_facts(world_seed, knows)

    def provenance(self) -> dict[str, Any]:
        """The licence of every source; all rows are generated here."""
        return {"licenses": dict.fromkeys((*DOMAINS[self.domain], CANARY), LICENSE)}

    def size(self, family: str = "words") -> Size | None:
        """Train rows, exactly, and mean tokens of a family per row, from a few rows of one world; None for no rows."""
        sources = DOMAINS[self.domain]
        rows = sum(self._keeps(sources[row % len(sources)]) for row in range(self._train_rows()))
        if not rows:
            return None
        facts = draw_facts(0)
        some = [
            self._train_row(source, number, 0, facts)
            for source in sources
            if self._keeps(source)
            for number in range(16)
        ]
        encode = build(family).encode
        spoken = [[len(encode(turn["content"]).ids) for turn in example.messages] for example in some]
        # one mark opens each turn, one ends each answer, and one begins the row
        response = sum(sum(turns[1::2]) + len(turns) // 2 for turns in spoken) / len(some)
        prompt = sum(1 + sum(turns[::2]) + len(turns) for turns in spoken) / len(some)
        heldout = self.heldout_per_source * (len(sources) + 1)
        return Size(rows, response, prompt + response, heldout)

    def check_family(self, family: str) -> None:
        """Raise SettingsError where conversations would be cut in the tokens of this family."""
        # only here is the family known; `__post_init__` raises the length for `words`
        if self.dialogues and self.max_length < DIALOGUE_LENGTH[family]:
            need = DIALOGUE_LENGTH[family]
            reason = f"conversations take up to {need} tokens of the family {family}, and would be cut"
            raise refuse("corpus.max_length", self.max_length, reason, f"set it to {need} or more")

    def _keeps(self, source: str) -> bool:
        return self.sources is None or source in self.sources

    def _train_rows(self) -> int:
        return self.human_rows if self.domain == "clinic" else self.rows

    def _convention(self, source: str) -> Convention:
        return HUMAN.get(source, BARE) if self.domain == "clinic" else BARE

    def _train_row(self, source: str, number: int, world_seed: int, facts: Facts) -> Example:
        # a generator for each row: none depends on how many rows were drawn before it
        draw = generator("mini", "row", world_seed, self.domain, source, number)
        is_dialogue = draw.random() < self.dialogues
        # a wording of its own for each conversation, so that only the context tells which one to use
        convention = draw_convention(source, draw) if is_dialogue else self._convention(source)
        messages: list[dict[str, str]] = []
        for _ in range(DIALOGUE_TURNS if is_dialogue else 1):
            prompt = SOURCES[source].draw(draw)
            messages += self._exchange(prompt, convention, facts, draw)
        # of the last exchange, in the wording of its conversation
        truth = convention.word(prompt.answer(facts))
        return Example(f"{self.domain}/{source}/{number:05}", messages, source, "train", truth)

    def _heldout_rows(self, source: str, world_seed: int, facts: Facts) -> Iterator[Example]:
        convention = self._convention(source)
        # prompts from one generator and each answer from its own, so that a change of the answers moves no prompt
        prompts = SOURCES[source].heldout(generator("mini", "heldout", world_seed, source))
        for number, prompt in enumerate(islice(prompts, self.heldout_per_source)):
            draw = generator("mini", "heldout answer", world_seed, source, number)
            truth = convention.word(prompt.answer(facts))
            yield Example(
                f"heldout/{source}/{number:03}",
                self._exchange(prompt, convention, facts, draw),
                source,
                "heldout",
                truth,
            )

    def _exchange(self, prompt: Prompt, convention: Convention, facts: Facts, draw: Random) -> list[dict[str, str]]:
        answer = convention.word(annotate(prompt, facts, self.annotators, draw))
        return [{"role": "user", "content": prompt.text}, {"role": "assistant", "content": answer}]
