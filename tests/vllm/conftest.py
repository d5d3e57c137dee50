"""A real vLLM on CPUs for the tests beside this file, serving SmolLM2-135M-Instruct; `make test-vllm` installs it."""

import os
import shlex
import time
from pathlib import Path

import pytest

from harness.models.loading import load_gguf, save_model
from harness.runtime.processes import free_port
from harness.teachers.server_process import server_process
from tests.real import smollm2_file

NAME = "smol"
SECONDS_TO_START = 900.0
OPTIONS = "--dtype float32 --max-model-len 1024 --max-logprobs 128 --logprobs-mode raw_logprobs --enforce-eager"
# A seeded request whose prompt is processed in two parts ends vLLM 0.32 on a CPU ("CPU Generator does not use offset"),
# so 64 prompts of the whole context fit into one pass.
OPTIONS += " --no-enable-chunked-prefill --max-num-batched-tokens 65536"
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}


def pytest_collection_modifyitems(config, items):
    command = os.environ.get("HARNESS_VLLM", "")
    missing = not Path(command).is_file()
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            item.add_marker(pytest.mark.timeout(1800))
            if missing or config.option.markexpr != "vllm":
                item.add_marker(pytest.mark.skip(reason="by `make test-vllm`, which installs vLLM (3.5 GB)"))


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory):
    """The model as a Hugging Face folder, in fp32."""
    folder = tmp_path_factory.mktemp("smollm2")
    model, tokenizer = load_gguf(smollm2_file())
    save_model(model.float(), tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def server(smollm2, tmp_path_factory):
    """The address of a vLLM that serves the folder under `NAME`."""
    port = free_port()
    words = [os.environ["HARNESS_VLLM"], "serve", str(smollm2), "--served-model-name", NAME]
    words += ["--host", "127.0.0.1", "--port", str(port), *shlex.split(OPTIONS)]
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    before = dict(os.environ)
    os.environ |= SETTINGS
    os.environ.pop("PYTHONPATH", None)  # vLLM has an environment of its own
    try:
        with server_process(words, log) as process:
            os.environ.clear()
            os.environ.update(before)

            def pause(seconds):
                assert (ended := process.ended()) is None, f"{ended}; {log}"
                time.sleep(seconds)

            url = f"http://127.0.0.1:{port}"
            process.wait_until_ready(url, None, SECONDS_TO_START, pause)
            yield url
    finally:
        os.environ.clear()
        os.environ.update(before)
