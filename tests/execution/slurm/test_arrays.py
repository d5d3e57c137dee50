"""Batches: few arrays for many cells, each waiting for exactly what it needs."""

import json
from dataclasses import asdict

import pytest

from harness.config.checks import SettingsError
from harness.config.cluster import Cluster
from harness.execution.slurm.arrays import batches, own_jobs
from harness.plan.cell_plan import Plan
from harness.plan.compose import compose

ANY = {"name": "test", "resources": [{"cpus": 2, "memory_gb": 4}]}


def plan_of(*arguments):
    return Plan.of(compose(list(arguments)).cells)


def nothing(key):
    return False


def batches_of(plan, done=nothing, **cluster):
    return batches(own_jobs(plan, done), Cluster.of({**ANY, **cluster}))


def targets_of(found):
    return [key for batch in found for task in batch.tasks for key in task]


def test_a_thousand_cells_over_few_shared_stages_take_few_arrays():
    seeds = ",".join(map(str, range(50)))
    plan = plan_of("data_frac=0.01,0.03,0.1,0.3,1.0", "method=sft,kd,logit_kd,reverse_kd", f"seed={seeds}")
    assert len(plan.cells) == 1000
    found = batches_of(plan, pack_minutes=0)
    shared = [batch for batch in found if batch.kind != "cells"]
    assert sum(len(batch.tasks) for batch in shared) <= 10
    assert len(found) <= 20
    # base and teacher are scored twice, and their rows are compared with what is scored
    assert sum(len(batch.tasks) for batch in found if batch.kind == "cells") == 1000 + 4 + 1


def test_every_unfinished_stage_is_made_by_one_job_or_by_the_cells_that_need_it():
    plan = plan_of("data_frac=0.1,1.0", "method=sft,seq_kd,two_stage,self_kd", "teacher=writer")
    jobs = own_jobs(plan, nothing)
    made = {stage.key for job in jobs.values() for stage in job.stages}
    assert made == {stage.key for stage in plan.stages}
    shared = {key for key in jobs if not key.startswith("evaluate")}
    for key, job in jobs.items():
        assert job.stages[-1].key == key
        assert not shared & {stage.key for stage in job.stages[:-1]}  # nobody makes another job's stage


def test_all_evaluations_of_a_cell_are_one_task_and_those_of_a_shared_model_are_not():
    plan = plan_of("data_frac=1.0", "method=sft")
    tasks = {task for batch in batches_of(plan, pack_minutes=0) for task in batch.tasks}
    (cell,) = plan.cells
    base = cell.references["base"]
    assert tuple(stage.key for stage in cell.evaluations.values()) in tasks and len(cell.evaluations) == 2
    assert {(stage.key,) for stage in base.values()} <= tasks


def test_a_student_that_is_scored_in_several_formats_is_trained_in_one_task():
    plan = plan_of("data_frac=1.0", "method=sft", "measure.formats=[int8,nf4]")
    (cell,) = plan.cells
    trained = [task for batch in batches_of(plan, pack_minutes=0) for task in batch.tasks if set(task) & _scored(cell)]
    assert len(trained) == 1 and set(trained[0]) == _scored(cell) and len(trained[0]) == 6


def _scored(cell):
    evaluations = [cell.evaluations, *(one.evaluations for one in cell.deployments["student"].values())]
    return {stage.key for stages in evaluations for stage in stages.values()}


def test_a_job_waits_for_exactly_what_it_needs():
    plan = plan_of("data_frac=1.0", "method=sft,logit_kd")
    found = batches_of(plan)
    by_target = {key: batch for batch in found for task in batch.tasks for key in task}
    cells = {cell.cell.method.__class__.__module__.rsplit(".")[-1]: cell for cell in plan.cells}
    sft, kd = (by_target[cells[name].targets[0].key] for name in ("sft", "logit_kd"))
    teacher = cells["logit_kd"].teacher.key
    assert teacher in kd.needs and teacher not in sft.needs
    assert {key.partition("-")[0] for key in sft.needs} == {"mixture", "base"}


def test_arrays_that_others_wait_for_come_first():
    found = batches_of(plan_of("data_frac=0.1,1.0", "method=sft,kd,seq_kd"))
    seen = set()
    for batch in found:
        assert batch.needs <= seen
        seen |= {key for task in batch.tasks for key in task}


def test_what_is_done_is_neither_made_nor_waited_for():
    plan = plan_of("data_frac=1.0", "method=sft,logit_kd")
    finished = {stage.key for stage in plan.stages if stage.kind != "evaluate"}
    found = batches_of(plan, lambda key: key in finished)
    assert {batch.kind for batch in found} == {"cells"}
    assert all(not batch.needs for batch in found)
    assert batches_of(plan, lambda key: True) == []


def test_short_cells_share_a_job_and_long_ones_do_not():
    plan = plan_of("data_frac=0.01,0.1,1.0", "method=sft", "seed=0,1,2,3")
    alone = batches_of(plan, pack_minutes=0)
    packed = batches_of(plan, pack_minutes=60)
    assert sorted(targets_of(alone)) == sorted(targets_of(packed))
    count = {
        name: sum(len(b.tasks) for b in found if b.kind == "cells") for name, found in [("a", alone), ("p", packed)]
    }
    assert count["p"] < count["a"] == 15


def test_resources_follow_the_kind_of_stage_and_the_largest_model():
    plan = plan_of("data_frac=1.0", "method=sft,logit_kd")
    rules = [
        {"kinds": ["mixture"], "cpus": 1},
        {"parameters": 4e5, "cpus": 3},
        {"cpus": 7},
    ]
    found = batches_of(plan, resources=rules)
    asked = {batch.kind: set() for batch in found}
    for batch in found:
        asked[batch.kind].add(batch.resources.cpus)
    assert asked["mixture"] == {1}
    assert len(asked["cells"]) >= 1
    with pytest.raises(SettingsError, match=r"no rule of slurm/test.yaml fits"):
        batches_of(plan, resources=[{"kinds": ["mixture"]}])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "x", "partitoin": "a"}, ["partitoin", "partition"]),
        ({"name": "x", "resources": []}, ["slurm.resources", "at least one"]),
        ({"name": "x", "resources": [{"gpu": 1}]}, ["slurm.resources", "gpu", "gpus"]),
        ({"name": "x", "resources": [{"minutes": 0}]}, ["slurm.resources.minutes=0", "above 0"]),
        ({"name": "x", "restarts": -1}, ["slurm.restarts=-1", "at least 0"]),
        ({"name": "x", "serve": {"command": "vllm serve {model}"}}, ["slurm.serve.command", "add {port}"]),
        ({"name": "x", "serve": {"resources": {"gpus": 4}}}, ["slurm.serve.command=None"]),
        ({"name": "x", "serve": {"command": "{port}", "resources": {"nodes": 2}}}, ["slurm.serve.resources.nodes=2"]),
        ({"name": "x", "serve": {"command": "{port}", "resources": {"kinds": ["base"]}}}, ["every server"]),
        ({"name": "x", "serve": {"command": "{port}", "gpus": 1}}, ["slurm.serve.gpus=1", "ready_minutes"]),
    ],
)
def test_a_cluster_file_that_cannot_be_meant_is_refused(settings, words):
    with pytest.raises(SettingsError) as refused:
        Cluster.of(settings)
    assert all(word in str(refused.value) for word in words)


def test_single_cells_may_ask_for_more_than_their_like():
    more = {"names": ["logit_kd-1-*"], "memory_gb": 64, "minutes": 600}
    found = batches_of(plan_of("data_frac=0.1,1.0", "method=sft,logit_kd"), resources=[more, {"memory_gb": 4}])
    large = {key for batch in found if batch.resources.memory_gb == 64 for task in batch.tasks for key in task}
    (cell,) = plan_of("data_frac=1.0", "method=logit_kd").cells
    assert large == {stage.key for stage in cell.evaluations.values()}


def test_the_command_line_may_set_what_a_clusters_file_leaves_out():
    slurm = compose(["slurm=dev", "slurm.throttle=3", "slurm.notice_seconds=5"]).settings.slurm
    cluster = Cluster.of(slurm)
    assert (cluster.throttle, cluster.notice_seconds, cluster.partition, cluster.name) == (3, 5, "low", "dev")


def test_only_a_job_that_trains_gets_several_nodes_and_processes():
    rule = {"nodes": 2, "processes": 2, "cpus": 1, "memory_gb": 4}
    found = batches_of(plan_of("data_frac=1.0", "method=sft"), resources=[rule])
    assert {batch.kind: batch.resources.count for batch in found if batch.kind != "cells"} == {
        "mixture": 1,
        "base": 1,
        "measure": 1,
    }
    assert max(batch.resources.count for batch in found if batch.kind == "cells") == 4


def test_a_server_is_started_with_its_words_filled_in_and_nothing_else_touched():
    command = "vllm serve {model} -r {revision} -p {port} -x '{\"a b\": 1}'"
    serve = Cluster.of({"name": "x", "serve": {"command": command}}).serve
    assert serve.words("my model", None, 7)[2:-1] == ["my model", "-r", "main", "-p", "7", "-x"]
    assert serve.words("m", "v2", 7)[-1] == '{"a b": 1}' and serve.words("m", "v2", 7)[4] == "v2"
    kept = json.loads(json.dumps(asdict(serve)))
    assert Cluster.of({"name": "x", "serve": kept}).serve == serve, "a submission keeps it for a retry"
