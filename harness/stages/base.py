"""Stage `base`: the pretrained base model that a cell starts from.

A `mini` is built and pre-trained here. A pretrained Hugging Face model is referenced by a small file; its weights stay
where they are. A model served over HTTP is probed and described. A GGUF file is converted. Pruning, random weights
and another chat template are applied here too. `train.py` trains the base on the cell's rows.

    model.json (path, revision)                              a reference; tokenizer files if a template is set
    server.json (url, served_model, api_key_env, probe)      served over HTTP; with the tokenizer's files
    model.safetensors, config.json, tokenizer.json, ...      built, converted, pruned or of random weights
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.config.budget import Budget
from harness.config.checks import refuse
from harness.config.file_hash import file_sha256
from harness.config.hub import fetch
from harness.config.machine import Machine
from harness.config.recipe import TrainingPhase
from harness.data import chat
from harness.data.sequences import draw_seed, of_like_length, visits
from harness.models.files import (
    HUB_FILES,
    HUB_TOKENIZER_FILES,
    POINTER,
    SERVER,
    check_downloaded,
    hub_model,
    local_folder,
    weight_files,
)
from harness.models.finite import check_weight_files, check_weights
from harness.models.loading import (
    count_parameters,
    device_of,
    load_config,
    load_gguf,
    load_model,
    load_tokenizer,
    prune_layers,
    random_model,
    save_model,
    tokenizer_hash,
    weights_folder,
)
from harness.store.store import write_json
from harness.teachers.completions_client import CompletionsClient
from harness.teachers.discovery import endpoint_at
from harness.teachers.teacher import ServedTeacher, server_description

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

Facts = dict[str, Any]


def make_base(settings: dict[str, Any], inputs: Mapping[str, Path], out: Path, machine: Machine) -> Facts:
    """Write the start model's folder into `out`.

    `settings` is the identity of a model (models/kinds.py) and `where`, which holds the `model` (its fields as a dict,
    for the `path` that is no identity). Raises SettingsError when files changed since planning, when a hub model
    cannot be had, or when a model cannot be pruned or rendered with its template.
    """
    if settings["kind"] == "mini":
        return _mini(settings, out, machine)
    where: Mapping[str, Any] = settings.get("where", {}).get("model", settings)
    assert settings["kind"] in ("hf", "gguf", "http"), settings["kind"]
    if settings["kind"] == "http":
        return _served(settings, where, out)
    if settings["kind"] == "gguf":
        file = Path(where["path"]).expanduser()
        _check_unchanged({"gguf": file}, settings["files"])
        model, tokenizer = load_gguf(file)
        if settings["init"] == "random":
            model = random_model(model.config, settings["init_seed"])
        return _save(settings, model, tokenizer, out)
    # written first, so that tokenizer and model are loaded through the folder as every later stage loads them
    pointer = _pointer(where, settings)
    write_json(out / POINTER, pointer)
    tokenizer = load_tokenizer(out, fixed=False)
    if settings["init"] == "pretrained":
        folder = weights_folder(out)
        load_model(out, device="meta", dtype="auto")  # reads no weights, and names those that are not the model's
        check_weight_files(weight_files(folder, "path", str(folder)), str(where["path"]))
        return _reference(settings, tokenizer, out)
    fresh = settings["init"] == "random"
    model = random_model(load_config(out), settings["init_seed"]) if fresh else load_model(out, dtype="auto")
    # the weights are saved here now; a reference beside them would send readers to the old ones
    (out / POINTER).unlink()
    return _save(settings, model, tokenizer, out)


def line_rows(tokenizer: "PreTrainedTokenizerBase", lines: Iterable[tuple[str, str]]) -> "Dataset":
    """Pre-training lines as rows `input_ids`, `starts`, `ends`: BOS, text before the answer, answer (trained)."""
    from datasets import Dataset

    pairs = list(lines)
    ids = tokenizer([text for pair in pairs for text in pair], add_special_tokens=False)["input_ids"]
    assert isinstance(tokenizer.bos_token_id, int)
    # the two texts of a line are tokenised separately, so no token spans the border of prompt and answer
    before = [[tokenizer.bos_token_id, *text] for text in ids[::2]]
    whole = [text + answer for text, answer in zip(before, ids[1::2], strict=True)]
    return Dataset.from_dict(
        {
            "input_ids": whole,
            "starts": [[len(text)] for text in before],
            "ends": [[len(text)] for text in whole],
        }
    )


def _mini(settings: Mapping[str, Any], out: Path, machine: Machine) -> Facts:
    """A Llama with random weights, pre-trained on raw question-and-answer lines unless `init` is `random`."""
    from transformers import LlamaConfig

    from harness.data.miniature.lines import pretraining_lines
    from harness.data.miniature.sizes import llama_settings
    from harness.data.miniature.tokenizer import load_mini_tokenizer

    family, seed = settings.get("family", "words"), settings["init_seed"]
    tokenizer = load_mini_tokenizer(family)
    model: Any = random_model(LlamaConfig(**llama_settings(settings["size"], family)), seed)
    if settings["init"] == "random":
        return _save(settings, model, tokenizer, out)
    from harness.training.trainer import TrainingData, TrainingSettings, fit

    plan = settings["pretraining"]
    rows = line_rows(tokenizer, pretraining_lines(settings["world_seed"], settings["knows"], plan["lines"], seed))
    batches = visits(plan["lines"], plan["steps"], plan["batch_size"], draw_seed(seed, "pretraining"))  # (steps, B)
    # pre-training compares no arms, so rows may be regrouped to compute less padding
    batches = of_like_length(batches, np.array([len(ids) for ids in rows["input_ids"]]), seed)  # (steps, B)
    budget = Budget(
        kind="steps", amount=plan["steps"], batch_size=plan["batch_size"], learning_rate=plan["learning_rate"]
    )
    training = TrainingSettings(budget, TrainingPhase(), machine, seed)
    report = fit(model.to(device_of(machine)), tokenizer, TrainingData(rows, batches), training, out=out)
    facts = _save(settings, model, tokenizer, out)
    return {
        **facts,
        "cost": {"trained_tokens": report.trained_tokens, "flops": report.flops},
        "metrics": {"first_loss": report.first_loss, "last_loss": report.last_loss},
    }


def _reference(settings: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase", out: Path) -> Facts:
    """Leave the weights where they are; save a tokenizer only where its chat template is changed."""
    before = tokenizer.chat_template
    _set_template(tokenizer, settings)
    if tokenizer.chat_template != before or "template_date" in settings:
        tokenizer.save_pretrained(out)
    chat.end_of_turn_id(tokenizer)  # raises where the template cannot be trained on, before anything is computed
    facts = {"counts": {"vocabulary": len(tokenizer)}, "tokenizer_hash": tokenizer_hash(tokenizer)}
    return facts | _without_eos(tokenizer)


def _served(settings: Mapping[str, Any], where: Mapping[str, Any], out: Path) -> Facts:
    """Describe the server (address and answer to the probe), beside the tokenizer declared for it."""
    folder = local_folder(where["tokenizer"])
    if folder is not None:
        files = {name: folder / name for name in settings["tokenizer"]}
        _check_unchanged(files, settings["tokenizer"], "teacher.tokenizer")
    else:
        folder = fetch(hub_model("teacher", where["tokenizer"], where["revision"], "tokenizer"), HUB_TOKENIZER_FILES)
    tokenizer = load_tokenizer(folder, fixed=False)
    _set_template(tokenizer, settings)
    endpoint = endpoint_at(where["path"], **_access(where))
    teacher = ServedTeacher(CompletionsClient(endpoint, settings["served_model"]), tokenizer)
    description = server_description(where["path"], teacher)
    tokenizer.save_pretrained(out)
    write_json(out / SERVER, description)
    hashes = {"tokenizer_hash": tokenizer_hash(tokenizer), "probe": description["probe"]["sha256"]}
    return {"counts": {"vocabulary": len(tokenizer)}, **hashes}


def _access(where: Mapping[str, Any]) -> dict[str, Any]:
    """The name of the key's variable, and the time-outs of a plan that has them."""
    named = {"connect_timeout_s": "connect_timeout_s", "read_timeout_s": "timeout_s"}
    timeouts = {name: where[setting] for setting, name in named.items() if setting in where}
    return {"api_key_env": where["api_key_env"], **timeouts}


def _save(settings: Mapping[str, Any], model: Any, tokenizer: "PreTrainedTokenizerBase", out: Path) -> Facts:
    """Prune the model and set its template where the settings say so, then write the folder."""
    if settings["init"] == "pruned":
        model = prune_layers(model, settings["layers"])
    _set_template(tokenizer, settings)
    chat.end_of_turn_id(tokenizer)
    check_weights(model, f"the {settings['kind']} model")
    save_model(model.to("cpu"), tokenizer, out)
    return {
        "counts": {"parameters": count_parameters(model), "vocabulary": len(tokenizer)},
        "tokenizer_hash": tokenizer_hash(tokenizer),
        **_without_eos(tokenizer),
    }


def _without_eos(tokenizer: "PreTrainedTokenizerBase") -> Facts:
    """A warning where a tokenizer names no end of a text: what ends a turn is the template's alone."""
    if tokenizer.eos_token is not None:
        return {}
    end = tokenizer.convert_ids_to_tokens(chat.end_of_turn_id(tokenizer))
    said = f"no EOS token: the tokenizer names none; a turn ends with {end!r}, as the chat template writes it"
    return {"warnings": [said]}


def _set_template(tokenizer: "PreTrainedTokenizerBase", settings: Mapping[str, Any]) -> None:
    """Set the chat template of a model's settings, with its thinking and its date."""
    chat.set_template(tokenizer, settings.get("chat_template", "own"))
    chat.fix_template(tokenizer, settings.get("thinking"), settings.get("template_date"))


def _pointer(where: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, str | None]:
    """The reference to a model: an absolute folder whose files are as planned, or hub id and revision."""
    folder = local_folder(where["path"])
    if folder is not None:
        _check_unchanged({name: folder / name for name in settings["files"]}, settings["files"])
        load_config(folder)
        return {"path": str(folder.resolve()), "revision": None}
    repository = hub_model(settings.get("where", {}).get("setting", "model"), where["path"], where["revision"])
    fetched = fetch(repository, HUB_FILES)
    check_downloaded(repository, fetched)
    load_config(fetched)  # raises, before anything is computed, where no causal model can be made of it
    return {"path": where["path"], "revision": fetched.name}  # a snapshot's folder is named by its revision


def _check_unchanged(files: Mapping[str, Path], planned: Mapping[str, str], field: str = "path") -> None:
    for name, file in files.items():
        if not file.is_file() or file_sha256(file) != planned[name]:
            raise refuse(field, str(file), "it changed after the run was planned", "start the run again")
