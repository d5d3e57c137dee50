"""New student: a small Llama with random weights, and a tokenizer trained on a corpus's training rows.

For questions about two tokenizers (`method=cross_kd`), where no published model of a few million parameters is at
hand. It takes the arguments of `harness.run`, so its tokenizer is trained on the training rows of a grid with the same
arguments, and on no held-out row; its context is the corpus's `max_length`.

    python -m harness.new_student models/bpe-llama experiments=cross_tokenizer corpus.path=path/to/rows.jsonl
    python -m harness.run student=hf student.path=models/bpe-llama ...
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.cell import Cell
from harness.config.checks import SettingsError, refuse
from harness.config.machine import Machine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, END = "<|pad|>", "<|end|>"
MARKS = ("<|system|>", "<|user|>", "<|assistant|>")
LEAST_VOCABULARY = 256 + len(MARKS) + 2  # every byte and every mark
CHAT_TEMPLATE = (
    "{%- for message in messages %}{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)
HEAD = 64  # width of an attention head


def main(arguments: Sequence[str] | None = None) -> int:
    """Make one student; returns the exit code, 2 where the settings are refused."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.new_student", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="the folder to write; it must not exist")
    settings = "settings as for harness.run; corpus, max_length and the number of held-out rows count"
    parser.add_argument("words", nargs="*", help=settings)
    size = "vocabulary size, counting role marks and the 256 bytes"
    parser.add_argument("--vocabulary", type=int, default=4096, help=size)
    parser.add_argument("--hidden", type=int, default=256, help=f"width, a multiple of {HEAD}")
    parser.add_argument("--layers", type=int, default=4, help="number of decoder layers, 1 or more")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights")
    given = parser.parse_intermixed_args(arguments)
    try:
        print(json.dumps(make_student(given)))
    except SettingsError as error:
        print(f"harness: {error}", file=sys.stderr)
        return 2
    return 0


def make_student(given: argparse.Namespace) -> dict[str, Any]:
    """Write the student's Hugging Face folder; returns its path and counts of rows, tokens and parameters.

    Raises SettingsError where the folder exists, or a size is not allowed.
    """
    from harness.plan.compose import compose

    if given.out.exists():
        raise refuse("out", str(given.out), "the folder exists already", "choose another folder, or remove it")
    if given.vocabulary < LEAST_VOCABULARY:
        need = f"it must be {LEAST_VOCABULARY} or more: every byte and every mark"
        raise refuse("--vocabulary", given.vocabulary, need)
    if given.hidden < HEAD or given.hidden % HEAD:
        raise refuse("--hidden", given.hidden, f"it must be a multiple of {HEAD}", "try --hidden 256")
    if given.layers < 1:
        raise refuse("--layers", given.layers, "it must be 1 or more")
    cell = compose(given.words).cells[0]
    with tempfile.TemporaryDirectory() as folder:
        rows = write_training_rows(cell, Path(folder))
        tokenizer = train_tokenizer(read_texts(Path(folder)), given.vocabulary, cell.corpus.max_length)
    parameters = write_student(given.out, tokenizer, given.hidden, given.layers, cell.corpus.max_length, given.seed)
    return {"out": str(given.out), "rows": rows, "vocabulary": len(tokenizer), "parameters": parameters}


def write_training_rows(cell: Cell, folder: Path) -> int:
    """Make the cell's `mixture` stage in `folder`, as its grid will; returns the number of training rows."""
    from harness.plan.data_stages import mixture_stage
    from harness.stages.mixture import make_mixture

    stage = mixture_stage(cell, cell.corpus)
    made = make_mixture({**stage.settings, "where": stage.where}, {}, folder, Machine())
    return int(made["counts"]["train_rows"])


def read_texts(folder: Path) -> Iterator[str]:
    """Every turn of the training rows of a mixture."""
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(folder / "train.parquet").iter_batches(columns=["messages"]):
        for messages in batch["messages"].to_pylist():
            yield from (turn["content"] for turn in messages)


def train_tokenizer(texts: Iterable[str], vocabulary: int, context: int) -> "PreTrainedTokenizerFast":
    """A byte-level BPE of at most `vocabulary` tokens (fewer where the texts give no more merges), with a template.

    Rendered: `<|user|>hi<|end|><|assistant|>yo<|end|>`. Numbers may be merged, unlike in many published tokenizers.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    marks = [PAD, END, *MARKS]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(mark, special=True, normalized=False) for mark in marks],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=context,
    )


def write_student(
    out: Path, tokenizer: "PreTrainedTokenizerFast", hidden: int, layers: int, context: int, seed: int
) -> int:
    """Write a Llama of random weights (tied embeddings, heads of 64) and its tokenizer; returns its parameters."""
    from transformers import LlamaConfig

    from harness.models.loading import count_parameters, random_model, save_model

    heads = hidden // HEAD
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=11 * hidden // 4,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = random_model(config, seed)
    save_model(model, tokenizer, out)
    return count_parameters(model)


if __name__ == "__main__":
    sys.exit(main())
