"""Checks of models before the first step: files that are missing, tokenizers and layers that do not fit.

check_model(student)    # SettingsError, from files alone: neither torch nor transformers is imported
"""

import importlib.util
import re

from harness.config.checks import check_choice, refuse
from harness.config.hub import check_cached
from harness.config.model import Model, Teacher
from harness.models.files import (
    HUB_FILES,
    HUB_ID,
    HUB_TOKENIZER_FILES,
    check_downloaded,
    hub_model,
    local_folder,
)
from harness.models.folder_checks import check_folder, check_layers, check_tokenizer
from harness.models.kinds import GgufModel, HubModel, MiniModel, ServedModel, model_of


def check_model(settings: Model) -> None:
    """Raise SettingsError, in one sentence, for what would certainly fail when the model is loaded."""
    match model_of(settings):
        case MiniModel() as model:
            _check_mini(settings.setting, model)
        case HubModel() as model:
            _check_hub(settings.setting, model)
        case GgufModel() as model:
            _check_gguf(settings, model)
        case ServedModel() as model:
            _check_served(settings, model)


def _check_mini(name: str, model: MiniModel) -> None:
    from harness.data.miniature.sizes import SIZES

    check_choice(f"{name}.size", model.size, tuple(SIZES))
    check_layers(name, model.kept_layers, SIZES[model.size]["num_hidden_layers"])


def _check_hub(name: str, model: HubModel) -> None:
    folder = local_folder(model.path)
    if folder is not None:
        check_folder(name, model, folder)
        return
    if not HUB_ID.fullmatch(model.path):
        raise refuse(
            f"{name}.path",
            model.path,
            "no such folder, and a hub id has the form org/name",
            "give an existing folder or a hub id",
        )
    # nothing is downloaded here; where nothing will be, what is missing is refused at once
    repository = hub_model(name, model.path, model.revision)
    if (cached := check_cached(repository, HUB_FILES)) is not None:
        check_downloaded(repository, cached)


def _check_gguf(settings: Model, model: GgufModel) -> None:
    name = settings.setting
    if model.file.is_dir():
        raise refuse(
            f"{name}.path", model.path, "it is a folder and no GGUF file", f"set {name}.kind=hf, or give a file"
        )
    if not model.file.is_file():
        hint = "`make smollm2` fetches SmolLM2" if "smollm2" in settings.name else "give a GGUF file"
        raise refuse(f"{name}.path", model.path, "no such file", hint)
    with open(model.file, "rb") as opened:
        # by its first bytes: the suffix of a name says nothing about the content
        if opened.read(4) != b"GGUF":
            raise refuse(f"{name}.path", model.path, "the file is no GGUF file")
    # found and not imported, as for every package that is checked here
    if importlib.util.find_spec("gguf") is None:
        raise refuse(
            f"{name}.kind",
            "gguf",
            "reading GGUF files needs the package gguf",
            "pip install 'harness[gguf]'",
        )


def _check_served(settings: Model, model: ServedModel) -> None:
    """Only a teacher is served, as it is; the server itself is probed when its base stage is made."""
    from harness.teachers.http_endpoint import BY_SLURM, base_url

    name = settings.setting
    # the kind first: the checks below read settings that only a teacher has
    if not isinstance(settings, Teacher):
        raise refuse(f"{name}.kind", "http", "a student is trained, so its weights must be here", "use kind=hf")
    if settings.lessons or settings.init != "pretrained":
        changed, value = ("lessons", len(settings.lessons)) if settings.lessons else ("init", settings.init)
        raise refuse(f"{name}.{changed}", value, "a served teacher is used as it is", "leave it to its default")
    for field in ("path", "served_model", "tokenizer"):
        if not getattr(model, field):
            raise refuse(f"{name}.{field}", None, "kind=http needs it", "see conf/teacher/served.yaml")
    if model.path != BY_SLURM and not re.fullmatch(r"\$[A-Za-z_]\w*", model.path or ""):  # known where stages run
        base_url(model.path or "")
    folder = local_folder(model.tokenizer)
    field = f"{name}.tokenizer"
    if folder is None and not HUB_ID.fullmatch(model.tokenizer or ""):
        raise refuse(field, model.tokenizer, "no such folder, and a hub id has the form org/name")
    if folder is None:
        check_cached(hub_model(name, str(model.tokenizer), model.revision, "tokenizer"), HUB_TOKENIZER_FILES)
    else:
        check_tokenizer(name, model, folder, field, model.tokenizer)
