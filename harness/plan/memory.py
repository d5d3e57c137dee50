"""Memory: what a stage is expected to take of one GPU at its peak, from settings and shapes alone.

Of a training stage three moments are compared: forward and backward passes, the student's own generation, and the
export of the trained model. Constants of activations are those that a run of this program's trainer allocates
(benchmarks/memory_estimate.py measures them; docs/cluster.md has the table). Lengths are the longest that the settings
allow, since the longest rows set the peak. Kernels' own scratch memory is not counted: SPARE is left for it.

    peak = stage_memory(stage, Placement(gpus=8, shard=True, micro_batch_size=1, gradient_checkpointing=True))
    peak.total / 1e9, peak.parts["weights"]

Notation: N parameters, V vocabulary, d width, f inner width, k key width, L layers, T tokens of a micro-batch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from harness.config.checks import refuse
from harness.config.cluster import Cluster, Resources
from harness.config.machine import Machine
from harness.data.sequences import TOKENS_AT_ONCE
from harness.models.kinds import model_of
from harness.models.shapes import Shape, shape_of
from harness.plan.estimate import LINE_TOKENS, expected_rows
from harness.plan.graph import Stage, Work
from harness.store.store import Store

GB = 1e9
SPARE = 0.1
"""Share of a GPU's memory that is left for the CUDA context, kernels' scratch memory and the allocator's fragments."""
BYTES = {"fp32": 4.0, "bf16": 2.0, "auto": 2.0}
QUANTISED = {"int8": 1.0, "nf4": 0.5 + 4 / 64}
"""Bytes of a rounded weight: 4-bit weights have a 4-byte scale for every 64."""
LAYER = {"fp32": (32.0, 16.0, 8.0), "bf16": (30.0, 8.0, 4.0)}
"""Bytes that a layer keeps of a token for the backward pass: of each d, f and k."""
RECOMPUTED = {"fp32": (33.0, 23.0, 8.0), "bf16": (38.0, 11.5, 4.0)}
"""Bytes of a token in one layer while it is computed backward, gradients included: of each d, f and k."""
LOGITS = {"cross_entropy": 12.0, "jsd": 52.0, "skew_forward_kl": 52.0, "skew_reverse_kl": 52.0}
"""Bytes of a scored position for each token of the vocabulary, by divergence; 36 for the others."""
OTHER_LOGITS, SCORED_LOGITS = 36.0, 8.0
"""The same for other divergences, and where tokens are scored without gradients."""
CHUNK_ELEMENTS = {"cpu": 2**24, "cuda": 2**27}
"""Positions x vocabulary that are compared at once (`training/losses/chunked.py` has the same figures)."""
CACHE_ROOM = 1.25
"""A KV cache has room for a quarter more tokens than it holds (`models/kv_cache.py`)."""
VALIDATION_TOKENS = 2**16
"""Padded tokens of one batch of validation rows (`training/nll.py`)."""
SERVED = "teacher=served teacher.path=slurm, so that a job of its own has the teacher"
ROWS_AT_ONCE = 256
"""Most rows that a model generates answers to at once (`models/generate.py`)."""


@dataclass(frozen=True)
class Placement:
    """The settings of a job that change how much memory a stage takes of one GPU."""

    processes: int = 1
    """Processes that train a stage together."""
    shard: bool = False
    micro_batch_size: int | None = None
    gradient_checkpointing: bool = False
    device: str = "cuda"

    @classmethod
    def of(cls, rule: Resources | None, machine: Machine) -> "Placement":
        """Of a rule of a cluster, or with None of this machine: one process."""
        return cls(
            processes=1 if rule is None else rule.count,
            shard=machine.shard or (rule is not None and rule.shard),
            micro_batch_size=machine.micro_batch_size,
            gradient_checkpointing=machine.gradient_checkpointing,
            device="cpu" if machine.device == "cpu" else "cuda",
        )


@dataclass(frozen=True)
class Peak:
    """The expected peak of one GPU's memory, by what it is for."""

    parts: Mapping[str, float] = field(default_factory=dict)
    """Bytes by part."""
    moment: str = ""
    """When it is reached."""

    @property
    def total(self) -> float:
        """Bytes in all."""
        return sum(self.parts.values())

    def describe(self) -> str:
        """The parts that matter, largest first: `optimizer states 64 GB, weights 32 GB; generation`."""
        named = sorted(self.parts.items(), key=lambda one: -one[1])
        large = [f"{name} {in_units(size)}" for name, size in named if size >= 0.02 * self.total]
        return ", ".join(large) + (f"; {self.moment}" if self.moment else "")


def in_units(size: float) -> str:
    """Bytes in GB, or in MB where they are fewer than one GB."""
    return f"{size / GB:.1f} GB" if size >= GB else f"{size / 1e6:.1f} MB"


def stage_memory(stage: Stage, place: Placement | None = None) -> Peak:
    """The expected peak of one process of a stage; empty where no model is loaded."""
    place = place or Placement()
    if stage.kind == "train":
        return max(training_moments(stage, place), key=lambda peak: peak.total)
    if stage.kind == "base" and stage.settings.get("pretraining"):
        return _pretraining(stage, place)
    shape = _shape(_scored_model(stage))
    if shape is None or stage.kind in ("mixture", "base", "subset", "overlap"):
        return Peak()
    model, settings = _scored_model(stage), stage.settings
    weights = _weights(model, shape, settings.get("format") or settings.get("precision", "bf16"))
    if stage.kind == "quantise":
        # layers are rounded one by one as they are read
        rounded = _weights(stage, shape, "auto")
        return Peak({"weights": rounded, "a layer before rounding": 2.0 * shape.layer}, "rounding")
    precision = "fp32" if settings.get("format", settings.get("precision", "fp32")) == "fp32" else "bf16"
    parts = {"weights": weights}
    if stage.kind == "cache":
        parts["activations"] = 2**13 * _forward(shape, precision)
        parts["logits"] = 3 * 4.0 * 2**26
    elif stage.kind == "measure":
        rows = settings["batch_size"] * (settings["prompt_tokens"] + settings["new_tokens"])
        parts |= _generation(shape, precision, settings["batch_size"], rows, rows, place)
    elif stage.kind in ("labels", "synthesize"):
        new = settings["max_new_tokens"]
        rows = ROWS_AT_ONCE
        parts |= _generation(shape, precision, rows, rows * settings["max_length"], rows * new, place)
    else:
        new, card = settings.get("max_new_tokens", 0), settings.get("card", {})
        if new:
            prompts = ROWS_AT_ONCE * stage.inputs["mixture"].where["corpus"]["max_length"]
            parts |= _generation(shape, precision, ROWS_AT_ONCE, prompts, ROWS_AT_ONCE * new, place)
        elif card.get("max_new_tokens"):  # a batch has so many tokens, answers among them
            parts |= _generation(shape, precision, ROWS_AT_ONCE, TOKENS_AT_ONCE, 1, place)
        else:
            parts |= _scoring(shape, precision, TOKENS_AT_ONCE, place)
    return Peak(parts, stage.kind)


def largest(plan: Work, store: Store, machine: Machine, cluster: Cluster | None) -> dict[str, tuple[Stage, Peak]]:
    """By kind, the stage that is still to be made and takes most of one GPU, and its peak; kinds without a model are
    absent. Raises SettingsError where no rule of the cluster fits a stage."""
    found: dict[str, tuple[Stage, Peak]] = {}
    for stage in plan.stages:
        if store.done(stage.key):
            continue
        peak = stage_memory(stage, Placement.of(_rule(stage, cluster), machine))
        if peak.total > (found[stage.kind][1].total if stage.kind in found else 0):
            found[stage.kind] = (stage, peak)
    return found


def check_memory(plan: Work, store: Store, machine: Machine, cluster: Cluster) -> None:
    """Raise SettingsError for the first stage that is expected to take more memory than one of its job's GPUs has,
    with settings that would help; nothing is compared where `slurm.gpu_memory_gb` is null."""
    if cluster.gpu_memory_gb is None:
        return
    room = cluster.gpu_memory_gb * GB * (1 - SPARE)
    for stage in plan.stages:
        rule = _rule(stage, cluster)
        if rule is None or not rule.gpus or store.done(stage.key):
            continue
        place = Placement.of(rule, machine)
        peak = stage_memory(stage, place)
        if peak.total > room:
            raise refuse(
                "slurm.gpu_memory_gb",
                cluster.gpu_memory_gb,
                f"{stage.address} is expected to take {peak.total / GB:.0f} GB of each GPU, of which {SPARE:.0%} is "
                f"left free: {peak.describe()}",
                _way_out(stage, place, room),
            )


def memory_lines(plan: Work, store: Store, machine: Machine, cluster: Cluster | None) -> Iterator[str]:
    """The largest stage of each kind as lines of text: its peak by parts. Raises as `largest`."""
    found = largest(plan, store, machine, cluster)
    if not found:
        return
    room = "" if cluster is None or cluster.gpu_memory_gb is None else f" of {cluster.gpu_memory_gb:g} GB"
    yield f"memory per process at its peak, the largest stage of each kind{room}:"
    for kind, (stage, peak) in found.items():
        yield f"  {kind:<11}{in_units(peak.total):>10}  {stage.name}: {peak.describe()}"


def _rule(stage: Stage, cluster: Cluster | None) -> Resources | None:
    if cluster is None:
        return None
    rule = cluster.resources_for(stage.kind, stage.name, stage.largest_model)
    # what does not train is made by one process on one GPU
    return rule if stage.kind == "train" else replace(rule, nodes=1, processes=1, shard=False)


def _way_out(stage: Stage, place: Placement, room: float) -> str:
    """The first settings that make a stage fit, those that cost least first."""
    if stage.kind in ("labels", "synthesize", "cache"):
        return f"set {SERVED}"
    if stage.kind == "measure":
        return "set measure.formats=[bf16], or [] where the teacher is too large to be measured here"
    if stage.kind != "train":
        return (
            "set evals.precision=bf16, make corpus.max_new_tokens smaller where answers are generated to held-out rows "
            "(`verified`), and quantise or serve the model where it is the teacher (teacher.quantise=nf4)"
        )
    tried: list[str] = []
    for words, change in (
        ("machine.gradient_checkpointing=true", {"gradient_checkpointing": True}),
        ("machine.micro_batch_size=1", {"micro_batch_size": 1}),
        ("shard: true and 8 GPUs in the rule of the cluster's file", {"shard": True, "processes": 8}),
        ("nodes: 4", {"shard": True, "processes": 32}),
    ):
        larger = replace(place, **change)  # type: ignore[arg-type]
        if larger.processes < place.processes or larger == place:
            continue
        place = larger
        tried.append(words)
        if stage_memory(stage, place).total <= room:
            return "set " + " and ".join(tried)
    if "teacher" in stage.inputs:
        teacher = stage.inputs["teacher"]
        rounded = Stage("quantise", teacher.name, {"to": "nf4"}, {"model": teacher})
        others = {role: one for role, one in stage.inputs.items() if role != "teacher"}
        for words, inputs in (("teacher.quantise=nf4", others | {"teacher": rounded}), (SERVED, others)):
            if stage_memory(replace(stage, inputs=inputs), place).total <= room:
                return "set " + " and ".join([words, *tried])
    return "make corpus.max_length or corpus.max_new_tokens smaller, or train adapters (student.lora_rank=16)"


def _scored_model(stage: Stage) -> Stage:
    """The model that a stage loads, trained or rounded."""
    return next((stage.inputs[role] for role in ("model", "teacher") if role in stage.inputs), stage)


def _shape(model: Stage) -> Shape | None:
    settings = model.base_model().where.get("model")
    return None if settings is None else shape_of(model_of(settings))


def _weights(model: Stage, shape: Shape, precision: str) -> float:
    """Bytes of a model's weights as it is loaded."""
    if model.kind == "quantise":
        # embeddings, output layer and norms are not rounded
        rounded = shape.layers * shape.layer
        return QUANTISED[model.settings["to"]] * rounded + 2.0 * (shape.parameters - rounded)
    return BYTES.get(precision, 2.0) * shape.parameters


def _chunk(shape: Shape, positions: float, place: Placement) -> float:
    """Positions x vocabulary that are compared at once."""
    return min(positions * shape.vocabulary, max(CHUNK_ELEMENTS[place.device], shape.vocabulary))


def _forward(shape: Shape, precision: str) -> float:
    """Bytes of a token in a forward pass without gradients: the residual stream and one layer's largest tensors."""
    each = BYTES[precision]
    return 12.0 * shape.width + each * (4 * shape.width + 3 * shape.inner)


def _generation(
    shape: Shape, precision: str, rows: float, prompt_tokens: float, new_tokens: float, place: Placement
) -> dict[str, float]:
    """Parts of generating answers: the KV cache of prompts and answers, the prompts' activations, and next-token
    logits of each row, drawn from in fp64."""
    each = 2 * BYTES[precision] * shape.keys * (prompt_tokens + new_tokens)  # keys and values of a layer
    # a layer that grows is there twice for a moment
    return {
        "KV cache": each * (shape.layers * CACHE_ROOM + 1) if new_tokens else 0.0,
        "activations": prompt_tokens * _forward(shape, precision),
        "logits": 28.0 * rows * shape.vocabulary if new_tokens else 0.0,
    }


def _pretraining(stage: Stage, place: Placement) -> Peak:
    shape, plan = _shape(stage), stage.settings["pretraining"]
    assert shape is not None
    tokens = plan["batch_size"] * LINE_TOKENS[stage.settings.get("family", "words")]
    parts = {"weights": 4.0 * shape.parameters, "optimizer states": 8.0 * shape.parameters}
    parts["activations"] = tokens * shape.layers * _bytes(LAYER["fp32"], shape)
    parts["logits"] = LOGITS["cross_entropy"] * _chunk(shape, tokens, place)
    return Peak(parts, "pre-training")


def _bytes(of: tuple[float, float, float], shape: Shape) -> float:
    return of[0] * shape.width + of[1] * shape.inner + of[2] * shape.keys


def training_moments(stage: Stage, place: Placement) -> Iterator[Peak]:
    """The moments of a training stage at which its memory may peak."""
    shape = _shape(stage)
    assert shape is not None, "a student has weights"
    recipe, budget, subset = stage.settings["stage"], stage.settings["budget"], stage.inputs["subset"]
    precision, processes = budget["precision"], place.processes
    parts_of = processes if place.shard else 1
    own_rows = max(1, budget["batch_size"] // processes)
    micro = min(own_rows, place.micro_batch_size or own_rows)
    length = subset.settings["max_length"]
    new = stage.settings.get("max_new_tokens", 0)  # where the student generates, its answer follows a whole prompt
    tokens = float(micro * (length + new))
    scored = float(micro * (max(new, length if recipe.get("student_share", 1) < 1 else 0) if new else length))
    count = float(shape.parameters)
    lora = stage.settings.get("lora")
    trained = count if lora is None else _adapters(shape, lora["rank"])
    teacher = _teacher_weights(stage, precision)
    static = {
        "weights": 4.0 * (count + (trained if lora else 0)) / parts_of,
        "optimizer states": 8.0 * trained / parts_of,
        **({"teacher": teacher} if teacher else {}),
    }
    gradients = 4.0 * trained / parts_of
    if processes > 1 and not place.shard:
        gradients += 4.0 * trained  # DistributedDataParallel's buckets
    # fp32 weights are cast to bf16 once a forward pass, and the casts stay until the backward pass
    casts = 2.0 * count if precision == "bf16" else 0.0
    # what is not a layer is one unit, gathered until the backward pass ends; of the layers two at a time
    units = 2 * 4.0 * (shape.embeddings + 2 * shape.layer) if parts_of > 1 else 0.0
    gathered = {"gathered units": units} if units else {}
    vocabulary = LOGITS.get(recipe["divergence"], OTHER_LOGITS) * _chunk(shape, scored, place)
    if scored * shape.vocabulary > CHUNK_ELEMENTS[place.device]:
        vocabulary += 2 * 4.0 * shape.vocabulary * shape.width  # the output layer's gradient, summed over chunks
    layer = tokens * _bytes(RECOMPUTED[precision], shape)
    kept = (
        tokens * shape.layers * (4.0 * shape.width if place.gradient_checkpointing else _bytes(LAYER[precision], shape))
    )
    several = micro < own_rows  # gradients of earlier micro-batches of the step are there
    forward = static | gathered | {"activations": kept + 8.0 * tokens * shape.width, "logits": vocabulary}
    yield Peak(
        forward | {"bf16 casts": casts} | ({"gradients": gradients} if several else {}), "forward and backward passes"
    )
    # backward: with checkpoints a layer is computed again beside what is kept, and at the end all gradients are there
    begins = {"activations": layer + kept if place.gradient_checkpointing else 0.0}
    begins["gradients"] = gradients if several else 4.0 * shape.vocabulary * shape.width / parts_of
    yield Peak(static | gathered | begins, "forward and backward passes")
    yield Peak(static | gathered | {"gradients": gradients, "activations": layer}, "forward and backward passes")
    if recipe["sequences"] in ("student", "interleaved"):
        whole = {"whole model, gathered": 4.0 * count} if parts_of > 1 else {}
        written = own_rows * new
        found = (
            static
            | whole
            | {"bf16 casts": casts}
            | _generation(shape, precision, own_rows, own_rows * length, written, place)
        )
        if recipe["sequences"] == "interleaved" and "teacher" in stage.inputs:
            judge = _shape(stage.inputs["teacher"])
            if judge is not None:
                its = _generation(judge, "bf16", own_rows, own_rows * length, written, place)
                found |= {f"teacher's {name}": size for name, size in its.items()}
        yield Peak(found, "generation")
    if recipe.get("adaptive") and parts_of > 1:
        yield Peak(static | {"whole model, gathered": 4.0 * count} | _validation(stage, shape, place), "validation")
    # rank 0 has the whole model beside its shard
    yield Peak(
        {"weights": 4.0 * count * (1 + (1 / parts_of if parts_of > 1 else 0))} | _validation(stage, shape, place),
        "export",
    )


def _validation(stage: Stage, shape: Shape, place: Placement) -> dict[str, float]:
    """Parts of scoring the cell's own validation rows, at most 64 at once."""
    subset = stage.inputs["subset"]
    length, rows = subset.settings["max_length"], expected_rows(subset) * subset.settings["validation"]
    tokens = max(length, min(VALIDATION_TOKENS, min(64.0, rows) * length)) if rows else 0.0
    return _scoring(shape, "fp32", tokens, place)


def _scoring(shape: Shape, precision: str, tokens: float, place: Placement) -> dict[str, float]:
    """The larger of what scoring tokens without gradients takes: a layer's activations, then the logits."""
    activations, logits = tokens * _forward(shape, precision), SCORED_LOGITS * _chunk(shape, tokens, place)
    return {"activations": activations} if activations > logits else {"logits": logits}


def _teacher_weights(stage: Stage, precision: str) -> float:
    """Bytes of the weights of all live teachers; 0 for those that are served or cached."""
    live = [one for role, one in stage.inputs.items() if role.partition(":")[0] == "teacher"]
    shapes = ((teacher, _shape(teacher)) for teacher in live)
    return sum(_weights(teacher, shape, precision) for teacher, shape in shapes if shape is not None)


def _adapters(shape: Shape, rank: float) -> float:
    """Parameters of low-rank adapters of every linear layer."""
    inputs = 4 * shape.width + (3 if shape.gated else 2) * shape.width  # q, k, v, o and the MLP's, in and out
    outputs = 2 * shape.queries + 2 * shape.keys + (3 if shape.gated else 2) * shape.inner
    return rank * shape.layers * (inputs + outputs)
