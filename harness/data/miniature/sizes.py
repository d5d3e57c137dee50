"""Sizes of the mini models and the budgets their bases are pre-trained with.

`SIZES` holds the shapes as `LlamaConfig` keywords; the vocabulary comes from `tokenizer.py`. Both families have the
same shapes, lines and budgets. They were chosen by measurement on one CPU thread: a few milliseconds per row, skills
learned in about a minute. A wider or deeper mini costs time without a benefit: a teacher's quality depends on its
training rows.

    LlamaConfig(**llama_settings("small"))
"""

from dataclasses import dataclass
from typing import Any

from harness.config.checks import check_choice
from harness.data.miniature import VERSION
from harness.data.miniature.tokenizer import FAMILIES, vocabulary

SHARED: dict[str, Any] = {
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
    "initializer_range": 0.04,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "mlp_bias": False,
}

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 168,
        **SHARED,
    },
    "small": {
        "hidden_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 256,
        **SHARED,
    },
    "large": {
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 336,
        **SHARED,
    },
}
"""Shapes by name: 0.16, 0.36 and 0.8 million parameters, slightly fewer in `letters`; teachers are `large`."""


@dataclass(frozen=True)
class Pretraining:
    """How a base is pre-trained on `lines.py`: answer tokens only, AdamW, cosine."""

    lines: int
    """Distinct lines drawn."""
    steps: int
    """Optimizer steps."""
    batch_size: int
    """Lines per step."""
    learning_rate: float
    """Peak learning rate."""
    world_version: int = VERSION
    """`VERSION` of the miniature from which the lines are drawn."""


PRETRAINING = {
    "tiny": Pretraining(lines=40_000, steps=1000, batch_size=64, learning_rate=3e-3),
    "small": Pretraining(lines=40_000, steps=1000, batch_size=64, learning_rate=3e-3),
    "large": Pretraining(lines=40_000, steps=900, batch_size=64, learning_rate=2e-3),
}


def llama_settings(size: str, family: str = "words") -> dict[str, Any]:
    """All `LlamaConfig` keywords of one size, with vocabulary and special tokens of one family.

    Raises SettingsError for an unknown size.
    """
    check_choice("model.size", size, tuple(SIZES))
    # the tokenizer's order, so that the model's special ids are those of its text
    ids = {token: number for number, token in enumerate(vocabulary(family))}
    marks = FAMILIES[family].marks
    return {
        **SIZES[size],
        "vocab_size": len(ids),
        "pad_token_id": ids[marks.pad],
        "bos_token_id": ids[marks.bos],
        "eos_token_id": ids[marks.end],
    }
