"""A benchmark whose answers a server writes: the same text, from a server of our own that ends with the stage."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from harness.config.checks import SettingsError
from harness.config.file_hash import file_sha256
from harness.config.machine import Machine
from harness.evals.benchmarks import load_benchmark
from harness.plan.cell_plan import plan_cell
from harness.plan.compose import compose
from harness.stages.evaluate import make_evaluate
from harness.stand_ins.benchmark_items import write_items
from harness.teachers import server_process
from tests.doubles import save_tiny

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install -e '.[evals]'")
SERVER = f"{sys.executable} -m tests.serve_tiny {{model}} {{port}}"


def test_a_server_writes_what_is_written_here(tmp_path, monkeypatch):
    monkeypatch.setattr(server_process, "STEP_SECONDS", 0.05)
    model = save_tiny(tmp_path / "model")
    files = [str(path) for path in write_items("mmlu_pro", tmp_path / "data").glob("*.jsonl")]
    settings = {"eval": "mmlu_pro", "limit": None, "card": load_benchmark("mmlu_pro").identity(), "files": {}}
    settings["files"] = {path.name: file_sha256(path) for path in map(Path, files)}
    found = {}
    for served in (False, True):
        out = tmp_path / str(served)
        out.mkdir()
        where = {"files": files} | ({"server": SERVER} if served else {})
        more = {"served": True} if served else {}
        facts = make_evaluate({**settings, **more, "where": where}, {"model": model}, out, Machine(device="cpu"))
        found[served] = facts["cost"], json.loads((out / "scores.json").read_text())
    assert found[True] == found[False]
    assert found[True][0]["generated_tokens"] > 0


def test_a_server_that_does_not_start_says_why(tmp_path):
    with (
        pytest.raises(SettingsError, match=r"evals\.server=.*ended with exit code 1: no memory"),
        server_process.serving("sh -c 'echo no memory; exit 1' {model} {port}", tmp_path),
    ):
        pass
    with (
        pytest.raises(SettingsError, match=r"no-such-program cannot be started"),
        server_process.serving("no-such-program {model} {port}", tmp_path),
    ):
        pass


def test_a_server_outlives_the_notice_before_a_time_limit_and_ends_with_its_block_and_its_own_children(tmp_path):
    """Slurm sends the notice to all processes of a job; the server is still needed when the stage has answered it."""
    script = "sleep 60 & echo $! $$ > pids; wait"
    with server_process.server_process(["sh", "-c", f"cd {tmp_path}; {script}"], tmp_path / "log") as server:
        while len(pids := (tmp_path / "pids").read_text().split() if (tmp_path / "pids").exists() else []) < 2:
            time.sleep(0.01)
        for pid in pids:
            os.kill(int(pid), signal.SIGUSR2)
        time.sleep(0.2)
        assert server.ended() is None and all(Path(f"/proc/{pid}").exists() for pid in pids)
    assert signal.SIGUSR2 not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/cmdline").read_text()]


def test_that_it_is_served_is_identity_and_by_what_is_not():
    def key(*words):
        (cell,) = compose(["method=sft", "evals.names=[gsm8k]", *words]).cells
        return plan_cell(cell).evaluations["gsm8k"].key

    one, other = (key(f"evals.server='{command} {{model}} {{port}}'") for command in ("vllm", "sglang"))
    assert one == other != key()
    with pytest.raises(SettingsError, match=r"evals\.server='vllm'.*add both placeholders"):
        key("evals.server=vllm")
