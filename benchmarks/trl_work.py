"""What both sides of `against_trl.py` are given: rows of messages, a tokenizer, and models with random weights.

`mini` is the miniature: its rows, tokenizer and the shapes of its student and strong teacher. `small` is larger
in every way: 8 M and 17 M parameters, a BPE of 8,192 tokens, questions and answers of invented words whose
lengths vary as people's do.
"""

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from harness.data.corpora.mini import Corpus
from harness.data.miniature.sizes import llama_settings
from harness.data.miniature.tokenizer import load_mini_tokenizer

Messages = list[dict[str, str]]

SPECIALS = ("<pad>", "<|user|>", "<|assistant|>", "<|end|>")
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '<|assistant|>' }}"
    "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ '<|user|>' + message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """How big one comparison is."""

    batch_size: int
    steps: int
    max_new_tokens: int


SHAPES = {"mini": Shape(32, 60, 16), "small": Shape(8, 6, 48)}


@dataclass
class Work:
    """What every arm is given."""

    messages: list[Messages]
    batch_size: int
    max_new_tokens: int
    tokenizer: Any
    student: Any
    teacher: Any
    folder: str

    @property
    def steps(self) -> int:
        """Optimizer steps: every row once."""
        return len(self.messages) // self.batch_size


def prepare(shape: str, count: int, folder: str) -> None:
    """Write a tokenizer and `count` rows of messages."""
    if shape == "mini":
        tokenizer = load_mini_tokenizer()
        examples = Corpus(rows=count).examples(world_seed=0)
        pairs = [tuple(turn["content"] for turn in one.messages) for one in islice(examples, count)]
    else:
        pairs = _invented(count)
        tokenizer = _bpe([text for pair in _invented(2000) for text in pair])
    tokenizer.save_pretrained(folder)
    with (Path(folder) / "rows.jsonl").open("w") as file:
        for question, answer in pairs:
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps(messages) + "\n")


def given(shape: str, rows: list[Messages], folder: str) -> Work:
    """Fresh models and the tokenizer of a prepared folder, with these rows."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    student, teacher = models_of(shape, tokenizer)
    return Work(rows, SHAPES[shape].batch_size, SHAPES[shape].max_new_tokens, tokenizer, student, teacher, folder)


def models_of(shape: str, tokenizer: Any) -> tuple[Any, Any]:
    """Student and teacher with random weights, the same in every process."""
    if shape == "mini":
        settings = llama_settings("small"), llama_settings("large")
    else:
        settings = tuple(_llama(tokenizer, width) for width in (256, 384))
    made = []
    for seed, one in enumerate(settings):
        torch.manual_seed(seed)
        made.append(LlamaForCausalLM(LlamaConfig(**one)))
    return made[0], made[1]


def _llama(tokenizer: Any, width: int) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 8 * width // 3 // 8 * 8,
        "num_hidden_layers": 8,
        "num_attention_heads": width // 64,
        "num_key_value_heads": width // 64,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "initializer_range": 0.04,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _invented(count: int) -> list[tuple[str, str]]:
    """Questions and answers of invented words, Zipf-distributed, in lengths that vary as people's do."""
    draw = np.random.default_rng(0)
    syllables = [first + vowel for first in "bcdfghjklmnprstvwz" for vowel in "aeiou"]
    words = ["".join(draw.choice(syllables, draw.integers(1, 5))) for _ in range(12_000)]

    def text(mean: float) -> str:
        length = int(np.clip(draw.lognormal(np.log(mean), 0.6), 4, 120))
        return " ".join(words[rank] for rank in draw.zipf(1.3, length) % len(words))

    return [(text(40), text(80)) for _ in range(count)]


def _bpe(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 8,192 tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    marks = [AddedToken(mark, special=True, normalized=False) for mark in SPECIALS]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=8192, special_tokens=marks, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<|end|>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer
