"""Checks of models before the first step: files that are missing, tokenizers and layers that do not fit.

check_model(student)    # SettingsError, from files alone: neither torch nor transformers is imported
"""

import importlib.util
import json
import re
from pathlib import Path

from harness.config.checks import check_choice, refuse
from harness.config.model import Model, Teacher
from harness.models.files import HUB_ID, TEMPLATE_FILES, TOKENIZER_FILES, local_folder, weight_files


def check_model(model: Model) -> None:
    """Cheap preflight: SettingsError, in one sentence, for what would certainly fail at loading."""
    if model.kind == "mini":
        from harness.data.miniature.sizes import SIZES

        check_choice(f"{model.name}.size", model.size, tuple(SIZES))
        _check_layers(model, SIZES[model.size]["num_hidden_layers"])
    elif model.kind == "gguf":
        _check_gguf(model)
    elif model.kind == "hf" and (folder := local_folder(model.path)) is not None:
        _check_folder(model, folder)
    elif model.kind == "http":
        _check_served(model)
    elif model.kind == "hf" and not HUB_ID.fullmatch(model.path or ""):
        raise refuse(
            f"{model.name}.path",
            model.path,
            "no such folder, and a hub id has the form org/name",
            "give an existing folder or a hub id",
        )


def _check_gguf(model: Model) -> None:
    file = Path(model.path or "").expanduser()
    if not file.is_file():
        hint = "`make smollm2` fetches SmolLM2" if "smollm2" in model.name else "give a GGUF file"
        raise refuse(f"{model.name}.path", model.path, "no such file", hint)
    with open(file, "rb") as opened:
        if opened.read(4) != b"GGUF":
            raise refuse(f"{model.name}.path", model.path, "the file is no GGUF file")
    if importlib.util.find_spec("gguf") is None:
        raise refuse(
            f"{model.name}.kind",
            "gguf",
            "reading GGUF files needs the package gguf",
            "pip install 'harness[gguf]'",
        )


def _check_folder(model: Model, folder: Path) -> None:
    field, way_out = f"{model.name}.path", "fetch the model's folder again"
    if not (folder / "config.json").is_file():
        raise refuse(field, model.path, "the folder has no config.json", "give a Hugging Face model folder")
    try:
        config = json.loads((folder / "config.json").read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise refuse(field, model.path, f"its config.json is not JSON ({error})", way_out) from error
    _check_layers(model, config.get("num_hidden_layers"))
    if model.init != "random":
        for file in weight_files(folder, field, model.path):
            if not file.is_file():
                raise refuse(field, model.path, f"the weights {file.name} are missing", way_out)
            with open(file, "rb") as opened:
                if opened.read(8) == b"version ":
                    raise refuse(field, model.path, f"{file.name} is a Git LFS note", "git lfs pull")
    _check_tokenizer(model, folder, field, model.path)


def _check_served(model: Model) -> None:
    """Only a teacher is served, as it is; the server itself is asked when its base stage is made."""
    from harness.teachers.http_endpoint import BY_SLURM, base_url

    if not isinstance(model, Teacher):
        raise refuse(f"{model.name}.kind", "http", "a student is trained, so its weights must be here", "use kind=hf")
    if model.lessons or model.init != "pretrained":
        setting, value = ("lessons", len(model.lessons)) if model.lessons else ("init", model.init)
        raise refuse(f"{model.name}.{setting}", value, "a served teacher is used as it is", "leave it to its default")
    for field in ("path", "served_model", "tokenizer"):
        if not getattr(model, field):
            raise refuse(f"{model.name}.{field}", None, "kind=http needs it", "see conf/teacher/served.yaml")
    if model.path != BY_SLURM and not re.fullmatch(r"\$[A-Za-z_]\w*", model.path or ""):  # known where stages run
        base_url(model.path or "")
    folder = local_folder(model.tokenizer)
    field = f"{model.name}.tokenizer"
    if folder is None and not HUB_ID.fullmatch(model.tokenizer or ""):
        raise refuse(field, model.tokenizer, "no such folder, and a hub id has the form org/name")
    if folder is not None:
        _check_tokenizer(model, folder, field, model.tokenizer)


def _check_tokenizer(model: Model, folder: Path, field: str, path: str | None) -> None:
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise refuse(field, path, f"it has no {' or '.join(TOKENIZER_FILES)}", "fetch the model's folder again")
    if model.chat_template == "own" and not _has_template(folder):
        raise refuse(
            f"{model.name}.chat_template",
            "own",
            "the folder's tokenizer has no chat template",
            f"set {model.name}.chat_template=tulu",
        )


def _check_layers(model: Model, present: int | None) -> None:
    if model.init == "pruned" and model.layers and present and not 2 <= model.layers <= present:
        raise refuse(f"{model.name}.layers", model.layers, f"it keeps 2 to {present} layers")


def _has_template(folder: Path) -> bool:
    if any((folder / name).is_file() for name in TEMPLATE_FILES):
        return True
    config = folder / "tokenizer_config.json"
    return config.is_file() and bool(json.loads(config.read_text()).get("chat_template"))
