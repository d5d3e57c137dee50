"""What a command does not load: seconds of start-up, guarded without a clock (benchmarks/start_up.py has one)."""

import copy
import os
import subprocess
import sys

import hydra
import pytest
from hydra.core.config_store import ConfigStore

from harness.methods import method_names
from harness.plan.cell_plan import Plan
from harness.plan.compose import compose, hydra_ready, register
from harness.plan.frozen import freeze, keep_plan
from harness.store.store import Store

HEAVY = {"torch", "transformers", "datasets", "pandas", "scipy", "statsmodels", "matplotlib", "submitit"}
TEXT_ONLY = HEAVY | {"hydra", "rich"}


def modules_after(code, folder, **environment):
    """The modules that a new process has loaded once `code`, which may exit with 0, is through."""
    script = (
        f"import sys\nsys.argv = ['harness']\ntry:\n    {code}\nexcept SystemExit as end:\n    assert not end.code\n"
        "print('\\n' + ' '.join(sys.modules))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=folder, env={**os.environ, **environment}
    )
    assert answer.returncode == 0, answer.stderr
    printed, _, loaded = answer.stdout.rstrip("\n").rpartition("\n")
    return printed, set(loaded.split())


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A store with a grid's plan, and the key of one of its stages."""
    plan = Plan.of(compose(["method=sft,kd"]).cells)
    store = Store.open(tmp_path_factory.mktemp("planned") / "store")
    keep_plan(store, freeze(plan, "g"))
    return store, plan.stages[0].key


@pytest.mark.parametrize(
    ("verb", "printed"),
    [
        ("status", "g: 0 of 2 cells done, 2 missing"),
        ("status g", "kd 1 mini teacher=weak seed=0"),
        ("logs KEY", "has not been tried yet"),
        ("explain KEY", '"kind": "'),
    ],
)
def test_looking_at_a_grid_loads_neither_hydra_nor_pandas(planned, tmp_path, verb, printed):
    store, key = planned
    arguments = ["--store", str(store.root), *verb.replace("KEY", key).split()]
    found, loaded = modules_after(f"from harness.grid import main; sys.exit(main({arguments}))", tmp_path)
    assert printed in found
    assert not TEXT_ONLY & loaded


def test_help_and_completion_read_only_the_presets_they_compose(tmp_path):
    others = {f"harness.methods.{name}" for name in method_names()} - {"harness.methods.sft"}
    ask = "from harness.run import main; sys.argv += {}; main()"
    found, loaded = modules_after(ask.format(["--help"]), tmp_path)
    assert f"method: {', '.join(method_names())}\n" in found
    assert not (HEAVY | others) & loaded
    line = "harness method=logit"
    found, loaded = modules_after(
        ask.format(["-sc", "query=bash"]), tmp_path, COMP_LINE=line, COMP_POINT=str(len(line))
    )
    assert found.strip() == "method=logit_kd"
    assert not (HEAVY | others) & loaded


def test_hydra_shares_presets_among_its_copies_and_no_change_reaches_them():
    register()
    nodes = ConfigStore.instance()
    assert copy.deepcopy(nodes).repo is nodes.repo  # one copy for each of a hundred groups took seconds
    with hydra_ready():
        asked = ["method=kd", "slurm=dev", "experiments=temperature"]
        first, before = hydra.compose("config", asked), hydra.compose("config", asked)
        first.seed, first.method.student_share, first.corpus.max_length, first.slurm.partition = 77, 0.125, 7, "other"
        first.sweep.product.data_frac.append(0.5)
        assert first != before == hydra.compose("config", asked)
