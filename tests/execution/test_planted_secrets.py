"""Secrets planted in the environment, in settings and in what a server says: in nothing that is written or shown."""

import os
from pathlib import Path

import pytest

import harness.run as door
from harness.config.checks import SettingsError
from harness.report.page import write_report
from tests.doubles import save_tiny, tiny_llama
from tests.fake_server import FakeServer

PLANTED = {
    name: f"pl4nted-{number}-{name.lower().replace('_', '-')}"
    for number, name in enumerate(
        ["HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "SERVE_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "GH_TOKEN"]
    )
} | {"WANDB_API_KEY": "0123456789abcdef" * 2 + "pl4nted0"}
IN_PATH = "pl4nted9token9of9the9path"
REFUSED = {
    "a key of an evaluation's server": ["evals.server=vllm serve {model} --port {port} --api-key pl4nted-arg"],
    "a key in front of it": ["evals.server=env VLLM_API_KEY=pl4nted-arg vllm serve {model} --port {port}"],
    "a user and a password in a corpus": ["corpus=jsonl", "corpus.path=https://me:pl4nted-pw@host/rows.jsonl"],
    "a token in a corpus's address": ["corpus=jsonl", "corpus.path=https://host/rows.jsonl?token=pl4nted-q"],
    "a user and a password in a student": ["student=hf", "student.path=https://me:pl4nted-pw@host/model"],
    "a hub token as a student": ["student=hf", "student.path=hf_pl4ntedpl4ntedpl4nted"],
    "a password in a teacher's address": ["teacher.path=http://me:pl4nted-pw@127.0.0.1:9"],
    "a query in a teacher's address": ["teacher.path=http://127.0.0.1:9/v1?key=pl4nted-q"],
    "a token in a teacher's address": [f"teacher.path=http://127.0.0.1:9/{IN_PATH}/v1"],
    "a key in place of its variable's name": ["teacher.api_key_env=sk-pl4nted-arg"],
    "a variable's value in a setting": ["evals.data_dir=/data/" + PLANTED["GH_TOKEN"]],
}


def everything(folder: Path) -> dict[str, bytes]:
    """The names and bytes of all files below a folder."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A grid with a served teacher that asks for a key and repeats it in an error, tracked; its folder and output."""
    folder = tmp_path_factory.mktemp("secrets")
    tokenizer = save_tiny(folder / "tiny")
    words = ["method=seq_kd", "data_frac=1.0", "student=hf", "student.name=q", f"student.path={tokenizer}"]
    words += ["measure.formats=[]", "corpus.rows=120", "corpus.heldout_per_source=4", "corpus.max_length=128"]
    words += ["budget.amount=3", "budget.batch_size=8", "evals.names=[heldout]", "teacher.label_rows=visited"]
    words += ["grid=g", f"store={folder / 'store'}", "track=wandb", "retry=true", "launch.kind=inline"]
    words += ["teacher=served", "teacher.path=$TEACHER_ADDRESS", "teacher.served_model=tiny"]
    words += [f"teacher.tokenizer={tokenizer}", "teacher.api_key_env=SERVE_KEY", "corpus.max_new_tokens=4"]
    with pytest.MonkeyPatch.context() as patch, FakeServer(tiny_llama(), key=PLANTED["SERVE_KEY"]) as fake:
        for name, value in PLANTED.items():
            patch.setenv(name, value)
        for name in ("CONFIG", "CACHE", "DATA"):
            patch.setenv(f"WANDB_{name}_DIR", str(folder / "wandb_own"))
        patch.setenv("TEACHER_ADDRESS", f"{fake.url}/{IN_PATH}/v1")
        whole = fake.post

        def echoes(headers, request):
            """The first answer that is no probe repeats the key, and the address."""
            if request["max_tokens"] == 16 or getattr(fake, "echoed", False):
                return whole(headers, request)
            fake.echoed = True
            return 400, {"error": {"message": f"no {headers['Authorization']} at {os.environ['TEACHER_ADDRESS']}"}}

        fake.post = echoes
        yield folder, words, fake


def test_a_run_with_a_served_teacher_writes_and_shows_no_secret(ran, capfd):
    folder, words, fake = ran
    with pytest.raises(SystemExit):  # a stage fails, and its attempt keeps what the server said
        door.run(words)
    door.run(words)
    write_report("g", store=str(folder / "store"))
    files, shown = everything(folder / "store"), "".join(capfd.readouterr())
    assert fake.echoed and any("/attempts/" in name for name in files) and len(files) > 60
    assert any(b"(400 no Bearer (" in content for content in files.values())
    assert any("wandb" in name and name.endswith(".wandb") for name in files)
    secrets = [*PLANTED.values(), IN_PATH, "pl4nted"]
    for secret in secrets:
        assert secret not in shown
        assert [name for name, content in files.items() if secret.encode() in content or secret in name] == []


@pytest.mark.parametrize("name", REFUSED)
def test_a_secret_in_a_setting_is_refused_and_not_repeated(ran, name, capfd):
    folder, words, _ = ran
    before = everything(folder / "store").keys()
    with pytest.raises(SettingsError) as refusal:
        door.run([*words, *REFUSED[name]])
    shown = "".join(capfd.readouterr())
    assert "pl4nted" not in str(refusal.value) + shown and "\n" not in str(refusal.value)
    assert everything(folder / "store").keys() == before
