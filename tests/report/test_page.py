"""The report on invented records: what stands in it, that names are harmless, and that it is the same each time."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

import harness.api as harness
from harness.config.checks import SettingsError
from harness.methods import method_names
from harness.plan.frozen import FrozenPlan
from harness.report.__main__ import main
from harness.report.chapter import chapter
from harness.report.page import html, markdown
from harness.report.paragraph import citations, methods_paragraph
from harness.report.receipt import cell_name
from harness.report.sheet import Column, Entry, Sheet, short
from harness.results.arms import Metric
from harness.results.outcome import Outcome
from harness.store.store import Store
from tests.invented_records import changed, grid, items
from tests.invented_suite import suite

GAINS = {("kd", "weak"): {0.03: 0.15, 1.0: 0.0}, ("logit_kd", "weak"): {0.03: 0.12, 1.0: 0.0}}
CLAIMS = {
    "sha256": "ab" * 32,
    "declared": "2026-01-01T00:00:00+00:00",
    "cells": 2,
    "cells_finished": 0,
    "claims": [
        {"name": "scarce", "says": "KD helps when data is scarce", "gain": {"method": "kd", "data_frac": 0.03}},
        {"name": "never run", "gain": {"method": "kd", "data_frac": 0.5}},
    ],
}
SETTINGS = {"budget": {"learning_rate": 0.00125, "schedule": "cosine"}, "corpus": {"rows": 16000, "max_length": 64}}
VOID = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """What a browser would find: tags in order, text, and whether every tag is closed where it should be."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.texts = [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open += [tag] if tag not in VOID else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not set(self.open) & {"script", "style"}:
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def outcome_of(name="g", gains=GAINS, seeds=3, claims=None, change=None, **more):
    """An outcome of invented records, whose list is changed in place by `change`."""
    records, load_items = grid(gains, seeds=seeds, **more)
    records = [changed(record, grid=name, settings=SETTINGS, artifact=None) for record in records]
    if change:
        change(records)
    return Outcome(name, records, claims, load_items)


def written(outcome, out, **more):
    """Its chapter, page and Markdown without figures, which take longest."""
    one = chapter(outcome, out, Path(), **more)
    return one, Page(html([one], outcome.grid)), markdown([one], outcome.grid)


@pytest.fixture
def no_figures(monkeypatch):
    monkeypatch.setattr("harness.report.chapter.pictures", lambda outcome, folder: [])


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """Two grids of which one lost cells, exported and reported on one page."""
    root = tmp_path_factory.mktemp("reported")

    def lose(records):
        failed = {"status": "failed", "reason": "out of memory: 40 GiB", "failure_class": "oom", "scores": []}
        records[1] = changed(records[1], **failed)
        records[2] = changed(records[2], status="missing", reason="3 of 6 stages not made yet", scores=[])
        records[4] = changed(records[4], warnings=["answers were cut off"])

    outcome_of("first", claims=CLAIMS, change=lose).export(root / "first")
    outcome_of("second", seeds=1).export(root / "second")
    paths = harness.report(str(root / "first"), str(root / "second"), out=root / "out")
    return root, paths


def test_a_page_says_its_claims_then_the_verdict_figures_tables_and_what_is_lost(reported):
    root, paths = reported
    assert [path.name for path in paths] == ["index.html", "report.md"]
    page = Page(paths[0].read_text())
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    order = [
        ids.index(one) for one in ("page:claims-table", "first:decision", "first:figures", "first:scores", "first:lost")
    ]
    assert order == sorted(order)
    first = Outcome.read(root / "first")
    finding = first.findings[0]
    for text in (paths[1].read_text().replace("\\", ""), page.text):
        assert "out of memory: 40 GiB" in text and "3 of 6 stages not made yet" in text
        assert "answers were cut off" in text
        assert "KD helps when data is scarce" in text and "holds" in text and "no answer" in text
        assert f"{finding.estimate:+.3f} [{finding.low:+.3f}, {finding.high:+.3f}]" in text
        assert (
            "before any of the cells they are about (2) was finished. All other results on this page are exploratory"
            in text
        )
        assert "No claim was declared before this grid ran: all results here are exploratory" in text
        assert "This interval excludes seed variance".lower() in text.lower()  # the second has one seed
        assert first.verdict in text


def test_the_page_loads_nothing_and_every_address_in_it_leads_somewhere(reported):
    root, (path, _) = reported
    page = Page(path.read_text())
    assert len(page.all("img")) == len(list(path.parent.rglob("*.svg"))) > 3
    assert all(image["src"].startswith("data:image/svg+xml;base64,") for image in page.all("img"))
    assert all(re.search(r"[+-]\d\.\d{3}|FLOPs", image["alt"]) for image in page.all("img"))  # says what it shows
    assert not re.search(r"url\(|@import|https?://", re.sub(r'href="[^"]*"', "", path.read_text()))
    assert not any("src" in attributes for tag, attributes in page.tags if tag != "img")
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for link in page.all("a"):
        here, _, anchor = link["href"].partition("#")
        assert anchor in ids if anchor else (root / "out" / here).is_file(), link
    labels = [attributes["aria-labelledby"] for _, attributes in page.tags if "aria-labelledby" in attributes]
    assert labels and set(labels) <= set(ids)
    assert page.all("html") == [{"lang": "en"}] and all(one["scope"] for one in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))


def test_the_same_records_give_the_same_bytes(reported, tmp_path):
    root, _ = reported
    harness.report(str(root / "first"), str(root / "second"), out=tmp_path)
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert {"decision.csv", "decision.tex", "crossover.svg", "summary.csv", "claims.tex"} <= {f.name for f in files}
    assert [str(file) for file in files if (root / "out" / file).read_bytes() != (tmp_path / file).read_bytes()] == []


def test_names_that_are_code_elsewhere_are_text_here(no_figures, tmp_path):
    name = "<script>alert(1)</script>"

    def rename(records):
        code = "{{ 7 * 7 }} [weak](javascript:alert(1)) 1 % & a_b | $x$ #1 \\end{table}"
        for number, record in enumerate(records):
            names = {"corpus": '"><img src=x onerror=alert(1)>', "budget": "</li><b>"}
            records[number] = changed(record, **names, teacher=record.teacher and code)
        records[0] = changed(records[0], status="failed", reason="</td><script>alert(2)</script>", scores=[])

    outcome = outcome_of(name, change=rename)
    one, page, text = written(outcome, tmp_path)
    assert name in page.text and "{{ 7 * 7 }}" in page.text and "</td><script>" in page.text
    assert len(page.all("script")) == 1 and not page.all("img")
    assert not any("javascript" in link["href"] for link in page.all("a"))
    assert "<" not in text and not re.search(r"(?<!\\)\]\(javascript", text)
    latex = "\n".join(sheet.latex() for sheet in one.sheets)
    assert r"\textbackslash{}end\{table\}" in latex and r"a\_b \textbar{} \$x\$ \#1" in latex


def test_a_table_is_well_formed_in_markdown_and_latex(no_figures, tmp_path):
    one, _, _ = written(outcome_of(claims=CLAIMS), tmp_path)
    for sheet in one.sheets:
        lines = [line for line in sheet.markdown().splitlines() if line.startswith("|")]
        assert len(lines) == len(sheet.rows) + 2
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {len(sheet.columns) + 1}
        latex = sheet.latex()
        columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", latex).group(1)
        body = latex.partition("\\toprule\n")[2].partition("\\bottomrule")[0].replace("\\midrule\n", "")
        assert body.count("\\\\\n") == len(sheet.rows) + 1
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in body.splitlines()} == {len(columns)}
        assert not re.search(r"(?<!\\)[#$_]|(?<!\\)%(?! needs)|\^|~", latex)
        assert latex.count("{") - latex.count("\\{") == latex.count("}") - latex.count("\\}")


def test_a_row_of_latex_that_begins_with_a_bracket_is_no_length():
    sheet = Sheet("s", "S", (Column("a"), Column("why", prose=True)), [[Entry("[1]"), Entry("long")]])
    assert "\n{}[1] \\\\\n" in sheet.latex() and "long" not in sheet.latex() and "long" in sheet.markdown()


def test_a_grid_without_scores_is_a_page_that_says_so(no_figures, tmp_path):
    def empty(records):
        for number, record in enumerate(records):
            why = "6 stages not made yet"
            records[number] = changed(record, scores=[], items={}, status="missing", reason=why)

    one, page, text = written(outcome_of(change=empty, claims=CLAIMS), tmp_path)
    assert "No verdict: no cell has a score" in page.text and "no answer" in page.text
    assert len(one.troubles[0].rows) == len(grid(GAINS)[0]) and "6 stages not made yet" in text
    _, page, _ = written(Outcome("empty", [], None, items), tmp_path)
    assert "No verdict: the grid has no cells" in page.text


def test_losses_are_told_as_lower_is_better(no_figures, tmp_path):
    def lose(records):
        for number, record in enumerate(records):
            scores = record.plain()["scores"]
            losses = [{**one, "eval": "heldout", "metric": "nll", "score": 3 - one["score"]} for one in scores]
            records[number] = changed(record, scores=losses, items={})

    one, page, _ = written(outcome_of(change=lose), tmp_path)
    assert "heldout nll, lower is better" in page.text
    first = one.lines[0][1][0]
    assert first.gain < 0 and first.choice == "distil" and not first.higher_is_better


def test_the_methods_paragraph_is_read_from_the_records(no_figures):
    text = methods_paragraph(outcome_of(worlds=(0, 1), claims=CLAIMS))
    for part in (
        "kd (arXiv:2306.13649)",
        "logit_kd (arXiv:1503.02531)",
        "3 % and 100 % of mini (16000 training",
        "64 tokens",
    ):
        assert part in text
    assert "peak learning rate 0.00125, schedule cosine" in text and "300 steps x 32 rows" in text
    assert (
        "3 seeds of rows and training in each of 2 replicates, each with its own corpus and teacher" in text
        and "240 items" in text
    )
    assert "adjusted by Holm's method over 4 comparisons" in text and "2 claims were declared before" in text
    assert "1 seed of rows" in methods_paragraph(outcome_of(seeds=1))


def test_methods_are_cited_by_the_numbers_in_their_files():
    assert citations("on_policy") == ("2306.13649",)  # it says of another paper that it is not that
    assert citations("cross_kd") == ("2503.20083", "2402.12030")
    assert citations("sft") == () and citations("no such method") == ()
    assert {"kd", "skd", "seq_kd", "two_stage", "self_kd"} <= {name for name in method_names() if citations(name)}


def test_receipts_and_provenance_are_those_of_the_store(no_figures, tmp_path):
    outcome, store = outcome_of(seeds=4), Store.open(tmp_path / "store")
    students = [record for record in outcome.records if record.role == "student"]
    for record in students[:8]:
        folder = store.model_folder("g", cell_name(record))
        folder.mkdir(parents=True)
        (folder / "RECEIPT.md").write_text("---\nlicense: other\n---\n\n# name\n\n**Beats SFT by a lot.**\n")
    made = {"commit": "c0ffee", "changed": True, "python": "3.11.7", "versions": {"torch": "2.13.0", "trl": None}}
    made["hardware"] = {"cpu": "A CPU", "cores": 2, "machine": "x86_64"}
    folder = store.folder("train-abcd")
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"provenance": made, "published": 1767225600.0}))
    frozen = FrozenPlan("g", {"train-abcd": {}, "train-ef01": {}}, ())
    out = store.root / "reports" / "g"
    out.mkdir(parents=True)
    one, page, _ = written(outcome, out, store=store, frozen=frozen)
    links = [link["href"] for link in page.all("a") if link["href"].endswith("RECEIPT.md")]
    assert len(links) == 8 and all((out / link).is_file() for link in links)
    assert "Beats SFT by a lot." in page.text and "2 more receipts (2)" in page.text
    assert one.receipts[1].folded
    for part in (
        "1 of 2 finished, 2026-01-01 00:00 UTC",
        "c0ffee (1 stages); 1 stages ran with uncommitted changes",
        "torch 2.13.0",
    ):
        assert part in page.text


def test_a_report_of_nothing_known_is_refused_in_one_sentence(tmp_path, capsys):
    assert main(["nowhere", "--store", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("harness: grid='nowhere' cannot be")
    assert not (tmp_path / "reports").exists()
    outcome_of(seeds=1).export(tmp_path / "one")
    with pytest.raises(SettingsError, match="two of them have the same name"):
        harness.report(str(tmp_path / "one"), str(tmp_path / "one"), store=str(tmp_path))


def test_costs_are_told_with_three_digits_and_a_prefix():
    assert [short(value) for value in (6.38e11, 0.25, 12_540.0, 999_600.0, 0.0, -2e6)] == [
        "638 G",
        "0.25",
        "12.5 k",
        "1 M",
        "0",
        "-2 M",
    ]


def test_every_part_of_a_report_names_the_primary_metric_and_what_it_is_of(tmp_path):
    records, load_items = suite({"kd": {0.03: (0.2, 0.1), 1.0: (0.0, 0.0)}}, seeds=2)
    claims = {**CLAIMS, "claims": [*CLAIMS["claims"], {**CLAIMS["claims"][0], "metric": "gsm8k"}]}
    outcome = Outcome("g", records, claims, load_items, primary=Metric("macro_average", "rescaled"))
    one, page, text = written(outcome, tmp_path)
    assert one.metric == "macro_average rescaled of gpqa, gsm8k"
    sheets = {sheet.name: sheet for sheet in one.sheets}
    assert "the gain over SFT in macro_average rescaled is better than zero" in sheets["decision"].caption
    conditions = [row[2].text for row in sheets["claims"].rows]
    assert conditions[0] == "gain of kd at 3 % in macro_average rescaled better than 0"
    assert conditions[2].startswith("gain of kd at 3 % in gsm8k exact_match@lm-eval")
    assert (
        sheets["scores"].rows[0][0].text == "macro_average rescaled"
        and "mean over gpqa, gsm8k" in sheets["scores"].caption
    )
    assert "teacher weak, by macro_average rescaled: " in one.advice[0]
    assert "figures show macro_average rescaled on 130 items" in one.methods and "mean over gpqa, gsm8k" in one.methods
    titles = [picture.title for picture, _ in one.pictures]
    assert "Gain over SFT by benchmark" in titles and "macro_average rescaled of" in one.pictures[0][0].alt
    for whole in (page.text, text):
        assert "macro_average rescaled of gpqa, gsm8k" in whole
    assert {"macro_average rescaled", "macro_average raw"} <= {row[0].text for row in sheets["scores"].rows}
    frame = pd.read_csv(tmp_path / "tables" / "claims.csv")
    assert list(frame["metric"])[:2] == ["macro_average rescaled"] * 2 and frame["metric"][2].startswith("gsm8k ")
    assert set(pd.read_csv(tmp_path / "tables" / "decision.csv")["metric"]) == {"macro_average rescaled"}


def test_a_report_without_any_score_in_the_primary_metric_says_so_and_reports_no_other(tmp_path):
    records, load_items = suite({"kd": {0.03: (0.2, 0.1), 1.0: (0.0, 0.0)}}, seeds=2)
    lost = [
        changed(
            one, scores=[s for s in one.plain()["scores"] if s["eval"] == "gpqa"], status="failed", reason="no disk"
        )
        for one in records
    ]
    outcome = Outcome("g", lost, CLAIMS, load_items, primary=Metric("macro_average", "rescaled"))
    one, page, _ = written(outcome, tmp_path)
    assert "No verdict: no cell has a score in macro_average rescaled. Of 8 cells, 8 failed (no disk)." in page.text
    assert [finding.verdict for finding in one.findings] == ["no answer", "no answer"] and one.pictures == []
    assert {decision.choice for _, places in one.lines for decision in places} == {"no answer"}
    assert methods_paragraph(outcome).count("figures show macro_average rescaled.") == 1
