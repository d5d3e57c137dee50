"""The report: what grids say, as a page a person can look at, as Markdown, and as tables for a paper.

    python -m harness.report data_scaling                       outputs/reports/data_scaling/index.html
    python -m harness.report data_scaling two_stage --out here  one page, a chapter each, all claims on top
    python -m harness.report shared/data_scaling                a folder that Outcome.export wrote

Beside `index.html` lie `report.md`, `figures/` (SVG and PNG) and `tables/` (CSV with every number, LaTeX with
booktabs). The page is one file that loads nothing, and the same bytes for the same records.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.config.checks import SettingsError, check_folder_name, refuse
from harness.report.page import write_report
from harness.store.storage_error import storage_faults


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a report and print where it is; refusals are one sentence and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("grids", nargs="+", help="names of grids in the store, or folders that were exported")
    parser.add_argument("--store", default="outputs", help="the store folder (default: outputs)")
    parser.add_argument("--out", help="where to write (default: <store>/reports/<names>)")
    given = parser.parse_args(arguments)
    try:
        check_folder_name("--store", given.store)
        # of a folder that is there: one that cannot be made is no fault of a disk
        written_to = Path(given.out or given.store).absolute()
        with storage_faults(next(one for one in (written_to, *written_to.parents) if one.is_dir())):
            written = write_report(*given.grids, store=given.store, out=given.out)
        for path in written:
            print(path)
    except SettingsError as error:
        print(f"harness: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = error.filename or given.out or given.store
        refused = refuse("--out", str(where), f"the report cannot be written there ({error.strerror})", "name a folder")
        print(f"harness: {refused}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
