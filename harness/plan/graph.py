"""Stage: one node of a plan; what makes it, what it needs, and the address that follows from both.

Nothing here runs anything: a stage is what a plan is made of and a store is filled with.

    stage = Stage("train", "sft-0.01-s0", settings, {"subset": rows, "start": base})
    stage.key        # train-3f2a...: the same settings and inputs, the same key
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from harness.config.checks import refuse
from harness.models.kinds import model_of
from harness.store.fingerprint import SHORT, fingerprint, plain

# Each kind of stage: the function that makes it and its version. Bump a version when its numbers change.
MAKERS: dict[str, tuple[str, int]] = {
    "mixture": ("harness.stages.mixture:make_mixture", 1),
    "base": ("harness.stages.base:make_base", 1),
    "quantise": ("harness.stages.deployment:make_quantise", 1),
    "subset": ("harness.stages.subset:make_subset", 1),
    "labels": ("harness.stages.labels:make_labels", 1),
    "cache": ("harness.stages.logit_cache:make_cache", 1),
    "synthesize": ("harness.stages.synthesis.synthesize:make_synthesize", 2),
    "train": ("harness.stages.train:make_train", 1),
    "evaluate": ("harness.stages.evaluate:make_evaluate", 2),
    "measure": ("harness.stages.deployment:make_measure", 1),
    "overlap": ("harness.stages.overlap:make_overlap", 1),
}

FEW_PARAMETERS = 10**7
"""Models below it train and generate on one thread on every machine, unless `machine.threads` is set."""
DERIVED = ("teacher_reading", "student")
"""Roles of inputs that follow from a stage's other inputs, and so have no part in its identity: the rows as its teacher
renders them, and the base model of the student that they are rendered for."""
TOGETHER = ("train",)
"""Kinds that all processes of a job make together; rank 0 makes any other alone."""
Again = Mapping[str, Mapping[str, Any]]
"""By the key of a stage that is retried, the entries its spec gets: `machine`, settings of its own, and maybe
`retried`, a note for its record."""


@dataclass(frozen=True, eq=False)
class Stage:
    """One node of the plan; equal to another stage exactly when their keys are equal."""

    kind: str
    name: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, "Stage"] = field(default_factory=dict)
    where: Mapping[str, Any] = field(default_factory=dict)
    """What a maker needs to find its material (folders, hub ids); never identity."""

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over kind, version, settings and the inputs' fingerprints; the name has no part in it."""
        return fingerprint(
            {
                "kind": self.kind,
                "version": MAKERS[self.kind][1],
                "settings": self.settings,
                "inputs": {role: stage.fingerprint for role, stage in self.inputs.items() if role not in DERIVED},
            }
        )

    @property
    def key(self) -> str:
        """The stage's place in the store."""
        return f"{self.kind}-{self.fingerprint[:SHORT]}"

    @property
    def address(self) -> str:
        """Kind, readable name and fingerprint."""
        return f"{self.kind}-{self.name}-{self.fingerprint[:SHORT]}"

    @cached_property
    def parameters(self) -> int:
        """About how many parameters the model has that the stage makes or scores; 0 where there is none."""
        # from the settings alone: nothing is loaded while a grid is planned
        model = self.base_model().where.get("model")
        return 0 if model is None else model_of(model).parameters()

    @property
    def largest_model(self) -> int:
        """Parameters of the largest model that the stage makes, scores or runs as a teacher."""
        return max([self.parameters, *(stage.parameters for role, stage in self.inputs.items() if role == "teacher")])

    def spec(self) -> dict[str, Any]:
        """All that a worker needs to make the stage, as plain JSON; inputs by key.

        `threads` is 1 where more would not help, so that arithmetic is the same on a laptop and on any cluster.
        """
        return {
            "key": self.key,
            "address": self.address,
            "kind": self.kind,
            "name": self.name,
            "version": MAKERS[self.kind][1],
            # several threads add in another order than one does, which rounds differently
            "threads": 1 if self.largest_model < FEW_PARAMETERS else None,
            "settings": plain(self.settings),
            "where": plain(self.where),
            "inputs": {role: stage.key for role, stage in self.inputs.items()},
        }

    @classmethod
    def of(cls, specs: Mapping[str, Mapping[str, Any]]) -> dict[str, "Stage"]:
        """Stages by key from their `spec()`s. Raises SettingsError where this code would give one another key."""
        made: dict[str, Stage] = {}

        def visit(key: str) -> Stage:
            if key not in made:
                # inputs first, because a key is a hash over the inputs' fingerprints
                spec = specs[key]
                inputs = {role: visit(upstream) for role, upstream in spec["inputs"].items()}
                made[key] = cls(spec["kind"], spec["name"], spec["settings"], inputs, spec["where"])
                if made[key].key != key:
                    raise refuse("stage", spec["address"], "the code that makes it has changed", "run its grid again")
            return made[key]

        for key in specs:
            visit(key)
        return made

    def base_model(self) -> "Stage":
        """The stage of the base model from which this model was trained or rounded."""
        # a trained model has its start model, a rounded one the model it was made from
        before = next((self.inputs[role] for role in ("start", "model") if role in self.inputs), None)
        return self if before is None else before.base_model()

    def ancestry(self) -> Iterator["Stage"]:
        """Every stage this one needs, inputs before those that use them, then itself; may repeat."""
        # a stage that two others need comes twice; callers keep the first
        for stage in self.inputs.values():
            yield from stage.ancestry()
        yield self


class Work(Protocol):
    """Stages to make: a plan, or a part of one."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages, inputs before those that use them."""

    @property
    def targets(self) -> Mapping[str, Stage]:
        """The stages that were requested, by key; the others are their inputs."""

    @property
    def teachers(self) -> Collection[str]:
        """Keys of teachers that several cells may share."""
