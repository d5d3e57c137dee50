"""What `make docs` adds to MkDocs: pages that stand elsewhere in the repository, tables from the code, and one check.

The README is the site's first page; experiments, benchmarks, the changelog and CONTRIBUTING are pages as they stand. A
link between files of the repository leads to the page of the file; where the site has none, its words are left.
"""

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import reference  # noqa: E402

PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
    "slurm/README.md": "cluster.md",  # which it points to
    "experiments/README.md": "experiments/index.md",
    **{f"experiments/{path.name}": f"experiments/{path.name}" for path in (ROOT / "experiments").glob("[a-z]*.md")},
}
"""Pages that stand outside docs/, by their path in the repository, and where they are in the site."""
FIGURES = [
    path.relative_to(ROOT).as_posix()
    for folder in ("analysis", "experiments")
    for path in (ROOT / folder).glob("*.png")
]
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
INTERVAL = re.compile(r"[+-]?\d+\.\d+ \[[+-]?\d+\.\d+, [+-]?\d+\.\d+\]")
FENCE = re.compile(r"(^```.*?^```$)", re.M | re.S)
LOADED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//|"""
    r"""<link\b(?![^>]*\brel=["']?(?:canonical|next|prev))[^>]*\bhref=["']?(?:https?:)?//|"""
    r"""@import\s+(?:url\()?["']?(?:https?:)?//|url\(["']?(?:https?:)?//"""
)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and figures that stand outside docs/."""
    inside = {file.src_uri for file in files}
    for source, place in [*PAGES.items(), *((figure, figure) for figure in FIGURES)]:
        if place not in inside:
            files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Fill in the tables, turn paths of the repository into paths of the site, and keep every interval on one line."""
    there = {place: source for source, place in PAGES.items() if source != "slurm/README.md"}
    source = there.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    parts = FENCE.split(reference.fill(markdown))
    for number in range(0, len(parts), 2):  # between them stand blocks of code
        text = LINK.sub(lambda link: _relinked(link, source, page.file.src_uri), parts[number])
        text = INTERVAL.sub(lambda interval: interval[0].replace(" ", "&nbsp;"), text)
        parts[number] = re.sub(r"(?<=\d) %", "&nbsp;%", text)
    return "".join(parts)


def _relinked(link: re.Match[str], source: str, place: str) -> str:
    image, words, target = link.groups()
    words = LINK.sub(lambda inner: _relinked(inner, source, place), words)
    path, _, anchor = target.partition("#")
    if not path or ":" in target:
        return f"{image}[{words}]({target})"
    found = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    led = PAGES.get(found) or (found if found in FIGURES else None)
    if led is None and found.startswith("docs/"):
        led = found.removeprefix("docs/")
    if led is None and (ROOT / found).exists():
        return f"`{words}`" if "/" in words and "`" not in words else words
    led = found if led is None else led  # a broken link: MkDocs says where
    relative = posixpath.relpath(led, posixpath.dirname(place) or ".")
    return f"{image}[{words}]({relative}{'#' + anchor if anchor else ''})"


def on_post_build(config: Any) -> None:
    """Refuse a site that loads anything from the network."""
    for path in sorted(Path(config.site_dir).rglob("*")):
        if path.suffix in (".html", ".css") and (found := LOADED.search(path.read_text())):
            raise PluginError(f"{path.relative_to(config.site_dir)} loads something from the network: {found[0]}")
