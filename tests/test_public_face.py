"""The package from outside: four verbs for a notebook, and the public names of every room."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from harness import api
from harness.config.checks import SettingsError
from harness.store.store import Store

ROOT = Path(__file__).resolve().parent.parent
ROOMS = sorted(path.parent.name for path in (ROOT / "harness").glob("*/__init__.py"))
VERBS = "from harness import grid, run, results, report"


@pytest.mark.parametrize("before", ["", "import harness.results.table, harness.run; ", "import harness.grid; "])
def test_four_names_make_a_notebook(before, tmp_path):
    code = f"{before}{VERBS}; import harness.api as api; cells = grid(data_frac=[0.1], method=['sft', 'kd'])\n"
    code += "assert cells == api.grid(data_frac=[0.1], method=['sft', 'kd']) and len(cells) == 2\n"
    code += "assert all(callable(one) for one in (run, results, report)); import harness.grid; harness.grid.main"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize("room", ROOMS)
def test_the_public_names_of_a_room_are_there(room):
    package = importlib.import_module(f"harness.{room}")
    assert package.__doc__ and len(package.__doc__) > 80, "what lives there, and what does not"
    face = getattr(package, "__getattr__", None)
    for module, names in (face.names if face else {}).items():
        home = importlib.import_module(f"harness.{room}.{module}")
        assert all(getattr(package, name) is getattr(home, name) for name in names)
    with pytest.raises(AttributeError, match="nonesuch"):
        package.nonesuch  # noqa: B018


def test_a_setting_that_run_would_not_heed_is_refused():
    cells = api.grid(data_frac=[0.1], method=["sft"])
    for given in ({"slurm": {"name": "dev"}}, {"data_frac": 0.5}, {"draws": 2}, {"nonesuch": 1}):
        with pytest.raises(SettingsError, match=rf"^{next(iter(given))}=.*`run` takes store, claims, grid"):
            api.run(cells, **given)


def test_a_store_under_the_home_folder_is_found_again(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store.open("~/runs").root == Store.at("~/runs").root == tmp_path / "runs"
    with pytest.raises(SettingsError, match="has no grid yet"):
        api.results("g", store="~/runs")
