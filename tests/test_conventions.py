"""The conventions that matter, as tests: arrows of import, light imports, file length, README that works."""

import ast
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


README = (ROOT / "README.md").read_text()


def test_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", README)
    assert links
    missing = [link for link in links if not link.startswith("http") and not (ROOT / link).exists()]
    assert not missing


def test_the_make_targets_the_readme_names_exist():
    targets = re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text(), re.M)
    named = re.findall(r"`make ([a-z0-9]+)`|^make ([a-z0-9]+)", README, re.M)
    assert named and {a or b for a, b in named} <= set(targets)


def test_every_grid_the_readme_shows_can_be_planned():
    from harness.plan.cell_plan import Plan
    from harness.plan.compose import compose

    commands = re.findall(r"python -m harness\.run (?:-m )?([^\n`#]+)", README)
    assert len(commands) >= 3
    for command in commands:
        words = [word for word in shlex.split(command.rstrip("\\ ")) if not word.startswith("--")]
        if not any("<" in word or "path/to" in word for word in words):
            assert Plan.of(compose(words).cells).stages


def test_every_file_the_readme_tree_names_exists():
    tree = re.search(r"```text\n(.*?)```", README, re.S).group(1)
    for line in tree.splitlines():
        name = line.split()[0] if line.split() else ""
        if name.endswith((".py", "/", ".yaml", ".toml", ".txt", "Makefile")):
            assert any((ROOT / base / name).exists() for base in ("", "harness")), name
