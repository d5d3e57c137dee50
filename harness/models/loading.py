"""Models: loading, saving, pruning and fresh weights, for every Hugging Face causal model.

A model artifact is a Hugging Face folder, or a folder whose `model.json` points to one that is used as it is
(`files.read_pointer`). Files are checked and named in `files.py`, without torch; this file needs torch and
transformers and runs no code that comes with a model.

    model, tokenizer = load_model(folder, device="cpu", dtype="bf16"), load_tokenizer(folder)
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from harness.config.checks import SettingsError, refuse
from harness.config.hub import fetch
from harness.config.machine import Machine
from harness.data.chat import end_of_turn_id, fix_template, prompt_tail, render, render_rows
from harness.data.reasoning import MARKS
from harness.models.files import (
    HUB_FILES,
    SERVER,
    hub_model,
    read_pointer,
    tensor_shapes,
    tokenizer_json_fingerprint,
    weight_files,
)
from harness.models.vocabulary import Vocabulary, vocabulary_of_json
from harness.runtime.processes import local_rank, process_count
from harness.store.fingerprint import fingerprint

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

PROBE = [{"role": "user", "content": "Say yes."}, {"role": "assistant", "content": "yes"}]
"""A conversation whose rendering is compared to see whether two chat templates are the same."""
REASONED = [{"role": "user", "content": "Say no."}, {"role": "assistant", "content": "<think>\nso\n</think>\n\nno"}]
"""An earlier turn of such a conversation, with reasoning that a template may drop."""
NAMED_KEYS = 3
"""How many weights of each kind a refusal names."""
DTYPES: dict[str, Any] = {"fp32": torch.float32, "bf16": torch.bfloat16, "auto": "auto"}


def device_of(machine: Machine) -> str:
    """`cpu` or `cuda`: the device that `machine.device` stands for in this process.

    Of several processes that train together each has a GPU of its own: `cuda:1`. Raises SettingsError where
    `machine.device=cuda` and no GPU is visible.
    """
    if machine.device == "cuda" and not torch.cuda.is_available():
        raise refuse("machine.device", "cuda", "no CUDA device is visible", "set machine.device=auto")
    if machine.device == "cpu" or not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{local_rank() % torch.cuda.device_count()}" if process_count() > 1 else "cuda"


def load_tokenizer(folder: Path, fixed: bool = True) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model folder; padding falls back to end-of-sequence (masks come from lengths).

    A folder that points elsewhere for its weights may have a tokenizer of its own (a chat template was set). A template
    that would print today's date prints one fixed date; `fixed=False` leaves it as published.
    """
    from transformers import AutoTokenizer

    own = (Path(folder) / "tokenizer_config.json").is_file()
    tokenizer = AutoTokenizer.from_pretrained(folder if own else weights_folder(folder))
    if fixed:
        fix_template(tokenizer)
    return _with_padding(tokenizer)


def load_model(folder: Path, device: str = "cpu", dtype: str = "fp32") -> "PreTrainedModel":
    """The causal model of a model folder, in eval mode; `dtype` is `fp32`, `bf16` or `auto` (as saved).

    Raises SettingsError for a folder that only names a server (`teachers.open_teacher` opens both kinds), and where
    weights are missing, unexpected or of another size: such a model would start from random values.
    """
    if (Path(folder) / SERVER).is_file():
        served = json.loads((Path(folder) / SERVER).read_text())["served_model"]
        reason = "it is served over HTTP, which gives text and top-k log-probabilities and no weights"
        way_out = "choose seq_kd, two_stage or signal.kind=top_k, or a teacher with weights"
        raise refuse("teacher.served_model", served, reason, way_out)
    return _from_pretrained(folder, device, dtype)


def weights_folder(folder: Path) -> Path:
    """The folder on this machine that has a model folder's weights, downloaded from the hub where it names a hub id.

    Raises SettingsError where the hub does not give them and its cache does not have them.
    """
    path, revision = read_pointer(Path(folder))
    return Path(path) if Path(path).is_dir() else fetch(hub_model("model", path, revision), HUB_FILES)


def load_config(folder: Path) -> "PretrainedConfig":
    """The config that the causal model of a model folder is made from.

    Multimodal models keep the sizes of their decoder under `text_config`. Where the architecture is the decoder alone,
    its config is that part: a flat config gets those values, and of a composite one the nested config is taken. A
    model saved from it has a flat config. Raises SettingsError where no causal language model can be made of it.
    """
    from transformers import AutoConfig, PretrainedConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    path = str(weights_folder(folder))
    way_out = "choose a decoder whose architecture ends in ForCausalLM"
    try:
        config = AutoConfig.from_pretrained(path)
    except ValueError as error:  # an unknown model_type, or one whose code would come with the model
        reason = f"transformers has no model for its config.json ({str(error).strip().splitlines()[0]})"
        raise refuse("path", path, reason, way_out) from error
    except Exception as error:  # what a value of the config makes of the library's own checks
        reason = f"transformers cannot read its config.json ({type(error).__name__}: {_first_line(error)})"
        raise refuse("path", path, reason, "fetch the model's folder again") from error
    nested = getattr(config, "text_config", None)
    if isinstance(nested, Mapping):  # this architecture's class does not know the key, and left its own sizes alone
        values, _ = PretrainedConfig.get_config_dict(path)
        of_decoder = {key: value for key, value in nested.items() if key not in ("model_type", "architectures")}
        config = type(config).from_dict({**values, **of_decoder, "text_config": None})
        del config.text_config
    elif nested is not None:
        decoder = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(nested), None)
        config = nested if getattr(decoder, "__name__", None) in (config.architectures or []) else config
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        named = ", ".join(config.architectures or []) or config.model_type
        raise refuse("path", path, f"its architecture {named} is not a causal language model", way_out)
    return config


def load_shape(folder: Path) -> "PreTrainedModel":
    """The model of a folder without its weights (on torch's `meta` device), for parameter counts and the config."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(load_config(folder))


def load_quantised(folder: Path, to: str, device: str = "cpu") -> "PreTrainedModel":
    """The model of a folder with the weights of its linear layers rounded: `int8` (LLM.int8, arXiv 2208.07339: outlying
    columns stay in 16 bits) or `nf4` (QLoRA's 4-bit floats, arXiv 2305.14314). Embeddings and head are left alone.

    `save_model` writes it as it is, and `load_model` reads that back.
    """
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_8bit=to == "int8", load_in_4bit=to == "nf4", bnb_4bit_quant_type="nf4")
    return _from_pretrained(folder, device, "auto", quantization_config=config)


def load_gguf(file: Path) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Model (dequantised, bf16) and tokenizer of one GGUF file.

    Without dequantising, transformers neither saves nor trains what it loads from a GGUF file.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **where)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16, **where
    )
    return model.eval(), _with_padding(tokenizer)


def save_model(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Write a Hugging Face folder that other programs load: generation stops at the end of a turn."""
    generation = model.generation_config
    if tokenizer.chat_template and generation is not None:
        generation.eos_token_id = end_of_turn_id(tokenizer)
        generation.pad_token_id = tokenizer.pad_token_id
        generation.do_sample = False
        generation.temperature = generation.top_p = generation.top_k = None
    try:
        model.save_pretrained(folder)
    except Exception as error:
        size = sum(tensor.nbytes for tensor in model.state_dict().values())
        error.add_note(f"{size / 2**20:.1f} MB are needed for the weights")  # which a full disk's sentence states
        raise
    tokenizer.save_pretrained(folder)


def random_model(config: "PretrainedConfig", seed: int) -> "PreTrainedModel":
    """Fresh fp32 weights for a config, the same for one seed; the caller's random state is left alone."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def prune_layers(model: "PreTrainedModel", layers: int) -> "PreTrainedModel":
    """Keep `layers` evenly spaced decoder layers, the first and the last among them; changes `model`.

    Raises SettingsError where the layers cannot be found, or where there are fewer than `layers`.
    """
    stack: Any = getattr(model.get_decoder(), "layers", None)
    if not isinstance(stack, torch.nn.ModuleList):
        raise refuse(
            "init",
            "pruned",
            f"no list of layers was found in {type(model).__name__}",
            "choose another student or init=random",
        )
    kept = kept_layers(len(stack), layers)
    decoder: Any = model.get_decoder()
    decoder.layers = torch.nn.ModuleList(stack[index] for index in kept)
    for index, layer in enumerate(decoder.layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):  # the key-value cache is addressed by it
                module.layer_idx = index
    config: Any = model.config.get_text_config()
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[index] for index in kept]
    config.num_hidden_layers = layers
    return model


def kept_layers(present: int, layers: int) -> list[int]:
    """Numbers of the layers that pruning keeps: `layers` of 0..present-1, evenly spaced, ends included.

    Raises SettingsError unless 2 <= `layers` <= `present`.
    """
    if not 2 <= layers <= present:
        raise refuse("layers", layers, f"it must be 2 to {present} with init=pruned")
    return [round(index * (present - 1) / (layers - 1)) for index in range(layers)]


def tokenizer_hash(tokenizer: "PreTrainedTokenizerBase") -> str:
    """sha256 over what decides token ids; token by token, two models may only be compared where theirs are equal.

    Raises SettingsError for a tokenizer without a `tokenizer.json`.
    """
    return tokenizer_json_fingerprint(_tokenizer_json(tokenizer))


def vocabulary_of(tokenizer: "PreTrainedTokenizerBase") -> Vocabulary:
    """What the tokenizer's ids mean. Raises SettingsError for a tokenizer without a `tokenizer.json`."""
    return vocabulary_of_json(_tokenizer_json(tokenizer))


def _tokenizer_json(tokenizer: "PreTrainedTokenizerBase") -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise refuse(
            "tokenizer",
            tokenizer.name_or_path,
            "only fast tokenizers can be compared",
            "save the model with a tokenizer.json",
        )
    return str(backend.to_str())


def rendering_hash(tokenizer: "PreTrainedTokenizerBase") -> str:
    """sha256 over the tokenizer and how its chat template renders a conversation: ids agree where it does."""
    found: list[Any] = [tokenizer_hash(tokenizer), render(tokenizer, PROBE, 1000).input_ids]
    if not any(mark in str(tokenizer.chat_template) for mark in MARKS):
        return fingerprint(found)
    # with thinking on and off the same ids may be rendered, and a prompt end elsewhere in them
    if prompt_tail(tokenizer):
        found.append(render(tokenizer, PROBE, 1000).starts)
    # a template may differ from another in what it does to earlier turns alone
    rows = render_rows(tokenizer, [[*REASONED, *PROBE]], 1000)[0]
    if len(rows) > 1:
        found.append([row.input_ids for row in rows])
    return fingerprint(found)


def count_parameters(model: "PreTrainedModel") -> int:
    """Number of weights, tied ones once."""
    return model.num_parameters()  # unlike the sum of sizes, right where two weights share a byte


def count_frozen(model: "PreTrainedModel") -> int:
    """Number of weights that are not trained."""
    return sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)


def _from_pretrained(folder: Path, device: str, dtype: str, **more: Any) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM

    path = str(weights_folder(folder))
    where: dict[str, Any] = {"config": load_config(folder), "dtype": DTYPES[dtype], "device_map": device}
    loader: Any = AutoModelForCausalLM  # its types do not know that the report is returned beside the model
    try:
        model, loaded = loader.from_pretrained(path, output_loading_info=True, **where, **more)
    except (KeyError, AttributeError, TypeError, ValueError, ZeroDivisionError, SafetensorError) as error:
        reason = f"transformers cannot make a model of it ({type(error).__name__}: {_first_line(error)})"
        raise refuse("path", path, reason, "fetch the model's folder again") from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        # transformers names the tensors in its log alone
        raise _not_the_models(path, {"of another size are": _of_other_size(Path(folder), Path(path))}) from error
    found = {"the files lack": loaded["missing_keys"], "the model has no": loaded["unexpected_keys"]}
    if any(found.values()):  # transformers leaves what it misses at random values and goes on
        raise _not_the_models(path, found)
    return _with_plain_kernels(model).eval()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _not_the_models(path: str, found: Mapping[str, Collection[str]]) -> SettingsError:
    """The refusal of weights that do not belong to a config, the first names of each kind listed."""
    parts = []
    for words, names in found.items():
        listed, more = sorted(names)[:NAMED_KEYS], len(names) - NAMED_KEYS
        parts += [f"{words} {', '.join(listed)}" + (f" and {more} more" if more > 0 else "")] if names else []
    way_out = "save the model again with model.save_pretrained, unwrapped (torch.compile, DistributedDataParallel)"
    return refuse("path", path, f"its weights are not those of its config: {'; '.join(parts)}", way_out)


def _of_other_size(folder: Path, files: Path) -> list[str]:
    """Names of weights whose shape in the files is not the model's."""
    model = {name: list(weight.shape) for name, weight in load_shape(folder).state_dict().items()}
    stored = tensor_shapes(weight_files(files, "path", str(files))) if files.is_dir() else {}
    return [name for name, shape in stored.items() if model.get(name, shape) != shape]


def _with_plain_kernels(model: "PreTrainedModel") -> "PreTrainedModel":
    """4-bit layers compute in the type of what they are given, by the same arithmetic on every CPU.

    The library's own short cut for some CPUs takes widths that are multiples of 32 and no others.
    """
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "compute_type_is_set")]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = layer.compute_type_is_set = False
    return model


def _with_padding(tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
