"""The front door: `python -m harness.run [-m] key=value ...` runs a cell or a grid, to table, plot and verdict.

Hydra reads the command line; bad input ends with one sentence and exit code 2 before anything is
computed, Ctrl-C with 130, a grid with failed cells with 1.
"""

import os
import sys
from collections.abc import Sequence

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from harness.compose import plain_errors, presets_folder, register
from harness.config import SettingsError


def run(arguments: Sequence[str]) -> None:
    """Plan and execute the grid that the overrides span, and show what came of it."""
    from harness.api import run_grid
    from harness.compose import compose

    finished = run_grid(compose(arguments))
    finished.show()
    if finished.failed:
        sys.exit(1)


def task(config: DictConfig) -> None:
    """What Hydra calls for a run without `-m`; an experiment's own sweep still makes a grid of it."""
    run(list(HydraConfig.get().overrides.task))


def main() -> None:
    """Read the command line and run; every refusal is one sentence."""
    full_errors = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let Hydra's errors reach us, to be said in one sentence
    try:
        register()
        with plain_errors():
            hydra.main(config_path=str(presets_folder() / "conf"), config_name="config", version_base="1.3")(task)()
    except SettingsError as error:
        if full_errors:
            raise
        print(f"harness: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nharness: stopped; what is finished is kept, and the same command goes on from here.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
