"""A cluster's file: what each malformed one is answered, and what a job gets from a sound one."""

import pytest

from harness.config.checks import SettingsError
from harness.config.cluster import STAGE_KINDS, Cluster
from harness.config.cluster_file import read_cluster_file
from harness.plan import compose as composing
from harness.plan import words
from harness.plan.compose import compose, hydra_ready
from harness.plan.graph import MAKERS

RULE = "resources: [{cpus: 1, memory_gb: 2, minutes: 30}]\n"
SERVE = "serve: {command: 'vllm serve {model} --port {port}'%s}\n" + RULE

FILES = {
    # no settings by name
    "": ["no settings by name"],
    "- a\n- b\n": ["no settings by name"],
    "just text\n": ["no settings by name"],
    "42\n": ["no settings by name"],
    "null\n": ["no settings by name"],
    "1: a\n": ["no settings by name"],
    # no YAML
    "partition: [a\n": ["no YAML in line"],
    "partition: {a: b\n": ["no YAML in line"],
    "partition: 'a\n": ["no YAML in line"],
    "\tpartition: a\n": ["no YAML in line 1"],
    "resources:\n\t- {cpus: 1}\n": ["no YAML in line 2"],
    "partition: a\n  qos: b\n": ["no YAML in line 2"],
    "a: b: c\n": ["no YAML in line 1"],
    "partition: &x\nqos: *y\n": ["no YAML in line 2"],
    "setup: !!python/object/apply:os.system [ls]\n": ["no YAML in line 1"],
    "partition: a\npartition: b\n": ["no YAML in line 2", "partition is given twice"],
    "resources: [{cpus: 1, cpus: 2}]\n": ["no YAML in line 1", "cpus is given twice"],
    "? [a]\n: b\n": ["no YAML in line 1", "plain text"],
    "partition: \x00\n": ["no YAML"],
    # unknown names
    "partitoin: a\n": ["slurm.partitoin='a'", "partition"],
    "resources: [{gpu: 1}]\n": ["slurm.resources.gpu=1", "gpus"],
    "resources: [{cpus: 1}, {ram: 2}]\n": ["slurm.resources.1.ram=2", "memory_gb"],
    "serve: {cmd: x}\n" + RULE: ["slurm.serve.cmd='x'", "command"],
    SERVE % ", gpus: 1": ["slurm.serve.gpus=1"],
    SERVE % ", resources: {gpu: 1}": ["slurm.serve.resources.gpu=1"],
    # words of sbatch
    "partition: 'a;b'\n" + RULE: ["slurm.partition='a;b'", "one word"],
    'partition: "a\\nb"\n' + RULE: ["slurm.partition='a\\nb'", "one word"],
    "partition: [a, b]\n" + RULE: ["slurm.partition=['a', 'b']", "text"],
    "partition: 3\n" + RULE: ["slurm.partition=3", "text"],
    "partition: ''\n" + RULE: ["slurm.partition=''", "one word"],
    "partition: 'a b'\n" + RULE: ["slurm.partition='a b'", "one word"],
    "account: 12\n" + RULE: ["slurm.account=12", "text"],
    "account: 'x $(id)'\n" + RULE: ["slurm.account='x $(id)'", "one word"],
    "qos: {a: b}\n" + RULE: ["slurm.qos={'a': 'b'}", "text"],
    "constraint: [a100]\n" + RULE: ["slurm.constraint=['a100']", "text"],
    "exclude: true\n" + RULE: ["slurm.exclude=True", "text"],
    "resources: [{partition: 'a;b'}]\n": ["slurm.resources.partition='a;b'", "one word"],
    "resources: [{constraint: 3}]\n": ["slurm.resources.constraint=3", "text"],
    # lists
    "setup: module load cuda\n" + RULE: ["slurm.setup='module load cuda'", "write setup: [module load cuda]"],
    "setup: [1, 2]\n" + RULE: ["slurm.setup=[1, 2]", "a list of text"],
    "setup: {a: b}\n" + RULE: ["slurm.setup={'a': 'b'}", "a list of text"],
    'setup: ["a\\nb"]\n' + RULE: ["slurm.setup[0]='a\\nb'", "one line of shell"],
    "resources: {cpus: 1}\n": ["slurm.resources={'cpus': 1}", "a list of rules"],
    "resources: 3\n": ["slurm.resources=3", "a list of rules"],
    "resources: [3]\n": ["slurm.resources=3", "names and values"],
    "resources: [[1]]\n": ["slurm.resources=[1]", "names and values"],
    "resources: [{cpus: 1}, null]\n": ["slurm.resources.1=None", "names and values"],
    "resources: []\n": ["slurm.resources=[]", "at least one"],
    "resources: null\n": ["slurm.resources=[]", "at least one"],
    "resources: [{names: 'kd-*'}]\n": ["slurm.resources.names='kd-*'", "write names: [kd-*]"],
    "resources: [{kinds: train}]\n": ["slurm.resources.kinds='train'", "write kinds: [train]"],
    "resources: [{kinds: [1]}]\n": ["slurm.resources.kinds=[1]", "a list of text"],
    "resources: [{kinds: [tarin]}]\n": ["slurm.resources.kinds='tarin'", "train"],
    # numbers and switches
    "resources: [{shard: maybe}]\n": ["slurm.resources.shard='maybe'", "true or false"],
    "resources: [{shard: 1}]\n": ["slurm.resources.shard=1", "true or false"],
    "resources: [{parameters: 8B}]\n": ["slurm.resources.parameters='8B'", "a number"],
    "resources: [{parameters: x}]\n": ["slurm.resources.parameters='x'", "a number"],
    "resources: [{parameters: -1}]\n": ["slurm.resources.parameters=-1", "at least 0"],
    "resources: [{minutes: 0}]\n": ["slurm.resources.minutes=0", "above 0"],
    "resources: [{minutes: 1.5}]\n": ["slurm.resources.minutes=1.5", "whole number"],
    "resources: [{minutes: '1:00:00'}]\n": ["slurm.resources.minutes='1:00:00'", "whole number"],
    "resources: [{cpus: true}]\n": ["slurm.resources.cpus=True", "whole number"],
    "resources: [{cpus: 0}]\n": ["slurm.resources.cpus=0", "above 0"],
    "resources: [{gpus: -1}]\n": ["slurm.resources.gpus=-1", "at least 0"],
    "resources: [{gpus: a100}]\n": ["slurm.resources.gpus='a100'", "whole number"],
    "resources: [{nodes: 0}]\n": ["slurm.resources.nodes=0", "above 0"],
    "resources: [{processes: 0}]\n": ["slurm.resources.processes=0", "at least 1"],
    "resources: [{memory_gb: 16G}]\n": ["slurm.resources.memory_gb='16G'", "a number"],
    "resources: [{memory_gb: 0}]\n": ["slurm.resources.memory_gb=0", "above 0"],
    "resources: [{memory_gb: .nan}]\n": ["slurm.resources.memory_gb=nan", "a number"],
    "resources: [{teraflops: .inf}]\n": ["slurm.resources.teraflops=inf", "a number"],
    "throttle: 0\n" + RULE: ["slurm.throttle=0", "above 0"],
    "throttle: many\n" + RULE: ["slurm.throttle='many'", "whole number"],
    "restarts: -1\n" + RULE: ["slurm.restarts=-1", "at least 0"],
    "restarts: null\n" + RULE: ["slurm.restarts=None", "whole number"],
    "pack_minutes: -1\n" + RULE: ["slurm.pack_minutes=-1", "at least 0"],
    "gpu_hours: lots\n" + RULE: ["slurm.gpu_hours='lots'", "a number"],
    "gpu_memory_gb: 0\n" + RULE: ["slurm.gpu_memory_gb=0", "above 0"],
    "notice_seconds: 0\n" + RULE: ["slurm.notice_seconds=0", "above 0"],
    "notice_seconds: 1800\n" + RULE: ["slurm.notice_seconds=1800", "minutes is 30"],
    "notice_seconds: 300\nresources: [{minutes: 60}, {minutes: 5}]\n": [
        "slurm.notice_seconds=300",
        "resources.1.minutes",
    ],
    "python: 3\n" + RULE: ["slurm.python=3", "text"],
    "name: ../x\n" + RULE: ["slurm.name='../x'", "1 to 100 letters"],
    # servers
    "serve: vllm\n" + RULE: ["slurm.serve='vllm'", "names and values"],
    "serve: {}\n" + RULE: ["slurm.serve.command=None", "missing"],
    "serve: {command: 3}\n" + RULE: ["slurm.serve.command=3", "text"],
    "serve: {command: 'vllm serve {model}'}\n" + RULE: ["slurm.serve.command=", "{port}"],
    'serve: {command: "vllm \'{model} --port {port}"}\n' + RULE: ["slurm.serve.command=", "close every quote"],
    "serve: {command: 'vllm {modle} --port {port}'}\n" + RULE: ["slurm.serve.command=", "{modle} is none of"],
    "serve: {command: 'vllm {model --port {port}'}\n" + RULE: ["slurm.serve.command=", "{model is none of"],
    SERVE % ", resources: {processes: 4}": ["slurm.serve.resources.processes=4", "one process"],
    SERVE % ", resources: {nodes: 2}": ["slurm.serve.resources.nodes=2", "one node"],
    SERVE % ", resources: {kinds: [base]}": ["slurm.serve.resources.kinds=['base']", "leave it out"],
    SERVE % ", resources: 4": ["slurm.serve.resources=4", "names and values"],
    SERVE % ", ready_minutes: 0": ["slurm.serve.ready_minutes=0", "above 0"],
    SERVE % ", look_seconds: soon": ["slurm.serve.look_seconds='soon'", "a number"],
    # more options of sbatch
    "extra: reservation\n" + RULE: ["slurm.extra='reservation'", "names with values"],
    "extra: {time: 60}\n" + RULE: ["slurm.extra.time=60", "set slurm.resources.minutes"],
    "extra: {t: 60}\n" + RULE: ["slurm.extra.t=60", "set slurm.resources.minutes"],
    "extra: {--partition: a}\n" + RULE: ["slurm.extra.partition='a'", "set slurm.partition"],
    "extra: {cpus_per_task: 2}\n" + RULE: ["slurm.extra.cpus-per-task=2", "set slurm.resources.cpus"],
    "extra: {array: 0-3}\n" + RULE: ["slurm.extra.array='0-3'", "set slurm.throttle"],
    "extra: {output: x}\n" + RULE: ["slurm.extra.output='x'", "sets this option itself"],
    "extra: {export: NONE}\n" + RULE: ["slurm.extra.export='NONE'", "sets this option itself"],
    "extra: {dependency: 'afterok:1'}\n" + RULE: ["slurm.extra.dependency=", "sets this option itself"],
    'extra: {comment: "a\\n#SBATCH --uid=0"}\n' + RULE: ["slurm.extra.comment=", "one word"],
    "extra: {comment: 'a b'}\n" + RULE: ["slurm.extra.comment='a b'", "one word"],
    "extra: {gres: [gpu]}\n" + RULE: ["slurm.extra.gres=['gpu']", "one word"],
    "extra: {'a b': 1}\n" + RULE: ["slurm.extra.a b=1", "long name"],
    "resources: [{extra: {mem-per-cpu: 4G}}]\n": ["slurm.resources.extra.mem-per-cpu='4G'", "memory_gb=null"],
    "resources: [{extra: {mem: 4G}}]\n": ["slurm.resources.extra.mem='4G'", "set slurm.resources.memory_gb"],
}
"""Malformed files, and parts of the sentence that refuses each."""


@pytest.mark.parametrize("text", FILES)
def test_a_malformed_cluster_file_is_one_sentence_that_names_file_or_field(text, tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as refused:
        Cluster.of({"name": "site", **read_cluster_file(path)})
    said = str(refused.value)
    assert "\n" not in said and said.endswith(".")
    assert all(part in said for part in FILES[text]), said
    assert "slurm/site.yaml" in said or said.startswith("slurm.")


def test_the_suite_of_malformed_cluster_files_is_large():
    assert len(FILES) >= 69


def test_a_broken_cluster_file_is_refused_only_where_it_is_chosen(tmp_path, monkeypatch):
    broken = tmp_path / "slurm" / "broken.yaml"
    broken.parent.mkdir()
    broken.write_text("\t- a")
    for name in ("conf", "experiments"):
        (tmp_path / name).symlink_to(composing.presets_folder() / name)
    monkeypatch.setattr(composing, "presets_folder", lambda: tmp_path)
    composing.register.cache_clear()
    words._options.cache_clear()
    try:
        with hydra_ready():
            assert len(compose(["method=sft"]).cells) == 1
            with pytest.raises(
                SettingsError, match=r"slurm='broken' cannot be run: slurm/broken.yaml is no YAML in line 1"
            ):
                compose(["slurm=broken"])
    finally:
        monkeypatch.undo()
        composing.register.cache_clear()
        words._options.cache_clear()
        composing.ConfigStore.instance().repo["slurm"].pop("broken.yaml", None)


def test_rules_are_for_the_kinds_of_stages_that_there_are():
    assert set(STAGE_KINDS) == set(MAKERS)


def test_what_yaml_and_the_settings_call_a_number_is_one(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text("resources: [{parameters: 1e10}, {parameters: 2.5e9}, {memory_gb: 16}]\nconstraint: a100|h100\n")
    rules = Cluster.of({"name": "site", **read_cluster_file(path)}).resources
    assert [rule.parameters for rule in rules] == [1e10, 2.5e9, None]


def test_the_command_line_adds_options_of_sbatch():
    composed = compose(["slurm=dev", "slurm.extra.reservation=course", "slurm.resources.0.extra.gres=gpu:a100:1"])
    cluster = Cluster.of(composed.settings.slurm)
    assert cluster.extra == {"reservation": "course"}
    assert cluster.resources[0].extra == {"gres": "gpu:a100:1"}
