"""Write all stand-ins into a new folder: `python -m harness.stand_ins.make FOLDER`.

`harness.stand_ins.ensure` runs this once; it loads torch and transformers.
"""

import sys
from pathlib import Path

from harness.stand_ins import BENCHMARKS, CORPUS, MODELS
from harness.stand_ins.benchmark_items import ITEMS, write_items
from harness.stand_ins.mixture import write_mixture
from harness.stand_ins.models import write_models


def make(folder: Path) -> None:
    """Write the models, the mixture and the benchmarks' items. Raises OSError where the folder cannot be written."""
    write_models(folder / MODELS, write_mixture(folder / CORPUS))
    for name in ITEMS:
        write_items(name, folder / BENCHMARKS)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
