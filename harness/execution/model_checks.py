"""Checks of models before the first step: files that are missing, tokenizers and layers that do not fit.

check_model(student)    # SettingsError, from files alone: neither torch nor transformers is imported
"""

import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.config.checks import check_choice, refuse
from harness.config.file_hash import content_sha256
from harness.config.hub import check_cached
from harness.config.model import Model, Teacher
from harness.data.chat import no_date, no_switch
from harness.data.chat_template import reads_date, thinking_switch
from harness.models.files import (
    HUB_FILES,
    HUB_ID,
    HUB_TOKENIZER_FILES,
    TOKENIZER_FILES,
    check_downloaded,
    hub_model,
    local_folder,
    read_pointer,
    template_of_folder,
    tensor_shapes,
    weight_files,
)
from harness.models.kinds import GgufModel, HubModel, MiniModel, ServedModel, chosen_template, model_of
from harness.store.store import Store

WRAPPERS = {"_orig_mod.": "torch.compile", "module.": "DistributedDataParallel"}
"""What stands before every weight's name where a wrapped model was saved, and what wrapped it."""
CAUSAL = ("ForCausalLM", "ForConditionalGeneration")
"""How architectures end that can be causal language models; some multimodal ones generate text under the second."""
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
"""How the names of token embeddings end: Llama and most others, GPT-2, GPT-NeoX, Bloom."""


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
    _check_layers(name, model.kept_layers, SIZES[model.size]["num_hidden_layers"])


def _check_hub(name: str, model: HubModel) -> None:
    folder = local_folder(model.path)
    if folder is not None:
        _check_folder(name, model, folder)
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


def _check_folder(name: str, model: HubModel, folder: Path) -> None:
    field, way_out = f"{name}.path", "fetch the model's folder again"
    if not (folder / "config.json").is_file():
        raise refuse(field, model.path, "the folder has no config.json", "give a Hugging Face model folder")
    try:
        config = json.loads((folder / "config.json").read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise refuse(field, model.path, f"its config.json is not JSON ({error})", way_out) from error
    if not isinstance(config, dict) or not config:
        raise refuse(field, model.path, "its config.json holds no settings of a model", way_out)
    _check_architecture(config, field, model.path)
    sizes = config | (config.get("text_config") or {})
    _check_layers(name, model.kept_layers, sizes.get("num_hidden_layers"))
    if model.init != "random":
        files = weight_files(folder, field, model.path)
        for file in files:
            if not file.is_file():
                raise refuse(field, model.path, f"the weights {file.name} are missing", way_out)
            with open(file, "rb") as opened:
                # such a pointer is a short text file in the place of the weights: the file exists, and holds no model
                if opened.read(8) == b"version ":
                    raise refuse(field, model.path, f"{file.name} is a Git LFS pointer", "git lfs pull")
        _check_tensors(folder, files, field, model.path)
    _check_tokenizer(name, model, folder, field, model.path)


def _check_architecture(config: dict[str, Any], field: str, path: str | None) -> None:
    """Refuse what is certainly no causal language model; the base stage knows every architecture and refuses the rest.

    `AutoModelForCausalLM` would load the decoder of some of these alone and leave its head at random values.
    """
    named = [str(name) for name in config.get("architectures") or []]
    other_task = [name for name in named if "For" in name and not name.endswith(CAUSAL)]
    if config.get("is_encoder_decoder") or (named and len(other_task) == len(named)):
        what = ", ".join(named) or str(config.get("model_type"))
        why = "an encoder-decoder" if config.get("is_encoder_decoder") else "not a causal language model"
        way_out = "choose a decoder whose architecture ends in ForCausalLM"
        raise refuse(field, path, f"its architecture {what} is {why}", way_out)


def _check_tensors(folder: Path, files: list[Path], field: str, path: str | None) -> None:
    """Refuse, from the headers of the files alone, weights that would not be loaded, and ids without an embedding."""
    try:
        shapes = tensor_shapes(files)
    except (ValueError, KeyError, TypeError) as error:
        raise refuse(
            field, path, f"a .safetensors file is damaged ({error})", "fetch the model's folder again"
        ) from error
    for prefix, wrapper in WRAPPERS.items():
        wrapped = sorted(name for name in shapes if name.startswith(prefix))
        if wrapped:
            reason = f"its weights were saved inside {wrapper} ({wrapped[0]}), so none would be loaded"
            raise refuse(field, path, reason, "save the unwrapped model again with model.save_pretrained")
    rows = [shape[0] for name, shape in shapes.items() if name.endswith(EMBEDDINGS)]
    tokens = _tokens(folder)
    if rows and tokens > rows[0]:
        reason = f"its tokenizer has {tokens} tokens and its embedding {rows[0]} rows"
        way_out = "resize the embedding (model.resize_token_embeddings), or use the tokenizer it was trained with"
        raise refuse(field, path, reason, way_out)


def _tokens(folder: Path) -> int:
    """One more than the largest token id of a folder's `tokenizer.json`; 0 where it has none."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return 0
    from tokenizers import Tokenizer

    return 1 + max(Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True).values(), default=-1)


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
        _check_tokenizer(name, model, folder, field, model.tokenizer)


def _check_tokenizer(name: str, model: HubModel | ServedModel, folder: Path, field: str, path: str | None) -> None:
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise refuse(field, path, f"it has no {' or '.join(TOKENIZER_FILES)}", "fetch the model's folder again")
    try:
        own, template = template_of_folder(folder), chosen_template(model.chat_template, folder)
    except (ValueError, KeyError, TypeError) as error:
        reason = f"the file with its chat template cannot be read ({error})"
        raise refuse(field, path, reason, "fetch the model's folder again") from error
    chosen = model.chat_template
    if chosen != "tulu" and own is None:
        reason, way_out = "the folder's tokenizer has no chat template", f"set {name}.chat_template=tulu"
        raise refuse(f"{name}.chat_template", chosen, reason, way_out)
    if template is None:
        reason, way_out = "TRL has no training template for this model's own", f"set {name}.chat_template=own"
        raise refuse(f"{name}.chat_template", chosen, reason, way_out)
    if model.thinking is not None and thinking_switch(template) is None:
        raise no_switch(f"{name}.thinking", model.thinking)
    if model.template_date is not None and not reads_date(template):
        raise no_date(f"{name}.template_date", model.template_date)


def _check_layers(name: str, kept: int | None, present: int | None) -> None:
    if kept and present and not 2 <= kept <= present:
        raise refuse(f"{name}.layers", kept, f"it must be 2 to {present} with init=pruned")


def check_references(store: Store, spec: Mapping[str, Any]) -> None:
    """Verify the files of base models that a stage uses where they lie: the store has a reference to their folder.

    Raises SettingsError where one has another content than when it was planned; OSError where one cannot be read.
    """
    for key in dict.fromkeys(spec["inputs"].values()):
        if not key.startswith("base-"):
            continue
        planned = store.manifest(key)["settings"].get("files") or {}
        folder = Path(read_pointer(store.folder(key))[0])
        if folder == store.folder(key) or not folder.is_dir():
            continue
        for name, sha256 in planned.items():
            file = folder / name
            if not file.is_file() or content_sha256(file) != sha256:
                found = "it has another content than when it was planned" if file.is_file() else "it is gone"
                way_out = "restore the file; to use it as it is, touch it and start the run again"
                raise refuse("path", str(file), f"{found}, though {key} was made from it", way_out)
