"""Stand-in models: random Llamas in bf16 shards, with the tokenizers and templates of the table in `shapes.py`.

write_models(Path("models"), texts)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.stand_ins import folder_of
from harness.stand_ins.shapes import CONTEXT, STAND_INS, Family, StandIn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SHARD = "24KB"


def write_models(folder: Path, texts: Sequence[str]) -> None:
    """Write every stand-in's Hugging Face folder; tokenizers are trained on `texts`."""
    tokenizers: dict[Family, Any] = {}
    for hub_id, stand_in in STAND_INS.items():
        if stand_in.family not in tokenizers:
            tokenizers[stand_in.family] = tokenizer_of(stand_in.family, texts)
        _write(folder / folder_of(hub_id), stand_in, tokenizers[stand_in.family])


def tokenizer_of(family: Family, texts: Sequence[str]) -> "PreTrainedTokenizerFast":
    """A byte-level BPE trained on texts: the same for families of the same marks and merges, up to added tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + family.merges, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    # after the text's tokens, as in Llama 3: ids of text are below those of marks
    backend.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in family.marks])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=family.end, bos_token=family.begin)
    if family.added:
        tokenizer.add_special_tokens({"pad_token": family.added[0]})
    tokenizer.chat_template = family.template
    tokenizer.model_max_length = CONTEXT
    return tokenizer


def _write(folder: Path, stand_in: StandIn, tokenizer: "PreTrainedTokenizerFast") -> None:
    import torch
    from transformers import LlamaConfig

    from harness.models.loading import random_model

    multiple = stand_in.family.embedding_multiple
    config = LlamaConfig(
        vocab_size=-(-len(tokenizer) // multiple) * multiple,
        hidden_size=stand_in.hidden,
        intermediate_size=2 * stand_in.hidden,
        num_hidden_layers=stand_in.layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
        initializer_range=0.1,
        tie_word_embeddings=stand_in.tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model: Any = random_model(config, stand_in.seed)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size=SHARD)
    tokenizer.save_pretrained(folder)
