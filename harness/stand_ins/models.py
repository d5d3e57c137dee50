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
SHORT = 160
"""Characters of the conversations that teach a model the form of turns."""
STEPS, ROWS_PER_STEP, IN_A_ROW, LEARNING_RATE = 90, 16, 4, 5e-3
Conversation = list[dict[str, str]]


def write_models(folder: Path, conversations: Sequence[Conversation]) -> None:
    """Write every stand-in's Hugging Face folder; tokenizers are trained on the conversations' texts."""
    texts = [turn["content"] for messages in conversations for turn in messages]
    tokenizers: dict[Family, Any] = {}
    for hub_id, stand_in in STAND_INS.items():
        if stand_in.family not in tokenizers:
            tokenizers[stand_in.family] = tokenizer_of(stand_in.family, texts)
        _write(folder / folder_of(hub_id), stand_in, tokenizers[stand_in.family], conversations)


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


def _write(
    folder: Path, stand_in: StandIn, tokenizer: "PreTrainedTokenizerFast", conversations: Sequence[Conversation]
) -> None:
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
    with torch.no_grad():  # padding is the mean of the other rows, as `resize_token_embeddings` makes it
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight[len(tokenizer) :] = layer.weight[: len(tokenizer)].mean(0)
    if stand_in.writes:
        _learn_form(model, tokenizer, conversations, stand_in.seed)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size=SHARD)
    tokenizer.save_pretrained(folder)


def _learn_form(
    model: Any, tokenizer: "PreTrainedTokenizerFast", conversations: Sequence[Conversation], seed: int
) -> None:
    """Train a few steps on all tokens of short conversations in a row, so that the model begins and ends turns.

    It is shown conversations as the synthesis of rows shows them: some of one kind, one after the other.
    """
    import torch

    short = [one for one in conversations if len(one) == 2 and sum(len(turn["content"]) for turn in one) < SHORT]
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    for _ in range(STEPS):
        starts = torch.randint(len(short) - IN_A_ROW, (ROWS_PER_STEP,), generator=generator).tolist()
        shown = [[turn for one in short[start : start + IN_A_ROW] for turn in one] for start in starts]
        texts = [tokenizer.apply_chat_template(one, tokenize=False) for one in shown]
        rows = [ids[:CONTEXT] for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])  # (B, T)
        lengths = torch.tensor([len(row) for row in rows])
        labels = ids.masked_fill(torch.arange(longest) >= lengths[:, None], -100)  # (B, T)
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
