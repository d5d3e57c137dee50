"""The front door: `python -m harness.run [-m] key=value ...` runs a cell or a grid, to table, plot and verdict.

Hydra reads the command line (help, completion, `--cfg`), then hands the overrides over; planning and
running happen here. Bad input ends with one sentence and exit code 2 before anything is computed,
Ctrl-C with 130, SIGTERM with 143, a grid with failed cells with 1.
"""

import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

if __name__ == "__main__":
    # before the imports below, so that a signal in the first tenths of a second is no traceback
    from harness.runtime.start_up import stop_with_a_sentence

    stop_with_a_sentence()

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from harness import notebook_function
from harness.config.checks import SettingsError
from harness.plan.compose import compose, plain_errors, presets_folder, register, sweeping_word
from harness.runtime.preemption import Preempted
from harness.runtime.start_up import STOPPED

requested: list[Sequence[str]] = []
"""The overrides Hydra read; empty when it only printed something (`--help`, `--cfg job`)."""


class Terminated(SystemExit):
    """SIGTERM reached this process; no Exception, so that nothing on the way takes it for a failed stage."""


def main() -> None:
    """Read the command line and run; every refusal is one sentence. Ends the process with the exit codes above."""
    before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        # Hydra has returned before anything runs, so it neither catches an error of the run nor formats it
        for overrides in _read_command_line():
            run(overrides)
    except SettingsError as error:
        print(f"harness: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    # a stage that runs in this process hears the signal itself, and has kept what it can continue from
    except (Terminated, Preempted):
        print(STOPPED, file=sys.stderr)
        sys.exit(128 + signal.SIGTERM)
    finally:
        for number, handler in before:
            signal.signal(number, handler)


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
    for note in composed.notes:
        print(f"note: {note}", file=sys.stderr)
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
    """The settings of the command line; none where Hydra printed something instead, as for `--help`.

    Raises SettingsError for a sweep without `-m`, and for what Hydra refuses.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let Hydra's errors reach us, to be said in one sentence
    register()
    options = [word for word in sys.argv[1:] if word.startswith("-")]
    # Hydra is needed for its own options alone; without it the settings are composed once
    if set(options) <= {"-m", "--multirun"}:
        words = [word for word in sys.argv[1:] if word not in options]
        if not options and (word := sweeping_word(words)):
            raise SettingsError(f"{word} is a sweep: add -m to run each of its values, or quote a text with a comma.")
        return [words]
    with plain_errors():
        hydra.main(config_path=str(presets_folder() / "conf"), config_name="config", version_base="1.3")(_task)()
    return requested


def _terminate(number: int, frame: Any) -> None:
    raise Terminated


def _task(config: DictConfig) -> None:
    request(list(HydraConfig.get().overrides.task))


notebook_function(__name__)

if __name__ == "__main__":
    from harness.run import main as enter  # the module the sweeper knows, not this `__main__` copy of it

    enter()
