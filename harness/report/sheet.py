"""Sheet: one table as people read it, and the same in Markdown and LaTeX (booktabs); HTML is `page`'s.

A cell is a text, and the number it is sorted by where it has one. Everything is escaped here, so that texts may come
from records.

    Sheet("scores", "Scores of all arms", (Column("method"), Column("score", numeric=True)), rows).latex()
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
} | {sign: f"\\{sign}" for sign in "&%$#_{}"}


@dataclass(frozen=True)
class Column:
    """A column's heading."""

    label: str
    numeric: bool = False
    """It holds numbers, which stand on the right."""
    prose: bool = False
    """It holds sentences, for which a paper's table has no room."""


@dataclass(frozen=True)
class Entry:
    """One cell: its text, the number it is sorted by, a mark (`good`, `bad`) and where it links to."""

    text: str
    value: float | None = None
    mark: str = ""
    link: str = ""


@dataclass(frozen=True)
class Sheet:
    """A table with a caption; `name` is its file's."""

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Entry]] = field(repr=False)
    caption: str = ""
    """How the table is to be read."""
    folded: bool = False
    """Long, or of interest to few readers: opened by a click."""

    def markdown(self) -> str:
        """A pipe table under its title."""
        lines = [[markdown_text(column.label) for column in self.columns]]
        lines += [["---:" if column.numeric else "---" for column in self.columns]]
        for row in self.rows:
            lines += [[_linked(entry) for entry in row]]
        parts = [f"### {markdown_text(self.title)}", *filter(None, [markdown_text(self.caption)])]
        return "\n\n".join([*parts, "\n".join(f"| {' | '.join(line)} |" for line in lines)])

    def latex(self, grid: str = "") -> str:
        """A float with a booktabs table, for `\\input`, labelled `tab:<grid>-<name>`; made as wide as a line if it is
        wider."""
        shown = [number for number, column in enumerate(self.columns) if not column.prose]
        texts = [[self.columns[number].label for number in shown]]
        texts += [[row[number].text for number in shown] for row in self.rows]
        # after a line break LaTeX would read a bracket as a length
        lines = [" & ".join(latex_text(text) for text in line) for line in texts]
        head, *body = (f"{'{}' if line.startswith('[') else ''}{line} \\\\" for line in lines)
        places = "".join("r" if self.columns[number].numeric else "l" for number in shown)
        caption = latex_text(f"{self.title}. {self.caption}".strip())
        label = re.sub(r"[^A-Za-z0-9-]+", "-", f"{grid}-{self.name}" if grid else self.name)
        return "\n".join(
            [
                "% needs \\usepackage{booktabs,graphicx}",
                "\\begin{table}[t]",
                "\\centering",
                f"\\caption{{{caption}}}",
                f"\\label{{tab:{label}}}",
                "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{",
                f"\\begin{{tabular}}{{{places}}}",
                "\\toprule",
                head,
                "\\midrule",
                *body,
                "\\bottomrule",
                "\\end{tabular}}",
                "\\end{table}\n",
            ]
        )


def dense(sheet: Sheet) -> Sheet:
    """The same without columns that are empty in every row."""
    # a table without rows keeps its headings
    kept = [n for n in range(len(sheet.columns)) if not sheet.rows or any(row[n].text for row in sheet.rows)]
    rows = [[row[n] for n in kept] for row in sheet.rows]
    return replace(sheet, columns=[sheet.columns[n] for n in kept], rows=rows)


def entry(value: Any, form: str = "", mark: str = "") -> Entry:
    """A number in `form` (sorted by itself) or a text; empty where there is none."""
    if value is None or pd.isna(value):
        return Entry("")
    return Entry(format(value, form), float(value), mark) if form else Entry(str(value), None, mark)


def p_value(value: float) -> Entry:
    """A p value with three digits, or `< 0.001`."""
    # below this, three digits would read 0.000
    return Entry("< 0.001", float(value)) if value < 0.0005 else entry(value, ".3f")


def quantity(value: float) -> Entry:
    """A cost with three digits and the prefix people use for it, e.g. `6.38e11` as `638 G`."""
    return Entry("") if pd.isna(value) else Entry(short(value), float(value))


def short(value: float) -> str:
    """Three digits and a prefix: 638 G for 6.38e11, 0.25, 12.5 k."""
    # rounded first, so that 999.6 becomes 1 k and not 1e+03
    size, prefixes = float(f"{abs(value):.3g}"), ["", "k", "M", "G", "T", "P", "E", "Z", "Y"]
    step = 0
    while size >= 1000 and step < len(prefixes) - 1:
        size, step = size / 1000, step + 1
    return f"{'-' if value < 0 else ''}{size:.3g} {prefixes[step]}".strip()


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    escaped = re.sub(r"([\\`*\[\]|])", r"\\\1", " ".join(text.split()))
    # `&` first, or the entities of the other two would be escaped again
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def latex_text(text: str) -> str:
    """Text that LaTeX shows as it is, on one line."""
    return "".join(LATEX.get(sign, sign) for sign in " ".join(text.split()))


def _linked(one: Entry) -> str:
    text = markdown_text(one.text)
    return f"[{text}]({one.link})" if one.link else text
