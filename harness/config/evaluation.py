"""Evaluation: what every model of a cell is scored on, and in which formats it is measured.

Evals(names=["heldout", "gsm8k"], limit=100, data_dir="data")
"""

from dataclasses import dataclass, field

from harness.config.checks import check_at_least, check_choice, check_no_secret, refuse
from harness.config.model import QUANTISATIONS


@dataclass
class Evals:
    """What every model is scored on."""

    names: list[str] = field(default_factory=lambda: ["heldout", "verified"])
    """Evaluations to run: files of `evals/corpus/` (on the corpus's held-out rows) and of `evals/benchmarks/` (public
    benchmarks)."""
    limit: int | None = None
    """At most this many rows or items of each, a seeded sample in proportion to the sources; null: all."""
    data_dir: str | None = None
    """Folder of JSON lines with the benchmarks' items (evals/benchmarks); null: from the hub."""
    revisions: dict[str, str] = field(default_factory=dict)
    """Hub revision of a benchmark's data by the benchmark's name; one that is not named is resolved and recorded."""
    run_code: bool = False
    """Whether code that a model wrote may be run (HumanEval, MBPP), in a sandbox; never identity."""
    server: str | None = None
    """Command that serves a model's folder while it generates answers to a benchmark, with {model} and {port}, e.g.
    `vllm serve {model} --port {port}`; whether it is served is identity, the command is not. Null: it is not served."""
    overlap: str = "count"
    """Decontamination by 8-gram overlap with scored items (data/ngram_overlap.py): `count` the rows that repeat an
    item, `drop` them from the rows that student and teacher train on (this changes the rows: identity), or `none`: no
    comparison."""
    precision: str = "fp32"
    """Precision of the weights while a model is scored: `fp32` or `bf16`."""

    def __post_init__(self) -> None:
        self.names = _once("evals.names", self.names)
        check_at_least("evals.limit", self.limit, 1)
        check_no_secret("evals.server", self.server, "leave it out: the server listens for this stage alone")
        if self.server is not None and not ("{model}" in self.server and "{port}" in self.server):
            raise refuse("evals.server", self.server, "the command needs {model} and {port}", "add both placeholders")
        check_choice("evals.overlap", self.overlap, ("count", "drop", "none"))
        check_choice("evals.precision", self.precision, ("fp32", "bf16"))


FORMATS = ("fp32", "bf16", *QUANTISATIONS)


@dataclass
class Measure:
    """Deployment costs that are measured for the models of a cell; never identity."""

    formats: list[str] = field(default_factory=lambda: ["fp32"])
    """Number formats in which size, memory and speed of student and teacher are measured: `fp32`, `bf16`, `int8`,
    `nf4`; the last two are scored too. Empty: none."""

    def __post_init__(self) -> None:
        self.formats = _once("measure.formats", self.formats)
        for name in self.formats:
            check_choice("measure.formats", name, FORMATS)


def _once(field: str, names: list[str]) -> list[str]:
    """Each name once. Raises SettingsError for what is no name."""
    if other := [one for one in names if not isinstance(one, str)]:
        raise refuse(field, other[0], "it takes a list of names", f"write {field}=[a,b]")
    return list(dict.fromkeys(names))
