"""Stage `synthesize`: new prompts with answers that the teacher generates after a few human rows.

For domains with few human rows (arXiv 2606.22942), in the manner of Self-Instruct (arXiv 2212.10560). `prompting.py`
generates, `filters.py` filters and measures; `stages/labels.py` answers prompts that exist. Examples come from the
cell's own training rows alone. Rows like a held-out or validation prompt are dropped and counted, so no scored row is
trained on. The teacher may be served over HTTP. Its text is kept part by part (`store/partial_output.py`), so a
stopped stage continues from there; the filters run again.

    synthetic/         data set: row, id, input_ids, starts, ends
    synthetic.json     rows asked for and kept, rejected by first reason, sources of the examples, measures
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, load_from_disk

from harness.config.checks import SettingsError, refuse
from harness.config.machine import Machine
from harness.data.chat import Rendered, render_many, render_rows
from harness.data.corpora import corpus_from, load_corpus
from harness.data.sequences import TURN, Rows, conversation_of
from harness.evals.corpus.verified import verify
from harness.models.flops import forward_flops
from harness.models.loading import device_of, load_tokenizer, tokenizer_hash
from harness.runtime import progress
from harness.stages.labels import FEATURES, save_rows
from harness.stages.overlap import read_items
from harness.stages.subset import read_batches
from harness.stages.synthesis.filters import FILTERS, MEASURED_ROWS, Judge, Limits, measures, rejected_shares
from harness.stages.synthesis.prompting import Pair, SyntheticPrompter, turns
from harness.stages.synthesis.requests import Synthesis, Truth
from harness.store.partial_output import PartialOutput
from harness.store.store import write_json
from harness.teachers.teacher import LocalTeacher, ServedTeacher, open_teacher
from harness.training.nll import mean_nll, served_nll

ASKED_AT_MOST = 4  # times the rows wanted; then the stage makes do with what it has
LEAST_KEPT = 0.1  # of the rows wanted; below it the stage fails, with the reasons
ROWS_AT_ONCE = 256


def make_synthesize(
    settings: dict[str, Any], inputs: Mapping[str, Path], out: Path, machine: Machine
) -> dict[str, Any]:
    """Generate rows until enough are kept, or four times as many were generated.

    `settings`: `synthetic_rows`, or `synthetic_ratio` (rows per human training row), `examples_in_context`,
    `seed`, `sampling_temperature`, `max_new_tokens`, `max_length` (tokens), and the filters' values
    (`TrainingPhase` explains them). `inputs`: `subset` (its train rows are the examples), `mixture` (their
    text, and the held-out prompts), `teacher`, and `overlap` where rows that repeat its items are dropped.
    Raises SettingsError where the tokenizers differ, the corpus cannot verify answers that are to be verified, or fewer
    than a tenth of the rows could be kept; Preempted when a stop is requested.
    """
    # first, so that a corpus without truth is refused before a teacher is loaded
    truth = _truth(inputs["mixture"], settings["verified"])
    where = settings.get("where", {})
    url, access = where.get("teacher_url"), where.get("teacher_server")
    teacher = open_teacher(inputs["teacher"], device_of(machine), url=url, access=access)
    # the rows it keeps are trained by a student with the subset's ids
    student = load_tokenizer(inputs["student"]) if "student" in inputs else teacher.tokenizer
    _check_tokenizer(inputs["subset"], inputs["mixture"], student, "a teacher's rows")
    human = _human_pairs(inputs)
    partial_output = PartialOutput(settings, inputs, ROWS_AT_ONCE, teacher.spent)
    pairs = [pair for rows in human.values() for pair in rows]
    judge = Judge(
        Limits(**{one.name: settings[one.name] for one in fields(Limits)}),
        pairs,
        validation=_prompts(inputs["mixture"] / "train.parquet", _conversations(inputs["subset"] / "validation")),
        heldout=_prompts(inputs["mixture"] / "heldout.parquet"),
        items=read_items(inputs["overlap"]) if "overlap" in inputs else None,
    )
    # A row depends on its number alone, so generating more rows changes no earlier one.
    wanted = settings["synthetic_rows"] or max(1, round(settings["synthetic_ratio"] * len(pairs)))
    prompter = SyntheticPrompter(teacher, settings, human)
    synthesis = Synthesis(prompter, student, judge, settings, truth, partial_output)
    while len(judge.kept) < wanted and len(synthesis.sources) < ASKED_AT_MOST * wanted:
        first = len(synthesis.sources)
        synthesis.generate(range(first, min(first + ROWS_AT_ONCE, ASKED_AT_MOST * wanted)), wanted)
        progress.report(len(judge.kept), wanted, note="synthetic rows")

    asked, kept = len(synthesis.sources), len(judge.kept)
    rejected = {reason: judge.rejected[reason] for reason in FILTERS if judge.rejected[reason]}
    reasons = ", ".join(f"{name} {count}" for name, count in judge.rejected.most_common()) or "none"
    if kept < max(1, LEAST_KEPT * wanted):
        raise SettingsError(
            f"synthetic_rows={wanted} cannot be reached: of {asked} generated rows, {kept} were usable "
            f"(rejected: {reasons}); choose a teacher that can generate prompts, or fewer rows, or loosen the filters."
        )
    save_rows(synthesis.columns, out / "synthetic")
    found = measures(judge.kept, pairs) | rejected_shares(rejected, asked)
    found |= _lengths(synthesis.rendered) | _right_shares(judge.kept, truth)
    written, gold = load_from_disk(out / "synthetic"), load_from_disk(inputs["subset"] / "train")
    if "student" in inputs:  # the teacher reads both in its own tokens and template
        written = _rendered(teacher.tokenizer, judge.kept, written["row"], settings["max_length"], out)
        gold = _rendered(teacher.tokenizer, pairs, range(len(pairs)), settings["max_length"])
    likelihoods, read, warnings = _likelihoods(teacher, {"": written, "human_": gold})
    found |= likelihoods
    counts = {"asked": asked, "kept": kept, "wanted": wanted}
    sources = {
        name: {"asked": count, "kept": synthesis.kept[name]} for name, count in sorted(synthesis.tally().items())
    }
    write_json(
        out / "synthetic.json", {**counts, "human_rows": len(pairs), "rejected": rejected, "sources": sources, **found}
    )
    read, wrote = read + teacher.spent["read"], teacher.spent["written"]
    flops = forward_flops(teacher.parameters, read + wrote)
    return {
        "cost": {"teacher_tokens": read, "generated_tokens": wrote, "flops": flops},
        "counts": counts | rejected,
        "metrics": found | {f"source_share.{name}": count["kept"] / kept for name, count in sources.items()},
        "warnings": _warnings(kept, wanted, asked, reasons) + teacher.warnings + warnings,
        **({"earlier_seconds": partial_output.earlier_seconds} if partial_output.earlier_seconds else {}),
    }


def _rendered(
    tokenizer: Any, pairs: Sequence[Pair], numbers: Sequence[int], max_length: int, out: Path | None = None
) -> Dataset:
    """Prompts and answers as the teacher renders them, with these numbers; kept in `out/teacher_reading`."""
    room = 2 * max_length  # marks and a system prompt of its own
    found = render_many(tokenizer, [turns(pair) for pair in pairs], room)
    columns: dict[str, list[Any]] = {
        "row": list(numbers),
        "id": [f"{number}" for number in numbers],
        "input_ids": [one.input_ids for one in found],
        "starts": [one.starts for one in found],
        "ends": [one.ends for one in found],
    }
    if out is not None:
        save_rows(columns, out / "teacher_reading")
        return load_from_disk(out / "teacher_reading")
    return Dataset.from_dict(columns, features=FEATURES)


def _likelihoods(
    teacher: LocalTeacher | ServedTeacher, datasets: Mapping[str, Dataset]
) -> tuple[dict[str, float], int, list[str]]:
    """The teacher's mean NLL of the first rows of each data set, the tokens processed for it, and warnings.

    Where the server cannot score, the measure is left out with a warning: the rows themselves are complete.
    """
    found, read = {}, 0
    for name, dataset in datasets.items():
        rows = Rows(dataset.select(range(min(len(dataset), MEASURED_ROWS))))
        if isinstance(teacher, LocalTeacher):
            nll, _ = mean_nll(teacher.model, rows)
        else:
            try:
                nll, _ = served_nll(teacher, rows)
            # the rows are made by then, and a measure is not worth losing them
            except SettingsError as error:
                return {}, read, [f"teacher_nll was not measured: {error}"]
        found[f"{name}teacher_nll"] = nll
        read += sum(len(row.input_ids) for row in rows)
    return found, read, []


def _truth(mixture: Path, needed: bool) -> Truth | None:
    """The corpus's answers to new prompts; None where it knows none. Raises SettingsError where they are `needed`."""
    identity = json.loads((mixture / "mixture.json").read_text())["corpus"]
    corpus_class = load_corpus(identity["kind"])
    if corpus_class.knows_truth:
        settings = {name: value for name, value in identity.items() if name in corpus_class.__dataclass_fields__}
        corpus, world_seed = corpus_from({"kind": identity["kind"], **settings}), identity["world_seed"]
        return lambda prompt: corpus.truth(prompt, world_seed)
    if needed:
        raise refuse(
            "method.verified",
            True,
            f"corpus={identity['kind']} cannot tell whether the answer to a new prompt is right",
            "set method.verified=false",
        )
    return None


def _lengths(rendered: Sequence[Rendered]) -> dict[str, float]:
    answers = sum(row.response_tokens for row in rendered)
    whole = sum(len(row.input_ids) for row in rendered)
    return {
        "mean_prompt_tokens": (whole - answers) / len(rendered),
        "mean_answer_tokens": answers / len(rendered),
    }


def _right_shares(kept: Sequence[Pair], truth: Truth | None) -> dict[str, float]:
    """Share of kept rows whose truth is known, and of these the share that is right; nothing without a verifier."""
    if truth is None:
        return {}
    judged = [(answer, known) for prompt, answer in kept if (known := truth(prompt)) is not None]
    right = sum(verify(answer, known) is True for answer, known in judged)
    return {"truth_known_share": len(judged) / len(kept)} | ({"right_share": right / len(judged)} if judged else {})


def _warnings(kept: int, wanted: int, asked: int, reasons: str) -> list[str]:
    if kept == wanted:
        return []
    return [
        f"{kept} of {wanted} synthetic rows were kept after {asked} were generated (rejected: {reasons}), so the arm "
        "trains on fewer; choose a teacher that generates better prompts, or loosen the filters"
    ]


def _human_pairs(inputs: Mapping[str, Path]) -> dict[str, list[Pair]]:
    """First prompt and answer of the cell's own training rows, by source."""
    numbers = _conversations(inputs["subset"] / "train")
    table = pq.read_table(inputs["mixture"] / "train.parquet", columns=["messages", "source"])
    pairs: dict[str, list[Pair]] = {}
    for row in table.take(pa.array(list(numbers), pa.int64())).to_pylist():
        # a system turn would be taken for the prompt
        spoken = [turn for turn in row["messages"] if turn["role"] != "system"]
        pairs.setdefault(row["source"], []).append((spoken[0]["content"], spoken[1]["content"]))
    return pairs


def _conversations(rows: Path) -> list[int]:
    """The numbers of the conversations that rows come from, in their order; several rows may be turns of one."""
    return list(dict.fromkeys(map(conversation_of, load_from_disk(rows)["row"])))


def _prompts(path: Path, numbers: Sequence[int] | None = None) -> list[str]:
    """The first user turn of every row of a Parquet file, or of the rows of these numbers."""
    table = pq.read_table(path, columns=["messages"])
    if numbers is not None:  # a small cell has no validation rows, and pyarrow needs a type for an empty list
        table = table.take(pa.array(list(numbers), pa.int64()))
    return [next(turn["content"] for turn in row["messages"] if turn["role"] == "user") for row in table.to_pylist()]


def _check_tokenizer(subset: Path, mixture: Path, tokenizer: Any, what: str) -> None:
    """Raise SettingsError unless the teacher's tokenizer and chat template render the subset's rows as they are."""
    rendered_with = json.loads((subset / "subset.json").read_text())["tokenizer_hash"]
    own = tokenizer_hash(tokenizer)
    if rendered_with != own:
        raise SettingsError(
            f"{what} cannot be used: the rows were rendered with tokenizer {rendered_with[:12]} and the "
            f"teacher has {own[:12]}; choose a teacher and a student with the same tokenizer."
        )
    # equal tokenizers may have different chat templates, so one row is rendered again and compared
    first = load_from_disk(subset / "train")[0]
    number = conversation_of(first["row"])
    _, _, messages = next(read_batches(mixture / "train.parquet", np.array([number])))
    rendered = render_rows(tokenizer, messages, len(first["input_ids"]))[0]
    turn = min(first["row"] // TURN, len(rendered) - 1)
    if rendered[turn].input_ids != first["input_ids"]:
        raise SettingsError(
            f"{what} cannot be used: the teacher's chat template renders the rows differently from the student's; "
            "set student.chat_template and teacher.chat_template to the same template, e.g. tulu."
        )
