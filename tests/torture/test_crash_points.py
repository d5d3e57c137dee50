"""A thin slice of `make torture`: kills, faults and a race, at operations of makers that cost nothing."""

import json
from pathlib import Path

import pytest

from tests.torture.trials import Trials, stores

SLICES = {
    # act and launch: the first operation, and how many further ones are between two
    "kill inline": (1, 8),
    "kill 1": (4, 9),
    "ENOSPC inline": (2, 12),
    "ENOSPC 1": (7, 30),
    "EROFS inline": (3, 16),
    "EIO inline": (5, 12),
    "EIO 1": (2, 40),
}


def _take(report):
    """All trials, in a process of its own: what it forks finds no second thread, and every module imported."""
    with stores() as folder:
        Path(report).write_text(json.dumps(_taken(Trials(folder, "cheap"))))


def _taken(trials):
    found = {}
    for name, (first, every) in SLICES.items():
        act, launch = name.split()
        points = range(first, len(trials.undisturbed(launch, act)[1]) + 1, every)
        taken = [trials.crash(launch, at) if act == "kill" else trials.fails(launch, act, at) for at in points]
        found[name] = [(one.what, one.wrong, one.left) for one in taken]
    race = trials.race(0)
    found["race"] = [(race.what, race.wrong, race.left)]
    return found


@pytest.fixture(scope="module")
def found(forked, tmp_path_factory):
    """What every trial did, and what was wrong with it."""
    report = tmp_path_factory.mktemp("torture") / "report.json"
    process = forked("tests.torture.trials").Process(target=_take, args=(report,))
    process.start()
    process.join(240)
    assert process.exitcode == 0
    return json.loads(report.read_text())


@pytest.mark.parametrize("name", ["kill inline", "kill 1"])
def test_killed_at_any_operation_the_next_run_ends_in_the_same_table_and_gc_leaves_nothing(found, name):
    assert len(found[name]) >= 20 and all("killed before operation" in what for what, *_ in found[name])
    assert [one for one in found[name] if one[1] or one[2]] == []


@pytest.mark.parametrize("name", ["ENOSPC inline", "ENOSPC 1", "EROFS inline", "EIO inline", "EIO 1"])
def test_a_store_that_fails_at_any_operation_is_named_and_the_same_command_goes_on(found, name):
    assert len(found[name]) >= 6 and all("not reached" not in what for what, *_ in found[name])
    assert [one for one in found[name] if one[1] or one[2]] == []


def test_of_eight_racing_processes_none_makes_a_stage_twice(found):
    ((what, wrong, left),) = found["race"]
    assert "8 processes" in what and not wrong and not left
