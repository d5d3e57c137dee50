"""Notebooks: executed from stored results and from a live miniature; in git they are without outputs."""

import os
import zlib
from pathlib import Path

import pytest

from analysis.notebook import claims, crossings, scores, unfinished
from harness.results.outcome import Outcome
from tests.invented_records import changed, grid

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

ANALYSIS = Path(__file__).resolve().parent.parent / "analysis"
STORED = ANALYSIS / "stored"
READING = {
    "crossover": "data_scaling",
    "teacher_strength": "strong_teacher",
    "two_stage": "two_stage",
    "methods": "methods_low_data",
}
"""Notebooks that read a grid, and the stored one each reads by itself."""
LIVE = "your_own_grid"
FOR_OTHER_GRIDS = ("figure(gap_figure", "figure(setting_figure")
"""Figures that need three teachers, or three values of a setting: the notebook says so, and draws nothing."""


def files_of(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if "__pycache__" not in path.parts}


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Executes a notebook as Jupyter does, from its own folder, with settings in the environment."""

    def run(name, **settings):
        for variable in ("HARNESS_GRID", "HARNESS_STORE"):
            monkeypatch.delenv(variable, raising=False)
        for variable, value in settings.items():
            monkeypatch.setenv(variable, str(value))
        for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "MPLCONFIGDIR"):
            monkeypatch.setenv(variable, str(tmp_path / variable))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ANALYSIS.parent), os.environ.get("PYTHONPATH", "")]))
        before = files_of(ANALYSIS)
        book = nbformat.read(ANALYSIS / f"{name}.ipynb", as_version=4)
        where = {"metadata": {"path": str(ANALYSIS)}}
        nbclient.NotebookClient(book, timeout=250, kernel_name="python3", resources=where).execute()
        assert files_of(ANALYSIS) == before, "a notebook wrote beside itself"
        return book

    return run


def shown(book):
    """What a reader sees: by cell source, texts and the kinds of everything else."""
    found = {}
    for cell in book.cells:
        for output in cell.get("outputs", []):
            assert output["output_type"] != "error", output
            told = [output["text"]] if "text" in output else list(output["data"])
            found.setdefault(cell["source"], []).extend(told)
    return found


def assert_answers(book, verdict=None):
    """Figures, a table of scores and a verdict are there."""
    found = shown(book)
    assert verdict or not any(one.get("name") == "stderr" for cell in book.cells for one in cell.get("outputs", []))
    figures = [source for source in found if source.startswith("figure(")]
    undrawn = [source for source in figures if "image/png" not in found[source]]
    assert len(undrawn) < len(figures) and all(source.startswith(FOR_OTHER_GRIDS) for source in undrawn), undrawn
    assert "text/html" in found["scores(outcome)"]
    assert any("text/html" in found[source] for source in found if "unfinished(outcome)" in source)
    (said,) = found["print(outcome.verdict)"]
    assert said.strip() and said.strip() == (verdict or said.strip())


def test_notebooks_are_kept_without_outputs_and_open_with_their_parameters():
    books = sorted(path.stem for path in ANALYSIS.glob("*.ipynb"))
    assert books == sorted([*READING, LIVE])
    for name in books:
        book = nbformat.read(ANALYSIS / f"{name}.ipynb", as_version=4)
        nbformat.validate(book)
        code = [cell for cell in book.cells if cell["cell_type"] == "code"]
        assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code), name
        assert code[0]["metadata"] == {"tags": ["parameters"]} and "HARNESS_STORE" in code[0]["source"]
        assert name == LIVE or f'"stored/{READING[name]}"' in code[0]["source"]
        imports = [
            line for cell in code for line in cell["source"].splitlines() if "harness" in line and "import" in line
        ]
        assert imports and not any("torch" in line or "hydra" in line for line in imports)


def test_what_is_stored_is_small_and_says_from_which_grid_it_is():
    files = [path for path in STORED.rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} <= set(READING.values())
    assert sum(len(zlib.compress(path.read_bytes())) for path in files) < 2_000_000


@pytest.mark.notebooks
@pytest.mark.parametrize("name", READING)
def test_a_notebook_reads_its_stored_results(name, execute):
    if not (STORED / READING[name] / "records.jsonl").is_file():
        pytest.skip(f"analysis/stored/{READING[name]} is not there: export the grid into it")
    assert_answers(execute(name))


@pytest.mark.notebooks
def test_a_grid_is_run_from_a_notebook_and_read_by_another(execute, tmp_path):
    store = tmp_path / "store"
    verdict = None
    for name, settings in ((LIVE, {}), ("crossover", {"HARNESS_GRID": "my_own"})):
        book = execute(name, HARNESS_STORE=store, **settings)
        verdict = verdict or (store / "grids" / "my_own" / "verdict.txt").read_text().strip()
        assert_answers(book, verdict)
    assert (store / "grids" / "my_own" / "exported" / "records.jsonl").is_file()


def test_tables_of_a_notebook_say_what_the_outcome_says():
    records, load_items = grid({("kd", "weak"): {0.03: 0.15, 0.1: 0.08, 1.0: 0.0}}, seeds=2, worlds=(0, 1))
    claim = {"name": "gains", "says": "KD helps", "gain": {"method": "kd", "data_frac": 0.03}}
    lost = changed(records[0], status="failed", reason="it burnt", scores=[], items={})
    outcome = Outcome("g", [*records, lost], {"claims": [claim]}, load_items)
    table = scores(outcome)
    gains = table[(table["method"] == "kd") & (table["data_frac"] == "3 %")]["gain over SFT"]
    rows = outcome.summary[outcome.summary["headline"] & (outcome.summary["method"] == "kd")]
    row = rows[rows["data_frac"] == 0.03].iloc[0]
    assert gains.item() == f"{row['gain']:+.3f} [{row['gain_low']:+.3f}, {row['gain_high']:+.3f}]"
    assert (claims(outcome)["claim"].item(), claims(outcome)["verdict"].item()) == (
        "KD helps",
        outcome.findings[0].verdict,
    )
    assert crossings(outcome)["crossing"].tolist() == [found.status for found in outcome.crossovers.values()]
    assert unfinished(outcome)["reason"].tolist() == ["it burnt"]
    assert claims(Outcome("g", records, None, load_items)).empty
