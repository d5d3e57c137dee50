"""A job: stages made by address, wherever a scheduler starts it, from a frozen submission.

    python -m harness.job ADDRESS... --submission <store>/submissions/<name>/submission.json

Exit code 0: every stage is in the store. 1: a stage failed; the last line says why. 75: stopped; started again, it
continues. A job that was stopped by SIGUSR2 (the notice before a time limit, or a preemption) puts itself back into
Slurm's queue first. Run by hand on any machine that reads the store, it does the same. Started several times at once by
srun or `torchrun`, it trains with all of its processes (`execution/distributed/coordinator.py`).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.execution.slurm.task import make


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the addresses named on the command line.

    Raises OSError or ValueError where the submission cannot be read.
    """
    parser = argparse.ArgumentParser(prog="python -m harness.job", description=__doc__)
    parser.add_argument("addresses", nargs="+", help="addresses or keys of the stages to make")
    parser.add_argument("--submission", type=Path, required=True, help="the frozen submission they belong to")
    given = parser.parse_args(arguments)
    return make(given.addresses, given.submission)


if __name__ == "__main__":
    sys.exit(main())
