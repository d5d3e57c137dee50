"""The conventions that matter, as tests: light imports, docstrings, settings with a sentence, pages that work."""

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(path for folder in ("harness", "analysis", "hydra_plugins") for path in (ROOT / folder).rglob("*.py"))

LIGHT = ("config", "runtime", "store", "plan", "execution", "results", "report", "evals/benchmarks", "evals/grading")
"""Rooms, beside the doors, that a login node plans and reads with: nothing in them loads torch on import."""
NOT_LIGHT = {"harness.evals.grading._sandbox_child"}  # runs as a script of its own


def test_planning_and_reading_import_no_heavy_library():
    """One process imports every module of the light rooms and the doors."""
    files = [path for room in LIGHT for path in (ROOT / "harness" / room).rglob("*.py")]
    files += [path for path in (ROOT / "harness").glob("*.py") if path.stem != "new_student"]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files}
    heavy = ("torch", "transformers", "datasets", "trl")
    code = f"""
import importlib, sys
for name in {sorted(names - NOT_LIGHT)}:
    importlib.import_module(name)
    loaded = [one for one in {heavy} if one in sys.modules]
    assert not loaded, f"{{name}} loads {{loaded}}"
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert answer.returncode == 0, answer.stderr


def test_methods_and_corpora_are_listed_and_loaded_without_heavy_libraries():
    code = """
import sys
from harness.methods import load_method, method_names
from harness.data.corpora import corpus_names, load_corpus
for name in method_names(): load_method(name)
for name in corpus_names(): load_corpus(name)
print([m for m in ("torch", "transformers", "datasets", "trl") if m in sys.modules])
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert answer.stdout.strip() == "[]", answer.stderr


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_says_what_lives_in_it(path):
    text = path.read_text()
    assert not text.strip() or ast.get_docstring(ast.parse(text)), "no docstring at the top"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_there_are_no_pickles_and_no_remote_code(path):
    text = path.read_text()
    assert not re.search(r"\bimport (pickle|joblib|dill)\b|torch\.save\(|trust_remote_code\s*=\s*True", text)


SETTINGS = ("config", "methods", "data/corpora", "plan/tuning.py")
"""Rooms and files whose dataclasses a person sets, frozen and nested ones too."""


def test_every_setting_is_explained_in_a_sentence_under_its_field():
    explained, unexplained = set(), []
    files = [path for path in SOURCES for room in SETTINGS if path.is_relative_to(ROOT / "harness" / room)]
    for path in [
        path for path in files if not path.stem.startswith("_")
    ]:  # those hold no settings, but rows and checks
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ClassDef) or not any("dataclass" in ast.dump(d) for d in node.decorator_list):
                continue
            for field, after in zip(node.body, [*node.body[1:], None], strict=True):
                if not isinstance(field, ast.AnnAssign):
                    continue
                sentence = after.value.value if isinstance(after, ast.Expr) and _is_text(after.value) else ""
                if re.search(r"\w.*[.)]$", sentence.strip(), re.S):
                    explained.add(node.name)
                else:
                    unexplained.append(f"{path.name}: {node.name}.{field.target.id}")
    assert not unexplained
    assert {
        "Cell",
        "Teacher",
        "Budget",
        "Evals",
        "Signal",
        "Cluster",
        "Resources",
        "Serve",
        "Tune",
        "Corpus",
    } <= explained


def _is_text(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [
        *sorted((ROOT / "docs").rglob("*.md")),
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "experiments/README.md")),
        *(ROOT / name for name in ("slurm/README.md", "benchmarks/README.md")),
    ]
}
README = PAGES["README.md"]
PLACEHOLDER = re.compile(r"<|path/to|\.\.\.|--help|--cfg")


def commands() -> dict[str, list[str]]:
    """Every `python -m harness.<module> <words>` that a page shows, by module; lines that go on are one."""
    found: dict[str, list[str]] = {}
    for text in PAGES.values():
        for module, words in re.findall(r"python -m harness\.(\w+)([^\n`#]*)", text.replace("\\\n", " ")):
            found.setdefault(module, []).append(" ".join(words.split()))
    return {module: sorted(set(words)) for module, words in found.items()}


def plannable() -> list[str]:
    """The words of every grid that a page runs or plans, but for those with a placeholder."""
    shown = commands()
    plans = [words.removeprefix("plan ") for words in shown["grid"] if words.startswith("plan ")]
    grids = {words.removeprefix("-m").strip() for words in (*shown["run"], *plans) if not PLACEHOLDER.search(words)}
    return sorted(grids - {""})


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_lead_somewhere(page):
    prose = re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.M | re.S)
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose) if not link.startswith("http")]
    assert links or page in ("docs/commands.md", "benchmarks/README.md")
    assert not [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]


def test_the_make_targets_the_pages_name_exist():
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M)
    pattern = re.compile(r"`make ([a-z0-9-]+)[^`\n]*`|^make ([a-z0-9-]+)", re.M)
    named = {name: page for page, text in PAGES.items() for pair in pattern.findall(text) for name in pair if name}
    assert {"grid", "test", "test-slurm", "test-browser", "test-notebooks", "docs"} <= set(named)
    assert not {name: page for name, page in named.items() if name not in targets}


@pytest.mark.parametrize("words", plannable())
def test_every_grid_the_pages_show_can_be_planned(words):
    from harness.plan.cell_plan import Plan
    from harness.plan.compose import compose

    assert Plan.of(compose(shlex.split(words)).cells).stages


def test_the_pages_show_grids_and_none_is_passed_over():
    assert len(plannable()) >= 8
    assert {"data_frac=0.01,0.1,1.0 method=sft,kd", "experiments=data_scaling"} <= set(plannable())


def test_every_other_command_the_pages_show_names_a_module_a_verb_and_its_options(capsys):
    from harness.grid import main, verb_names

    shown = commands()
    assert {"run", "grid", "report", "new_student"} <= set(shown)
    assert not [name for name in shown if importlib.util.find_spec(f"harness.{name}") is None]
    for words in filter(None, shown["grid"]):
        verb, *rest = words.split()
        assert verb in verb_names(), f"harness.grid {words}"
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        known = capsys.readouterr().out
        assert not [word for word in rest if word.startswith("--") and word not in known], f"harness.grid {words}"


def test_the_front_page_is_short_enough_to_read_and_shows_where_to_go_on():
    assert len(README.splitlines()) <= 170
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert not {name for name in pages if f"(docs/{name})" not in README}


def test_every_path_the_readme_tree_names_exists_and_no_room_is_missing():
    tree = re.search(r"```text\n(.*?)```", README, re.S).group(1)
    named = [line.split()[0] for line in tree.splitlines() if line.split()]
    assert not [name for name in named if not (ROOT / name).exists()]
    inside = {path.name for path in (ROOT / "harness").iterdir() if not path.name.startswith("_")}
    assert inside <= {name.removeprefix("harness/") for name in named}
