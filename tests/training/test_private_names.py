"""Names of transformers and TRL that are no public interface and that this package overrides, calls or sets.

An upgrade that renames one or changes its parameters fails here, with the place to look at, and not in the middle of
a run. The cap of `transformers` in pyproject.toml is raised once this file passes with the new version.
"""

import inspect
from importlib.metadata import version

import pytest
import transformers
from transformers import PreTrainedModel, Trainer
from transformers.cache_utils import DynamicLayer
from trl import SFTTrainer

from harness.models.kv_cache import RoomyLayer
from harness.training.checkpoints import Resumable
from harness.training.trainer import Trainer as OurTrainer

METHODS = {
    "_move_model_to_device": ("self", "model", "device"),
    "_maybe_log_save_evaluate": None,  # passed on as it comes; read below
    "_save_checkpoint": ("self", "model", "trial"),
    "_load_from_checkpoint": ("self", "resume_from_checkpoint", "model"),
    "_load_optimizer_and_scheduler": ("self", "checkpoint"),
    "_load_rng_state": ("self", "checkpoint"),
}
"""Private methods of the trainer that checkpoints.py overrides, with their parameters."""
OVERRIDDEN = {
    "get_train_dataloader": ("self",),
    "get_batch_samples": ("self", "epoch_iterator", "num_batches", "device"),
    "compute_loss": ("self", "model", "inputs", "return_outputs", "num_items_in_batch"),
    "create_scheduler": ("self", "num_training_steps", "optimizer"),
    "floating_point_ops": ("self", "inputs"),
    "training_step": None,
}
"""Methods without an underscore that trainer.py overrides; the loop that calls them is as private as the above."""
READ = {
    "self._maybe_log_save_evaluate(": "called after every optimizer step",
    "self.control.should_save": "set by `_maybe_log_save_evaluate` to have a checkpoint written",
    "self._save_checkpoint(model, trial)": "called where `should_save` is set",
    "self.loss_is_scaled_for_ga": "set, so that the loss is not divided by the micro-batches once more",
    "self.current_gradient_accumulation_steps": "the micro-batches of this step, the last of which ends it",
    "self.is_distributed_loading_by_transformers": "set where FSDP has placed the model, so that nothing wraps it",
}
"""What the source of transformers' trainer has to contain, and what it means here."""


def parameters(function):
    return tuple(inspect.signature(function).parameters)


def changed(what):
    versions = ", ".join(f"{name} {version(name)}" for name in ("transformers", "trl"))
    return f"{what} with {versions}: see what replaces it before the cap in pyproject.toml is raised"


@pytest.mark.parametrize("name", [*METHODS, *OVERRIDDEN])
def test_an_overridden_method_of_the_trainer_has_the_parameters_we_take(name):
    expected = {**METHODS, **OVERRIDDEN}[name]
    found = getattr(SFTTrainer, name, None)
    assert found is not None, changed(f"SFTTrainer.{name} is gone")
    if expected is not None:
        assert parameters(found) == expected, changed(f"SFTTrainer.{name} takes other parameters")


def test_every_private_method_that_is_overridden_is_named_here():
    own = {name for kind in (Resumable, OurTrainer) for name in vars(kind) if not name.startswith("__")}
    assert {name for name in own if name.startswith("_") and hasattr(SFTTrainer, name)} == set(METHODS)
    public = {name for name in own if callable(getattr(SFTTrainer, name, None)) and not name.startswith("_")}
    assert public == set(OVERRIDDEN)


@pytest.mark.parametrize("text", READ)
def test_transformers_trainer_still_reads_and_calls_what_we_set_and_override(text):
    source = inspect.getsource(inspect.getmodule(Trainer))
    assert text in source, changed(f"transformers' trainer has no {text} ({READ[text]})")


def test_a_model_names_its_layers_and_whether_it_has_a_recurrent_state():
    """`fsdp.shard` reads `_no_split_modules`, `speculative.py` reads `_is_stateful`."""
    assert hasattr(PreTrainedModel, "_no_split_modules"), changed("PreTrainedModel._no_split_modules is gone")
    assert PreTrainedModel._is_stateful is False, changed("PreTrainedModel._is_stateful has no default of False")
    assert "LlamaDecoderLayer" in set(transformers.LlamaForCausalLM._no_split_modules)
    assert transformers.MambaForCausalLM._is_stateful is True


def test_a_layer_of_the_kv_cache_is_made_and_asked_as_ours_is():
    for name in ("update", "get_seq_length", "lazy_initialization", "batch_select_indices", "batch_repeat_interleave"):
        assert callable(getattr(DynamicLayer, name, None)), changed(f"DynamicLayer.{name} is gone")
    taken = ("self", "key_states", "value_states", "args", "kwargs")
    assert parameters(DynamicLayer.update) == taken == parameters(RoomyLayer.update), changed("update changed")
    assert parameters(DynamicLayer.lazy_initialization) == ("self", "key_states", "value_states")
