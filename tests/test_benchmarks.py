"""The scripts in benchmarks/ that nothing else runs, on models and rows so small that their figures mean nothing."""

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

ROWS, BATCH, NEW = 8, 4, 6


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))


def run(script, monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", [script.__name__, *arguments])
    monkeypatch.setattr("harness.runtime.progress.MIN_SECONDS_BETWEEN_REPORTS", 0.0)
    script.main()
    return json.loads(capsys.readouterr().out)


def test_gpu_objectives_runs_from_end_to_end_on_a_cpu(monkeypatch, capsys):
    import gpu_objectives

    sizes = "--steps", "2", "--batch-size", "2", "--micro-batch-size", "1", "--length", "32", "--new-tokens", "8"
    found = run(gpu_objectives, monkeypatch, capsys, "--tiny", "--peak-tflops", "1", *sizes)
    arms = found["arms"]
    assert (
        set(arms) == {"sft", "forward_kl", "cached_top_64", "on_policy"} == set(found["seconds_per_step_against_sft"])
    )
    assert {arms[name]["scored_tokens"] for name in ("sft", "forward_kl", "cached_top_64")} == {2 * 2 * 24}
    assert 0 < arms["on_policy"]["scored_tokens"] == arms["on_policy"]["generated_tokens"] <= 2 * 2 * 8
    assert arms["sft"]["first_loss"] == pytest.approx(torch.log(torch.tensor(320.0)).item(), rel=0.05)
    assert 0 < arms["cached_top_64"]["first_loss"] < arms["forward_kl"]["first_loss"]  # a tail in one bucket says less
    for arm in arms.values():
        used = arm["tflop_per_step"] / arm["seconds_per_step"]  # at a peak of one teraflop a second
        assert arm["model_flops_utilisation"] == pytest.approx(used, rel=0.01) and arm["peak_mib"] > 0


def test_gpu_objectives_is_refused_without_a_gpu_unless_tiny(monkeypatch, capsys):
    import gpu_objectives

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device is visible; run it with --tiny"):
        run(gpu_objectives, monkeypatch, capsys)


def test_a_gpu_nobody_knows_needs_its_peak(monkeypatch, capsys):
    import gpu_objectives

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    with pytest.raises(SystemExit, match="Tesla T4 is not in the table"):
        run(gpu_objectives, monkeypatch, capsys)


def test_peaks_are_found_by_the_names_devices_have():
    from llama_shapes import peak_tflops

    names = {"NVIDIA H100 80GB HBM3": 989, "NVIDIA H100 PCIe": 756, "NVIDIA A100-SXM4-80GB": 312, "NVIDIA A10": 125}
    assert {name: peak_tflops(name) for name in names} == names
    assert peak_tflops("Tesla T4") is None and peak_tflops("NVIDIA A10G") is None


@pytest.mark.parametrize("shape", ["STUDENT", "TEACHER"])
def test_a_forward_pass_is_two_flops_per_weight_and_token(shape):
    import llama_shapes

    settings = getattr(llama_shapes, shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**settings))
    body = sum(one.weight.numel() for one in model.model.modules() if isinstance(one, torch.nn.Linear))
    flops = llama_shapes.forward_flops(settings, read_tokens=10, scored=3, length=0)
    assert flops == 2 * (10 * body + 3 * model.lm_head.weight.numel())
    attended = llama_shapes.forward_flops(settings, read_tokens=10, scored=3, length=10) - flops
    pairs = 10 * 10 / 2  # of positions, in one row of 10
    assert attended == settings["num_hidden_layers"] * pairs * settings["hidden_size"] * 4  # two products of 2 FLOPs


@pytest.mark.parametrize("task", ["sft", "forward_kl", "jsd", "on_policy"])
def test_arms_compared_with_trl_do_the_same_work(tmp_path, task):
    from against_trl import RIVALS
    from trl_arms import ARMS
    from trl_work import Work, models_of, prepare

    from harness.models.loading import load_tokenizer

    prepare("mini", ROWS, str(tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    tokenizer = load_tokenizer(tmp_path)
    done = {}
    for arm in ("ours", *RIVALS[task]):
        student, teacher = models_of("mini", tokenizer)
        done[arm] = ARMS[arm](Work(rows, BATCH, NEW, tokenizer, student, teacher, str(tmp_path)), task)
    ours = done["ours"]
    assert ours.scored == (ROWS * NEW if task == "on_policy" else sum(_answer_tokens(tokenizer, row) for row in rows))
    for arm in done.values():
        assert len(arm.at) == ROWS // BATCH and arm.scored == ours.scored
        assert arm.first_loss == pytest.approx(ours.first_loss, rel=1e-4) and arm.first_loss > 0


def _answer_tokens(tokenizer, row):
    return len(tokenizer(row[-1]["content"])["input_ids"]) + 1  # and the end of the turn


@pytest.mark.parametrize("binary", [False, True])
def test_planted_gains_are_covered_and_what_is_not_there_is_not_found(binary):
    import interval_coverage as study

    held = {shape: [] for shape in ("crosses at 20 %", "none")}
    for shape, found in held.items():
        generator = study.np.random.default_rng(1)
        found += [study.one(generator, shape, "5 draws x 2 seeds", binary) for _ in range(80)]
    share = {
        name: sum(one[name] for one in held["crosses at 20 %"]) / 80 for name in ("gain", "shrinking", "crossover set")
    }
    assert min(share.values()) >= 0.88, share
    assert sum(one["called"] == "crosses" for one in held["none"]) <= 6
    assert sum(one["called"].startswith("never") for one in held["none"]) <= 6


def test_start_up_takes_turns_with_another_checkout(monkeypatch, capsys):
    import start_up

    root = str(Path(__file__).parent.parent)
    asked = "--rounds", "1", "--only", "complete method=", "--baseline", root
    (found,) = run(start_up, monkeypatch, capsys, *asked)["cpu_seconds"].values()
    assert found["same_output"] and found["aim"] == 0.5 and 0.05 < found["ours"] < 60
    assert found["reached"] == (found["ours"] <= 0.5)
