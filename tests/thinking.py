"""Chat templates of thinking models and of models that print a date, on the byte tokenizer, for tests.

family_tokenizer("qwen3")    # the template of the family as the installed TRL has it
"""

from pathlib import Path

import trl

from tests.doubles import byte_tokenizer

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
MARKS = (
    "<|im_start|>",
    "<|im_end|>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<｜end▁of▁sentence｜>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|start|>",
    "<|channel|>",
    "<|message|>",
    "<|return|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "[THINK]",
    "[/THINK]",
)
SMOLLM3 = (  # as SmolLM3's: a switch with a default of its own, a date, no reasoning is taken out of earlier turns
    "{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}"
    "{{ '<|im_start|>system\n' }}Today Date: {{ strftime_now('%d %B %Y') }}{{ '<|im_end|>\n' }}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
DEEPSEEK_V31 = (  # as DeepSeek V3.1's: an answer follows a closing mark alone; the switch is called `thinking`
    "{% if not thinking is defined %}{% set thinking = false %}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}{% else %}"
    "{{ '<｜Assistant｜></think>' + m['content'].split('</think>')[-1].strip() + '<｜end▁of▁sentence｜>' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}"
    "{{ '<think>' if thinking else '</think>' }}{% endif %}"
)
OWN = {"smollm3": SMOLLM3, "deepseek_v31": DEEPSEEK_V31}


def template_of(family: str) -> str:
    """The chat template of a family, by the name of its file in TRL or in `OWN`."""
    return OWN.get(family) or (TEMPLATES / f"{family}.jinja").read_text(encoding="utf-8")


def family_tokenizer(family: str):
    """The byte tokenizer with a family's chat template and marks; `<think>` and its end are tokens, but not special."""
    tokenizer = byte_tokenizer(template_of(family))
    tokenizer.add_special_tokens({"additional_special_tokens": list(MARKS)})
    tokenizer.add_tokens(["<think>", "</think>"])
    return tokenizer


def chat(*texts: str) -> list[dict[str, str]]:
    """A conversation of these turns, the user first."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
