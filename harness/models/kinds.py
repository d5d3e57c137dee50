"""Kinds of model: each with the fields it has, its identity, its parameters and its tokenizer, from files alone.

A person types one flat schema for every kind (`config/model.py`); `model_of` makes the typed model that planning
and the checks before a run ask. Nothing here loads a model: neither torch nor transformers is imported.

    model_of(student).identity(world_seed=0)["files"]["model.safetensors"]    # a sha256
    model_of({"kind": "hf", "path": "org/Llama-3.1-8B"}).parameters()         # 8_000_000_000
"""

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

from harness.config.file_hash import file_sha256
from harness.config.model import Model
from harness.data.chat import TULU_TEMPLATE
from harness.data.chat_template import DEFAULT_DATE, prints_today, rejects_system, training_template
from harness.data.reasoning import MARKS
from harness.models.files import (
    end_marks_of_folder,
    local_folder,
    read_files,
    template_of_folder,
    tensor_shapes,
    token_count,
    tokenizer_files,
    tokenizer_fingerprint_of_folder,
    tokenizer_json_fingerprint,
    tokens_of_json,
    weight_files,
)
from harness.models.vocabulary import Vocabulary, vocabulary_of_folder, vocabulary_of_json


@dataclass(frozen=True)
class TypedModel(ABC):
    """What every kind of model can answer before it is loaded. Fields are explained in `config/model.py`."""

    kind: ClassVar[str]
    weights_here: ClassVar[bool] = True
    """Whether a stage can load the weights: to train them, to read whole distributions, to score or to measure."""

    @abstractmethod
    def identity(self, world_seed: int) -> dict[str, Any]:
        """Everything that decides the start model's numbers, as plain JSON: files by sha256, never by folder.

        `world_seed` enters for a pre-trained miniature only. A hub revision that is not named stays null.
        """

    @property
    def reasons(self) -> bool:
        """Whether its prompts may lead to reasoning before an answer, as far as files tell."""
        return False

    @abstractmethod
    def parameters(self) -> int:
        """About how many parameters it has, for estimates; exact for Llama-like configs, else a guess."""

    @property
    def tokenizer_folder(self) -> Path | None:
        """The folder here that has its tokenizer; None where the tokenizer is known only once it is loaded."""
        return None

    def tokenizer_fingerprint(self) -> str | None:
        """sha256 of what decides its token ids; None where that is known only once the tokenizer is loaded."""
        return None if self.tokenizer_folder is None else tokenizer_fingerprint_of_folder(self.tokenizer_folder)

    def vocabulary(self) -> Vocabulary | None:
        """What its token ids mean; None where that is known only once the tokenizer is loaded."""
        return None if self.tokenizer_folder is None else vocabulary_of_folder(self.tokenizer_folder)

    def tokens(self) -> int | None:
        """How many tokens its tokenizer has; None where that is known only once it is loaded."""
        return None if self.tokenizer_folder is None else token_count(self.tokenizer_folder)

    def template(self) -> str | None:
        """What decides how its chat template renders text; None where that is known only once it is loaded."""
        return None if self.tokenizer_folder is None else _template(self, self.tokenizer_folder)

    def rejects_system(self) -> bool:
        """Whether its chat template certainly refuses a system turn."""
        folder = self.tokenizer_folder
        text = None if folder is None else chosen_template(getattr(self, "chat_template", "own"), folder)
        return text is not None and rejects_system(text)


@dataclass(frozen=True)
class NoModel(TypedModel):
    """No model: the teacher of a cell without one."""

    kind = "none"
    weights_here = False

    def identity(self, world_seed: int) -> dict[str, Any]:
        return {"kind": self.kind, "init": "pretrained"}

    def parameters(self) -> int:
        return 0


@dataclass(frozen=True)
class _StartWeights(TypedModel):
    """The fields of a model whose weights are read, pruned or drawn afresh here."""

    init: str = "pretrained"
    layers: int | None = None
    init_seed: int | None = None

    def _start(self) -> dict[str, Any]:
        """How its first weights come about."""
        return {"kind": self.kind, "init": self.init} | ({"layers": self.layers} if self.init == "pruned" else {})

    @property
    def kept_layers(self) -> int | None:
        """Layers that pruning keeps; None where all stay."""
        return self.layers if self.init == "pruned" else None


@dataclass(frozen=True)
class MiniModel(_StartWeights):
    """A model of the miniature, built and pre-trained here."""

    kind = "mini"
    size: str = "small"
    family: str = "words"
    knows: str = "half"

    def identity(self, world_seed: int) -> dict[str, Any]:
        from harness.data.miniature import VERSION
        from harness.data.miniature.sizes import PRETRAINING

        assert self.init_seed is not None, "Cell.with_seeds fills it in"
        identity = self._start() | {"size": self.size, "init_seed": self.init_seed, "world_version": VERSION}
        if self.family != "words":  # the first family keeps the identity it had before there was a second
            identity["family"] = self.family
        if self.init == "random":
            return identity
        return identity | {
            "world_seed": world_seed,
            "knows": self.knows,
            "pretraining": asdict(PRETRAINING[self.size]),
        }

    def parameters(self) -> int:
        from harness.data.miniature.sizes import llama_settings

        found = decoder_parameters(llama_settings(self.size, self.family), self.kept_layers)
        assert found is not None, "the sizes of the miniature's models stand in one file"
        return found

    def tokenizer_fingerprint(self) -> str | None:
        from harness.data.miniature.tokenizer import tokenizer_json

        return tokenizer_json_fingerprint(tokenizer_json(self.family))

    def vocabulary(self) -> Vocabulary | None:
        from harness.data.miniature.tokenizer import tokenizer_json

        return vocabulary_of_json(tokenizer_json(self.family))

    def tokens(self) -> int | None:
        from harness.data.miniature.tokenizer import tokenizer_json

        return tokens_of_json(tokenizer_json(self.family))

    def template(self) -> str | None:
        return self.family


@dataclass(frozen=True)
class _WeightFiles(_StartWeights):
    """The fields of a model whose weights are in files: a folder, a hub repository or a GGUF file."""

    path: str = ""
    chat_template: str = "own"
    thinking: bool | None = None
    template_date: str | None = None

    def _start(self) -> dict[str, Any]:
        identity = super()._start()
        if self.init == "random":
            assert self.init_seed is not None, "Cell.with_seeds fills it in"
            identity["init_seed"] = self.init_seed
        return identity | template_identity(self, self.tokenizer_folder)

    @property
    def reasons(self) -> bool:
        """Whether the chat template has marks of reasoning; False where it is known only once it is loaded."""
        folder = self.tokenizer_folder
        template = None if folder is None else chosen_template(self.chat_template, folder)
        return template is not None and any(mark in template for mark in MARKS)


@dataclass(frozen=True)
class HubModel(_WeightFiles):
    """A Hugging Face model: a folder, or a hub id with a revision."""

    kind = "hf"
    revision: str | None = None

    def identity(self, world_seed: int) -> dict[str, Any]:
        folder = local_folder(self.path)
        if folder is None:
            return self._start() | {"path": self.path, "revision": self.revision}
        return self._start() | {"files": {file.name: file_sha256(file) for file in read_files(folder)}}

    @property
    def tokenizer_folder(self) -> Path | None:
        return local_folder(self.path)

    def parameters(self) -> int:
        """By the folder's config, else its weights; of a hub id by its published config where it is one of the
        presets', else by its name (`8B`, `135M`), or a billion."""
        if (folder := local_folder(self.path)) is not None:
            stated = decoder_parameters(json.loads((folder / "config.json").read_text()), self.kept_layers)
            if stated is not None:
                return stated
            return sum(map(math.prod, tensor_shapes(weight_files(folder, "path", self.path)).values())) or 10**9
        if self.path in PUBLISHED:
            published = decoder_parameters(PUBLISHED[self.path], self.kept_layers)
            assert published is not None, "its sizes stand in this file"
            return published
        named = re.search(r"(\d+(?:\.\d+)?)\s*([MB])(?![a-z])", self.path, re.IGNORECASE)
        return round(float(named[1]) * {"m": 1e6, "b": 1e9}[named[2].lower()]) if named else 10**9


@dataclass(frozen=True)
class GgufModel(_WeightFiles):
    """A GGUF file, converted here before it is used."""

    kind = "gguf"

    @property
    def file(self) -> Path:
        """The file itself."""
        return Path(self.path).expanduser()

    def identity(self, world_seed: int) -> dict[str, Any]:
        return self._start() | {"files": {"gguf": file_sha256(self.file)}}

    def parameters(self) -> int:
        """By the file's size, at about 6 bits a weight."""
        return round(self.file.stat().st_size * 8 / 6)


@dataclass(frozen=True)
class ServedModel(TypedModel):
    """A teacher served over HTTP, used as it is: it generates text and names top-k logits."""

    kind = "http"
    weights_here = False
    path: str | None = None
    served_model: str | None = None
    revision: str | None = None
    tokenizer: str | None = None
    chat_template: str = "own"
    thinking: bool | None = None
    template_date: str | None = None
    api_key_env: str | None = None
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 600.0

    @property
    def where(self) -> dict[str, Any]:
        """Where and how stages reach the server: `teacher_url` and `teacher_server`; no part of the identity."""
        return {"teacher_url": self.path, "teacher_server": self.access}

    @property
    def access(self) -> dict[str, Any]:
        """The name of the key's variable, and the time-outs, as `endpoint_at` takes them."""
        return {
            "api_key_env": self.api_key_env,
            "connect_timeout_s": self.connect_timeout_s,
            "timeout_s": self.read_timeout_s,
        }

    def identity(self, world_seed: int) -> dict[str, Any]:
        """Name, revision, template and tokenizer of what is served; never the server's address or key."""
        folder = local_folder(self.tokenizer)
        tokenizer: dict[str, Any] = {"path": self.tokenizer}
        if folder is not None:
            tokenizer = {file.name: file_sha256(file) for file in tokenizer_files(folder)}
        return {
            "kind": self.kind,
            "init": "pretrained",
            **template_identity(self, folder),
            "served_model": self.served_model,
            "revision": self.revision,
            "tokenizer": tokenizer,
        }

    def parameters(self) -> int:
        """0: the FLOPs of a server are not spent by this program."""
        return 0

    @property
    def tokenizer_folder(self) -> Path | None:
        return local_folder(self.tokenizer)


def template_identity(model: "_WeightFiles | ServedModel", folder: Path | None) -> dict[str, Any]:
    """What decides how a model's prompts are rendered, besides the files of its tokenizer in `folder`.

    A setting at its default stays out, except for a template here that would print today's date: the fixed date enters.
    """
    identity: dict[str, Any] = {"chat_template": model.chat_template}
    if model.chat_template == "trl":
        identity["trl"] = version("trl")
    if model.thinking is not None:
        identity["thinking"] = model.thinking
    template = None if folder is None else chosen_template(model.chat_template, folder)
    if model.template_date is not None:
        identity["template_date"] = model.template_date
    elif template is not None and prints_today(template):
        identity["template_date"] = DEFAULT_DATE
    return identity


def _template(model: Any, folder: Path) -> str | None:
    """What decides how a model's chat template renders text, as one string; None where it has no template."""
    text = chosen_template(model.chat_template, folder)
    settings = template_identity(model, folder)
    del settings["chat_template"]  # the text itself is compared
    return None if text is None else json.dumps([text, *end_marks_of_folder(folder), settings])


def chosen_template(chat_template: str, folder: Path) -> str | None:
    """The chat template that the setting `chat_template` gives a tokenizer in a folder; None where there is none."""
    own = template_of_folder(folder)
    match chat_template:
        case "tulu":
            return TULU_TEMPLATE
        case "trl":
            return None if own is None else training_template(own)
        case _:
            return own


KINDS: dict[str, type[TypedModel]] = {
    kind.kind: kind for kind in (NoModel, MiniModel, HubModel, GgufModel, ServedModel)
}
"""By the value of the setting `kind`."""


def model_of(settings: Model | Mapping[str, Any]) -> TypedModel:
    """The typed model of a person's settings, or of the same settings read back from a plan.

    Fields that the kind does not have are left out; fields that an older plan does not name have their defaults.
    """
    values = settings if isinstance(settings, Mapping) else vars(settings)
    kind = KINDS[values["kind"]]
    return kind(**{one.name: values[one.name] for one in fields(kind) if one.name in values})


def surely_alike(one: TypedModel, other: TypedModel) -> bool:
    """Whether files alone show that two models render every conversation as the same token ids.

    False where their renderings differ and where that is known only once the tokenizers are loaded.
    """
    where = [(model.kind, *(getattr(model, name, None) for name in RENDERING)) for model in (one, other)]
    if where[0] == where[1]:
        return True
    templates, vocabularies = (one.template(), other.template()), (one.vocabulary(), other.vocabulary())
    if None in templates or None in vocabularies or templates[0] != templates[1]:
        return False
    assert vocabularies[0] is not None and vocabularies[1] is not None
    return vocabularies[0].difference(vocabularies[1]) is None


def surely_equal(one: TypedModel, other: TypedModel) -> bool:
    """Whether files alone show that two models have one tokenizer, added tokens included, and render alike."""
    if not surely_alike(one, other):
        return False
    fingerprints = one.tokenizer_fingerprint(), other.tokenizer_fingerprint()
    # of one path they are equal, whether the files are here or not
    return fingerprints[0] == fingerprints[1]


RENDERING = ("family", "path", "revision", "tokenizer", "chat_template", "thinking", "template_date")
"""Fields that decide how a kind of model renders a conversation."""
SIZES = {
    "width": ("hidden_size", "n_embd", "d_model"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "num_heads"),
    "inner": ("intermediate_size", "n_inner", "ffn_dim"),
}
"""What configs call one size: Llama and most others first, then GPT-2, OPT and MPT."""


def sizes_of(config: Mapping[str, Any]) -> dict[str, int] | None:
    """Width, layers, heads and inner width of a decoder by its config, which may state them under `text_config`; None
    where one of them or the vocabulary is missing."""
    config = {**config, **(config.get("text_config") or {})}
    sizes = {size: next((int(config[name]) for name in names if config.get(name)), 0) for size, names in SIZES.items()}
    sizes["inner"] = sizes["inner"] or 4 * sizes["width"]  # GPT-2 writes null for it
    return sizes if all(sizes.values()) and "vocab_size" in config else None


def decoder_parameters(config: Mapping[str, Any], layers: int | None = None) -> int | None:
    """Parameters of a decoder by its config: attention with grouped heads, MLP, norms, embeddings.

    Exact for Llama-like decoders, whose MLP is gated; of others biases and learned positions are left out. Sizes may
    stand under `text_config`. None where the config does not state them.
    """
    sizes = sizes_of(config)
    if sizes is None:
        return None
    config = {**config, **(config.get("text_config") or {})}
    gated = config.get("intermediate_size") is not None
    width, heads = sizes["width"], sizes["heads"]
    head = config.get("head_dim") or width // heads
    keys = (config.get("num_key_value_heads") or heads) * head
    layer = 2 * width * heads * head + 2 * width * keys + (3 if gated else 2) * width * sizes["inner"] + 2 * width
    embeddings = config["vocab_size"] * width * (1 if config.get("tie_word_embeddings") else 2)
    return (layers or sizes["layers"]) * layer + width + embeddings


def _published(
    layers: int, width: int, heads: int, key_heads: int, inner: int, vocabulary: int, tied: bool
) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
    }


# Tülu 3 adds a padding token, and its embeddings are padded to a multiple of 8
_LLAMA_8B, _LLAMA_70B = (
    {name: _published(*body, vocabulary, False) for name, vocabulary in (("llama", 128_256), ("tulu", 128_264))}
    for body in ((32, 4096, 32, 8, 14_336), (80, 8192, 64, 8, 28_672))
)
PUBLISHED: dict[str, dict[str, Any]] = {
    "HuggingFaceTB/SmolLM2-135M": _published(30, 576, 9, 3, 1536, 49_152, True),
    "HuggingFaceTB/SmolLM2-1.7B": _published(24, 2048, 32, 32, 8192, 49_152, True),
    "meta-llama/Llama-3.2-1B": _published(16, 2048, 32, 8, 8192, 128_256, True) | {"head_dim": 64},
    "meta-llama/Llama-3.2-3B": _published(28, 3072, 24, 8, 8192, 128_256, True),
    "meta-llama/Llama-3.1-8B": _LLAMA_8B["llama"],
    "meta-llama/Llama-3.3-70B-Instruct": _LLAMA_70B["llama"],
    "allenai/Llama-3.1-Tulu-3-8B-SFT": _LLAMA_8B["tulu"],
    "allenai/Llama-3.1-Tulu-3-70B-SFT": _LLAMA_70B["tulu"],
    "allenai/Llama-3.1-Tulu-3-70B": _LLAMA_70B["tulu"],
    "allenai/OLMo-2-0425-1B": _published(16, 2048, 16, 16, 8192, 100_352, False),
    "Qwen/Qwen2.5-1.5B": _published(28, 1536, 12, 2, 8960, 151_936, True),
    "Qwen/Qwen2.5-72B-Instruct": _published(80, 8192, 64, 8, 29_568, 152_064, False),
}
"""Sizes of the presets' models as their configs on the hub state them, for estimates where no file is at hand."""
