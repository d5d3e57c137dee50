"""Model files: what a model setting points to, checked and named without torch or transformers.

Planning needs two things of a model before it is ever loaded: an identity that no folder's name enters, and a
fingerprint of its tokenizer so that pairs can be refused. That its files are there is checked in
`execution/model_checks.py`; loading is `loading.py`; the stage that builds a model is `stages/base.py`.

    model_identity(student, world_seed=0)["files"]["model.safetensors"]  # a sha256
"""

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.config.checks import refuse
from harness.config.model import Model

POINTER = "model.json"  # in an artifact: {"path": folder or hub id, "revision": hub revision or null}
SERVER = "server.json"  # in an artifact: the model is behind a server; see `teachers.server_description`
WEIGHTS = (".safetensors", ".bin")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
_READ_SUFFIXES = (*WEIGHTS, ".json", ".jinja", ".model", ".txt")  # what loading may read
_NEVER_READ = ("generation_config.json", "trainer_state.json")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def model_identity(model: Model, world_seed: int) -> dict[str, Any]:
    """Everything that decides the start model's numbers, as plain JSON: files by sha256, never by folder.

    `world_seed` enters for minis only. A hub revision nobody has named is null, and stays so here.
    """
    identity: dict[str, Any] = {"kind": model.kind, "init": model.init}
    if model.init == "pruned":
        identity["layers"] = model.layers
    assert model.init_seed is not None or (model.kind != "mini" and model.init != "random"), "the cell sets it"
    if model.kind == "mini":
        from harness.data.miniature import VERSION
        from harness.data.miniature.sizes import PRETRAINING

        identity |= {"size": model.size, "init_seed": model.init_seed, "world_version": VERSION}
        if model.family != "words":  # named as it was when there was one family
            identity["family"] = model.family
        if model.init == "random":
            return identity
        return identity | {
            "world_seed": world_seed,
            "knows": model.knows,
            "pretraining": asdict(PRETRAINING[model.size]),
        }
    if model.init == "random":
        identity["init_seed"] = model.init_seed
    if model.kind == "none":
        return identity
    identity["chat_template"] = model.chat_template
    if model.kind == "http":
        return identity | _served_identity(model)
    folder = local_folder(model.path)
    if model.kind == "gguf":
        assert model.path is not None
        return identity | {"files": {"gguf": _file_sha256(Path(model.path).expanduser())}}
    if folder is not None:
        return identity | {"files": {file.name: _file_sha256(file) for file in _read_files(folder)}}
    return identity | {"path": model.path, "revision": model.revision}


def local_folder(path: str | None) -> Path | None:
    """The folder a path names, pointers followed; None when the path is a hub id."""
    if not path:
        return None
    folder = Path(path).expanduser()
    if folder.is_dir():
        target, _ = read_pointer(folder)
        return folder if target == str(folder) else local_folder(target)
    return None


def read_pointer(folder: Path) -> tuple[str, str | None]:
    """Where the weights of a model folder are: path (folder or hub id) and hub revision."""
    if not (folder / POINTER).is_file():
        return str(folder), None
    pointer = json.loads((folder / POINTER).read_text())
    return pointer["path"], pointer["revision"]


def parameters_of(model: Model | Mapping[str, Any]) -> int:
    """About how many parameters a model has, for estimates; exact for Llama-like configs, else a guess.

    A hub id says it in its name (`8B`, `135M`), a GGUF file by its size at about 6 bits a weight.
    """
    values: Mapping[str, Any] = model if isinstance(model, Mapping) else asdict(model)
    kind, path = values["kind"], values["path"]
    layers = values["layers"] if values["init"] == "pruned" else None
    if kind in ("none", "http"):
        return 0  # a server's FLOPs are spent elsewhere
    if kind == "mini":
        from harness.data.miniature.sizes import llama_settings

        return _parameters(llama_settings(values["size"], values.get("family", "words")), layers)
    if kind == "gguf":
        return round(Path(path).expanduser().stat().st_size * 8 / 6)
    if (folder := local_folder(path)) is not None:
        return _parameters(json.loads((folder / "config.json").read_text()), layers)
    named = re.search(r"(\d+(?:\.\d+)?)\s*([MB])(?![a-z])", path or "", re.IGNORECASE)
    return round(float(named[1]) * {"m": 1e6, "b": 1e9}[named[2].lower()]) if named else 10**9


def tokenizer_fingerprint(model: Model) -> str | None:
    """sha256 of what decides a model's token ids, or None where it is known only once loaded."""
    if model.kind == "mini":
        from harness.data.miniature.tokenizer import tokenizer_json

        return tokenizer_json_fingerprint(tokenizer_json(model.family))
    folder = local_folder(model.tokenizer if model.kind == "http" else model.path)
    return tokenizer_fingerprint_of_folder(folder) if folder is not None else None


def tokenizer_fingerprint_of_folder(path: Path) -> str | None:
    """The fingerprint of a folder's tokenizer.json; None when the folder has only other tokenizer files."""
    file = Path(path) / "tokenizer.json"
    if not file.is_file():
        return None
    return _fingerprint_of_file(str(file), file.stat().st_mtime_ns, file.stat().st_size)


def tokenizer_json_fingerprint(text: str) -> str:
    """sha256 over vocabulary, merges, normalisation, pre-tokenisation and added tokens.

    The text goes through the `tokenizers` library first, so that files which leave defaults out and
    files which spell them mean the same. Padding, truncation, decoding and what is put around a single
    text are left out: they do not touch the ids of rendered chats. So is whether an added token is
    called special.
    """
    from tokenizers import Tokenizer

    values = json.loads(Tokenizer.from_str(text).to_str())
    deciding = {name: values.get(name) for name in ("model", "normalizer", "pre_tokenizer")}
    deciding["added"] = sorted((token["id"], token["content"]) for token in values.get("added_tokens") or [])
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


@functools.lru_cache(maxsize=64)
def _fingerprint_of_file(path: str, mtime_ns: int, size: int) -> str:
    return tokenizer_json_fingerprint(Path(path).read_text(encoding="utf-8"))


def _served_identity(model: Model) -> dict[str, Any]:
    folder = local_folder(model.tokenizer)
    names = (*TOKENIZER_FILES, *_TOKENIZER_SETTINGS, *TEMPLATE_FILES)
    tokenizer: dict[str, Any] = {"path": model.tokenizer}
    if folder is not None:
        tokenizer = {name: _file_sha256(folder / name) for name in sorted(names) if (folder / name).is_file()}
    return {"served_model": model.served_model, "revision": model.revision, "tokenizer": tokenizer}


def weight_files(folder: Path, field: str, path: str | None) -> list[Path]:
    """Files the weights are in: the shards an index lists, else whatever single file there is."""
    for index in sorted(folder.glob("*.index.json")):
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    found = [file for file in sorted(folder.iterdir()) if file.suffix in WEIGHTS]
    if not found:
        raise refuse(field, path, "the folder has no weights (.safetensors or .bin)", "fetch it again")
    return found


def _read_files(folder: Path) -> list[Path]:
    return [
        file
        for file in sorted(folder.iterdir())
        if file.is_file() and file.suffix in _READ_SUFFIXES and file.name not in _NEVER_READ
    ]


def _file_sha256(file: Path) -> str:
    from harness.config.file_hash import file_sha256

    return file_sha256(file)


def _parameters(config: Mapping[str, Any], layers: int | None) -> int:
    """Parameters of a Llama-like decoder: attention with grouped heads, gated MLP, norms, embeddings."""
    width, vocabulary = config["hidden_size"], config["vocab_size"]
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or width // heads
    keys = (config.get("num_key_value_heads") or heads) * head
    layer = 2 * width * heads * head + 2 * width * keys + 3 * width * config["intermediate_size"] + 2 * width
    embeddings = vocabulary * width * (1 if config.get("tie_word_embeddings") else 2)
    return (layers or config["num_hidden_layers"]) * layer + width + embeddings
