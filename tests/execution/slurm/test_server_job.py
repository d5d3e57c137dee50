"""A server's job with a stand-in for vLLM, as a process of its own: when it serves and ends, and what it leaves."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from harness.execution.slurm import server_job
from harness.execution.slurm.model_servers import Server
from harness.execution.slurm.submissions import new_entry
from harness.store.store import Store, write_json
from harness.teachers.discovery import address_file, read_address, write_address

SERVER = Server("org/Big-70B", None, "SERVE_KEY")
NAME, ARRAY, STAGE = "g.serve.3f2a10.0", "g.labels.3f2a10.1", "labels-1"
STAND_IN = """
import http.server, json, os, pathlib, sys
model, port = sys.argv[1], int(sys.argv[2])
pathlib.Path(__file__).with_name("argv").write_text(f"{os.getpid()} {sys.argv}")
print("loading", model, flush=True)
if model == "dies":
    sys.exit("Traceback\\nRuntimeError:   no kernel image")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        known = self.headers["Authorization"] == "Bearer " + os.environ["SERVE_KEY"]
        self.send_response(200 if known else 401)
        self.end_headers()
        self.wfile.write(json.dumps({"data": [{"id": "org/Big-70B"}]}).encode())
http.server.HTTPServer(("", port), Handler).serve_forever()
"""


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Slurm's commands: squeue says what lies in a file, scontrol notes its arguments."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "squeue.txt").write_text(f"{ARRAY}|N/A|17\n")
    for name, script in {
        "squeue": f"cat {folder}/squeue.txt",
        "scontrol": f'echo "$@" >> {folder}/sent',
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SERVE_KEY", "sk-very-secret")
    for name in [name for name in os.environ if name.startswith("SLURM")]:
        monkeypatch.delenv(name)
    return folder


class Job:
    """A server's job as its submitter left it, with an array in the queue that wants it."""

    def __init__(self, folder, model=SERVER.model, **settings):
        self.store = Store.open(folder / "store")
        self.server, self.stand_in = SERVER._replace(model=model), folder / "stand_in.py"
        self.stand_in.write_text(STAND_IN)
        command = f"{sys.executable} {self.stand_in} {{model}} {{port}}"
        settings = {"command": command, "look_seconds": 0.2, "ready_minutes": 0.5, **settings}
        self.submission = self.store.root / "submissions" / "s" / "submission.json"
        self.submission.parent.mkdir(parents=True)
        written = {"store": str(self.store.root), "servers": {NAME: self.server._asdict()}}
        write_json(self.submission, {**written, "cluster": {"restarts": 3, "serve": settings}})
        self.file, self.note = address_file(self.store, self.server.key), self.store.root / "jobs" / self.server.key
        write_address(self.file, name=NAME, job=None, model=model, ready_minutes=0.5)
        self.file.with_suffix("").mkdir()
        write_json(
            self.file.with_suffix("") / f"{ARRAY}.json", {**new_entry("s", ARRAY, 0), "time": 0.0, "asking": [[STAGE]]}
        )
        self.note.parent.mkdir()
        write_json(self.note, new_entry("s", NAME, 0))

    def start(self):
        command = [
            sys.executable,
            "-m",
            "harness.execution.slurm.server_job",
            NAME,
            "--submission",
            str(self.submission),
        ]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def serving(self):
        """Start it and wait until it says where it listens: the process and the address."""
        process, end = self.start(), time.monotonic() + 20
        while (url := (read_address(self.file) or {}).get("url")) is None:
            assert process.poll() is None and time.monotonic() < end, process.communicate()[0]
            time.sleep(0.05)
        return process, url

    def child_lives(self):
        try:
            child = self.stand_in.with_name("argv").read_text().split()[0]
            return "stand_in" in Path(f"/proc/{child}/cmdline").read_text()
        except FileNotFoundError:
            return False


def ended(process):
    said, _ = process.communicate(timeout=30)
    return process.returncode, said


def made(store, key):
    store.folder(key).mkdir(parents=True)
    write_json(store.folder(key) / "manifest.json", {})


def test_it_serves_until_what_asks_it_is_made_and_leaves_nothing(commands, tmp_path):
    job = Job(tmp_path)
    process, url = job.serving()
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{url}/v1/models")
    address = read_address(job.file)
    assert (address["name"], address["model"]) == (NAME, SERVER.model) and job.child_lives()
    made(job.store, STAGE)
    code, said = ended(process)
    assert code == 0 and f"{SERVER.model} is served at {url}" in said
    assert not (job.file.exists() or job.note.exists() or job.child_lives())
    assert not list(job.file.with_suffix("").iterdir())
    texts = [said, json.dumps(address), job.stand_in.with_name("argv").read_text(), job.submission.read_text()]
    assert not any("secret" in text for text in texts), "the environment alone holds the key"


def test_it_ends_when_what_asks_it_has_left_the_queue(commands, tmp_path):
    job = Job(tmp_path)
    process, _ = job.serving()
    (commands / "squeue.txt").write_text("another|N/A|17\n")
    assert ended(process)[0] == 0 and not job.file.exists()


def test_it_is_not_started_where_no_job_needs_it(commands, tmp_path):
    job = Job(tmp_path)
    (commands / "squeue.txt").write_text("")
    assert ended(job.start())[0] == 0
    assert not (job.file.exists() or job.note.exists() or job.stand_in.with_name("argv").exists())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": "dies"}, "ended with exit code 1: RuntimeError: no kernel image"),
        ({"model": "org/Other"}, r"teacher.served_model='org/Other' cannot be run: the server at"),
        ({"command": "sh -c 'sleep 60' {port}", "ready_minutes": 0.01}, "did not answer"),
        ({"command": "nonesuch {port}"}, "nonesuch cannot be started"),
    ],
)
def test_one_that_cannot_serve_says_why_in_its_last_line_and_in_its_address_file(commands, tmp_path, given, words):
    job = Job(tmp_path, **given)
    code, said = ended(job.start())
    assert code == 1 and words in said.splitlines()[-1]
    assert words in read_address(job.file)["failed"] and not job.note.exists(), "the next to use it sends another"
    assert not job.child_lives()


def test_a_signal_before_the_time_limit_queues_it_again_while_it_is_needed(commands, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    job = Job(tmp_path)
    process, _ = job.serving()
    child = int(job.stand_in.with_name("argv").read_text().split()[0])
    os.kill(child, signal.SIGUSR2)  # Slurm signals every process of a job
    time.sleep(0.2)
    assert job.child_lives()
    process.send_signal(signal.SIGUSR2)
    assert ended(process)[0] == 75 and not job.child_lives()
    assert (commands / "sent").read_text() == "requeue 12\n"
    assert read_address(job.file)["url"] is None and job.note.exists(), "its users wait, and later ones find it"


def test_one_that_may_not_be_queued_again_says_so_to_those_who_wait(commands, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    job = Job(tmp_path)
    process, _ = job.serving()
    process.send_signal(signal.SIGUSR2)
    code, said = ended(process)
    assert code == 75 and "raise slurm.restarts to allow more" in said and not (commands / "sent").exists()
    assert "3 restarts" in read_address(job.file)["failed"] and not job.note.exists()


def test_a_job_that_is_ended_takes_its_server_along(commands, tmp_path):
    job = Job(tmp_path)
    process, _ = job.serving()
    process.terminate()
    assert ended(process)[0] == 75 and not job.child_lives() and read_address(job.file)["url"] is None
    assert not (commands / "sent").exists()


def test_it_stays_for_a_job_that_was_sent_while_it_looked_for_the_last_time(commands, tmp_path, monkeypatch):
    job = Job(tmp_path)
    made_of = server_job.ServerJob(NAME, job.submission)
    looks = []

    def wanted(store, key):
        looks.append(job.note.exists())
        return len(looks) == 2

    monkeypatch.setattr(server_job, "wanted", wanted)
    assert not made_of._over() and looks == [True, False], "the last look comes after it can no longer be found"
    assert job.file.exists() and made_of._over() and not job.file.exists()


def test_it_gives_way_to_another_that_was_sent_for_the_same_model(commands, tmp_path):
    job = Job(tmp_path)
    made_of = server_job.ServerJob(NAME, job.submission)
    write_address(job.file, name="g.serve.000000.0", job=None, model=SERVER.model, ready_minutes=1)
    assert made_of._over() and read_address(job.file)["name"] == "g.serve.000000.0"


def test_it_stays_while_the_queue_cannot_be_asked(commands, tmp_path, capsys):
    job = Job(tmp_path)
    made_of = server_job.ServerJob(NAME, job.submission)
    (commands / "squeue").write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2; exit 1\n")
    assert not made_of._over() and not made_of._over()
    assert capsys.readouterr().out.count("Unable to contact slurm controller") == 1
