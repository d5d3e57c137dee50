"""Checkpoints: what a fit writes so that another process continues it, number for number.

A checkpoint is a folder that was written under another name, synced and renamed, so a killed process leaves
a whole one or none. It belongs to one fit, named by a fingerprint, and is never used for another:

    step-120/model.safetensors      weights that are trained, the objective's own among them
             optimizer.safetensors  AdamW's moments
             state.json             counts, schedule, random states of every process, size and sha256 of the files
             trainer_state.json     the same for the Transformers trainer
             log.jsonl              the log so far

The model that a stage exports is no checkpoint (`models/loading.save_model` writes that). `runtime/preemption.py`
knows whether the process has to stop; here a fit reacts to it. Of an FSDP-sharded model (`models/fsdp.py`) rank 0
writes the full tensors.

    class Trainer(Resumable): ...
    trainer.train(resume_from_checkpoint=trainer.newest_checkpoint())
"""

import json
import os
import random
import shutil
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel
from trl import SFTTrainer

from harness.models.fsdp import full_tensors, is_fsdp_sharded, local_shard
from harness.runtime import preemption, progress
from harness.runtime.processes import process_rank
from harness.store.liveness import STALE_SECONDS
from harness.store.store import age_of, fsync, fsync_tree
from harness.store.whole_checkpoint import read_checkpoint, sealed_state
from harness.training.losses.objectives import Objective
from harness.training.student_text import Sequences
from harness.training.training_report import TrainingReport

KEPT = 2  # the newest, and the one before in case a disk returns less than it took
TIMED, STOP = 1.0, 2.0
"""Why a checkpoint is wanted; numbers, so that one sum over the processes tells all of them."""


class Checkpoints:
    """The checkpoints of one fit in a folder; without a folder none is written."""

    def __init__(self, folder: Path | None, belongs: str, minutes: float) -> None:
        """`belongs`: a fingerprint of all that the fit's numbers follow from; `minutes` between two, 0 for none."""
        self.folder, self.belongs, self.minutes = folder, belongs, minutes
        self._written = time.monotonic()

    def wanted(self) -> float:
        """0, or why a checkpoint is wanted after this step: TIMED, or STOP before the process ends."""
        if self.folder is None:
            return 0.0
        if preemption.stop_requested():
            return STOP
        # only rank 0 looks at its clock: `wanted` is summed over processes, and two TIMED would read as STOP
        late = process_rank() == 0 and self.minutes > 0 and time.monotonic() - self._written >= 60 * self.minutes
        return TIMED if late else 0.0

    def newest(self) -> Path | None:
        """The newest whole checkpoint of this fit; one with a changed byte is passed over for the one before."""
        for path in reversed(self._finished()):
            if read_checkpoint(path).get("belongs") == self.belongs:
                return path
        return None

    def write(
        self, step: int, tensors: Mapping[str, dict[str, torch.Tensor]], state: dict[str, Any], files: Mapping[str, str]
    ) -> Path:
        """Write one checkpoint: `tensors` by file, `state` for state.json, `files` as they are; drop older ones.

        Raises OSError or SafetensorError where it cannot be written; then nothing of it is left.
        """
        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = self.folder / f".{uuid.uuid4().hex}"
        try:
            unfinished.mkdir()
            for name, group in tensors.items():
                whole = {key: tensor.contiguous() for key, tensor in group.items()}
                save_file(whole, unfinished / f"{name}.safetensors")
            for name, text in files.items():
                (unfinished / name).write_text(text)
            (unfinished / "state.json").write_text(sealed_state({**state, "belongs": self.belongs}, unfinished))
            fsync_tree(unfinished)
            path = self.folder / f"step-{step}"
            shutil.rmtree(path, ignore_errors=True)  # a torn one of the same step
            os.rename(unfinished, path)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        fsync(self.folder)
        self._remove_older()
        self.clock()
        return path

    def clock(self) -> None:
        """Start counting the minutes to the next checkpoint."""
        self._written = time.monotonic()

    def _finished(self) -> list[Path]:
        found = self.folder.glob("step-*") if self.folder is not None else []
        steps = {int(number): path for path in found if (number := path.name.removeprefix("step-")).isdecimal()}
        return [steps[step] for step in sorted(steps)]

    def _remove_older(self) -> None:
        assert self.folder is not None
        found = self._finished()
        whole = [path for path in found if read_checkpoint(path, content=False).get("belongs") == self.belongs]
        torn = [path for path in self.folder.glob(".*") if age_of(path) > STALE_SECONDS]
        for path in [path for path in found if path not in whole[-KEPT:]] + torn:
            shutil.rmtree(path, ignore_errors=True)


class Resumable(SFTTrainer):
    """The Transformers trainer with our checkpoints behind its own hooks: no pickles, and all of a fit's state.

    The private methods that are overridden are named in tests/training/test_private_names.py.
    """

    checkpoints: Checkpoints
    report: TrainingReport
    sequences: Sequences
    objective: Objective
    jsonl: IO[str]
    gold_nll: list[tuple[int, float]]
    untrained_tokens: int
    _started: float
    _wanted: float = 0.0

    def __init__(self, *, model: PreTrainedModel, **named: Any) -> None:
        super().__init__(model=model, **named)
        # tells the trainer that FSDP has placed the model, so nothing moves, wraps or averages it again
        self.is_distributed_loading_by_transformers = is_fsdp_sharded(model)

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        if not is_fsdp_sharded(model):  # shards are on their devices already
            super()._move_model_to_device(model, device)

    def newest_checkpoint(self) -> str | None:
        """The checkpoint to continue from, the same for every process, or None."""
        found: list[Any] = [self.checkpoints.newest()]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(found)  # processes may see a shared disk's new folder at different moments
        return None if found[0] is None else str(found[0])

    def want_checkpoint(self, wanted: float) -> None:
        """Write a checkpoint after this step where `wanted` (of all processes) is above 0, and stop at STOP."""
        self._wanted = wanted

    def _maybe_log_save_evaluate(self, *args: Any, **named: Any) -> None:
        self.control.should_save = self._wanted > 0
        super()._maybe_log_save_evaluate(*args, **named)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        wanted, self._wanted = self._wanted, 0.0
        tokens = self.objective.teacher_tokens
        own = [{"texts": self.sequences.state(), "random": random_state(), "teacher_tokens": tokens}]
        processes = gather_object(own) if self.accelerator.num_processes > 1 else own
        step = self.state.global_step
        moments, rest = _taken_apart(self.optimizer.state_dict())  # type: ignore[union-attr]
        # gathering FSDP-sharded tensors takes all processes, although rank 0 alone writes them
        tensors = {"model": full_tensors(self._trained_tensors()), "optimizer": full_tensors(moments)}
        unwritten = ""
        if self.is_world_process_zero():
            self.jsonl.flush()
            state = {
                "step": step,
                "steps": self.state.max_steps,
                "optimizer": rest,
                "schedule": self.lr_scheduler.state_dict(),  # type: ignore[union-attr]
                "report": asdict(self.report),
                "gold_nll": self.gold_nll,
                "written_tokens": self.untrained_tokens,
                "teacher_seconds": self.objective.teacher_seconds,
                "seconds": time.perf_counter() - self._started,
                "processes": processes,
            }
            files = {
                "log.jsonl": Path(self.jsonl.name).read_text(),
                "trainer_state.json": json.dumps(asdict(self.state)),
            }
            try:
                self.checkpoints.write(step, tensors, state, files)
            except (OSError, SafetensorError) as error:
                unwritten = self._without_checkpoint(step, tensors, error)
        self.checkpoints.clock()
        self.accelerator.wait_for_everyone()
        if wanted >= STOP:
            raise preemption.Preempted(f"stopped on request after step {step} of {self.state.max_steps}{unwritten}")

    def _without_checkpoint(self, step: int, tensors: Mapping[str, dict[str, torch.Tensor]], error: Exception) -> str:
        """Warn of a checkpoint that could not be written: the fit goes on, since its numbers follow from none."""
        size = sum(tensor.nbytes for group in tensors.values() for tensor in group.values())
        why = f"the checkpoint of step {step} could not be written: {str(error).splitlines()[0]}"
        # the first alone: a disk that is full stays full, and the fit tries again every few minutes
        if not any("could not be written" in warning for warning in self.report.warnings):
            self.report.warnings.append(
                f"no checkpoint: {why} (it needs {size / 2**20:.1f} MB); a stopped fit starts again from an earlier one"
            )
        return f"; {why}"

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        state = read_checkpoint(folder)
        mine = self._trained_tensors()
        with torch.no_grad(), safe_open(folder / "model.safetensors", "pt") as saved:
            assert saved.keys() == sorted(mine), "a checkpoint of another model"
            for name, tensor in mine.items():
                tensor.copy_(local_shard(saved.get_tensor(name), tensor))
        self.report = TrainingReport(**state["report"])
        self.report.earlier_seconds = state["seconds"]
        self.gold_nll[:] = [(step, nll) for step, nll in state["gold_nll"]]
        self.untrained_tokens = state["written_tokens"]
        self.objective.teacher_seconds = state["teacher_seconds"]
        own = state["processes"][self.args.process_index]
        self.objective.teacher_tokens = own["teacher_tokens"]
        self.sequences.restore(own["texts"])
        self._started -= state["seconds"]
        earlier = (folder / "log.jsonl").read_text()
        self.jsonl.write(earlier)
        for line in earlier.splitlines():
            progress.log(json.loads(line))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            state = read_checkpoint(Path(checkpoint))
            weights: list[Any] = [weight for group in self.optimizer.param_groups for weight in group["params"]]  # type: ignore[union-attr]
            with safe_open(Path(checkpoint) / "optimizer.safetensors", "pt") as saved:
                names: list[str] = saved.keys()
                # a moment's key begins with the number of its parameter, whose placement it shares
                likes = {key: weights[int(key.partition(".")[0])] for key in names}
                moments = {key: local_shard(saved.get_tensor(key), like) for key, like in likes.items()}
            self.optimizer.load_state_dict(_put_together(moments, state["optimizer"]))  # type: ignore[union-attr]
            self.lr_scheduler.load_state_dict(state["schedule"])  # type: ignore[union-attr]

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            set_random_state(read_checkpoint(Path(checkpoint))["processes"][self.args.process_index]["random"])

    def _trained_tensors(self) -> dict[str, torch.Tensor]:
        """Tensors that training moves, tied ones once: parameters with a gradient, and buffers that are saved.

        Weights of the objective are among them: they are a layer of the model while it trains.
        """
        module = cast(torch.nn.Module, self.model)
        kept = module.state_dict().keys()
        found = {name: weight.detach() for name, weight in module.named_parameters() if weight.requires_grad}
        return found | {name: buffer for name, buffer in module.named_buffers() if name in kept}


def random_state() -> dict[str, Any]:
    """The state of every global generator (torch, its GPUs, numpy, Python), as plain JSON types."""
    numpy_state: Any = np.random.get_state(legacy=False)
    return {
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "cuda": [state.numpy().tobytes().hex() for state in torch.cuda.get_rng_state_all()],
        "numpy": {**numpy_state, "state": {**numpy_state["state"], "key": numpy_state["state"]["key"].tolist()}},
        "python": random.getstate(),
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put every global generator where `random_state` found it."""
    torch.set_rng_state(_bytes_tensor(state["torch"]))
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([_bytes_tensor(one) for one in state["cuda"]])
    np.random.set_state(
        {**state["numpy"], "state": {**state["numpy"]["state"], "key": np.array(state["numpy"]["state"]["key"], "u4")}}
    )
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))


def _bytes_tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


def _taken_apart(state: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimizer's state: tensors by "<parameter>.<name>", and the rest as plain JSON types."""
    flat = {f"{number}.{name}": value for number, values in state["state"].items() for name, value in values.items()}
    tensors = {key: value for key, value in flat.items() if torch.is_tensor(value)}
    scalars = {key: value for key, value in flat.items() if key not in tensors}
    return tensors, {"scalars": scalars, "groups": state["param_groups"]}


def _put_together(tensors: Mapping[str, torch.Tensor], rest: Mapping[str, Any]) -> dict[str, Any]:
    """What `_taken_apart` took apart."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **rest["scalars"]}.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    return {"state": state, "param_groups": rest["groups"]}
