"""Training in processes of its own: two that train together are one, and one that is told to stop goes on.

The processes are forked from a server that has imported the trainer once; importing it in each would take
longer than all they do.
"""

import gc
import json
import os
import shutil
import signal
import socket
import time
import traceback
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from harness.config.budget import Budget
from harness.config.checks import SettingsError
from harness.config.machine import Machine
from harness.config.recipe import TrainingPhase
from harness.data.sequences import Rows, visits
from harness.execution.attempt import attempt
from harness.execution.slurm import task
from harness.models import fsdp
from harness.models.logits import agrees
from harness.models.lora import with_adapters
from harness.plan.graph import Stage
from harness.runtime import preemption
from harness.store.status import RECHECKED_CLASSES, stage_state
from harness.store.store import Store
from harness.training.losses.chunked import CHUNK_ELEMENTS
from harness.training.trainer import DivergedError
from tests.doubles import tiny_llama
from tests.models.test_logits import tiny
from tests.stages.small_world import small_world
from tests.training.test_trainer import BUDGET, dataset, train

STEPS, JOB_STEPS = 4, 8
FORWARD = TrainingPhase(divergence="forward_kl")
WHOLE = {
    "given text": (FORWARD, None, {}),
    "student text": (TrainingPhase(sequences="student", student_share=0.5, divergence="forward_kl"), 1, {}),
    "replayed text": (TrainingPhase("student", "forward_kl", student_share=0.6, adaptive=True, replay_rows=4), 1, {}),
}
IN_PARTS = WHOLE | {
    "logits in chunks": (FORWARD, 1, {"chunk": 7}),
    "hidden states": (TrainingPhase(divergence="features", cross_entropy_weight=1.0, hidden_weight=1.0), 1, {}),
    "adapters": (FORWARD, 1, {"adapters": True, "chunk": 7}),
}


@pytest.fixture(scope="module")
def server(forked):
    ours = ("harness.stages.train", "harness.execution.slurm.task")
    mine = ("tests.stages.small_world", "tests.training.test_trainer")
    return forked(*ours, *mine, "torch.distributed.fsdp", "torch.distributed.tensor", "peft")


def fitted(folder, objective, micro, changes, budget=BUDGET, shard=False):
    """Train in `folder`; report, parameters and log are read from it later."""
    folder.mkdir(parents=True, exist_ok=True)
    machine = Machine(device="cpu", micro_batch_size=micro, gradient_checkpointing="chunk" in changes, shard=shard)
    held = Rows(dataset()) if objective.adaptive else None
    model = tiny_llama()
    if "adapters" in changes:
        model = with_adapters(model, {"rank": 4, "alpha": 8.0, "dropout": 0.0}, seed=0)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("harness.training.distillm.RISE", 1.0)
        patched.setattr("harness.training.distillm.TOLERANCE", -10.0)  # every look finds a loss that has risen
        patched.setitem(CHUNK_ELEMENTS, "cpu", changes.get("chunk", 1000) * 262)
        batches = visits(12, STEPS, 4, seed=0)
        more = {"budget": budget, "validation": held, "model": model}
        report, model = train(folder, objective, batches, machine, max_new_tokens=4, **more)
    return report, fsdp.full_tensors(dict(model.named_parameters()))


def together(rank, port, root, answers, cases, shard):
    """One of two processes: every case, then a fit that diverges, then one that is stopped and goes on."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()} | {"GLOO_SOCKET_IFNAME": "lo"})
    torch.set_num_threads(1)
    try:
        for name, case in cases.items():
            report, weights = fitted(root / name, *case, shard=shard)  # into one folder, which the first writes to
            save_file(weights, root / name / f"{rank}.safetensors")
            (root / name / f"{rank}.json").write_text(json.dumps(asdict(report)))
        with pytest.raises(DivergedError):
            steep = Budget(batch_size=4, learning_rate=1e30, warmup_ratio=0.0)
            fitted(root / "diverged", TrainingPhase(), 1, {}, steep, shard)
        with preemption.stoppable(root / "checkpoints"):
            real, asks = preemption.stop_requested, iter([False, rank == 1])  # only the second is told, and both stop
            preemption.stop_requested = lambda: next(asks)
            with pytest.raises(preemption.Preempted, match=f"after step 2 of {STEPS}"):
                fitted(root / "stopped", *WHOLE["student text"], shard=shard)
            preemption.stop_requested = real
        with preemption.stoppable(root / "checkpoints"):
            report, weights = fitted(root / "went on", *WHOLE["student text"], shard=shard)
        save_file(weights, root / "went on" / f"{rank}.safetensors")
        if shard:
            reaches_layers_by_itself = tiny("OPT")
            fsdp.shard_with_fsdp(reaches_layers_by_itself, torch.device("cpu"))
            assert not agrees(reaches_layers_by_itself), "each chunk of logits would gather its layers"
            with pytest.raises(SettingsError, match=r"machine.shard.*does not name its layers"):
                fsdp.shard_with_fsdp(torch.nn.Linear(2, 2), torch.device("cpu"))
        answers.put((rank, None))
    except BaseException:
        answers.put((rank, traceback.format_exc()))
    gc.collect()  # as `process_group` does: what was wrapped goes before the group
    torch.distributed.destroy_process_group()


def lines_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("cases", [WHOLE, IN_PARTS], ids=["whole", "in parts"])
def test_two_processes_are_one(cases, server, tmp_path):
    """Each with the whole model, or with a half of it, its gradients and its optimizer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = server.Queue()
    shard = cases is IN_PARTS
    pair = [server.Process(target=together, args=(rank, port, tmp_path, answers, cases, shard)) for rank in range(2)]
    for process in pair:
        process.start()
    one = tmp_path / "one"
    alone = {name: fitted(one / name, *case) for name, case in cases.items()}
    assert dict(answers.get(timeout=240) for _ in pair) == {0: None, 1: None}
    for name, (report, weights) in alone.items():
        folder = tmp_path / name
        for rank in range(2):
            if rank == 0 or not shard:  # the first alone puts parts together
                found = load_file(folder / f"{rank}.safetensors")
                torch.testing.assert_close(found, {key: one.data for key, one in weights.items()}, rtol=1e-3, atol=1e-5)
            found = json.loads((folder / f"{rank}.json").read_text())
            assert found["warnings"] == report.warnings
            assert bool(report.warnings) == (cases[name][0].needs_warmup or name == "hidden states")
            for key, value in asdict(report).items():
                if "seconds" not in key and key != "warnings":
                    assert found[key] == (value and pytest.approx(value, rel=1e-4)), (name, key)
        for mine, theirs in zip(lines_of(one / name), lines_of(folder), strict=True):
            for key in mine.keys() - {"seconds"}:
                assert theirs[key] == (mine[key] if key == "sequences" else pytest.approx(mine[key], rel=1e-4)), key
    assert "replay" in [line["sequences"] for line in lines_of(one / "replayed text")]
    straight, found = (load_file(tmp_path / name / "0.safetensors") for name in ("student text", "went on"))
    assert all(torch.equal(found[name], straight[name]) for name in straight)
    assert lines_of(tmp_path / "went on")[-1]["loss"] == lines_of(tmp_path / "student text")[-1]["loss"]


def make(settings, inputs, out, machine):
    """A train stage in miniature, slow enough to be told to stop."""
    objective = TrainingPhase(sequences="student", student_share=0.5, divergence="forward_kl")
    model = tiny_llama(dropout=0.1)
    report, _ = train(
        out,
        objective,
        visits(12, settings["steps"], 4, seed=0),
        machine,
        max_new_tokens=settings["tokens"],
        model=model,
    )
    model.save_pretrained(out)
    return {"cost": {"flops": report.flops}, "earlier_seconds": report.earlier_seconds}


def attempted(root, spec):
    torch.set_num_threads(1)
    attempt(Store(root), spec, "tests.execution.distributed.test_processes:make", Machine(device="cpu"))


def test_a_process_told_to_stop_leaves_a_checkpoint_and_the_next_attempt_ends_as_if_nothing_had_been(server, tmp_path):
    store, quiet = Store.open(tmp_path / "told"), Store.open(tmp_path / "quiet")
    stage = Stage("train", "slow", {"steps": 60, "tokens": 12})
    process = server.Process(target=attempted, args=(store.root, stage.spec()))
    process.start()
    deadline = time.monotonic() + 120
    while not any(log.read_text().count("\n") > 2 for log in (store.root / "tmp").glob("*/log.jsonl")):
        assert time.monotonic() < deadline and process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == preemption.EXIT_CODE
    assert stage_state(store, stage.key).failure_class == "preempted" and not store.done(stage.key)
    assert len(list(store.checkpoints(stage.key).glob("step-*"))) == 1

    again = attempt(store, stage.spec(), "tests.execution.distributed.test_processes:make", Machine(device="cpu"))
    plain = attempt(quiet, stage.spec(), "tests.execution.distributed.test_processes:make", Machine(device="cpu"))
    assert again.status == plain.status == "done" and again.facts["cost"] == plain.facts["cost"]
    assert again.facts["seconds"] > again.facts["earlier_seconds"] > 0
    assert not store.checkpoints(stage.key).exists()
    one, other = (load_file(s.folder(stage.key) / "model.safetensors") for s in (store, quiet))
    assert all(torch.equal(one[name], other[name]) for name in other)
    for mine, theirs in zip(lines_of(quiet.folder(stage.key)), lines_of(store.folder(stage.key)), strict=True):
        assert mine | {"seconds": 0} == theirs | {"seconds": 0}


def submission(root):
    """A job of two train stages, the second of adapters, whose inputs are in the store, and the stages."""
    (root / "world").mkdir(parents=True)
    store, world = Store.open(root / "store"), small_world(root / "world")
    made = {"subset": Stage("subset", "rows", {}), "start": Stage("base", "start", {})}
    for role, stage in made.items():
        with store.scratch(stage.key) as folder:
            shutil.copytree(world[role], folder, dirs_exist_ok=True)
            store.publish(stage.key, folder, {"facts": {}})
    budget = {"kind": "steps", "amount": JOB_STEPS, "batch_size": 4, "learning_rate": 1e-2, "warmup_ratio": 0.0}
    asked = {"stage": TrainingPhase().identity(), "budget": budget, "seed": 0, "index": 0, "loss_on": "assistant"}
    stage = Stage("train", "both", asked, made)
    adapters = {"index": 1, "budget": budget | {"amount": 2}, "lora": {"rank": 2, "alpha": 4.0, "dropout": 0.0}}
    then = Stage("train", "then", asked | adapters, {**made, "start": stage})
    written = {
        "store": str(store.root),
        "machine": asdict(Machine(device="cpu", checkpoint_minutes=1e-9)),
        "cluster": {"restarts": 0},
        "stages": {one.key: one.spec() for one in (stage, then)},
        "jobs": {then.key: [stage.key, then.key]},
    }
    (root / "submission.json").write_text(json.dumps(written))
    return store, stage, then, root / "submission.json"


def test_a_job_names_a_damaged_input_and_leaves_it_to_the_next_submission(tmp_path, capsys):
    store, stage, then, file = submission(tmp_path / "one")
    start = stage.inputs["start"].key
    weights = store.folder(start) / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(bytes(changed))
    assert task.make([then.key], file) == 1
    said = capsys.readouterr().out
    assert f"{start} is damaged: model.safetensors has another content" in said and "set aside as quarantine/" in said
    # the submitter sends both again: the one is not made, and the class of the other is one that it tries again
    assert stage_state(store, start).status == "missing"
    assert stage_state(store, stage.key).failure_class == "input" and "input" in RECHECKED_CLASSES


def one_of_four(rank, start, key, file):
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 4, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": start}
    os.environ.update({name: str(value) for name, value in names.items()} | {"GLOO_SOCKET_IFNAME": "lo"})
    torch.set_num_threads(1)
    os._exit(task.make([key], file))


def four(server, start, key, file):
    found = [server.Process(target=one_of_four, args=(rank, start, key, file)) for rank in range(4)]
    for process in found:
        process.start()
    return found


def test_a_job_of_four_processes_one_of_which_is_killed_goes_on_and_publishes_what_one_alone_does(server, tmp_path):
    """Losses within 1e-4 of one process's, parameters within 1e-3 and 1e-5, at the same address; what each process
    begins with the whole model goes on with a fourth of it."""
    store, stage, then, file = submission(tmp_path / "four")
    processes = four(server, "first", then.key, file)
    deadline = time.monotonic() + 120
    while not list(store.checkpoints(stage.key).glob("step-[2-9]")):
        assert time.monotonic() < deadline and all(process.is_alive() for process in processes)
        time.sleep(0.01)
    os.kill(processes[3].pid, signal.SIGKILL)
    killed = time.monotonic()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [1, 1, 1, -signal.SIGKILL]
    assert time.monotonic() - killed < 25
    page = store.attempts(stage.key)[-1]
    assert page["failure_class"] == "killed" and page["reason"].startswith("process 3 of 4")
    left = max(int(path.name[5:]) for path in store.checkpoints(stage.key).glob("step-*"))
    assert 2 <= left < JOB_STEPS

    written = json.loads(file.read_text())
    written["machine"]["shard"] = True
    file.write_text(json.dumps(written))
    processes = four(server, "second", then.key, file)
    alone, _, same, other = submission(tmp_path / "one")
    assert same.address == then.address and task.make([same.key], other) == 0
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 4
    assert store.manifest(stage.key)["facts"]["earlier_seconds"] > 0
    assert store.manifest(stage.key)["machine"]["shard"] and not alone.manifest(stage.key)["machine"]["shard"]
    for key in (stage.key, then.key):
        for mine, theirs in zip(lines_of(alone.folder(key)), lines_of(store.folder(key)), strict=True):
            assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-4) and theirs["tokens"] == mine["tokens"]
        facts = [s.manifest(key)["facts"]["metrics"] for s in (alone, store)]
        assert facts[1]["validation_nll"] == pytest.approx(facts[0]["validation_nll"], rel=1e-4)
        one, many = (AutoModelForCausalLM.from_pretrained(s.folder(key)) for s in (alone, store))
        assert type(one) is type(many) and one.config.architectures == many.config.architectures
        for name, weight in one.state_dict().items():
            torch.testing.assert_close(many.state_dict()[name], weight, rtol=1e-3, atol=1e-5)
