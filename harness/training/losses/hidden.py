"""Objectives that look inside both models: hidden states through a learned projection, and token relations.

`objectives.py` compares next-token distributions; here hidden states are compared too (`models/hidden_states.py`
catches them). Both kinds add a hidden term to cross-entropy and forward KL, all of them sums over the scored
positions t, divided elsewhere by one shared count:

    sum_t  cross_entropy_weight CE_t + forward_kl_weight KL(P_t || Q_t) + hidden_weight H_t

    features    H_t = mean over layers l of ||W_l h_S[l, t] - h_T[m(l), t]||^2 / ||h_T[m(l), t]||^2
                FitNets' hint (Romero et al. 2015, arXiv 1412.6550, eq. 3) at every layer of the student, with
                TinyBERT's uniform map m(l) = l L_T / L_S (Jiao et al. 2020, arXiv 1909.10351). Relative, so
                no layer counts more for being large. Position 0 has no H_t: models park attention there (the
                "attention sink"), and its norm says nothing about the text.
    relations   H_t = sum over A in queries, keys, values of the mean over heads of KL(R_T[t] || R_S[t]),
                R[t] = softmax over s <= t of A_t . A_s / sqrt(d_r)
                MiniLMv2 (Wang et al. 2021, arXiv 2012.15828, section 3.1, its three relations with weight 1), here
                over causal keys and at scored positions alone. It needs no projection.

A hidden state is what a decoder layer puts out, for the last layer what the output layer reads (after the
final norm). Queries, keys and values are what their projections put out: before rotary embedding and
before a norm of their own.

    objective = Features(phase, teacher, len(tokenizer), student, seed=0)
    objective.compare(student, batch).sum.backward()      # reaches the student and objective.weights
"""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from harness.config.checks import refuse
from harness.config.recipe import TrainingPhase
from harness.data.sequences import draw_seed
from harness.models.hidden_states import (
    attention_heads,
    attention_projections,
    caught,
    equally_wide,
    layers_of,
    relation_kl,
    relative_error,
    uniform_map,
)
from harness.models.logits import logits_at, ruled_out, scored_positions, scored_tokens
from harness.teachers.reading import Reading
from harness.training.losses.divergences import Divergence, cross_entropy, kl, next_token_logprobs

if TYPE_CHECKING:
    from harness.training.losses.objectives import TeacherSignal

SHALLOW = 12
"""Teachers of at most so many layers (the paper's base size) are matched at their last layer."""


class Hidden:
    """What both kinds share: one forward pass of each model, in which its inner states are caught."""

    weights: torch.nn.Module | None = None
    queries_teacher = True

    def __init__(
        self, phase: TrainingPhase, teacher: "TeacherSignal | None", vocabulary: int, student: Any, seed: int = 0
    ) -> None:
        """`seed` is for weights of the objective's own. Raises SettingsError where states cannot be caught."""
        self.phase, self.vocabulary = phase, vocabulary
        self.teacher: Any = teacher
        self.teacher_seconds, self.teacher_tokens = 0.0, 0
        self.diagnoses, self.warnings = False, list[str]()
        self.teacher_model: Any = getattr(teacher, "model", None)
        if self.teacher_model is None:
            raise refuse(
                "teacher",
                type(teacher).__name__,
                f"divergence {phase.divergence} reads the teacher's hidden states, which are not stored or served",
                "use a teacher that is in memory",
            )
        found: Any = teacher
        self.reading: Reading = found.reading
        if self.reading.own:
            raise refuse(
                "teacher.rendering",
                "own",
                f"divergence {phase.divergence} compares states position by position, and in its own chat template "
                "the teacher has other positions",
                "set teacher.rendering=student",
            )

    def compare(self, model: Any, batch: dict[str, torch.Tensor]) -> Divergence:
        """The summed loss of a micro-batch; diagnostics gain `hidden`, the sum of H_t without its weight."""
        input_ids, attention_mask, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]  # (B, T) each
        scored, tokens = scored_positions(labels), scored_tokens(labels)  # (B, T), (N,)
        with caught(self._modules(getattr(model, "module", model), "student"), self._cut(scored)) as student:
            logits = logits_at(model, input_ids, attention_mask, scored)[:, : self.vocabulary]  # (N, V)
        started = time.perf_counter()
        with caught(self._modules(self.teacher_model, "teacher"), self._cut(scored)) as teacher:
            teacher_ids = batch.get("teacher_input_ids", input_ids)  # (B, T), with the teacher's own end of turn
            teacher_logits = self._run_teacher(teacher_ids, attention_mask, scored)
        self.teacher_seconds += time.perf_counter() - started

        # under autocast the squares and products of states would be made in bf16
        with torch.autocast(input_ids.device.type, enabled=False):
            hidden = self._hidden(student, teacher, scored, attention_mask)
        total = self.phase.hidden_weight * hidden
        # the likelihood is reported in any case; its graph is built only where it is part of the loss
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.phase.cross_entropy_weight > 0):
            own = cross_entropy(logits, tokens)
        diagnostics = {**own.diagnostics, "hidden": hidden.detach()}
        if self.phase.cross_entropy_weight:
            total = total + self.phase.cross_entropy_weight * own.sum
        if teacher_logits is not None:
            logits = ruled_out(logits, self.reading.shared.outside)
            student_logprobs, teacher_logprobs = next_token_logprobs(logits, teacher_logits)  # (N, V), (N, V)
            total = total + self.phase.forward_kl_weight * kl(teacher_logprobs, student_logprobs)
        return Divergence(total, len(tokens), diagnostics)

    def _run_teacher(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, scored: torch.Tensor
    ) -> torch.Tensor | None:
        # the teacher's output layer is worth running only for the KL
        if self.phase.forward_kl_weight:
            return self.reading.shared.of_teacher(self.teacher.logits(input_ids, attention_mask, scored))
        with torch.no_grad():
            decoder = self.teacher_model.eval().get_decoder()
            decoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return None

    def _modules(self, model: Any, side: str) -> list[Any]:
        """The modules of one model whose outputs are compared, in the same order for both sides."""
        raise NotImplementedError

    def _cut(self, scored: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """The function that is applied to a caught output (B, T, width) at once, to drop what is not compared."""
        raise NotImplementedError

    def _hidden(
        self,
        student: Sequence[torch.Tensor],
        teacher: Sequence[torch.Tensor],
        scored: torch.Tensor,
        attention_mask: torch.Tensor,
    ) -> torch.Tensor:
        """The sum of H_t over the scored positions."""
        raise NotImplementedError


class Features(Hidden):
    """Hidden states of every student layer, projected into the teacher's width, against the teacher's.

    `weights` are the projections W_l, (d_T, d_S) each, in fp32, seeded; they are trained with the student
    as if they were layers of it (same learning rate, weight decay, clipping) and are left behind after.
    """

    def __init__(
        self, phase: TrainingPhase, teacher: "TeacherSignal | None", vocabulary: int, student: Any, seed: int = 0
    ) -> None:
        """See `Hidden`."""
        super().__init__(phase, teacher, vocabulary, student, seed)
        depth = len(layers_of(student, "student"))
        self.layer_map = uniform_map(depth, len(layers_of(self.teacher_model, "teacher")))
        width, teacher_width = (model.config.get_text_config().hidden_size for model in (student, self.teacher_model))
        projections = [torch.nn.Linear(width, teacher_width, bias=False, device="meta") for _ in range(depth)]
        self.weights: torch.nn.ModuleList = torch.nn.ModuleList(projections).to_empty(device="cpu")
        for layer, weight in enumerate(self.weights.parameters()):
            # drawn on the CPU with a generator of its own: the same on every device, and no draw of torch's is used up
            generator = torch.Generator().manual_seed(draw_seed(seed, "projection", layer) % 2**63)
            torch.nn.init.normal_(weight, std=width**-0.5, generator=generator)
        self.weights.to(student.device)

    def _modules(self, model: Any, side: str) -> list[Any]:
        stack = layers_of(model, side)
        chosen = self.layer_map if side == "teacher" else range(1, len(stack) + 1)
        return [stack[layer - 1] if layer < len(stack) else model.get_decoder() for layer in chosen]

    def _cut(self, scored: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        kept = scored.clone()  # (B, T)
        kept[:, 0] = False  # the attention sink; see the top of this file
        return lambda states: states[kept]  # (n, d)

    def _hidden(
        self,
        student: Sequence[torch.Tensor],
        teacher: Sequence[torch.Tensor],
        scored: torch.Tensor,
        attention_mask: torch.Tensor,
    ) -> torch.Tensor:
        errors = [
            relative_error(functional.linear(mine.to(weight.dtype), weight), theirs)
            for weight, mine, theirs in zip(self.weights.parameters(), student, teacher, strict=True)
        ]
        return torch.stack(errors).mean()


class Relations(Hidden):
    """Which tokens resemble which, in queries, keys and values of one layer of each model (MiniLMv2).

    The student's last layer; of the teacher the last too, unless it has more than `SHALLOW` layers and more
    than the student: then layer 5/6 L_T (the paper takes the 19th or 21st of a large teacher's 24). With
    grouped-query attention a key or value head is repeated beside every query head it serves, so queries,
    keys and values are equally wide and any number of relation heads that divides both models' widths will do.
    """

    def __init__(
        self, phase: TrainingPhase, teacher: "TeacherSignal | None", vocabulary: int, student: Any, seed: int = 0
    ) -> None:
        """See `Hidden`. Raises SettingsError where the relation heads do not divide both models' widths."""
        super().__init__(phase, teacher, vocabulary, student, seed)
        depth = len(layers_of(student, "student"))
        teacher_depth = len(layers_of(self.teacher_model, "teacher"))
        deep = teacher_depth > max(SHALLOW, depth)
        self.layers = {"student": depth, "teacher": round(teacher_depth * 5 / 6) if deep else teacher_depth}
        self.groups = {"student": attention_heads(student), "teacher": attention_heads(self.teacher_model)}
        self.heads = phase.relation_heads or self.groups["student"][0]
        self._check_heads({"student": student, "teacher": self.teacher_model})

    def _check_heads(self, models: dict[str, Any]) -> None:
        widths = {}
        for side, model in models.items():
            queries, keys, values = (module.out_features for module in self._modules(model, side))
            times = self.groups[side][0] // self.groups[side][1]
            widths[side] = {queries, times * keys, times * values}
        every = set.union(*widths.values())
        if any(width % self.heads for width in every):
            allowed = [count for count in range(1, min(every) + 1) if not any(width % count for width in every)]
            found = " and ".join(f"the {side}'s {' and '.join(map(str, sorted(widths[side])))}" for side in widths)
            raise refuse(
                "relation_heads",
                self.heads,
                f"it must divide the width of queries, keys and values of both models, {found}",
                f"choose one of {', '.join(map(str, allowed))}",
            )

    def _modules(self, model: Any, side: str) -> list[Any]:
        return attention_projections(model, self.layers[side], side)

    def _cut(self, scored: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda states: states  # (B, T, width): relations need every key, also where nothing is scored

    def _hidden(
        self,
        student: Sequence[torch.Tensor],
        teacher: Sequence[torch.Tensor],
        scored: torch.Tensor,
        attention_mask: torch.Tensor,
    ) -> torch.Tensor:
        terms = [
            relation_kl(mine, theirs, self.heads, scored, attention_mask)
            for mine, theirs in zip(
                equally_wide(student, *self.groups["student"]),
                equally_wide(teacher, *self.groups["teacher"]),
                strict=True,
            )
        ]
        return torch.stack(terms).sum()
