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

from harness.config.checks import SettingsError, refuse
from harness.outcome import RECORDS, Outcome
from harness.page import html, markdown
from harness.page.chapter import Chapter, chapter, slug
from harness.plan.frozen import frozen_plan
from harness.store.store import Store, write_text


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a report and print where it is; refusals are one sentence and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grids", nargs="+", help="names of grids in the store, or folders that were exported")
    parser.add_argument("--store", default="outputs", help="the store folder (default: outputs)")
    parser.add_argument("--out", help="where to write (default: <store>/reports/<names>)")
    given = parser.parse_args(arguments)
    try:
        for path in report(*given.grids, store=given.store, out=given.out):
            print(path)
    except SettingsError as error:
        print(f"harness: {error}", file=sys.stderr)
        return 2
    return 0


def report(*grids: str, store: str = "outputs", out: str | Path | None = None) -> list[Path]:
    """Write the report of one or several grids into `out`; returns the paths of the page and of the Markdown.

    A grid is its name in the store, or a folder that `Outcome.export` wrote. Raises SettingsError where there is no
    such grid, before anything is written.
    """
    opened = Store(Path(store).absolute())
    read = [_read(name, opened) for name in grids]
    names = [slug(outcome.grid) for outcome, _ in read]
    if not names:
        raise refuse("grids", list(grids), "a report needs at least one")
    if len(set(names)) < len(names):
        raise refuse("grids", list(grids), "two of them have one name", "report them apart, each with its own --out")
    folder = Path(out) if out else opened.root / "reports" / "+".join(names)
    folder.mkdir(parents=True, exist_ok=True)
    chapters: list[Chapter] = []
    for (outcome, frozen), name in zip(read, names, strict=True):
        part = Path(name) if len(names) > 1 else Path()
        chapters.append(chapter(outcome, folder, part, opened if frozen else None, frozen))
    title = ", ".join(one.grid for one in chapters)
    write_text(folder / "index.html", html(chapters, title))
    write_text(folder / "report.md", markdown(chapters, title))
    return [folder / "index.html", folder / "report.md"]


def _read(name: str, store: Store) -> tuple[Outcome, dict | None]:
    """A grid's outcome, with its frozen plan where it is one of the store."""
    if (Path(name) / RECORDS).is_file() and not (Path(name) / "plan.json").is_file():
        return Outcome.read(Path(name)), None
    frozen = frozen_plan(store, name)
    return Outcome.of(store, frozen), frozen


if __name__ == "__main__":
    sys.exit(main())
