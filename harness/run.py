"""The front door: `python -m harness.run [-m] key=value ...` runs a cell or a grid, to table, plot and verdict.

Hydra reads the command line (help, completion, `--cfg`), then hands the overrides over; planning and
running happen here. Bad input ends with one sentence and exit code 2 before anything is computed,
Ctrl-C with 130, a grid with failed cells with 1.
"""

import os
import sys
from collections.abc import Sequence

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from harness import notebook_function
from harness.config.checks import SettingsError
from harness.plan.compose import compose, plain_errors, presets_folder, register

requested: list[Sequence[str]] = []
"""The overrides Hydra read; empty when it only printed something (`--help`, `--cfg job`)."""


def main() -> None:
    """Read the command line and run; every refusal is one sentence. Ends the process with the exit codes above."""
    try:
        # Hydra has returned before anything runs, so it neither catches an error of the run nor formats it
        for overrides in _read_command_line():
            run(overrides)
    except SettingsError as error:
        print(f"harness: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nharness: stopped; what is finished is kept, and the same command goes on from here.", file=sys.stderr)
        sys.exit(130)


def run(overrides: Sequence[str]) -> None:
    """Plan and execute the grid that the overrides span, and show what came of it.

    Raises SettingsError for what cannot be run, SystemExit with code 1 where cells failed.
    """
    # imported here: `--help` and completion execute nothing
    from harness.api import collect
    from harness.execution.runner import run_grid, submit_grid
    from harness.store.storage_error import storage_faults
    from harness.store.store import Store

    composed = compose(overrides)
    with storage_faults(Store.at(composed.settings.store).root):
        frozen = run_grid(composed) if composed.settings.slurm is None else submit_grid(composed)
        finished = collect(Store.open(composed.settings.store), frozen) if frozen is not None else None
    if finished is not None:
        finished.show()
        if finished.failed:
            sys.exit(1)


def request(overrides: Sequence[str]) -> None:
    """Note the overrides of a command; called by the sweeper for `-m`, by Hydra's task otherwise."""
    requested.append(overrides)


def _read_command_line() -> list[Sequence[str]]:
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let Hydra's errors reach us, to be said in one sentence
    register()
    with plain_errors():
        hydra.main(config_path=str(presets_folder() / "conf"), config_name="config", version_base="1.3")(_task)()
    return requested


def _task(config: DictConfig) -> None:
    request(list(HydraConfig.get().overrides.task))


notebook_function(__name__)

if __name__ == "__main__":
    from harness.run import main as enter  # the module the sweeper knows, not this `__main__` copy of it

    enter()
