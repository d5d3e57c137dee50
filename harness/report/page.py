"""Page: the report of grids, as one self-contained HTML page and as Markdown, a chapter each.

Style, script and figures are in the page, and its content security policy lets it load nothing. Without script the
content is the same; with it, tables can be sorted and filtered. `page.html`, `page.css` and `page.js` lie here.

    write_report("data_scaling", "two_stage")     # outputs/reports/data_scaling+two_stage/index.html, report.md
"""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from harness.config.checks import refuse
from harness.plan.frozen import FrozenPlan, frozen_plan
from harness.report.chapter import Chapter, chapter, slug
from harness.report.sheet import Sheet, markdown_text
from harness.report.tables import claims_sheet
from harness.results.decision import Price
from harness.results.outcome import RECORDS, Outcome
from harness.results.table import percent
from harness.store.store import Store, write_text

HERE = Path(__file__).parent
FILTERED = 8
"""Tables with more rows have a box to filter them."""


def write_report(*grids: str, store: str = "outputs", out: str | Path | None = None) -> list[Path]:
    """Write the report of one or several grids into `out`; returns the paths of the page and of the Markdown.

    A grid is its name in the store, or a folder that `Outcome.export` wrote. Raises SettingsError where there is no
    such grid, none is named or two have one name, before anything is written; OSError where files cannot be read or
    written.
    """
    opened = Store.at(store)
    read = [_read(name, opened) for name in grids]
    names = [slug(outcome.grid) for outcome, _ in read]
    if not names:
        raise refuse("grids", list(grids), "a report needs at least one grid")
    # the name is the folder of a chapter's figures and tables, which the second would overwrite
    if len(set(names)) < len(names):
        raise refuse(
            "grids", list(grids), "two of them have the same name", "write one report for each, with its own --out"
        )
    folder = Path(out) if out else opened.root / "reports" / "+".join(names)
    folder.mkdir(parents=True, exist_ok=True)
    chapters: list[Chapter] = []
    for (outcome, frozen), name in zip(read, names, strict=True):
        # one grid has its figures beside the page, several have a folder each
        part = Path(name) if len(names) > 1 else Path()
        chapters.append(chapter(outcome, folder, part, opened if frozen else None, frozen))
    title = ", ".join(one.grid for one in chapters)
    write_text(folder / "index.html", html(chapters, title))
    write_text(folder / "report.md", markdown(chapters, title))
    return [folder / "index.html", folder / "report.md"]


def html(chapters: Sequence[Chapter], title: str) -> str:
    """The whole page; everything that comes from records is escaped."""
    style, script = ((HERE / f"page.{ending}").read_text() for ending in ("css", "js"))
    # `StrictUndefined`: a name that the template misspells raises, where jinja would print nothing
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters |= {"percent": percent, "signed": "{:+.3f}".format, "times": _times}
    template = environment.from_string((HERE / "page.html").read_text())
    return template.render(
        title=title,
        chapters=chapters,
        claims=all_claims(chapters),
        style=Markup(style),
        script=Markup(script),
        # the content security policy lets in this style and this script by their hashes, and no other
        hashes={"style": _hash(style), "script": _hash(script)},
        inline=_inline,
        filtered=FILTERED,
    )


def markdown(chapters: Sequence[Chapter], title: str) -> str:
    """The same in Markdown, with links to the figures beside it."""
    parts = [f"# {markdown_text(title)}"]
    claims = all_claims(chapters)
    parts += [claims.markdown()] if claims else []
    for one in chapters:
        parts += [f"## {markdown_text(one.grid)}", markdown_text(f"{one.counts}; {one.metric}.")]
        parts += ["### Verdict", *(f"**{markdown_text(text)}**" for text in one.advice), markdown_text(one.verdict)]
        if one.first_warnings:
            parts.append("\n".join(f"- Warning: {markdown_text(text)}" for text in one.first_warnings))
        if one.shared_changes:
            parts.append(f"What would change any verdict here. {markdown_text(' '.join(one.shared_changes))}")
        parts += [sheet.markdown() for sheet in one.decision if sheet.rows]
        parts += [markdown_text(one.declared), *([one.claims.markdown()] if one.claims else [])]
        for picture, link in one.pictures:
            parts += [f"### {markdown_text(picture.title)}", f"![{markdown_text(picture.alt)}]({link})"]
        parts += [sheet.markdown() for sheet in [*one.tables, *one.troubles, *one.receipts] if sheet.rows]
        parts += ["### Methods", markdown_text(one.methods), "### Provenance"]
        parts.append("\n".join(f"- {name}: {markdown_text(text)}" for name, text in one.provenance))
        parts += ["### Files", "\n".join(f"- [{markdown_text(name)}]({link})" for name, link in one.downloads)]
    return "\n\n".join(parts) + "\n"


def all_claims(chapters: Sequence[Chapter]) -> Sheet | None:
    """The claims of all grids in one table; null for one grid, or without any claim."""
    found = [(finding, one.grid) for one in chapters for finding in one.findings]
    if len(chapters) < 2 or not found:
        return None
    findings, grids = zip(*found, strict=True)
    return claims_sheet(findings, grids)


def _times(price: Price) -> str:
    """What distillation costs beside SFT, in words; empty where one of them is not known."""
    if not (price.sft > 0 and price.distil > 0):
        return ""
    times = f"{price.distil / price.sft:.3g}"
    # compared as it is printed, so the text never says "1 times"
    return "as many FLOPs as SFT" if times == "1" else f"{times} times SFT's FLOPs"


def _inline(path: Path) -> str:
    """An SVG as an address that holds it whole."""
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _read(name: str, store: Store) -> tuple[Outcome, FrozenPlan | None]:
    """A grid's outcome, with its frozen plan where it is one of the store."""
    # a grid's own folder has records too, with its plan beside them; an exported folder has no plan
    if (Path(name) / RECORDS).is_file() and not (Path(name) / "plan.json").is_file():
        return Outcome.read(Path(name)), None
    frozen = frozen_plan(store, name)
    return Outcome.of(store, frozen), frozen
