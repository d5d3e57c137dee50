"""Tokenizer of all minis: whole words of the world's phrasings, single characters for everything else.

Operands and names are read letter by letter, which is what lets a model of a third of a million parameters
learn to reverse or sort in seconds; merges inside them would prevent it. The vocabulary is the same in
every world and process (ids follow from sorted text, never from the order of a set), and every row
decodes to itself. A character outside it raises; there is no unknown token to hide behind.

    <bos><|user|>Add 37 and 8.<|assistant|>45<|end|>
"""

import re
import string
from functools import lru_cache
from typing import TYPE_CHECKING

from harness.world.errors import AFTER, BEFORE, HUMAN
from harness.world.lines import HEADS, TAILS
from harness.world.sources import MONTHS, SOURCES, UNITS

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

PAD, BOS, USER, ASSISTANT, END = "<pad>", "<bos>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIAL = (PAD, BOS, USER, ASSISTANT, END)
CHARACTERS = string.ascii_letters + string.digits + " \n.,:;?!-()#*>=/'"
CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{%- if message['role'] == 'user' %}{{- '<|user|>' + message['content'] }}"
    "{%- elif message['role'] == 'assistant' %}{{- '<|assistant|>' }}"
    "{%- generation %}{{- message['content'] + '<|end|>' }}{%- endgeneration %}"
    "{%- else %}{{- raise_exception('a mini knows the roles user and assistant only') }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)


@lru_cache(maxsize=1)
def words() -> tuple[str, ...]:
    """Every word of the world's texts as it stands there: with its leading space, or at the start."""
    texts = [phrasing for source in SOURCES.values() for phrasing in source.phrasings]
    texts += [f" {month}" for month in MONTHS]
    texts += [f" {unit}" for large, small, _ in UNITS for unit in (large, small)]
    texts += [*HEADS, *TAILS, *BEFORE, *AFTER]
    texts += [part for convention in HUMAN.values() for part in (convention.before, convention.after)]
    return tuple(sorted({word for text in texts for word in re.findall(r" ?[A-Za-z]{2,}", text)}))


def vocabulary() -> list[str]:
    """All tokens in the order of their ids: special tokens, characters, words."""
    return [*SPECIAL, *CHARACTERS, *words()]


def build() -> "Tokenizer":
    """The tokenizer of the `tokenizers` library; needs neither torch nor transformers."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    spaced = "|".join(word for word in words() if word.startswith(" "))
    plain = "|".join(word for word in words() if not word.startswith(" "))
    pattern = rf"(?:{spaced})(?![A-Za-z])|(?<![A-Za-z])(?:{plain})(?![A-Za-z])|[\s\S]"
    tokenizer = Tokenizer(models.WordLevel({token: number for number, token in enumerate(vocabulary())}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    # changes nothing; transformers would add it on saving, and the hash must be known before
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


def tokenizer_json() -> str:
    """The content of `tokenizer.json`, so that its hash is known before anything is built."""
    return str(build().to_str(pretty=False))


def load_mini_tokenizer() -> "PreTrainedTokenizerFast":
    """The same tokenizer as transformers use it, with the chat template and its `generation` marks."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=build(),
        pad_token=PAD,
        bos_token=BOS,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
