"""IFEval's checks of instructions (arXiv 2311.07911) as lm-eval holds them, without a network.

lm-eval's module loads nltk's sentence splitter `punkt_tab` when it is imported, and downloads it where it is missing.
Here a missing one is replaced by punkt without training, which also ends a sentence at `Dr.`. `prepare` returns which
was used, and the evaluation reports it; it affects the instructions that count sentences or capital words.

    follow(row, "No commas here.")     Followed(prompt_strict=True, prompt_loose=True, strict=(True,), loose=(True,))
"""

import random
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

PUNKT_FILES = ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt")


@dataclass(frozen=True)
class Followed:
    """Whether an answer follows its instructions, all of them and each in order; loose forgives an opening line,
    a closing line and asterisks."""

    prompt_strict: bool
    prompt_loose: bool
    strict: tuple[bool, ...]
    loose: tuple[bool, ...]


@cache
def prepare() -> bool:
    """Make `lm_eval.tasks.ifeval` importable here; True where sentences are split without punkt's training.

    Language detection draws at random; its generator is seeded anew for each text, so that grades repeat.
    """
    import langdetect
    import nltk

    # set once for the process: langdetect reads it for each text
    langdetect.DetectorFactory.seed = 0
    try:
        nltk.data.find("tokenizers/punkt_tab/english")
        untrained = False
    except LookupError:
        untrained = True
    with tempfile.TemporaryDirectory() as folder:
        if untrained:
            english = Path(folder) / "tokenizers" / "punkt_tab" / "english"
            english.mkdir(parents=True)
            for name in PUNKT_FILES:
                # empty files are a model without abbreviations and collocations
                (english / name).touch()
            nltk.data.path.insert(0, folder)
        try:
            from lm_eval.tasks.ifeval import instructions_util

            # Both functions cache what they load, so the folder is not needed again.
            instructions_util.count_sentences("One. Two.")
            nltk.word_tokenize("One. Two.")
        finally:
            if untrained:
                nltk.data.path.remove(folder)
    return untrained


def follow(row: Mapping[str, Any], answer: str) -> Followed:
    """Check an answer against a row of IFEval (`key`, `prompt`, `instruction_id_list`, `kwargs`).

    Two of the 541 rows (1122, 1129) count a character that is no letter; IFEval then counts a random letter
    instead, which is drawn here from the row's key.
    """
    prepare()
    from lm_eval.tasks.ifeval.utils import process_results

    # lm-eval draws from the global generator; its state is put back for all other users
    state = random.getstate()
    random.seed(row["key"])
    try:
        found = process_results(row, [answer])
    finally:
        random.setstate(state)
    return Followed(
        bool(found["prompt_level_strict_acc"]),
        bool(found["prompt_level_loose_acc"]),
        tuple(map(bool, found["inst_level_strict_acc"])),
        tuple(map(bool, found["inst_level_loose_acc"])),
    )
