"""The Slurm launcher against commands that answer as Slurm does; `tests/cluster` asks a real one."""

import json
import os
import re
import stat
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from harness import grid
from harness.config.checks import SettingsError
from harness.config.cluster import Cluster
from harness.config.machine import Machine
from harness.execution.slurm.code_snapshot import publish_code
from harness.execution.slurm.job_accounting import states_of
from harness.execution.slurm.squeue import Queue
from harness.execution.slurm.submissions import Submissions
from harness.execution.slurm.submit import submit
from harness.execution.slurm.task import requeue
from harness.plan.cell_plan import Plan
from harness.plan.compose import compose
from harness.plan.graph import MAKERS
from harness.run import run
from harness.store.store import Store

RULES = [{"cpus": 2, "memory_gb": 4, "minutes": 30}]


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A folder of commands; what they are to say lies in files beside them, what sbatch was given too."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "config").write_text("MaxArraySize            = 1001\n")
    (folder / "sinfo.txt").write_text("low|4|8000|gpu:2\nhigh|4|8000|gpu:2(S:0)\n")
    (folder / "squeue.txt").write_text("")
    (folder / "sacct.txt").write_text("")
    (folder / "limits.txt").write_text("\n")
    scripts = {
        "scontrol": f"cat {folder}/config",
        "sinfo": f"cat {folder}/sinfo.txt",
        "squeue": f"cat {folder}/squeue.txt",
        "sacct": f"cat {folder}/sacct.txt",
        "sacctmgr": f"cat {folder}/limits.txt",
        "srun": "true",
        "sbatch": f"n=$(ls {folder}/sent.* 2>/dev/null | wc -l); cp $1 {folder}/sent.$n; "
        "echo Submitted batch job $((100 + n))",
    }
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store")


def plan_of(*arguments):
    return Plan.of(compose(["data_frac=0.1,1.0", "method=sft,logit_kd", *arguments]).cells)


def send(store, plan, grid="g", again=None, **cluster):
    return submit(plan, store, Machine(), Cluster.of({"name": "test", "resources": RULES, **cluster}), grid, again)


def sent(slurm):
    return [(slurm / f"sent.{n}").read_text() for n in range(len(list(slurm.glob("sent.*"))))]


def in_queue(slurm, submission):
    """Put what was sent into the queue, as Slurm would."""
    lines = [
        f"{name}|{task if len(ids) > 1 else 'N/A'}|{job}"
        for name, ids in submission.arrays.items()
        for task, job in enumerate(ids)
    ]
    (slurm / "squeue.txt").write_text("\n".join(lines) + "\n")


def plain(text, store):
    """A batch file without what differs from run to run."""
    text = re.sub(re.escape(str(store.root)), "STORE", text)
    text = re.sub(r"\d{8}-\d{6}-[0-9a-f]{6}", "NAME", text)
    text = re.sub(r"(cells|base|mixture|train)\.[0-9a-f]{6}\.", r"\1.NAME.", text)
    text = re.sub(r"code/[0-9a-f]{32}", "code/HASH", text)
    return re.sub(r"\S+/python\S* -u", "PYTHON -u", text)


def test_the_batch_file_is_the_golden_one(slurm, store):
    """Change golden_sbatch.sh knowingly: it is what every cluster is told."""
    more = {"account": "me", "constraint": "a100", "setup": ["module load cuda"]}
    rules = [{"kinds": ["mixture", "base"], "cpus": 1, "memory_gb": 2}, {"cpus": 2, "memory_gb": 4, "gpus": 2}]
    submission = send(store, plan_of(), partition="low", pack_minutes=0, resources=rules, **more)
    array = next(n for n, ids in enumerate(submission.arrays.values()) if len(ids) > 1 and n > 1)
    assert plain(sent(slurm)[array], store) == (Path(__file__).parent / "golden_sbatch.sh").read_text()


def test_a_job_waits_for_exactly_what_it_needs(slurm, store):
    submission = send(store, plan_of(), pack_minutes=0)
    files = dict(zip(submission.arrays, sent(slurm), strict=True))
    waits = {name: re.search(r"--dependency=afterok:(\S+)", text) for name, text in files.items()}
    free = {name for name, found in waits.items() if found is None}
    assert free == {name for name in files if ".mixture." in name or ".base." in name}
    jobs = [job for ids in submission.arrays.values() for job in ids]
    for found in filter(None, waits.values()):
        assert set(found[1].split(":")) <= set(jobs)
        assert all("_" in job or [job] in submission.arrays.values() for job in found[1].split(":"))


def test_a_submission_is_whole_in_the_store_before_it_is_sent(slurm, store):
    plan = plan_of()
    submission = send(store, plan)
    written = json.loads((submission.folder / "submission.json").read_text())
    assert set(written["stages"]) == {stage.key for stage in plan.stages}
    assert written["cluster"]["name"] == "test" and written["machine"]["device"] == "auto"
    assert {key for tasks in written["arrays"].values() for task in tasks for key in task} == set(written["jobs"])
    assert (store.root / "code").is_dir()


def test_a_rule_may_split_the_model_among_its_processes_and_a_stage_may_be_tried_again_otherwise(slurm, store):
    plan = plan_of("data_frac=1.0", "method=sft")
    trained = next(stage.key for stage in plan.stages if stage.kind == "train")
    again = {trained: {"machine": {"micro_batch_size": 4}, "retried": "in smaller ones"}}
    submission = send(store, plan, again=again, resources=[{**RULES[0], "processes": 2, "shard": True}])
    stages = json.loads((submission.folder / "submission.json").read_text())["stages"]
    assert {key for key, spec in stages.items() if "machine" in spec} == {
        stage.key for stage in plan.stages if stage.kind == "train"
    }
    assert stages[trained]["machine"] == {"shard": True, "micro_batch_size": 4}
    assert stages[trained]["retried"] == "in smaller ones"


def test_what_is_in_the_queue_is_not_sent_again(slurm, store):
    first = send(store, plan_of())
    in_queue(slurm, first)
    again = send(store, plan_of())
    assert again.arrays == {} and again.attached == first.targets


def test_a_larger_grid_waits_for_the_jobs_of_a_smaller_one(slurm, store):
    first = send(store, plan_of("seed=0"))
    in_queue(slurm, first)
    more = send(store, plan_of("seed=0,1"))
    assert all(".cells." in name for name in more.arrays)  # base, teacher and data are being made
    jobs = {job for ids in first.arrays.values() for job in ids}
    for text in sent(slurm)[len(first.arrays) :]:
        assert set(re.search(r"afterok:(\S+)", text)[1].split(":")) <= jobs


def test_a_job_that_left_the_queue_without_its_artifact_is_sent_again(slurm, store):
    first = send(store, plan_of())
    assert send(store, plan_of()).targets == first.targets


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[3] / "slurm").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_cluster_file_has_a_rule_for_every_stage(path):
    cluster = Cluster.of({"name": path.stem, **OmegaConf.to_container(OmegaConf.load(path))})
    has_gpus = any(rule.gpus for rule in cluster.resources)
    for kind in MAKERS:
        small, large = (cluster.resources_for(kind, "name", parameters) for parameters in (1e8, 7e10))
        assert 32 % large.count == 0 == 32 % small.count, "a step's 32 rows divide among the processes"
        assert large.memory_gb >= small.memory_gb and large.gpus >= small.gpus
        assert 60 * large.minutes > cluster.notice_seconds, "the notice comes before the time limit"
        if kind == "overlap":  # it compares text and loads no model, so a file may send it to either
            continue
        on_cpus = kind in ("mixture", "subset")
        assert bool(large.gpus) == (has_gpus and not on_cpus), f"{kind} of a model of 70 billion parameters"


def test_two_submitters_at_the_same_moment_send_each_target_once(slurm, store):
    queue = Queue.read()
    one, other = Submissions(store, queue), Submissions(store, queue)
    assert one.take("train-1", "a", "a.0", 0)
    (slurm / "squeue.txt").write_text("a.0|0|7_0\n")
    assert not other.take("train-1", "b", "b.0", 0)
    assert other.job_id("train-1") == "7_0"


def test_arrays_are_no_longer_than_the_cluster_takes(slurm, store):
    (slurm / "config").write_text("MaxArraySize = 3\n")
    submission = send(store, plan_of("seed=0,1,2,3"), pack_minutes=0)
    assert max(len(ids) for ids in submission.arrays.values()) == 3


@pytest.mark.parametrize(("config", "limits"), [("MaxJobCount = 30", ""), ("MaxJobCount = 10000", "30\n")])
def test_more_cells_share_a_task_where_the_queue_takes_few_jobs(slurm, store, config, limits):
    (slurm / "config").write_text(config + "\n")
    (slurm / "limits.txt").write_text(limits)
    plan = plan_of("seed=range(10)")
    submission = send(store, plan, pack_minutes=0)
    assert sum(len(ids) for ids in submission.arrays.values()) <= 20
    assert submission.targets >= len(plan.cells)


def test_a_queue_that_is_full_is_said_so_and_nothing_is_sent(slurm, store):
    (slurm / "config").write_text("MaxJobCount = 12\n")
    with pytest.raises(SettingsError, match=r"the queue takes 2 more jobs and the grid needs \d+"):
        send(store, plan_of())
    assert sent(slurm) == []


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        ({"partition": "hihg"}, ["slurm.partition='hihg'", "high, low"]),
        ({"resources": [{"gpus": 3}]}, ["slurm.resources.gpus=3", "has 2"]),
        ({"resources": [{"cpus": 5}]}, ["slurm.resources.cpus=5", "has 4"]),
        ({"resources": [{"memory_gb": 64}]}, ["slurm.resources.memory_gb=64", "has 7.8"]),
        (
            {"resources": [{"nodes": 3, "cpus": 1, "memory_gb": 4}]},
            ["budget.batch_size=32", "among 3 nodes x 1 processes"],
        ),
    ],
)
def test_what_the_cluster_does_not_have_is_refused_and_nothing_is_sent(slurm, store, cluster, words):
    with pytest.raises(SettingsError) as refused:
        send(store, plan_of(), **cluster)
    assert all(word in str(refused.value) for word in words)
    assert sent(slurm) == [] and not (store.root / "submissions").exists()


def test_a_grid_that_would_take_more_gpu_hours_than_the_limit_is_refused_and_nothing_is_sent(slurm, store, capsys):
    rules = [{**RULES[0], "gpus": 1, "teraflops": 1e-3}]  # a GPU so slow that the miniature takes hours
    with pytest.raises(SettingsError, match=r"slurm.gpu_hours=0.01 .* g has used 0.0 GPU-hours .* use \d+.\d more"):
        send(store, plan_of(), resources=rules, gpu_hours=0.01)
    assert sent(slurm) == [] and not (store.root / "submissions").exists()
    submission = send(store, plan_of(), resources=rules, gpu_hours=1000)
    lines = [f"{name}|{ids[0]}|NODE_FAIL|0:0|720000|gres/gpu=4|n1|" for name, ids in submission.arrays.items()]
    (slurm / "sacct.txt").write_text(lines[0] + "\n")  # 200 hours of 4 GPUs, lost
    with pytest.raises(SettingsError, match=r"g has used 800.0 GPU-hours"):
        send(store, plan_of(), resources=rules, gpu_hours=800)
    asked = ["--store", str(store.root), "plan", "method=sft", "grid=g", "slurm=dev", "slurm.gpu_hours=800"]
    assert grid.main(asked) == 0
    assert grid.main([*asked[:-1], "slurm.gpu_hours=799"]) == 2
    said = capsys.readouterr()
    assert said.out.count("GPU-hours") == 2 and "slurm.gpu_hours=799 cannot be run: g has used 800.0" in said.err


def test_a_cluster_that_nobody_described_is_refused_and_nothing_is_sent_or_made_here(slurm, tmp_path):
    with pytest.raises(SettingsError, match=r"slurm='nowhere' cannot be run: allowed are dev, example_a100"):
        run(["slurm=nowhere", f"store={tmp_path}/new"])
    assert sent(slurm) == [] and not (tmp_path / "new").exists()


def test_without_slurm_one_sentence_says_so(store, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingsError, match=r"no sbatch on this machine.*slurm/dev_cluster start"):
        send(store, plan_of())


def test_accounts_say_why_a_job_ended_without_its_artifact(slurm, store):
    submission = send(store, plan_of(), pack_minutes=0)
    plan = plan_of()
    key = plan.cells[0].targets[0].key
    note = json.loads((store.root / "jobs" / key).read_text())
    job = submission.arrays[note["array"]][note["task"]]
    start = f"{note['array']}|{job}"
    for line, status, failure, words in [
        ("PENDING|0:0|0|||Dependency", "pending", None, "Dependency"),
        ("RUNNING|0:0|9|cpu=1|n1|None", "running", None, "n1"),
        ("OUT_OF_MEMORY|0:125|9|cpu=1|n1|None", "failed", "oom_host", "out of memory"),
        ("CANCELLED by 0|0:0|9|cpu=1|n1|None", "failed", "cancelled", "cancelled"),
        ("NODE_FAIL|0:0|9|cpu=1|n1|None", "failed", "node_failure", "node fail"),
        ("FAILED|1:0|9|cpu=1|n1|None", "failed", "application", "exit code 1"),
        ("FAILED|75:0|9|cpu=1|n1|None", "missing", None, ""),
    ]:
        (slurm / "sacct.txt").write_text(f"{start}|{line}\n")
        state = states_of(store, [key])[key]
        assert (state.status, state.failure_class) == (status, failure) and words in (state.reason or "")
    log = store.root / "submissions" / note["submission"] / "slurm" / f"{job}_0_log.err"
    log.parent.mkdir(exist_ok=True)
    log.write_text("slurmstepd-n1: error: Exceeded job memory limit\n")
    (slurm / "sacct.txt").write_text(f"{start}|FAILED|9:0|9|cpu=1|n1|None\n")
    assert states_of(store, [key])[key].failure_class == "oom_host"
    (slurm / "sacct.txt").write_text("")
    assert states_of(store, [key])[key].status == "missing"


def test_a_controller_that_is_away_for_a_moment_is_asked_again(slurm, monkeypatch):
    monkeypatch.setattr("harness.execution.slurm.squeue.AGAIN_SECONDS", 0)
    away = (
        f"test -e {slurm}/asked && exit 0; touch {slurm}/asked; echo 'Unable to contact slurm controller' >&2; exit 1"
    )
    (slurm / "squeue").write_text(f"#!/bin/sh\n{away}\n")
    assert Queue.read().jobs == {}
    (slurm / "asked").unlink()
    monkeypatch.setattr("harness.execution.slurm.squeue.AWAY_SECONDS", -1)
    with pytest.raises(SettingsError, match="squeue -h -r failed: Unable to contact"):
        Queue.read()


def test_the_code_is_published_once_for_each_state_of_it(store):
    first = publish_code(store)
    assert (first / "harness" / "job.py").is_file()
    assert publish_code(store) == first
    assert len(list((store.root / "code").iterdir())) == 1


def test_a_job_that_is_submitted_from_a_job_gets_none_of_its_environment(slurm, store, monkeypatch):
    inner = {
        "SLURM_CPU_BIND": "quiet,mask_cpu:0x1",
        "SLURM_TRES_PER_TASK": "cpu=1",
        "SLURM_JOB_ID": "7",
        "SBATCH_PARTITION": "other",
        "SRUN_CPUS_PER_TASK": "2",
        "PMI_RANK": "3",
        "PMIX_RANK": "3",
        "OMPI_COMM_WORLD_RANK": "3",
        "KMP_AFFINITY": "compact",
        "RANK": "3",
    }
    outer = {"SLURM_CONF": "/etc/slurm.conf", "HF_HOME": "/models", "OMPI_MCA_btl": "tcp"}
    for name, value in (inner | outer).items():
        monkeypatch.setenv(name, value)
    script = (slurm / "sbatch").read_text()
    (slurm / "sbatch").write_text(script.replace("#!/bin/sh\n", f"#!/bin/sh\nenv > {slurm}/environment\n"))
    send(store, plan_of("data_frac=1.0", "method=sft"))
    seen = dict(line.partition("=")[::2] for line in (slurm / "environment").read_text().splitlines())
    assert not inner.keys() & seen.keys()
    assert {name: seen.get(name) for name in outer} == outer
    assert {name: os.environ[name] for name in inner} == inner, "the shell's own variables stay as they were"


def test_more_options_of_sbatch_reach_the_jobs_and_a_rule_decides_over_the_cluster(slurm, store):
    extra = {"reservation": "course", "exclusive": True, "licenses": "matlab:1", "comment": None, "contiguous": False}
    rule = {**RULES[0], "memory_gb": None, "extra": {"mem_per_cpu": "4G", "reservation": "own"}}
    send(store, plan_of("data_frac=1.0", "method=sft"), extra=extra, resources=[rule])
    for text in sent(slurm):
        options = re.findall(r"#SBATCH --(\S+)", text)
        assert {"reservation=own", "exclusive", "licenses=matlab:1", "mem-per-cpu=4G"} <= set(options)
        assert not [one for one in options if one.startswith(("mem=", "comment", "contiguous"))]


def test_a_submit_limit_in_mid_submission_is_one_sentence_and_the_same_command_sends_the_rest(slurm, store, capsys):
    whole = send(Store.open(store.root.with_name("other")), plan_of(), pack_minutes=0)
    for path in slurm.glob("sent.*"):
        path.unlink()
    script = (slurm / "sbatch").read_text()
    limit = "sbatch: error: AssocMaxSubmitJobLimit\\nsbatch: error: Batch job submission failed: Job violates policy"
    full = f"test $(ls {slurm}/sent.* 2>/dev/null | wc -l) -ge 2 && {{ printf '{limit}\\n' >&2; exit 1; }}\n"
    (slurm / "sbatch").write_text(script.replace("#!/bin/sh\n", f"#!/bin/sh\n{full}"))
    with pytest.raises(SettingsError) as refused:
        send(store, plan_of(), pack_minutes=0)
    said = str(refused.value)
    assert capsys.readouterr().err == ""
    assert "AssocMaxSubmitJobLimit" in said and "Job violates policy" in said and "\n" not in said
    assert f"2 of {len(whole.arrays)} arrays were sent" in said and "the same command sends the rest" in said
    # the two that were sent are in the queue; the stages of all others can be taken at once
    (name,) = (path.name for path in (store.root / "submissions").iterdir())
    arrays = {path.stem: json.loads(path.read_text()) for path in (store.root / "submissions" / name).glob("g.*.json")}
    assert len(arrays) == 2
    lines = [f"{array}|{task}|{job}" for array, jobs in arrays.items() for task, job in enumerate(jobs)]
    (slurm / "squeue.txt").write_text("\n".join(lines) + "\n")
    (slurm / "sbatch").write_text(script)
    rest = send(store, plan_of(), pack_minutes=0)
    assert len(rest.arrays) == len(whole.arrays) - 2
    assert rest.targets + rest.attached == whole.targets


def test_the_jobs_of_other_users_leave_this_users_limit_alone(slurm):
    (slurm / "squeue.txt").write_text("".join(f"other.{n}|N/A|{n}\n" for n in range(30)))
    (slurm / "limits.txt").write_text("20\n")
    own = 'case "$*" in *--user=*) printf "1\\n2\\n3\\n";; *) cat {0}/squeue.txt;; esac'
    (slurm / "squeue").write_text("#!/bin/sh\n" + own.format(slurm) + "\n")
    assert Queue.read().room == 17
    (slurm / "config").write_text("MaxJobCount = 40\n")
    assert Queue.read().room == 10
    (slurm / "limits.txt").write_text("\n")
    assert Queue.read().room == 10


def test_an_entry_is_written_whole_or_not_at_all(slurm, store, monkeypatch):
    submissions = Submissions(store, Queue.read())
    monkeypatch.setattr(os, "link", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        submissions.take("train-1", "a", "a.0", 0)
    assert list(submissions.folder.iterdir()) == []


def test_code_that_cannot_be_published_is_an_error(store, monkeypatch):
    monkeypatch.setattr(os, "rename", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        publish_code(store)
    assert list((store.root / "code").iterdir()) == []


def test_a_scontrol_that_hangs_leaves_the_exit_code_as_it_is(slurm, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr("harness.execution.slurm.task.REQUEUE_SECONDS", 0.1)
    (slurm / "scontrol").write_text("#!/bin/sh\nexec sleep 5\n")
    requeue(3)
    assert "not queued again (TimeoutExpired)" in capsys.readouterr().out
