"""Tables of the documentation that are made from the code they describe.

A page has `<!-- table: settings -->` on a line of its own; `make docs` puts the table in its place. So a setting's
sentence stands once, under its field, and every page agrees with the code.

    python docs/reference.py settings       one table as Markdown
    python docs/reference.py                the names of all tables
"""

import ast
import contextlib
import importlib
import inspect
import io
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MARKER = re.compile(r"^<!-- table: ([a-z-]+) -->$", re.M)
ARXIV = re.compile(r"\b\d{4}\.\d{4,5}\b")

SECTIONS = (
    # class in harness.config, how its settings begin on a command line, heading
    ("Settings", "", "A run"),
    ("Cell", "", "A cell"),
    ("Model", "student.|teacher.", "Models: student and teacher"),
    ("Student", "student.", "The student"),
    ("Teacher", "teacher.", "The teacher"),
    ("Lesson", "teacher.lessons[].", "Teacher fine-tuning"),
    ("Signal", "signal.", "The teacher's signal"),
    ("Budget", "budget.", "Budget"),
    ("Evals", "evals.", "Evaluations"),
    ("Measure", "measure.", "Deployment measurements"),
    ("Member", "teacher.members[].", "One of several teachers"),
    ("Launch", "launch.", "Launching"),
    ("Machine", "machine.", "Machine"),
    ("Cluster", "slurm.", "Cluster"),
    ("Resources", "slurm.resources[].", "Resources of a cluster's jobs"),
    ("Serve", "slurm.serve.", "Serving a teacher on a cluster"),
    ("TrainingPhase", "", "Training phases (for authors of methods)"),
)
"""Order and headings; a settings class of `harness.config` that is not listed follows at the end."""


def settings() -> str:
    """Every setting of the dataclasses in `harness.config`, with default and sentence."""
    found = {kind.__name__: kind for kind in settings_classes()}
    known = [section for section in SECTIONS if section[0] in found]
    listed = {name for name, _, _ in known}
    known += [(name, "", name) for name in found if name not in listed]
    return "\n".join(_section(found[name], prefix, f"## {title}") for name, prefix, title in known)


def settings_classes() -> Iterator[type]:
    """The dataclasses of `harness.config` whose fields have sentences, in the order of their files."""
    import harness.config

    for path in sorted(Path(harness.config.__file__).parent.glob("*.py")):
        module = importlib.import_module(f"harness.config.{path.stem}")
        for kind in vars(module).values():
            own = is_dataclass(kind) and isinstance(kind, type) and kind.__module__ == module.__name__
            if own and any(sentences(kind).values()):
                yield kind


def corpora() -> str:
    """Every corpus: what it is and its settings, those that all corpora have first."""
    from harness.data.corpora import CorpusSettings, corpus_names, load_corpus

    parts = [_section(CorpusSettings, "corpus.", "### Settings of every corpus")]
    for name in corpus_names():
        parts.append(_section(load_corpus(name), "corpus.", f"### `corpus={name}`", _module_text(load_corpus(name))))
    return "\n".join(parts)


def methods() -> str:
    """One row a method: what it trains, the papers its file follows, and its settings."""
    from harness.methods import load_method, method_names

    lines = ["| `method=` | sequences x divergence | arXiv | settings |", "|---|---|---|---|"]
    for name in method_names():
        kind = load_method(name)
        said = " ".join(one for one in re.split(r"(?<=\.)\s", _module_text(kind)) if "It is not" not in one)
        papers, names = dict.fromkeys(ARXIV.findall(said)), [f"`{field.name}`" for field in fields(kind)]
        row = (f"[`{name}`](#method-{name})", _text(_first_line(kind)), ", ".join(papers), ", ".join(names))
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def method_settings() -> str:
    """Every method: the text at the top of its file, and its settings."""
    from harness.methods import load_method, method_names

    return "\n".join(
        _section(load_method(name), "method.", f"### `{name}` {{ #method-{name} }}", _module_text(load_method(name)))
        for name in method_names()
    )


def benchmarks() -> str:
    """One row a public benchmark, read from its file."""
    import harness.evals.benchmarks

    lines = ["| name | what it is | paper | data | licence of the data |", "|---|---|---|---|---|"]
    for path in _plugins(harness.evals.benchmarks):
        calls = map(_keywords, ast.walk(ast.parse(path.read_text())))
        card = next(said for said in calls if {"title", "paper"} <= set(said))
        values = (_text(str(card.get(name, ""))) for name in ("title", "paper", "data", "licence"))
        lines.append(f"| `{path.stem}` | {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


def signals() -> str:
    """What each divergence can be computed from, on which text, and how exact it is."""
    from harness.config.recipe import TOKEN_DIVERGENCES
    from harness.config.teacher_signal import POLICY_GRADIENT, SUPPORTED, TEXTS

    names = (*TOKEN_DIVERGENCES, POLICY_GRADIENT)
    grades = {
        "exact": "exact",
        "a lower": "bound",
        "biased": "biased",
        "unbiased": "unbiased",
        "an unbiased": "unbiased",
    }
    lines = ["| signal | text | " + " | ".join(f"`{name}`" for name in names) + " |", "|---" * (len(names) + 2) + "|"]
    notes: dict[str, str] = {}
    for column, row in SUPPORTED.items():
        cells = []
        for name in names:
            support = row[name]
            grade = (
                next(word for start, word in grades.items() if support.why.startswith(start)) if support.works else "no"
            )
            note = support.why if support.works else f"refused: {support.why}"
            number = notes.setdefault(note, str(len(notes) + 1))
            cells.append(f"{grade} <sup>{number}</sup>")
        lines.append(f"| `{column}` | {', '.join(TEXTS[column.partition('[')[0]])} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{number}. {_prose(text)}" for text, number in notes.items())])


def evaluations() -> str:
    """Every evaluation of held-out rows, by the text at the top of its file."""
    import harness.evals.corpus

    return "\n".join(
        f"### `{path.stem}`\n\n{_prose(ast.get_docstring(ast.parse(path.read_text())) or '')}\n"
        for path in _plugins(harness.evals.corpus)
    )


def presets() -> str:
    """Every preset of `conf/` and cluster of `slurm/`, with the first line of its file where it has one."""
    lines = ["| choose | what it is |", "|---|---|"]
    for path in [*sorted((ROOT / "conf").glob("*/*.yaml")), *sorted((ROOT / "slurm").glob("*.yaml"))]:
        lines.append(f"| `{path.parent.name}={path.stem}` | {_text(_comment(path))} |")
    return "\n".join(lines) + "\n"


def experiments() -> str:
    """Every experiment that has a file for the paper's models, with the first line of that file."""
    lines = ["| `scale=paper experiments=` | what the file asks |", "|---|---|"]
    for path in sorted((ROOT / "experiments" / "paper").glob("*.yaml")):
        page = f"[`{path.stem}`](../experiments/{path.stem}.md)"
        lines.append(f"| {page} | {_text(_comment(path))} |")
    return "\n".join(lines) + "\n"


PAPER, TULU, OURS = "paper", "Tülu 3", "ours"
SOURCES: dict[str, tuple[str, str]] = {
    "student": (PAPER, "sizes are the paper's; base models of Llama 3.2 and 3.1 are our reading of them"),
    "teacher": (PAPER, "a 70B Llama trained on the same data; this release is ours"),
    "method": (PAPER, "supervised fine-tuning and GKD"),
    "corpus": (PAPER, "the Tülu 3 SFT mixture"),
    "data_frac": (OURS, "the paper's fractions are not public"),
    "seed": (OURS, ""),
    "evals.names": (PAPER, "BBH, GPQA, IFEval; GSM8K, MATH, MBPP are its reviewers' request; heldout is ours"),
    "evals.precision": (OURS, "precision of the weights while a model is scored"),
    "budget.kind": (TULU, ""),
    "budget.amount": (TULU, "2 epochs"),
    "budget.batch_size": (TULU, "128 rows a step; 32 in the scarce-domain experiments (ours)"),
    "budget.learning_rate": (TULU, "of its 8B model; for 1B and 3B there is no recipe, so there it is ours"),
    "budget.warmup_ratio": (TULU, ""),
    "budget.schedule": (TULU, ""),
    "budget.weight_decay": (TULU, ""),
    "budget.beta2": (OURS, "PyTorch's default"),
    "budget.max_grad_norm": (OURS, ""),
    "budget.precision": (TULU, "activations; weights and optimizer stay fp32 here"),
    "budget.min_steps": (OURS, "in force below about 2 % of the mixture; a warm-up of a fifth has 50 steps"),
    "budget.epochs_of": (OURS, "of synthetic rows; elsewhere it changes nothing"),
    "budget.least_steps_per_phase": (OURS, "a plan below it is refused"),
    "method.warmup": (OURS, "of kd"),
    "method.student_share": (OURS, "of kd: GKD's lambda"),
    "method.divergence": (PAPER, "of kd: the generalised Jensen-Shannon divergence"),
    "method.jsd_teacher_weight": (OURS, "of kd: GKD's beta"),
    "method.divergence_temperature": (OURS, "of kd"),
    "method.sampling_temperature": (OURS, "of kd"),
    "method.learning_rate_scale": (OURS, "of kd"),
    "corpus.max_length": (TULU, ""),
    "corpus.max_new_tokens": (OURS, "four times the mean answer of the mixture, 489 tokens"),
    "corpus.heldout_rows": (OURS, ""),
    "signal.kind": (OURS, ""),
    "signal.top_k": (OURS, "what a served teacher names at each position"),
    "signal.tail": (OURS, "all other tokens as one event"),
    "machine.micro_batch_size": (OURS, "moves no number"),
    "machine.gradient_checkpointing": (OURS, "moves no number"),
}
"""Where each value of the paper's first figure comes from, and a remark; what the paper does not state is ours."""


def paper_values() -> str:
    """Every value in force for the paper's first figure, from its presets, with its source."""
    from harness.data.corpora import corpus_name
    from harness.methods import method_name
    from harness.plan.compose import compose

    composed = compose(["experiments=data_scaling", "scale=paper"])
    cell = next(one for one in composed.cells if method_name(one.method) == "kd")
    named = {
        "student": [one.student.path for one in composed.cells],
        "teacher": [one.teacher.served_model or one.teacher.path for one in composed.cells],
        "method": [method_name(one.method) for one in composed.cells],
        "corpus": [corpus_name(cell.corpus)],
        "data_frac": [f"{one.data_frac:g}" for one in composed.cells],
        "seed": [str(one.seed) for one in composed.cells],
    }
    lines = ["| setting | value | source | remark |", "|---|---|---|---|"]
    for name, (source, remark) in SOURCES.items():
        if name in named:
            value = ", ".join(dict.fromkeys(map(str, named[name])))
        else:
            group, _, field = name.partition(".")
            found = getattr(composed.settings.machine if group == "machine" else getattr(cell, group), field)
            value = ", ".join(map(str, found)) if isinstance(found, list) else str(found)
        lines.append(f"| `{name}` | {_text(value)} | {source} | {_text(remark)} |")
    return "\n".join(lines) + "\n"


def paper_costs() -> str:
    """What the paper's first figure is expected to cost by the plan's own estimate, by student."""
    from harness.config.cluster import Cluster
    from harness.models.kinds import PUBLISHED, decoder_parameters
    from harness.plan.cell_plan import Plan
    from harness.plan.compose import compose
    from harness.plan.estimate import estimate, plan_rows
    from harness.store.store import Store

    composed = compose(["experiments=data_scaling", "scale=paper", "slurm=example_h100"])
    cluster, nothing = Cluster.of(composed.settings.slurm), Store(Path("no-such-store"))
    lines = [
        "| student | cells | GPU-hours | on 8 GPUs | on 64 GPUs | store | tokens the teacher scores | its FLOPs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    names = list(dict.fromkeys(cell.student.name for cell in composed.cells))
    for name in [*names, "all"]:
        plan = Plan.of(cell for cell in composed.cells if name in (cell.student.name, "all"))
        rows = plan_rows(plan, nothing, cluster)
        hours, size = (sum(row[what] for row in rows) for what in ("gpu_hours", "bytes"))
        scored = [one for one in plan.stages if one.kind == "train" and "teacher" in one.inputs]
        tokens = sum(estimate(one).tokens for one in scored)
        served = composed.cells[0].teacher.served_model
        flops = 2 * (decoder_parameters(PUBLISHED[served]) or 0) * tokens
        lines.append(
            f"| {name} | {len(plan.cells)} | {hours:,.0f} | {hours / 8:,.0f} h | {hours / 64:,.1f} h | "
            f"{size / 1e9:,.0f} GB | {tokens:.1e} | {flops:.1e} |"
        )
    return "\n".join(lines) + "\n"


def paper_memory() -> str:
    """The largest stage of each kind of the paper's experiments on slurm/example_h100.yaml, by the plan's estimate."""
    from harness.config.cluster import Cluster
    from harness.plan.cell_plan import Plan
    from harness.plan.compose import compose
    from harness.plan.memory import largest
    from harness.store.store import Store

    lines = ["| experiment | stage | GB of each GPU | made of |", "|---|---|---|---|"]
    for slug in ("data_scaling", "two_stage", "methods_full_data"):
        composed = compose([f"experiments={slug}", "scale=paper", "slurm=example_h100"])
        plan = Plan.of(cell for cell in composed.cells if cell.seed == 0)
        cluster = Cluster.of(composed.settings.slurm)
        for stage, peak in largest(plan, Store(Path("no-such-store")), composed.settings.machine, cluster).values():
            lines.append(f"| `{slug}` | {stage.kind} {stage.name} | {peak.total / 1e9:.1f} | {peak.describe()} |")
    return "\n".join(lines) + "\n"


def make_targets() -> str:
    """Every target of the Makefile that has a sentence."""
    lines = ["| command | what it does |", "|---|---|"]
    lines += [f"| `make {name}` | {_text(sentence)} |" for name, sentence in targets()]
    return "\n".join(lines) + "\n"


def targets() -> list[tuple[str, str]]:
    """Targets of the Makefile with their `##` sentences, in its order."""
    return re.findall(r"^([a-z0-9-]+):.*?## (.*)$", (ROOT / "Makefile").read_text(), re.M)


def grid_verbs() -> str:
    """Every verb of `python -m harness.grid`, as its own `--help` prints it."""
    from harness.grid import main, verb_names

    return "\n".join(f"### `grid {verb}`\n\n{_help(main, [verb])}" for verb in verb_names())


def other_commands() -> str:
    """`harness.report` and `harness.new_student`, as their own `--help` prints them."""
    from harness.new_student import main as new_student
    from harness.report.__main__ import main as report

    return f"## `harness.report`\n\n{_help(report)}\n## `harness.new_student`\n\n{_help(new_student)}"


def python_functions() -> str:
    """Every public function of `harness.api` with the first sentence of its docstring."""
    from harness import api

    lines = ["| function | what it returns or does |", "|---|---|"]
    for name, function in vars(api).items():
        if inspect.isfunction(function) and function.__module__ == api.__name__ and not name.startswith("_"):
            lines.append(f"| `{name}{_signature(function)}` | {_text(_first_line(function))} |")
    return "\n".join(lines) + "\n"


TABLES: dict[str, Callable[[], str]] = {
    "benchmarks": benchmarks,
    "corpora": corpora,
    "evaluations": evaluations,
    "signals": signals,
    "experiments": experiments,
    "grid-verbs": grid_verbs,
    "make-targets": make_targets,
    "method-settings": method_settings,
    "methods": methods,
    "other-commands": other_commands,
    "paper-costs": paper_costs,
    "paper-memory": paper_memory,
    "paper-values": paper_values,
    "presets": presets,
    "python-functions": python_functions,
    "settings": settings,
}


def fill(markdown: str) -> str:
    """A page with every marker replaced by its table. Raises KeyError for a table that does not exist."""
    return MARKER.sub(lambda found: TABLES[found[1]](), markdown)


def sentences(kind: type) -> dict[str, str]:
    """The text under each field that a dataclass itself defines; empty where there is none."""
    (node,) = ast.parse(inspect.cleandoc("\n" + inspect.getsource(kind))).body
    assert isinstance(node, ast.ClassDef)
    found = {}
    for field, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            found[field.target.id] = inspect.cleandoc(str(after.value.value)) if said else ""  # type: ignore[union-attr]
    return found


def _section(kind: type, prefix: str, heading: str, text: str = "") -> str:
    """A heading, what the class is, and its own fields as a list of definitions."""
    said, parts = sentences(kind), [heading, "", _prose(text or inspect.getdoc(kind) or ""), ""]
    for field in fields(kind):
        if field.name in said:
            names = " or ".join(f"`{start}{field.name}`" for start in prefix.split("|"))
            sentence = [f":   {_text(said[field.name])}"] if said[field.name] else []
            parts += [f"{names} = {_default(field)}", *sentence, ""]
    return "\n".join(parts)


def _default(field: Field[Any]) -> str:
    value = field.default
    if field.default_factory is not MISSING:
        value = field.default_factory()
    if value is MISSING or value == "???":
        return "required"
    if is_dataclass(value):
        return f"settings of `{field.name}.`"
    if isinstance(value, str):
        return f"`{value}`"
    if isinstance(value, tuple | list) and any(map(is_dataclass, value)):
        return "one rule with its defaults"
    plain = {None: "null", True: "true", False: "false"}
    return f"`{plain[value] if value is None or isinstance(value, bool) else value}`"


def _help(main: Callable[[list[str]], object], verb: tuple[str, ...] | list[str] = ()) -> str:
    """What a command prints for `--help`, as a block of text."""
    printed, columns = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "96"
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main([*verb, "--help"])
    finally:
        if columns is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = columns
    return f"```text\n{printed.getvalue().strip()}\n```\n"


def _plugins(package: Any) -> list[Path]:
    return sorted(path for path in Path(package.__file__).parent.glob("*.py") if not path.name.startswith("_"))


def _keywords(node: ast.AST) -> dict[str, object]:
    """The constant keywords of a call."""
    given = node.keywords if isinstance(node, ast.Call) else []
    return {one.arg: one.value.value for one in given if one.arg and isinstance(one.value, ast.Constant)}


def _signature(function: Callable[..., Any]) -> str:
    kept = [one.replace(annotation=inspect.Parameter.empty) for one in inspect.signature(function).parameters.values()]
    return str(inspect.Signature(kept))


def _module_text(kind: type) -> str:
    return inspect.getdoc(sys.modules[kind.__module__]) or ""


def _first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").splitlines()[0]


def _comment(path: Path) -> str:
    """The first sentence of the comment that a YAML file opens with."""
    lines = itertools.takewhile(lambda line: line.startswith("# "), path.read_text().splitlines())
    said = re.sub(r"(?<![.,;:])\n(?=[A-Z])", ".\n", "\n".join(line[2:] for line in lines))
    return re.split(r"(?<=\.)\s(?=[A-Z])", said, maxsplit=1)[0]


def _prose(text: str) -> str:
    """A docstring as Markdown: its indented examples are code, all else is text."""
    blocks = re.split(r"\n\s*\n", text)
    return "\n\n".join(f"```text\n{_undented(one)}\n```" if one.startswith("    ") else _text(one) for one in blocks)


def _undented(block: str) -> str:
    return "\n".join(line.removeprefix("    ") for line in block.splitlines())


def _text(text: str) -> str:
    """One paragraph in which nothing but code in backticks is Markdown."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    plain = (re.sub(r"([*_|\[\]])", r"\\\1", one).replace("<", "&lt;") for one in parts[::2])
    code = (one.replace("|", "&#124;") if "|" in one else one for one in parts[1::2])
    return "".join(piece for pair in zip(plain, [*code, ""], strict=True) for piece in pair)


def main(arguments: list[str]) -> int:
    """Print one table, or the names of all."""
    if not arguments:
        print("\n".join(TABLES))
        return 0
    if unknown := [name for name in arguments if name not in TABLES]:
        print(f"no table {unknown[0]!r}; there are {', '.join(TABLES)}", file=sys.stderr)
        return 2
    print("\n".join(TABLES[name]() for name in arguments))
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main(sys.argv[1:]))
