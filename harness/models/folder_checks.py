"""Model folders: what would certainly fail when a model is loaded, found in its files before anything is computed.

Config, headers of the weights, tokenizer and chat template are read; the weights themselves are not, and neither torch
nor transformers is imported. What only the model's own code can tell (an architecture whose weights have other names)
is found by `stages/base.py`, before the first step.

    check_folder("student", HubModel(path="models/llama"), Path("models/llama"))    # SettingsError: one sentence
"""

import functools
import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from harness.config.checks import refuse
from harness.data.chat import no_date, no_switch
from harness.data.chat_template import reads_date, rendering_problem, thinking_switch
from harness.models.files import (
    TOKENIZER_FILES,
    listed_weights,
    template_of_folder,
    tensor_shapes,
    tokens_of_json,
    weight_files,
)
from harness.models.kinds import HubModel, ServedModel, chosen_template

WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "module.": "DistributedDataParallel",
    "base_model.model.": "an adapter model of peft",
}
"""What stands before every weight's name where a wrapped model was saved, and what wrapped it."""
CAUSAL = ("ForCausalLM", "ForConditionalGeneration")
"""How architectures end that can be causal language models; some multimodal ones generate text under the second."""
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
"""How the names of token embeddings end: Llama and most others, GPT-2, GPT-NeoX, Bloom."""
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
"""Sizes in a config that are whole numbers above 0 wherever they are."""
LIKE_LLAMA = frozenset(("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2", "gemma3_text", "granite"))
"""Types of model whose decoder has Llama's names: `model.embed_tokens`, `model.layers.N`, `model.norm`, `lm_head`."""
LAYER = re.compile(r"^model\.layers\.(\d+)\.(.+)$")
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
JSON_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json")
AGAIN = "fetch the model's folder again"


def check_folder(name: str, model: HubModel, folder: Path) -> None:
    """Raise SettingsError, in one sentence, for what would certainly fail when the model in `folder` is loaded.

    `name` is the setting it stands under: `student` or `teacher`.
    """
    field = f"{name}.path"
    config = _config(folder, field, model.path)
    check_layers(name, model.kept_layers, config.get("num_hidden_layers"))
    if model.init != "random":
        files = weight_files(folder, field, model.path)
        for file in files:
            _check_weights_file(file, field, model.path)
        _check_tensors(folder, files, config, field, model.path)
    check_tokenizer(name, model, folder, field, model.path)


def check_layers(name: str, kept: int | None, present: int | None) -> None:
    """Raise SettingsError unless pruning keeps 2 to `present` layers; None keeps all."""
    if kept and present and not 2 <= kept <= present:
        raise refuse(f"{name}.layers", kept, f"it must be 2 to {present} with init=pruned")


def _config(folder: Path, field: str, path: str | None) -> dict[str, Any]:
    """The settings of a folder's config.json, those of its decoder on top."""
    file = folder / "config.json"
    if not file.is_file():
        raise refuse(field, path, "the folder has no config.json", "give a Hugging Face model folder")
    config = _json(file, field, path)
    if not config:
        raise refuse(field, path, "its config.json holds no settings of a model", AGAIN)
    named, nested = config.get("architectures") or [], config.get("text_config") or {}
    if not (isinstance(named, list) and all(isinstance(one, str) for one in named)):
        raise refuse(field, path, f"architectures in its config.json is {named!r} and not a list of names", AGAIN)
    if not isinstance(nested, dict):
        raise refuse(field, path, f"text_config in its config.json is {nested!r} and holds no settings", AGAIN)
    _check_architecture(config, field, path)
    sizes = config | nested
    for key in SIZES:
        # a null size is the default of its type of model
        if (value := sizes.get(key)) is not None and (not isinstance(value, int) or value < 1):
            raise refuse(field, path, f"{key} in its config.json is {value!r} and not a number above 0", AGAIN)
    width, heads = sizes.get("hidden_size"), sizes.get("num_attention_heads")
    if config.get("model_type") in LIKE_LLAMA and width and heads and not sizes.get("head_dim") and width % heads:
        raise refuse(field, path, f"a hidden_size of {width} does not divide among {heads} attention heads", AGAIN)
    return sizes


def _check_architecture(config: Mapping[str, Any], field: str, path: str | None) -> None:
    """Refuse what is certainly no causal language model; the base stage knows every architecture and refuses the rest.

    `AutoModelForCausalLM` would load the decoder of some of these alone and leave its head at random values.
    """
    named, kind = config.get("architectures") or [], config.get("model_type")
    way_out = "choose a decoder whose architecture ends in ForCausalLM"
    other_task = [name for name in named if "For" in name and not name.endswith(CAUSAL)]
    if config.get("is_encoder_decoder") or (named and len(other_task) == len(named)):
        what = ", ".join(named) or str(kind)
        why = "an encoder-decoder" if config.get("is_encoder_decoder") else "not a causal language model"
        raise refuse(field, path, f"its architecture {what} is {why}", way_out)
    if not isinstance(kind, str) or not kind:
        raise refuse(field, path, "its config.json names no model_type", AGAIN)
    if f'"{kind}"' not in _known_types():
        code = "; code that comes with a model is not run" if config.get("auto_map") else ""
        raise refuse(field, path, f"transformers has no model of its model_type {kind}{code}", way_out)


@functools.lru_cache(maxsize=1)
def _known_types() -> str:
    """The source of the installed transformers' list of model types, in which each stands in quotes."""
    found = importlib.util.find_spec("transformers")
    assert found is not None and found.submodule_search_locations, "transformers is a dependency of this package"
    folder = Path(found.submodule_search_locations[0]) / "models" / "auto"
    return "".join((folder / name).read_text() for name in ("configuration_auto.py", "auto_mappings.py"))


def _check_weights_file(file: Path, field: str, path: str | None) -> None:
    """Refuse a file of weights that is not there, or not whole by its header."""
    if not file.is_file():
        raise refuse(field, path, f"the weights {file.name} are missing", AGAIN)
    with open(file, "rb") as opened:
        # such a pointer is a short text file in the place of the weights: the file exists, and holds no model
        if opened.read(8) == b"version ":
            raise refuse(field, path, f"{file.name} is a Git LFS pointer", "git lfs pull")
    try:
        # reads the header, and compares the places of its tensors with the length of the file
        with safe_open(file, framework="numpy") as weights:
            empty = not weights.keys()
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise refuse(field, path, f"{file.name} is damaged or cut off ({reason})", AGAIN) from None
    if empty:
        raise refuse(field, path, f"{file.name} holds no weights", AGAIN)


def _check_tensors(folder: Path, files: list[Path], config: Mapping[str, Any], field: str, path: str | None) -> None:
    """Refuse, from the headers of the files alone, weights that would not be loaded, and ids without an embedding."""
    shapes = tensor_shapes(files)
    if absent := sorted(listed_weights(folder, field, path).keys() - shapes.keys()):
        reason = f"its index lists {absent[0]}, which none of its files of weights has"
        raise refuse(field, path, reason, AGAIN)
    for prefix, wrapper in WRAPPERS.items():
        wrapped = sorted(name for name in shapes if name.startswith(prefix))
        if wrapped:
            reason = f"its weights were saved inside {wrapper} ({wrapped[0]}), so none would be loaded"
            raise refuse(field, path, reason, "save the unwrapped model again with model.save_pretrained")
    if config.get("model_type") in LIKE_LLAMA and not config.get("quantization_config"):
        _check_like_llama(shapes, config, field, path)
    rows = [shape[0] for name, shape in shapes.items() if name.endswith(EMBEDDINGS)]
    tokens = _tokens(folder, field, path)
    if rows and tokens > rows[0]:
        reason = f"its tokenizer has {tokens} tokens and its embedding {rows[0]} rows"
        way_out = "resize the embedding (model.resize_token_embeddings), or use the tokenizer it was trained with"
        raise refuse(field, path, reason, way_out)


def _check_like_llama(shapes: Mapping[str, list[int]], config: Mapping[str, Any], field: str, path: str | None) -> None:
    """Refuse weights of a decoder like Llama's that are not those of its config: missing, foreign, of another size."""
    if "embed_tokens.weight" in shapes:  # saved without its head: the names lack their first part
        shapes = {f"model.{name}": shape for name, shape in shapes.items()}
    layers: dict[int, set[str]] = {}
    for name in shapes:
        if found := LAYER.match(name):
            layers.setdefault(int(found[1]), set()).add(found[2])
    needed = {"model.embed_tokens.weight", "model.norm.weight"}
    if config.get("tie_word_embeddings") is False:
        needed.add("lm_head.weight")
    every = set().union(*layers.values()) if layers else {"self_attn.q_proj.weight"}
    needed |= {
        f"model.layers.{n}.{part}" for n in range(config.get("num_hidden_layers") or len(layers)) for part in every
    }
    missing, foreign = sorted(needed - shapes.keys()), sorted(shapes.keys() - needed - {"lm_head.weight"})
    parts = [
        f"{words} {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        for words, names in (("the files lack", missing), ("the model has no", foreign))
        if names
    ]
    if parts:
        reason = f"its weights are not those of its config: {'; '.join(parts)}"
        raise refuse(field, path, reason, "save the model again with model.save_pretrained, or " + AGAIN)
    width, vocabulary, inner = (config.get(name) for name in ("hidden_size", "vocab_size", "intermediate_size"))
    heads, of_head = config.get("num_attention_heads"), config.get("head_dim")
    queries = heads * of_head if heads and of_head else None
    sizes: dict[str, list[Any]] = {"model.embed_tokens.weight": [vocabulary, width], "model.norm.weight": [width]}
    for n in layers:
        sizes |= {f"model.layers.{n}.mlp.{part}_proj.weight": [inner, width] for part in ("gate", "up")}
        sizes[f"model.layers.{n}.mlp.down_proj.weight"] = [width, inner]
        sizes[f"model.layers.{n}.self_attn.q_proj.weight"] = [queries, width]
    for name, size in sizes.items():
        if name in shapes and None not in size and shapes[name] != size:
            of = " x ".join(map(str, size))
            reason = f"{name} is {' x '.join(map(str, shapes[name]))} in its files and {of} by its config.json"
            raise refuse(field, path, reason, AGAIN)


def _tokens(folder: Path, field: str, path: str | None) -> int:
    """How many ids a folder's tokenizer has once its special tokens are added; 0 where it has no tokenizer.json."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return 0
    text = _tokenizer_json(file, field, path)
    from tokenizers import Tokenizer

    known = Tokenizer.from_str(text).get_vocab(with_added_tokens=True)
    added = {token for token in _special_tokens(folder, field, path).values() if token not in known}
    return tokens_of_json(text) + len(added)


def _special_tokens(folder: Path, field: str, path: str | None) -> dict[str, str]:
    """The texts of the special tokens that a tokenizer's settings name, by what they are for."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            settings |= _json(folder / name, field, path)
    found = {}
    for name in SPECIAL:
        token = settings.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None and not isinstance(token, str):
            raise refuse(field, path, f"{name} of its tokenizer is {token!r} and not a text", AGAIN)
        if token is not None:
            found[name] = token
    return found


def check_tokenizer(name: str, model: HubModel | ServedModel, folder: Path, field: str, path: str | None) -> None:
    """Raise SettingsError for a folder's tokenizer that cannot be loaded, or whose template cannot be used."""
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise refuse(field, path, f"it has no {' or '.join(TOKENIZER_FILES)}", AGAIN)
    for file in JSON_FILES:
        if (folder / file).is_file():
            _json(folder / file, field, path)
    if (folder / "tokenizer.json").is_file():
        _tokenizer_json(folder / "tokenizer.json", field, path)
    special = _special_tokens(folder, field, path)
    try:
        own, template = template_of_folder(folder), chosen_template(model.chat_template, folder)
    except (ValueError, KeyError, TypeError) as error:
        raise refuse(field, path, f"the file with its chat template cannot be read ({error})", AGAIN) from error
    chosen = model.chat_template
    if chosen != "tulu" and not own:
        reason, way_out = "the folder's tokenizer has no chat template", f"set {name}.chat_template=tulu"
        raise refuse(f"{name}.chat_template", chosen, reason, way_out)
    if template is None:
        reason, way_out = "TRL has no training template for this model's own", f"set {name}.chat_template=own"
        raise refuse(f"{name}.chat_template", chosen, reason, way_out)
    if problem := rendering_problem(template, special):
        reason, way_out = f"the chat template of its tokenizer {problem}", f"set {name}.chat_template=tulu, or {AGAIN}"
        raise refuse(field, path, reason, way_out)
    if model.thinking is not None and thinking_switch(template) is None:
        raise no_switch(f"{name}.thinking", model.thinking)
    if model.template_date is not None and not reads_date(template):
        raise no_date(f"{name}.template_date", model.template_date)


def _tokenizer_json(file: Path, field: str, path: str | None) -> str:
    """The text of a tokenizer.json from which a tokenizer can be made."""
    from tokenizers import Tokenizer

    try:
        text = file.read_text(encoding="utf-8")
        Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        reason = str(error).strip().splitlines()[0]
        raise refuse(field, path, f"its {file.name} is no tokenizer ({reason})", AGAIN) from None
    return text


def _json(file: Path, field: str, path: str | None) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise refuse(field, path, f"its {file.name} is not JSON ({error})", AGAIN) from None
    if not isinstance(values, dict):
        raise refuse(field, path, f"its {file.name} holds no settings of a model", AGAIN)
    return values
