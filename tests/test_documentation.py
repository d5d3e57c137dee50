"""The documentation: tables made from the code are complete, and every example of docs/extending.md works."""

import importlib.util
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
EXTENDING = (ROOT / "docs" / "extending.md").read_text()


def load_reference():
    """docs/reference.py, which is no module of a package."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


REFERENCE = load_reference()


def examples() -> dict[str, str]:
    """The code of docs/extending.md by the file it is to be saved as."""
    return dict(re.findall(r'^```(?:python|yaml) title="([^"]+)"\n(.*?)^```$', EXTENDING, re.M | re.S))


def settings_of(kind: type, found: dict[str, type]) -> dict[str, type]:
    """Every dataclass that a run's settings hold."""
    found.setdefault(kind.__name__, kind)
    for field in fields(kind):
        if isinstance(field.type, type) and is_dataclass(field.type) and field.type.__name__ not in found:
            settings_of(field.type, found)
    return found


def test_every_setting_is_in_the_reference_with_its_default_and_its_sentence():
    from harness.config import Cluster, Settings, TrainingPhase
    from harness.config.cluster import Resources, Serve
    from harness.config.model import Lesson

    kinds = settings_of(Settings, {}) | {
        kind.__name__: kind for kind in (Cluster, Resources, Serve, TrainingPhase, Lesson)
    }
    assert len(kinds) >= 13 and {"Student", "Teacher", "Budget", "Machine"} <= set(kinds)
    text = REFERENCE.settings()
    for kind in kinds.values():
        for field in fields(kind):
            assert re.search(rf"^`[^=\n]*\b{field.name}` = \S", text, re.M), f"{kind.__name__}.{field.name}"
    assert "`budget.amount` = `300`\n:   Number of" in text
    assert "`student.size` or `teacher.size` = `small`" in text
    assert "`student.lora_rank` = `null`" in text


def test_every_plugin_is_in_its_table_with_every_setting():
    from harness.data.corpora import corpus_names, load_corpus
    from harness.evals import eval_names
    from harness.methods import load_method, method_names

    for names, load, tables in (
        (method_names(), load_method, ("methods", "method-settings")),
        (corpus_names(), load_corpus, ("corpora",)),
    ):
        for text in (REFERENCE.TABLES[table]() for table in tables):
            for name in names:
                assert f"{name}`" in text
                assert all(f"{field.name}`" in text for field in fields(load(name)))
    assert all(f"### `{name}`" in REFERENCE.evaluations() for name in eval_names())
    files = {path.stem for path in (ROOT / "harness" / "evals" / "benchmarks").glob("[a-z]*.py")}
    assert files and all(f"| `{name}` |" in REFERENCE.benchmarks() for name in files)


def test_a_method_names_the_papers_it_follows_and_no_other():
    rows = dict(re.findall(r"^\| \[`(\w+)`\][^|]*\|[^|]*\| ([^|]*?) ?\|", REFERENCE.methods(), re.M))
    assert rows["kd"] == "2306.13649" and rows["logit_kd"] == "1503.02531"
    assert rows["on_policy"] == "2306.13649"  # its file says what it is not, too
    assert rows["cross_kd"] == "2503.20083, 2402.12030" and rows["sft"] == ""


def test_every_verb_with_its_arguments_every_target_preset_and_function_is_in_the_reference():
    import harness.api
    from harness.grid import verb_names

    verbs = REFERENCE.grid_verbs()
    assert all(f"### `grid {verb}`\n\n```text\nusage: python -m harness.grid" in verbs for verb in verb_names())
    assert "--cells" in verbs and "--class" in verbs and "--by" in verbs
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.M).group(1).split()
    assert phony and [name for name, _ in REFERENCE.targets()] == phony
    assert all(sentence.strip() for _, sentence in REFERENCE.targets())
    presets = REFERENCE.presets()
    chosen = [f"| `{path.parent.name}={path.stem}` | " for path in (ROOT / "conf").glob("*/*.yaml")]
    assert chosen and all(one in presets for one in chosen) and "| `slurm=dev` | " in presets
    public = [name for name, value in vars(harness.api).items() if getattr(value, "__module__", "") == "harness.api"]
    assert {"grid", "run", "results", "report"} <= set(public)
    assert all(f"| `{name}(" in REFERENCE.python_functions() for name in public if not name.startswith("_"))


def test_text_of_the_code_is_text_on_the_page():
    assert (
        REFERENCE._text("p ** (1 / t), see <store> and\n`<store>`") == "p \\*\\* (1 / t), see &lt;store> and `<store>`"
    )
    assert REFERENCE._prose("One.\n\n    a = 1\n    b") == "One.\n\n```text\na = 1\nb\n```"


def test_every_table_is_on_a_page_and_every_marker_has_a_table():
    markers = [name for path in (ROOT / "docs").glob("*.md") for name in REFERENCE.MARKER.findall(path.read_text())]
    assert sorted(markers) == sorted(REFERENCE.TABLES)
    with pytest.raises(KeyError):
        REFERENCE.fill("<!-- table: nonesuch -->")


def test_every_page_is_in_the_navigation():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    listed = re.findall(r": (\S+\.md)", yaml.safe_dump(config["nav"]))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} <= set(listed)
    assert config["theme"]["font"] is False, "a font would be loaded from the network"


def test_make_without_a_target_prints_every_target():
    # within `make test`, make would name the directory it enters and leaves
    answer = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert [line.split()[1] for line in answer.stdout.splitlines()] == [name for name, _ in REFERENCE.targets()]


def test_the_habits_name_what_exists():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"], "a hook fetches nothing"
    assert all(hook["language"] == "system" for repo in hooks for hook in repo["hooks"])
    steps = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["test"]["steps"]
    assert steps[-1]["run"] == "bash .ci/run" and (ROOT / ".ci" / "run").is_file()
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert f'version = "{cited["version"]}"' in (ROOT / "pyproject.toml").read_text()
    assert cited["references"][0]["identifiers"][0]["value"] == "arXiv:2606.22942"


PLUGINS = """
import sys
from pathlib import Path
folder = Path(sys.argv[1])
import harness.data.corpora, harness.evals.benchmarks, harness.methods
for package in (harness.methods, harness.data.corpora, harness.evals.benchmarks):
    package.__path__.append(str(folder.joinpath(*package.__name__.split("."))))

from harness.config.checks import SettingsError
from harness.config.cluster import Cluster
from harness.data.corpora import load_corpus
from harness.grid import main
from harness.plan.cell_plan import Plan
from harness.plan.claims import Claim
from harness.plan.compose import compose
from omegaconf import OmegaConf

cells = compose(["data_frac=0.1", "method=sft,teacher_first"]).cells
plan = Plan.of(cells)
kinds = [stage.kind for stage in plan.stages]
assert "labels" in kinds and [len(one.train) for one in plan.cells] == [1, 2], kinds
try:
    compose(["method=teacher_first", "method.share=1.5"])
    raise AssertionError("a share of 1.5 was taken")
except SettingsError as error:
    assert "method.share=1.5" in str(error)

rows = folder / "questions.csv"
rows.write_text("question,answer,source\\nAdd 3 and 4.,7,sums\\nCapital of Ostania?,Berlint,facts\\n")
(cell,) = compose(["method=sft", "corpus=csv_pairs", f"corpus.path={rows}"]).cells
found = list(cell.corpus.examples(0))
assert [(one.id, one.source, one.truth) for one in found] == [("sums-1", "sums", "7"), ("facts-2", "facts", "Berlint")]
again = folder / "elsewhere.csv"
again.write_text(rows.read_text())
assert load_corpus("csv_pairs")(path=str(again)).identity(0) == cell.corpus.identity(0)
assert Plan.of([cell]).stages

assert main(["cards", "arc_easy"]) == 0
described = OmegaConf.to_container(OmegaConf.load(folder / "slurm/my_cluster.yaml"))  # as slurm= reads it
cluster = Cluster.of({"name": "my_cluster", **described})
assert cluster.resources_for("mixture", "rows", 0).partition == "cpu"
assert cluster.resources_for("train", "kd", 8e9).shard and cluster.resources_for("train", "kd", 1e9).gpus == 1
asked = OmegaConf.to_container(OmegaConf.load(folder / "experiments/my_question.yaml"))
assert len(compose([f"draws={asked['draws']}"], sweep=asked["sweep"]).cells) == 16
assert [Claim.of(one).name for one in asked["claims"]] == ["scarce"]
print("all examples work")
"""


@pytest.fixture
def saved(tmp_path):
    """The examples in a folder, at the paths that their titles name."""
    for name, code in examples().items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(code)
    return tmp_path


def test_the_examples_of_a_method_a_corpus_a_benchmark_a_cluster_and_a_question_work(saved):
    answer = subprocess.run([sys.executable, "-c", PLUGINS, str(saved)], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "ARC Easy" in answer.stdout and answer.stdout.endswith("all examples work\n")


def test_the_benchmark_example_names_a_task_that_lm_eval_has(saved):
    task = re.search(r'tasks="([^"]+)"', (saved / "harness/evals/benchmarks/arc_easy.py").read_text()).group(1)
    (folder,) = importlib.util.find_spec("lm_eval").submodule_search_locations
    assert "metric: acc\n" in (Path(folder) / "tasks" / task).read_text()


def test_the_example_of_an_evaluation_scores_a_model(saved, monkeypatch):
    from harness.evals import HeldoutRow, Options, corpus, load_eval
    from tests.doubles import byte_tokenizer, tiny_llama

    monkeypatch.setattr(corpus, "__path__", [*corpus.__path__, str(saved / "harness/evals/corpus")])
    evaluation = load_eval("finished")
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    rows = [HeldoutRow(str(number), turns, source, "") for number, source in enumerate(("a", "a", "b"))]
    tokenizer = byte_tokenizer()
    scored = evaluation.score(tiny_llama(len(tokenizer)), tokenizer, rows, Options(max_new_tokens=3))
    assert len(scored.items) == 3 and {item.score for item in scored.items} <= {0.0, 1.0}
    assert scored.generated_tokens <= 9
    assert {score.source: score.items for score in evaluation.summary(scored.items)} == {"all": 3, "a": 2, "b": 1}


def test_every_value_of_the_papers_first_figure_has_a_source_and_those_of_tulu_are_its_recipe():
    from harness.config.budget import Budget
    from harness.methods import load_method

    rows = re.findall(r"^\| `([\w.]+)` \| (.*?) \| (paper|Tülu 3|ours) \|", REFERENCE.paper_values(), re.M)
    values = {name: value for name, value, _ in rows}
    assert len(rows) == len(REFERENCE.SOURCES)
    assert {f"budget.{field.name}" for field in fields(Budget)} <= set(values)
    assert {f"method.{field.name}" for field in fields(load_method("kd"))} <= set(values)
    # open-instruct's command for 8B
    recipe = {"kind": "epochs", "amount": "2.0", "batch_size": "128", "learning_rate": "5e-06", "warmup_ratio": "0.03"}
    recipe |= {"schedule": "linear", "weight_decay": "0.0", "precision": "bf16"}
    expected = {f"budget.{name}": value for name, value in recipe.items()} | {"corpus.max\\_length": "4096"}
    found = {name: value for name, value, source in rows if source == "Tülu 3"}
    assert found == {name.replace("\\", ""): value for name, value in expected.items()}
