"""Overview: every benchmark of a grid side by side, a row per model; `table.py` shows the headline metric in full.

console.print(overview(frame))      # frame: table.summary(records)
"""

import math
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness.table import percent

if TYPE_CHECKING:
    from rich.table import Table

NAMED = ["method", "teacher", "student"]


def overview(frame: pd.DataFrame) -> "Table | None":
    """Scores of all arms on public benchmarks; null where a grid has none. Bold: a gain over SFT after Holm."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    columns = ("metric", "source", "headline")
    rows = frame if len(frame) and set(columns) <= set(frame) else pd.DataFrame(columns=columns)
    rows = rows[rows["metric"].str.contains("@", na=False) & (rows["source"] == "all") & rows["headline"].astype(bool)]
    if rows.empty:
        return None
    names = list(dict.fromkeys(zip(rows["eval"], rows["metric"], strict=True)))
    order = rows["role"].map({"base": 0, "student": 1, "teacher": 2})
    rows = rows.assign(order=order).sort_values(["order", "data_frac", "method"], kind="stable")
    table = Table(title="Public benchmarks", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("data", justify="right")
    for column in NAMED:
        table.add_column(column)
    for name, metric in names:
        table.add_column(escape(f"{name}\n{metric.partition('@')[0]}"), justify="right")
    for _, part in rows.groupby(["role", "data_frac", *NAMED], sort=False, dropna=False):
        first: dict[Any, Any] = part.iloc[0].to_dict()
        cells: dict[Any, dict[Any, Any]] = {(row["eval"], row["metric"]): row for row in part.to_dict("records")}
        scores = []
        for name in names:
            row = cells.get(name) or {"score": math.nan, "gain_p_holm": math.nan}
            text = "" if pd.isna(row["score"]) else f"{row['score']:.3f}"
            scores.append(Text(text, "bold" if row["gain_p_holm"] < 0.05 else ""))
        named = [first[column] for column in NAMED]
        shown = ["" if pd.isna(value) else escape(str(value)) for value in named]
        table.add_row(percent(first["data_frac"]), *shown, *scores)
    suite = names[0][1].partition("@")[2].rpartition("/")[0]
    table.caption = f"By {suite}, each card's hash in results.csv; not to be put beside scores made in another way."
    table.caption_justify = "left"
    return table
