"""Tokenizers of the minis: one for each of two model families, which share no token ids, marks or chat template.

`words` has whole words of the miniature's phrasings and single characters for all other text; `letters` has single
characters alone. Both tokenise operands and names letter by letter: so a model of a third of a million parameters
learns to reverse or sort in seconds, which merges inside operands would prevent. A vocabulary is the same for every
world seed and process (ids follow from sorted text, never from the order of a set), and every row decodes to itself. A
character outside the vocabulary raises an error; there is no unknown token.

    <bos><|user|>Add 37 and 8.<|assistant|>45<|end|>       words
    *bos**ask*Add 37 and 8.*say*45*end*                    letters
"""

import re
import string
from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from harness.data.miniature.errors import AFTER, BEFORE, HUMAN
from harness.data.miniature.lines import HEADS, TAILS
from harness.data.miniature.sources import MONTHS, SOURCES, UNITS

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

CHARACTERS = string.ascii_letters + string.digits + " \n.,:;?!-()#*>=/'"
CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{%- if message['role'] == 'user' %}{{- 'USER' + message['content'] }}"
    "{%- elif message['role'] == 'assistant' %}{{- 'ASSISTANT' }}"
    "{%- generation %}{{- message['content'] + 'END' }}{%- endgeneration %}"
    "{%- else %}{{- raise_exception('a mini knows the roles user and assistant only') }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'ASSISTANT' }}{%- endif %}"
)
"""The template of both families; each family replaces the names USER, ASSISTANT and END by its own marks."""


@dataclass(frozen=True)
class Marks:
    """Special tokens of one family in the order of their ids."""

    pad: str
    bos: str
    user: str
    """Opens a user's turn."""
    assistant: str
    """Opens an answer."""
    end: str
    """Ends an answer."""


@dataclass(frozen=True)
class Family:
    """Marks and characters of one family."""

    marks: Marks
    characters: str
    """Single characters in the order of their ids."""
    reads_words: bool

    @property
    def chat_template(self) -> str:
        """Its chat template."""
        template = CHAT_TEMPLATE
        for name in ("user", "assistant", "end"):
            template = template.replace(f"'{name.upper()}'", f"'{getattr(self.marks, name)}'")
        return template


FAMILIES = {
    "words": Family(Marks("<pad>", "<bos>", "<|user|>", "<|assistant|>", "<|end|>"), CHARACTERS, reads_words=True),
    "letters": Family(
        Marks("*nil*", "*bos*", "*ask*", "*say*", "*end*"), "".join(sorted(CHARACTERS + "<|")), reads_words=False
    ),
}
"""Each family has the characters of the other's marks, so text that a teacher generates with such a mark survives."""


@lru_cache(maxsize=1)
def words() -> tuple[str, ...]:
    """Every word of the miniature's texts, with its leading space where it has one there."""
    texts = [phrasing for source in SOURCES.values() for phrasing in source.phrasings]
    texts += [f" {month}" for month in MONTHS]
    texts += [f" {unit}" for large, small, _ in UNITS for unit in (large, small)]
    texts += [*HEADS, *TAILS, *BEFORE, *AFTER]
    texts += [part for convention in HUMAN.values() for part in (convention.before, convention.after)]
    # sorted, because a set of text has another order in every process
    return tuple(sorted({word for text in texts for word in re.findall(r" ?[A-Za-z]{2,}", text)}))


def vocabulary(family: str = "words") -> list[str]:
    """All tokens in the order of their ids: special tokens, characters, words."""
    tokens = FAMILIES[family]
    return [*astuple(tokens.marks), *tokens.characters, *(words() if tokens.reads_words else ())]


def build(family: str = "words") -> "Tokenizer":
    """The tokenizer of the `tokenizers` library; needs neither torch nor transformers."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    tokens = FAMILIES[family]
    pattern = r"[\s\S]"
    if tokens.reads_words:
        spaced = "|".join(word for word in words() if word.startswith(" "))
        plain = "|".join(word for word in words() if not word.startswith(" "))
        # a word is one token only where no letter touches it, so operands and names stay letter by letter
        pattern = rf"(?:{spaced})(?![A-Za-z])|(?<![A-Za-z])(?:{plain})(?![A-Za-z])|{pattern}"
    tokenizer = Tokenizer(models.WordLevel({token: number for number, token in enumerate(vocabulary(family))}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    # tokens have their own spaces, so text is their plain concatenation
    tokenizer.decoder = decoders.Fuse()
    # It changes nothing; transformers would add it on saving, and the hash must be known before that.
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in astuple(tokens.marks)])
    return tokenizer


def tokenizer_json(family: str = "words") -> str:
    """The content of `tokenizer.json`, so that its hash is known before anything is built."""
    return str(build(family).to_str(pretty=False))


def load_mini_tokenizer(family: str = "words") -> "PreTrainedTokenizerFast":
    """The same tokenizer as a transformers object, with the chat template and its `generation` marks."""
    from transformers import PreTrainedTokenizerFast

    marks = FAMILIES[family].marks
    return PreTrainedTokenizerFast(
        tokenizer_object=build(family),
        pad_token=marks.pad,
        bos_token=marks.bos,
        eos_token=marks.end,
        additional_special_tokens=[marks.user, marks.assistant],
        chat_template=FAMILIES[family].chat_template,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
