"""LoRA: a student trained through low-rank updates beside frozen weights (Hu et al. 2021, arXiv 2106.09685).

Every linear layer but the output layer computes W x + (alpha / rank) B A x; A (rank x in) starts random, B
(out x rank) at zero, so the student starts as it was, and only A and B are trained. What a stage exports has
them added into W: a plain model that any program loads, and that a recipe's next stage starts from.

    model = with_adapters(model, {"rank": 8, "alpha": 16.0, "dropout": 0.0}, seed=0)
    ...                                    # train it
    save_model(merged(model), tokenizer, folder)
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def with_adapters(model: "PreTrainedModel", lora: Mapping[str, float], seed: int) -> "PreTrainedModel":
    """The model, changed in place, with `rank`, `alpha` and `dropout` of fresh adapters; the rest is frozen.

    The same seed draws the same adapters, and the caller's random state is left alone.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=int(lora["rank"]),
        lora_alpha=lora["alpha"],  # type: ignore[arg-type]  # a number is all it is used as
        lora_dropout=lora["dropout"],
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    # peft draws A from torch's global generator
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        adapted: Any = get_peft_model(model, config)
    return adapted.eval()


def merged(model: "PreTrainedModel") -> "PreTrainedModel":
    """The plain model that `with_adapters` was given, with the adapters added into its weights."""
    plain: Any = model
    plain = plain.merge_and_unload()
    return plain.requires_grad_(True).eval()
