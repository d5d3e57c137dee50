"""Servers that a submission sends or finds running for its jobs; `test_submit.py` has the fake Slurm."""

import functools
import json
import re
import time

import pytest

from harness.config.checks import SettingsError
from harness.data.miniature.tokenizer import load_mini_tokenizer
from harness.execution.slurm.model_servers import wanted
from harness.plan.cell_plan import Plan
from harness.plan.compose import compose
from harness.plan.graph import Stage
from harness.teachers.discovery import read_address
from tests.execution.slurm import test_submit
from tests.execution.slurm.test_submit import in_queue, send, sent

slurm, store = test_submit.slurm, test_submit.store
SERVE = {"command": "vllm serve {model} --port {port}", "resources": {"gpus": 2, "memory_gb": 4, "minutes": 600}}


@pytest.fixture(scope="module")
def served_plan(tmp_path_factory):
    """Plans of cells some of which ask a teacher that the cluster is to serve."""
    folder = tmp_path_factory.mktemp("tokenizer")
    load_mini_tokenizer().save_pretrained(folder)
    teacher = ["teacher=served", "teacher.path=slurm", f"teacher.tokenizer={folder}"]
    teacher += ["teacher.served_model=org/Big-70B", "teacher.api_key_env=SERVE_KEY"]
    fractions = "data_frac=0.1,1.0"

    def plan(method="sft,seq_kd", seed="0"):
        return Plan.of(compose([fractions, f"method={method}", f"seed={seed}", *teacher]).cells)

    return functools.cache(plan)


def waits(text):
    """What a batch file waits for, by how."""
    found = re.search(r"--dependency=(\S+)", text)
    pairs = (part.partition(":") for part in found[1].split(",")) if found else ()
    return {how: set(ids.split(":")) for how, _, ids in pairs}


def make(store, key):
    store.folder(key).mkdir(parents=True)
    (store.folder(key) / "manifest.json").write_text("{}")


def test_one_server_is_sent_before_the_jobs_that_ask_it_and_they_wait_for_its_start(slurm, store, served_plan):
    submission = send(store, served_plan(), pack_minutes=0, serve=SERVE)
    files = dict(zip(submission.arrays, sent(slurm), strict=True))
    (server,) = [name for name in files if ".serve." in name]
    assert next(iter(files)) == server and not waits(files[server])
    assert {"--gpus-per-node=2", "--time=600", "--ntasks-per-node=1"} <= set(files[server].split())
    asking = [name for name, text in files.items() if waits(text).get("after")]
    assert all(waits(files[name])["after"] == {submission.arrays[server][0]} for name in asking)
    written = json.loads((submission.folder / "submission.json").read_text())
    page = next((store.root / "servers").glob("*.json"))
    asks = {key for key, spec in written["stages"].items() if str(page) in json.dumps(spec["where"])}
    assert {key.partition("-")[0] for key in asks} == {"base", "labels"}
    made = {
        array: {key for task in tasks for target in task for key in written["jobs"][target]}
        for array, tasks in written["arrays"].items()
    }
    assert {array for array, keys in made.items() if keys & asks} == set(asking)
    assert Stage.of(written["stages"]).keys() == written["stages"].keys(), "where it is found is no identity"
    assert written["servers"][server]["api_key_env"] == "SERVE_KEY" and read_address(page)["url"] is None


def test_a_later_submission_uses_the_server_that_runs_and_keeps_it(slurm, store, served_plan):
    first = send(store, served_plan(), serve=SERVE)
    in_queue(slurm, first)
    (server,) = [ids[0] for name, ids in first.arrays.items() if ".serve." in name]
    more = send(store, served_plan(seed="0,1"), "h", serve=SERVE)
    assert not any(".serve." in name for name in more.arrays)
    assert {server} in [waits(text).get("after") for text in sent(slurm)[len(first.arrays) :]]
    key = next((store.root / "servers").glob("*.json")).stem
    in_queue(slurm, more)
    assert wanted(store, key), "by the later one alone"
    (slurm / "squeue.txt").write_text("")
    again = send(store, served_plan(seed="0,1"), "h", serve=SERVE)
    assert sum(".serve." in name for name in again.arrays) == 1, "one that is gone is sent again"


def test_a_server_is_wanted_while_a_task_that_may_yet_run_has_something_to_ask(slurm, store, served_plan):
    submission = send(store, served_plan(), serve=SERVE)
    page = next((store.root / "servers").glob("*.json"))
    in_queue(slurm, submission)
    assert wanted(store, page.stem)
    asking = [json.loads(note.read_text()) for note in page.with_suffix("").glob("*.json")]
    for key in {key for note in asking for keys in note["asking"] for key in keys}:
        make(store, key)
    assert not wanted(store, page.stem), "what they asked for is made; that they train still is no matter"
    note = {**asking[0], "asking": [["labels-1"]], "array": "not.sent.yet.0"}
    for change, expected in (({}, True), ({"time": 0.0}, False), ({"pid": 2**30}, False)):
        (page.with_suffix("") / "late.json").write_text(json.dumps({**note, "time": time.time(), **change}))
        assert wanted(store, page.stem) is expected, "a submitter at work has a minute, a dead one none"


def test_no_server_is_sent_for_what_asks_none(slurm, store, served_plan):
    for stage in served_plan().stages:
        if stage.kind in ("base", "labels"):
            make(store, stage.key)
    for plan in (served_plan("sft"), served_plan()):
        submission = send(store, plan, serve=None)
        assert submission.targets and not any(".serve." in name for name in submission.arrays)


@pytest.mark.parametrize(
    ("serve", "words"),
    [
        (None, ["slurm.serve=None", "test has no settings to serve org/Big-70B", "example_a100"]),
        ({**SERVE, "resources": {"gpus": 8}}, ["slurm.resources.gpus=8", "has 2"]),
    ],
)
def test_a_cluster_that_cannot_serve_is_said_so_and_nothing_is_sent(slurm, store, served_plan, serve, words):
    with pytest.raises(SettingsError) as refused:
        send(store, served_plan(), serve=serve)
    assert all(word in str(refused.value) for word in words)
    assert sent(slurm) == [] and not (store.root / "servers").exists()
