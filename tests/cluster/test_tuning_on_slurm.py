"""Tuning on a real Slurm: the trials run there, the command stays, and what they choose is what one machine chooses."""

import json
import re
import shutil

from harness.store.store import Store
from tests.cluster.conftest import Sent

TUNE = "+tune={axes: {budget.learning_rate: [0.0001, 0.003]}, rounds: 0}"


def test_a_grid_is_tuned_and_made_while_the_command_waits(grid, tmp_path):
    grid.settings = [one for one in grid.settings if not one.startswith(("method", "budget"))]
    grid.settings += ["method=sft", "budget.amount=20", TUNE]
    alone = Sent(Store.open(tmp_path / "alone"), grid.settings)
    shutil.copytree(grid.store.root / "objects", alone.store.root / "objects", dirs_exist_ok=True)
    alone.run(slurm=None)
    said = grid.run("wait=true")
    assert said.count("calls of sbatch") == 2, "the trials, then the grid"
    assert re.findall(r"(\d) of \1 evaluations done, 0 in the queue", said)[0] == "2" and "(tuned)" in said
    told, mine = (json.loads((s.store.root / "grids" / "g" / "tuning.json").read_text()) for s in (grid, alone))
    assert told == mine and len(told["arms"][0]["trials"]) == 2
    assert grid.made() == alone.made()
    assert grid.verb("status", "g-tuning").startswith("g-tuning: 2 of 2 cells done\n")
