"""Model files: the folders and files a model setting points to, read without torch or transformers.

Pointers from artifacts to folders and hub ids, the files that loading reads, and the fingerprint of a tokenizer, so
that pairs can be refused. What a model is by these files is `kinds.py`; that the files are there is checked in
`execution/model_checks.py`; loading is `loading.py`; the stage that builds a model is `stages/base.py`.

    tokenizer_fingerprint_of_folder(local_folder("models/smollm2"))    # a sha256
"""

import functools
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness.config.checks import refuse
from harness.config.hub import HubRepository

POINTER = "model.json"  # in an artifact: {"path": folder or hub id, "revision": hub revision or null}
SERVER = "server.json"  # in an artifact: the model is served over HTTP; see `teachers.server_description`
WEIGHTS = (".safetensors", ".bin")
SINGLE = "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".bin.index.json")
"""How the names of pickled weights end."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
_READ_SUFFIXES = (*WEIGHTS, ".json", ".jinja", ".model", ".txt")  # what loading may read
_NEVER_READ = ("generation_config.json", "trainer_state.json")
HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
"""What is fetched of a model on the hub: no pickled weights, no code."""
HUB_TOKENIZER_FILES = ("*.json", "*.jinja", "*.model", "merges.txt")
"""What is fetched of a served model's tokenizer."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


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
    try:
        pointer = json.loads((folder / POINTER).read_text())
        target, revision = pointer["path"], pointer["revision"]
    except (ValueError, KeyError, TypeError):
        why = f"its {POINTER} is no reference to a model"
        raise refuse("path", str(folder), why, f"remove {POINTER}, or fetch the model's folder again") from None
    return target, revision


def template_of_folder(folder: Path) -> str | None:
    """The chat template of a folder's tokenizer, as loading finds it; None where it has none.

    Raises ValueError where a file that states it is not JSON.
    """
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            values = json.loads((folder / name).read_text(encoding="utf-8"))
            found = values.get("chat_template") if isinstance(values, dict) else None
            # older files list several templates, of which conversations are rendered by this one
            if isinstance(found, list):
                found = {one["name"]: one["template"] for one in found}.get("default")
            if found:
                if not isinstance(found, str):
                    raise ValueError(f"chat_template in {name} is {found!r} and not a text")
                return found
    return None


def hub_model(setting: str, path: str, revision: str | None, field: str = "path") -> HubRepository:
    """A model on the hub, or with `field="tokenizer"` its tokenizer, as set by `setting`: `student` or `teacher`."""
    names = (f"{setting}.{field}", f"{setting}.revision")
    return HubRepository(path, *names, revision, instead=f"give a local folder by {names[0]}")


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


def tokens_of_json(text: str) -> int:
    """How many ids a `tokenizer.json` has, gaps counted: one more than the largest."""
    from tokenizers import Tokenizer

    return 1 + max(Tokenizer.from_str(text).get_vocab(with_added_tokens=True).values(), default=-1)


def token_count(folder: Path) -> int | None:
    """The same of a folder's tokenizer.json; None where the folder has only other tokenizer files."""
    file = Path(folder) / "tokenizer.json"
    return tokens_of_json(file.read_text(encoding="utf-8")) if file.is_file() else None


def end_marks_of_folder(folder: Path) -> list[str | None]:
    """Texts of the special tokens that a chat template may write: begin and end of a sequence."""
    settings = _json_of(folder / "tokenizer_config.json") | _json_of(folder / "special_tokens_map.json")
    tokens = [settings.get(name) for name in ("bos_token", "eos_token")]
    return [token.get("content") if isinstance(token, dict) else token for token in tokens]


def _json_of(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


@functools.lru_cache(maxsize=64)
def _fingerprint_of_file(path: str, mtime_ns: int, size: int) -> str:
    return tokenizer_json_fingerprint(Path(path).read_text(encoding="utf-8"))


def weight_files(folder: Path, field: str, path: str | None) -> list[Path]:
    """The .safetensors files that loading reads: the single one, else the shards that an index lists.

    Raises SettingsError, about the setting `field`, where there are none, or none but pickles, which are not read.
    """
    single = folder / SINGLE
    if single.is_file() or single.is_symlink():
        return [single]
    if listed := listed_weights(folder, field, path):
        return [folder / name for name in sorted(set(listed.values()))]
    pickles = [file.name for file in sorted(folder.iterdir()) if file.name.endswith(PICKLES)]
    if pickles:
        why = f"its weights are pickled ({pickles[0]}), which can run code when they are read, so they are not"
        way_out = "convert the folder to safetensors (model.save_pretrained) where you trust it"
        raise refuse(field, path, why, way_out)
    raise refuse(field, path, "the folder has no weights (model.safetensors)", "fetch it again")


def listed_weights(folder: Path, field: str, path: str | None) -> dict[str, str]:
    """The file of each weight, by the folder's index of shards; empty where its weights are in one file.

    Raises SettingsError, about the setting `field`, for an index that does not list files of the folder.
    """
    index = folder / f"{SINGLE}.index.json"
    if (folder / SINGLE).is_file() or not index.is_file():
        return {}
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = set(found.values())
    except (ValueError, KeyError, TypeError, AttributeError):
        names = set()
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        why = f"its {index.name} does not list the folder's files of weights"
        raise refuse(field, path, why, "fetch the model's folder again")
    return found


def check_downloaded(repository: HubRepository, folder: Path) -> None:
    """Raise SettingsError unless a hub model's files in the cache are whole: its config, and all of its weights."""
    if not (folder / "config.json").is_file():
        way_out = f"choose a model in the format of transformers, or {repository.instead}"
        raise refuse(repository.setting, repository.id, "the cache has no config.json of it", way_out)
    if not any(file.suffix in WEIGHTS or file.name.endswith(".index.json") for file in folder.iterdir()):
        way_out = f"choose a revision that has them (`hf download {repository.id}`), or {repository.instead}"
        raise refuse(repository.setting, repository.id, "the cache has no .safetensors weights of it", way_out)
    absent = [file.name for file in weight_files(folder, repository.setting, repository.id) if not file.is_file()]
    if absent:
        why = f"its download in the cache is incomplete: {absent[0]} is missing"
        way_out = f"`hf download {repository.id}` without HF_HUB_OFFLINE finishes it, or {repository.instead}"
        raise refuse(repository.setting, repository.id, why, way_out)


def tensor_shapes(files: Iterable[Path]) -> dict[str, list[int]]:
    """Shapes by tensor name, from the headers of those of the `weight_files` that are .safetensors.

    Raises OSError where a file cannot be read, and ValueError where its header is not one of safetensors.
    """
    found: dict[str, list[int]] = {}
    for file in (one for one in files if one.suffix == ".safetensors"):
        with open(file, "rb") as opened:
            # the format begins with the header's length (8 bytes, little-endian), then JSON: name -> {shape, ...}
            length = int.from_bytes(opened.read(8), "little")
            if length > file.stat().st_size:
                raise ValueError(f"the header of {file.name} is longer than the file")
            header = json.loads(opened.read(length))
        found |= {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
    return found


def read_files(folder: Path) -> list[Path]:
    """Files of a model folder that loading may read, in order of their names."""
    return [
        file
        for file in sorted(folder.iterdir())
        if file.is_file() and file.suffix in _READ_SUFFIXES and file.name not in _NEVER_READ
    ]


def tokenizer_files(folder: Path) -> list[Path]:
    """Files of a folder that decide token ids and chat template, in order of their names."""
    names = (*TOKENIZER_FILES, *_TOKENIZER_SETTINGS, *TEMPLATE_FILES)
    return [folder / name for name in sorted(names) if (folder / name).is_file()]
