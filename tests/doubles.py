"""Small doubles that tests share: a byte tokenizer and two small BPEs with a chat template, a two-layer random Llama.

All are built in milliseconds, need no network, and behave like real ones: the tokenizer is a
`PreTrainedTokenizerFast` whose ids are bytes, so expected ids can be written down by hand.

    tokenizer = byte_tokenizer(); model = tiny_llama(len(tokenizer))
"""

from pathlib import Path

SPECIALS = ("<pad>", "<bos>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
FIRST_BYTE = len(SPECIALS)  # byte b has the id FIRST_BYTE + b

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

CORPUS = [
    "the answer is 42, the other answers are 1234567",
    "naïve café 日本語のテキスト 🙂🙂",
    "  spaces\n\nlines\tthe end",
]


def byte_ids(text: str) -> list[int]:
    """Ids of plain text (no special tokens) under `byte_tokenizer`."""
    return [FIRST_BYTE + byte for byte in text.encode()]


def special_id(token: str) -> int:
    """Id of one of `SPECIALS`."""
    return SPECIALS.index(token)


def byte_tokenizer(chat_template: str | None = CHAT_TEMPLATE, pad_is_end: bool = False):
    """A fast tokenizer of 262 tokens: six specials, then one token per byte.

    Rendered: `<|user|>hi<|assistant|>yo<|end|>`, nothing between turns. With `pad_is_end` the padding
    token is `<|end|>`, as in many published chat models.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate(SPECIALS)}
    vocabulary |= {character: FIRST_BYTE + byte for byte, character in enumerate(_byte_characters())}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|end|>" if pad_is_end else "<pad>",
        bos_token="<bos>",
        eos_token="<|end|>",
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def bpe_tokenizer(kind):
    """Byte-level BPE (as GPT-2's) or SentencePiece's BPE with byte fallback (as Llama 2's), trained on `CORPUS`.

    `kind` is `byte-level` or `metaspace`; rendered as `byte_tokenizer` does, with `</s>` for `<|end|>`.
    """
    import json

    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    end = "</s>"
    marks = ["<|user|>", "<|assistant|>", end]
    if kind == "byte-level":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        initial = pre_tokenizers.ByteLevel.alphabet()
    else:
        backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        initial = []
    specials = ["<unk>", *marks, *(f"<0x{byte:02X}>" for byte in range(256))] if kind == "metaspace" else marks
    trainer = trainers.BpeTrainer(
        vocab_size=480 if kind == "metaspace" else 330, special_tokens=specials, initial_alphabet=initial
    )
    backend.train_from_iterator(CORPUS, trainer)
    if kind == "metaspace":  # the fallback's bytes are ordinary tokens: text that spells one stays text
        state = json.loads(backend.to_str())
        state["added_tokens"] = []
        backend = Tokenizer.from_str(json.dumps(state))
    backend.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=end, pad_token=end, unk_token="<unk>" if kind == "metaspace" else None
    )
    tokenizer.chat_template = CHAT_TEMPLATE.replace("<|end|>", end)
    return tokenizer


def tiny_llama(
    vocab_size: int = FIRST_BYTE + 256,
    seed: int = 0,
    hidden_size: int = 32,
    layers: int = 2,
    dropout: float = 0.0,
):
    """A random Llama (32 wide, 2 layers, 2 heads, tied embeddings), in eval mode, the same for one seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rope_theta=1000.0,
        initializer_range=0.2,
        tie_word_embeddings=True,
        attention_dropout=dropout,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=5,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def save_tiny(folder: Path, seed: int = 0, layers: int = 2) -> Path:
    """Write the byte tokenizer and a tiny Llama as a Hugging Face folder; returns the folder."""
    tiny_llama(seed=seed, layers=layers).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def _byte_characters() -> list[str]:
    """The printable character that byte-level BPE uses for each byte (GPT-2's table), in byte order."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters = {byte: chr(byte) for byte in visible}
    for byte in range(256):
        if byte not in characters:
            characters[byte] = chr(256 + len(characters) - len(visible))
    return [characters[byte] for byte in range(256)]
