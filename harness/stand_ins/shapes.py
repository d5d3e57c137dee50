"""Stand-in models as a table: which tokenizer, template and shape stands for each model on the hub.

base        Llama's tokenizer with reserved tokens, no template, ends with `<|end_of_text|>`; small ones have tied heads
tulu        the same and one more token `<pad>`, embedding padded to a multiple of 8, the Tülu 3 template
instruct    Llama's tokenizer, a template of its own, an answer ends with `<|eot_id|>`
others      tokenizers of their own (other merges, other marks), with a template or without

    STAND_INS["meta-llama/Llama-3.2-1B"].family.marks
"""

from dataclasses import dataclass

from harness.data.chat import TULU_TEMPLATE

CONTEXT = 384
"""Positions of every stand-in: it bounds how long a random model generates."""
LLAMA_MARKS = (
    *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *(f"<|reserved_special_token_{number}|>" for number in range(3)),
)
CHATML_MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
HEADER_TEMPLATE = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] + '<|eot_id|>' }}"
    "{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
CHATML_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


@dataclass(frozen=True)
class Family:
    """A tokenizer and its template."""

    marks: tuple[str, ...]
    """Added tokens, as `special` ones."""
    end: str
    """The end-of-sequence token."""
    begin: str | None = None
    template: str | None = None
    added: tuple[str, ...] = ()
    """Tokens added after training, behind all others."""
    merges: int = 300
    """Merges of its byte-level BPE."""
    embedding_multiple: int = 1
    """The embedding has rows up to a multiple of this."""


LLAMA = Family(LLAMA_MARKS, "<|end_of_text|>", "<|begin_of_text|>", embedding_multiple=64)
TULU = Family(
    LLAMA_MARKS, "<|end_of_text|>", "<|begin_of_text|>", TULU_TEMPLATE, added=("<pad>",), embedding_multiple=8
)
INSTRUCT = Family(LLAMA_MARKS, "<|eot_id|>", "<|begin_of_text|>", HEADER_TEMPLATE, embedding_multiple=64)
QWEN = Family(CHATML_MARKS, "<|im_end|>", None, CHATML_TEMPLATE, merges=200, embedding_multiple=128)
QWEN_BASE = Family(CHATML_MARKS, "<|endoftext|>", None, CHATML_TEMPLATE, merges=200, embedding_multiple=128)
OLMO = Family(("<|endoftext|>", "<|padding|>"), "<|endoftext|>", merges=150)
SMOLLM = Family(CHATML_MARKS, "<|endoftext|>", "<|endoftext|>", merges=100, embedding_multiple=8)


@dataclass(frozen=True)
class StandIn:
    """A model of random weights: its tokenizer's family and its shape."""

    family: Family
    hidden: int
    layers: int
    tied: bool
    seed: int
    writes: bool = False
    """Whether it has learnt the form of the mixture's conversations, so that it can write synthetic prompts."""


STAND_INS = {
    "meta-llama/Llama-3.2-1B": StandIn(LLAMA, 32, 2, True, 1),
    "meta-llama/Llama-3.2-3B": StandIn(LLAMA, 32, 3, True, 2),
    "meta-llama/Llama-3.1-8B": StandIn(LLAMA, 48, 2, False, 3),
    "meta-llama/Llama-3.1-70B": StandIn(LLAMA, 64, 3, False, 4),
    "meta-llama/Llama-3.3-70B-Instruct": StandIn(INSTRUCT, 64, 3, False, 5, writes=True),
    "allenai/Llama-3.1-Tulu-3-8B-SFT": StandIn(TULU, 48, 2, False, 6),
    "allenai/Llama-3.1-Tulu-3-70B-SFT": StandIn(TULU, 64, 3, False, 7),
    "allenai/Llama-3.1-Tulu-3-70B": StandIn(TULU, 64, 3, False, 8),
    "Qwen/Qwen2.5-72B-Instruct": StandIn(QWEN, 64, 3, False, 9),
    "Qwen/Qwen2.5-1.5B": StandIn(QWEN_BASE, 32, 2, True, 10),
    "allenai/OLMo-2-0425-1B": StandIn(OLMO, 32, 2, False, 11),
    "HuggingFaceTB/SmolLM2-1.7B": StandIn(SMOLLM, 32, 2, True, 12),
}
"""By hub id, every model of `conf/student` and `conf/teacher` that is on the hub."""
