"""Two real tokenizers in the harness's hands: `experiments/cross_tokenizer.yaml`, cut to 16 rows and a small student.

Needs the model that `make smollm2` fetches, and the real rows. How the two tokenizers are aligned is in
`test_alignment.py`, the losses' values are in `training/losses/test_cross_tokenizer.py`.
"""

import json
from dataclasses import replace

import pytest

from harness.config.machine import Launch
from harness.execution.runner import run_grid
from harness.new_student import main
from harness.plan.compose import Composed, compose
from harness.report.terminal import Finished
from harness.store.store import Store
from tests import real

ARMS = ("sft_restart", "uld", "spans", "spans shuffled")


def arm_of(cell):
    method = cell.method
    if not hasattr(method, "loss"):
        return type(method).__module__.rpartition(".")[2]
    return method.loss + " shuffled" * method.shuffled


@pytest.fixture(scope="module")
def arms(tmp_path_factory):
    """What the second stage of every arm left: its log, and the facts of its manifest; and the grid's records."""
    root = tmp_path_factory.mktemp("real")
    real.smollm2_file()
    short = [row for row in real.rows() if sum(len(turn["content"]) for turn in row["messages"]) < 220]
    lines = [json.dumps(row) for row in short[:: len(short) // 20][:20]]
    (root / "rows.jsonl").write_text("\n".join(lines))
    words = ["experiments=cross_tokenizer", "measure.formats=[]", "corpus.heldout_rows=4"]
    words += [f"corpus.path={root / 'rows.jsonl'}"]
    assert main([str(root / "student"), *words, "--vocabulary", "512", "--hidden", "64", "--layers", "2"]) == 0
    words += [f"student.path={root / 'student'}", "data_frac=1.0", "budget.amount=60", "budget.batch_size=4"]
    composed = compose([*words, "budget.learning_rate=5e-3", f"store={root / 'store'}"])
    cells = tuple(cell for cell in composed.cells if cell.seed == 0 and arm_of(cell) in ARMS)
    frozen = run_grid(Composed(cells, replace(composed.settings, launch=Launch("inline"))))
    store = Store.open(root / "store")
    finished = Finished.collect(store, frozen)
    assert not finished.failed, finished.failed
    found = {}
    for cell, planned in zip(cells, frozen.cells, strict=True):
        key = planned.train[-1]
        log = [json.loads(line) for line in (store.folder(key) / "log.jsonl").read_text().splitlines()]
        found[arm_of(cell)] = {"start": planned.train[0], "log": log, "facts": store.manifest(key)["facts"]}
    assert set(found) == set(ARMS)
    return found


def test_all_arms_go_on_from_one_warm_up_and_each_hears_something_else(arms):
    assert len({arm["start"] for arm in arms.values()}) == 1
    first = {name: arm["log"][0] for name, arm in arms.items()}
    # the same student on the same rows: its NLL agrees, and what is minimised differs by the teacher alone
    for one in first.values():
        assert one["nll"] == pytest.approx(first["sft_restart"]["nll"], rel=1e-4)
    assert len({round(one["loss"], 3) for one in first.values()}) == len(ARMS)
    for name, arm in arms.items():
        assert (arm["facts"]["cost"]["teacher_tokens"] > 0) == (name != "sft_restart")


@pytest.mark.parametrize("name", ["uld", "spans"])
def test_the_student_learns_from_the_other_tokenizers_teacher(arms, name):
    losses = [line["loss"] for line in arms[name]["log"]]
    assert len(losses) == 12
    assert sum(losses[-4:]) < 0.97 * sum(losses[:4]), losses


def test_nearly_every_token_is_compared_and_the_share_is_told(arms):
    for name in ARMS[1:]:
        facts = arms[name]["facts"]
        assert facts["metrics"]["aligned_share"] > 0.99 and facts["counts"]["rows_left_out"] == 0
    assert "aligned_share" not in arms["sft_restart"]["facts"]["metrics"]
