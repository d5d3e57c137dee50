"""Model card: a receipt in Markdown, below the metadata that the Hugging Face hub reads.

The card is made from the receipt of `receipt.py` alone. Its first sentence says whether the student's arm beat plain
fine-tuning at the same budget over two seeds or more, by how much, how certain that is, and at what extra cost. An arm
of one seed gives a hint.

    card_text(receipt)
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from harness.evals.benchmarks import LM_EVAL, benchmark_names, load_benchmark
from harness.plan.metrics import MACRO_AVERAGE, RAW, RESCALED
from harness.report.licences import LicenceVerdict, hub_license, teachers_in
from harness.results.breakdown import FEW
from harness.results.conclusion import CLEAR, HINT, ONE_SEED
from harness.results.records import REHEARSAL

if TYPE_CHECKING:  # huggingface_hub is imported where a card is written, and by no table or status screen
    from huggingface_hub import EvalResult, ModelCardData

Receipt = Mapping[str, Any]
TESTED = f"p < {CLEAR} after Holm over evaluations and their sources of at least {FEW} items"
ROLES = {"sft": "SFT at the same budget", "base": "pretrained base model", "teacher": "teacher"}
WORDS = ("Beats", "Loses to", "Cannot be told from")
COSTS = {
    "train": "training the student",
    "teacher": "the teacher's share (labels, caches, forward passes)",
    "total": "total (marginal)",
    "with_teacher_training": "total, with the training of the teacher",
    "amortised": "the same, amortised over the cells of the grid that share it",
}


def card_text(receipt: Receipt) -> str:
    """The whole card: YAML front matter and Markdown. Raises as `metadata`."""
    parts = [f"---\n{metadata(receipt).to_yaml()}\n---", f"# {receipt['name']}", f"**{inert(verdict(receipt))}**"]
    for title, body in (
        ("Warnings", _listed(receipt["warnings"]) or "None."),
        ("Scores", _scores(receipt)),
        ("Regressions", _lost(receipt["lost"])),
        ("Cost", _cost(receipt["cost"])),
        ("Deployment", _deployment(receipt)),
        ("Data and licences", _data(receipt)),
        ("Recipe", _recipe(receipt)),
        ("Provenance", _provenance(receipt)),
        ("Missing", _listed(receipt["missing"]) or "Nothing."),
        ("Use", USE),
    ):
        parts += [f"## {title}", body]
    return "\n\n".join(parts) + "\n"


def inert(value: object) -> str:
    """A text that a reader of Markdown shows as it is: one line without HTML, code, links, images or cells' borders."""
    text = " ".join(str(value).split()).replace("\\", "\\\\")
    for sign, shown in (
        ("&", "&amp;"),
        ("<", "&lt;"),
        (">", "&gt;"),
        ("|", "\\|"),
        ("`", "\\`"),
        ("](", "]\\("),
        ("![", "\\!\\["),
    ):
        text = text.replace(sign, shown)
    return text


def verdict(receipt: Receipt) -> str:
    """Whether the student's arm beat plain fine-tuning, in one sentence; SFT is compared with its base model."""
    if REHEARSAL in receipt["budget"]["label"]:
        return f"{REHEARSAL[0].upper()}{REHEARSAL[1:]}; the weights are those of a stand-in."
    first = receipt["headline"]
    score = None if first is None else _named(receipt["scores"], first)
    if score is None or score["score"] is None:
        if not receipt["scores"] or first is None:
            return "This model has no score, so nothing is known of its quality."
        name = " ".join(first.values())
        return f"This model has no score in the primary metric, {name}, so it is not compared with SFT."
    # SFT has no SFT to be compared with; what it can gain is over not training at all
    role = "base" if receipt["recipe"]["name"] == "sft" else "sft"
    found = score["against"].get(role)
    what = f"{score['eval']} {score['metric']}"
    if found is None:
        return f"Whether it beats {ROLES[role]} is not known: there is no score of that to compare its {what} with."
    # one model says nothing of another seed, so what its method does is said of all seeds of its arm
    arm = receipt["arm"]
    told = found if arm is None else arm
    # the comparison of the headline metric alone, so its p value is not adjusted
    clear = told["p"] is not None and told["p"] < CLEAR
    # for a loss a gain below 0 is the better one
    better = (told["gain"] > 0) == score["higher_is_better"]
    verbs = ("Ahead of", "Behind", "No clear difference from") if arm is None else WORDS
    verb = verbs[0 if better else 1] if clear else verbs[2]
    text = f"{verb} the {ROLES[role]}" if role == "base" else f"{verb} {ROLES[role]} ({receipt['budget']['label']})"
    own = f"{found['gain']:+.3f} {_interval(found, '+.3f')}, {score['score']:.3f} against {found['score']:.3f}"
    covers = "test items, not another seed" if score["covers"] == "items only" else score["covers"] or "nothing"
    if arm is None:
        text = f"{HINT}{text[0].lower()}{text[1:]} in {what}: {own}{_extra(receipt)}"
        text += f"; the interval covers {covers} {ONE_SEED}."
    else:
        text += f" in {what}: {arm['gain']:+.3f} {_interval(arm, '+.3f')} over the {arm['seeds']} seeds of its arm"
        text += f" ({arm['covers']}); this model alone: {own}{_extra(receipt)}; its interval covers {covers}."
    return f"Plain fine-tuning, the obvious alternative itself. {text}" if role == "base" else text


def metadata(receipt: Receipt) -> "ModelCardData":
    """The front matter: the card's metadata as huggingface_hub defines and checks it.

    Raises ValueError where huggingface_hub refuses the scores as evaluation results.
    """
    from huggingface_hub import ModelCardData

    student, data, method = receipt["student"], receipt["data"], receipt["recipe"]["name"]
    fields: dict[str, Any] = hub_license(student["license"], LicenceVerdict(**receipt["licences"]))
    # only a model of the hub has a path here, and only that can be linked from a card
    if student["path"]:
        fields |= {"base_model": student["path"], "base_model_relation": "finetune"}
    if data["data_set"]:
        fields["datasets"] = [data["data_set"]]
    # the hub takes numbers only; a missing score is an empty cell in the card's table
    # and the hub names one data set for each result, which a macro-average does not have
    scored = [score for score in receipt["scores"] if score["score"] is not None and score["eval"] != MACRO_AVERAGE]
    results = [_result(score, data) for score in scored]
    if results:
        fields |= {"model_name": receipt["name"], "eval_results": results}
    tags = ["harness", method, *([] if receipt["teacher"] is None else ["knowledge-distillation"])]
    return ModelCardData(library_name="transformers", pipeline_tag="text-generation", tags=tags, **fields)


def _result(score: Mapping[str, Any], data: Mapping[str, Any]) -> "EvalResult":
    from huggingface_hub import EvalResult

    # a public benchmark is named by its own data set, held-out rows by that of the corpus
    public = score["eval"] in benchmark_names()
    return EvalResult(
        task_type="text-generation",
        dataset_type=load_benchmark(score["eval"]).data if public else data["data_set"] or inert(data["corpus"]),
        dataset_name=load_benchmark(score["eval"]).title if public else f"held-out rows of {inert(data['corpus'])}",
        dataset_config=score["eval"],
        metric_type=score["metric"],
        metric_name=f"{score['eval']} {score['metric']}",
        metric_value=score["score"],
    )


def _extra(receipt: Receipt) -> str:
    """The cost of the gain beyond that of plain fine-tuning."""
    sft, own = receipt["sft_cost"], receipt["cost"]
    if sft is None:
        return ""
    if not own["total"]["flops"] or not sft["total"]["flops"]:
        gone = "the model" if not own["total"]["flops"] else "SFT"
        return f"; what training {gone} took is not known, because its artifact has left the store"
    more = own["total"]["flops"] - sft["total"]["flops"]
    text = f", at {own['total']['flops'] / sft['total']['flops']:.2g} times its FLOPs ({more:+.2g})"
    text += f" and {own['total']['seconds'] - sft['total']['seconds']:+.3g} s"
    # a teacher may serve many students, so its training is named apart and not added
    making = own["with_teacher_training"]["flops"] - own["total"]["flops"]
    return text + (f", not counting the training of the teacher ({making:.2g} FLOPs)" if making else "")


def _scores(receipt: Receipt) -> str:
    found = dict.fromkeys(role for score in receipt["scores"] for role in score["against"])
    roles = [*(role for role in ROLES if role in found), *(role for role in found if role not in ROLES)]
    names = [ROLES.get(role, role) for role in roles]  # of several teachers the role has the name
    head = ["evaluation", "this model [95 %]", "items", *(f"gain over {name} [95 %]" for name in names)]
    rows = []
    for score in receipt["scores"]:
        lower = "" if score["higher_is_better"] else " (lower is better)"
        own = "" if score["score"] is None else f"{score['score']:.3f} {_interval(score, '.3f')}"
        row = [f"{score['eval']} {score['metric']}{lower}", own, score.get("items", "")]
        rows.append(row + [_gain(score["against"].get(role)) for role in roles])
    public = sorted({score["eval"] for score in receipt["scores"]} & set(benchmark_names()))
    macro = any(score["eval"] == MACRO_AVERAGE for score in receipt["scores"])
    note = f"{', '.join(public)}: run as `evals/benchmarks` defines it (lm-eval {LM_EVAL}). "
    note += "The scores are not comparable with published ones."
    if macro:
        note += (
            f" {MACRO_AVERAGE} is the mean over {', '.join(public)}, each of the same weight: of the scores ({RAW}), "
        )
        note += f"or of the scores on a scale from what guessing gives, 0, to all right, 1 ({RESCALED})."
    scored_on = [f"{name} was scored on {data}." for name, data in receipt["scored_on"].items()]
    notes = [note, *([" ".join(scored_on)] if scored_on else [])]
    return "\n\n".join([_table(head, rows), *(notes if public else [])])


def _gain(found: Mapping[str, Any] | None) -> str:
    return "" if found is None else f"{found['gain']:+.3f} {_interval(found, '+.3f')} over {found['score']:.3f}"


def _lost(lost: Sequence[Mapping[str, Any]]) -> str:
    if not lost:
        return f"No score is clearly worse than that of SFT or of the base model ({TESTED})."
    rows = []
    for one in lost:
        difference = f"{one['gain']:+.3f} {_interval(one, '+.3f')}"
        row = [f"{one['eval']} {one['metric']}", one["source"], ROLES.get(one["against"], one["against"]), difference]
        rows.append([*row, f"{one['score']:.3f}", f"{one['other']:.3f}", one["items"]])
    head = ["evaluation", "source", "worse than", "difference [95 %]", "this model", "the other", "items"]
    note = "It is said of this model; of another seed it is a hint (one seed)."
    return f"Clearly worse means {TESTED}. {note}\n\n{_table(head, rows)}"


def _cost(cost: Mapping[str, Mapping[str, float]]) -> str:
    rows = [
        [name, f"{cost[purpose]['seconds']:.3g}", f"{cost[purpose]['flops']:.3g}", f"{cost[purpose]['tokens']:.3g}"]
        for purpose, name in COSTS.items()
    ]
    return _table(["", "seconds", "FLOPs (estimate)", "processed and generated tokens"], rows)


def _deployment(receipt: Receipt) -> str:
    if not receipt["deployment"]:
        return "Not measured: measure.formats=[]."
    first, rows = receipt["headline"], []
    for one in receipt["deployment"]:
        if one["problem"]:
            rows.append([one["role"], one["format"], *[""] * 5, f"not measured: {one['problem']}"])
            continue
        sizes = [f"{one['parameters']:,}"]
        sizes += [f"{one[name] / 1e6:,.2f}" for name in ("weight_bytes", "peak_memory_bytes")]
        speeds = [f"{one[f'{what}_tokens_per_second']:,.0f}" for what in ("prefill", "decode")]
        rows.append([one["role"], one["format"], *sizes, *speeds, _format_score(one, first, receipt)])
    measured = [one for one in receipt["deployment"] if one["measured_on"]]
    metric = " ".join(first.values()) if first else "score"
    head = ["model", "format", "parameters", "weights MB", "peak MB", "prefill tokens/s", "decode tokens/s"]
    text = _table([*head, f"{metric} [95 %]"], rows)
    if not measured:
        return text
    last, loads = measured[-1], [one["measured_on"]["load_average"] for one in measured]
    places = {f"{one['measured_on']['device']}, {one['measured_on']['threads']} threads": None for one in measured}
    lengths = f"Prompts of {last['prompt_tokens']} tokens, answers of {last['new_tokens']}, batch {last['batch_size']}"
    return (
        f"{text}\n\n{lengths}, median of {last['repeats']}; {' and '.join(places)}; load of the machine "
        f"{min(loads):.2g} to {max(loads):.2g} at the time. Memory is what running it added; on a CPU that is resident "
        "memory, which says little of models below 10 MB."
    )


def _format_score(one: Mapping[str, Any], first: Mapping[str, str] | None, receipt: Receipt) -> str:
    """The headline score in one number format; rounded weights have one of their own."""
    if first is None:
        return ""
    if (score := _named(one["scores"], first)) is not None:
        change = score["against_whole"]
        rounding = "" if change is None else f", {change['gain']:+.3f} {_interval(change, '+.3f')} by rounding"
        return f"{score['score']:.3f} {_interval(score, '.3f')}{rounding}"
    if one["not_scored"]:
        return "not scored"
    # a format without scores of its own has those of the evaluations, but only where they ran in it
    if one["format"] != one["scored_in"]:
        return "not scored apart"
    whole = _named(receipt["scores"], first)
    assert whole is not None
    if one["role"] == "student":
        return f"{whole['score']:.3f} {_interval(whole, '.3f')}"
    teacher = whole["against"].get("teacher")
    return "" if teacher is None else f"{teacher['score']:.3f}"


def _named(scores: Iterable[Mapping[str, Any]], metric: Mapping[str, str]) -> Mapping[str, Any] | None:
    return next((one for one in scores if all(one[name] == value for name, value in metric.items())), None)


def _data(receipt: Receipt) -> str:
    data, teacher, licences = receipt["data"], receipt["teacher"], receipt["licences"]
    rows = [[one["source"], one["rows"], one["license"] or "", one["flag"]] for one in data["sources"]]
    written = ", ".join(f"{inert(kind)} {count:,}" for kind, count in data["written"].items())
    lines = [
        f"{data['rows']:,} rows of {inert(data['corpus'])} ({data['data_frac'] * 100:g} % of each source)"
        + (f" at revision {inert(data['revision'])}" if data["revision"] else "")
        + f", and {data['validation_rows']:,} for validation.",
        _table(["source", "rows", "licence as stated", ""], rows),
    ]
    lines += [f"Made by the teacher beforehand, in blocks that other cells may share: {written}."] * bool(written)
    lines.append(f"Start weights: {inert(receipt['student']['license'] or 'no licence stated')}.")
    for one in teachers_in(teacher):
        name = f"Teacher {one['name']}{_taught(teacher, one)}" if len(teachers_in(teacher)) > 1 else "Teacher"
        allowed = one["distillation_allowed"]
        stated = one["license"] or "no licence stated"
        lines.append(inert(f"{name}: {stated}; distillation allowed: {allowed}."))
    reasons = _listed(licences["reasons"])
    lines.append(f"**By what is stated: {licences['says']}.**" + (f"\n\n{reasons}" if reasons else ""))
    return "\n\n".join(lines) + "\n\nNames of licences are as publishers state them; this is no legal advice."


def _taught(teacher: Mapping[str, Any], member: Mapping[str, Any]) -> str:
    """What one of several teachers teaches, in words."""
    if member["sources"]:
        return f" ({', '.join(member['sources'])})"
    share = "an equal share" if member["share"] is None else f"{member['share']:g}"
    return f" ({share} of the mean)" if teacher["combine"] == "mean" else f" ({share} of the rows)"


def _recipe(receipt: Receipt) -> str:
    teacher = receipt["teacher"] or {}
    parts = {"student": receipt["student"], "teacher": {n: v for n, v in teacher.items() if n != "members"}}
    parts |= {f"teacher {one['name']}": one for one in teacher.get("members", [])}
    parts |= {"method": receipt["recipe"]}
    parts |= {"budget": receipt["budget"], "tuned by trials": receipt["tuned"]}
    parts |= {"seeds": {name: receipt[name] for name in ("data_seed", "train_seed", "world_seed", "teacher_seed")}}
    lines = [f"- {inert(name)}: {inert(_values(values))}" for name, values in parts.items() if values]
    return "\n".join(lines)


def _provenance(receipt: Receipt) -> str:
    made = receipt["provenance"]
    machine, hardware = made["machine"], made["hardware"]
    commits = ", ".join(f"{commit} ({count} stages)" for commit, count in made["commits"].items())
    changed = f"; {made['changed_stages']} stages were made with uncommitted changes" if made["changed_stages"] else ""
    device = machine["gpu"] or f"{hardware['cpu'] or hardware['machine']}, {hardware['cores']} cores"
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items() if version)
    when = f"{datetime.fromtimestamp(made['trained'], UTC):%Y-%m-%d %H:%M} UTC"
    lines = [
        f"Cell {receipt['cell']} of grid {receipt['grid']}",
        f"Trained {when} on {device}, processes: {machine['processes']}",
        f"Code: commit {commits}{changed}",
        f"Python {made['python']}, {versions}",
        *(f"{name}: sha256 {digest}" for name, digest in made["weights_sha256"].items()),
    ]
    return _listed(lines)


def _values(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items() if value is not None)


def _interval(found: Mapping[str, Any], form: str) -> str:
    if found.get("low") is None:
        return "[no interval]"
    return f"[{found['low']:{form}}, {found['high']:{form}}]"


def _table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(inert, line)) + " |" for line in lines)


def _listed(lines: Iterable[str]) -> str:
    return "\n".join(f"- {inert(line)}" for line in lines)


USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")
turns = [{"role": "user", "content": "..."}]
prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True, return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=64)[0, prompt["input_ids"].shape[1] :]))
```

Files here are links into the store; `cp -rL` makes a copy that stands alone."""
