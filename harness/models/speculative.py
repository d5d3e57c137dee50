"""Speculative KD (SKD): answers whose tokens the student proposes and the teacher accepts or replaces.

Xu et al. 2024, arXiv 2410.11325, Algorithm 1. The student draws a few tokens in a row; each is accepted while it
is in the teacher's top `accepted_top_k` at its place; the first that is not is drawn anew from the teacher, and the
tokens after it are discarded. No token is added where all were accepted, and the end of a turn is a token like any
other. `generate.py` generates from one model alone.

A row has two streams of uniform numbers, the student's and the teacher's, with one number of each for every
place in the answer. What is discarded depends on earlier places only, so a place's number may be used again
there, and the answers do not depend on `proposed_tokens`: that value trades passes of the student for passes of the
teacher. With every token accepted the answers are those of `generate` with the same seeds.

Shapes: B rows of a batch, W columns of the KV cache, G proposed tokens, V vocabulary.

    found = generate_speculatively(student, teacher, tokenizer, prompts, max_new_tokens=64, phase=phase, seeds=[3, 4])
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from harness.config.recipe import TrainingPhase
from harness.data.chat import end_of_turn_id
from harness.data.sequences import draw_seed
from harness.models.generate import choose, context_of, evaluating, padded_left, row_uniforms
from harness.models.kv_cache import with_room

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class SpeculativeAnswers:
    """Answers in the prompts' order, and what generating them took."""

    answers: list[list[int]]
    """New token ids, the stop token included where it was reached."""
    proposed: int = 0
    """Tokens the student proposed and the teacher scored, discarded ones included."""
    replaced: int = 0
    """Tokens of the answers that the teacher put in place of a rejected one."""
    teacher_seconds: float = 0.0
    """Time in the teacher's forward passes."""


def generate_speculatively(
    student: "PreTrainedModel",
    teacher: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    phase: TrainingPhase,
    seeds: Sequence[int],
    batch_size: int = 256,
    stop_ids: Collection[int] | None = None,
) -> SpeculativeAnswers:
    """Answers to `prompts` that student and teacher generate together, a row's draws from its own seed.

    `phase` has the temperatures, nuclei, `proposed_tokens` and `accepted_top_k`. An answer ends with a stop
    token (the tokenizer's end of turn by default), at `max_new_tokens`, or at the shorter of the two models'
    contexts. Ids beyond the tokenizer's vocabulary are never generated. Both models are in eval mode meanwhile.
    """
    assert len(seeds) == len(prompts) and all(len(prompt) > 0 for prompt in prompts)
    assert phase.proposed_tokens > 0 and phase.accepted_top_k > 0
    stops = {end_of_turn_id(tokenizer)} if stop_ids is None else set(stop_ids)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(stops)
    context = min((one for one in map(context_of, (student, teacher)) if one is not None), default=None)
    found = SpeculativeAnswers([[] for _ in prompts])
    by_length = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    with evaluating(student), evaluating(teacher), torch.no_grad():
        for start in range(0, len(by_length), batch_size):
            rows = by_length[start : start + batch_size]
            batch = _SpeculativeBatch(
                (student, teacher),
                phase,
                [prompts[row] for row in rows],
                [seeds[row] for row in rows],
                [min(max_new_tokens, (context or 2**31) - len(prompts[row])) for row in rows],
                len(tokenizer),
                pad_id,
                context,
            )
            batch.run(stops)
            found.proposed += batch.proposed
            found.replaced += batch.replaced
            found.teacher_seconds += batch.teacher_seconds
            for row, answer in zip(rows, batch.answers, strict=True):
                found.answers[row] = answer
    return found


class _SpeculativeBatch:
    """Prompts of similar length, answered together.

    Both models process the same tokens, so their caches have the same columns and share one mask. Rows keep
    different numbers of proposed tokens; a discarded token stays in both caches, masked out, and positions
    count kept tokens only.
    """

    def __init__(
        self,
        models: tuple[Any, Any],
        phase: TrainingPhase,
        prompts: list[Sequence[int]],
        seeds: list[int],
        limits: list[int],
        vocabulary: int,
        pad_id: int,
        context: int | None,
    ) -> None:
        self.student, self.teacher = models
        self.phase, self.limits, self.vocabulary, self.context = phase, limits, vocabulary, context
        # one token at a time leaves no gaps in the cache, for models that would count a gap as a token
        self.block = phase.proposed_tokens if all(map(_reads_by_position, models)) else 1
        self.answers: list[list[int]] = [[] for _ in prompts]
        self.proposed, self.replaced, self.teacher_seconds = 0, 0, 0.0
        self.slots = list(range(len(prompts)))  # which row sits in each place of the batch
        places = max(1, *limits)
        self.student_draws = np.stack([row_uniforms(seed, places) for seed in seeds])  # (rows, places), in [0, 1)
        self.teacher_draws = np.stack([row_uniforms(draw_seed(seed, "teacher"), places) for seed in seeds])
        # ids that neither model has processed, the mask over cached and unread ids, and the unread ids' positions:
        # (B, U), (B, W + U), (B, U); U is the longest prompt at first and 1 afterwards
        self.unread, self.mask, self.positions = padded_left(prompts, pad_id, self.student.device)
        self.caches: tuple[Any, Any] = (None, None)

    def run(self, stops: set[int]) -> None:
        """Generate until every row has stopped or reached its limit."""
        done = [limit <= 0 for limit in self.limits]
        while not all(done):
            room = max(self.limits[row] - len(self.answers[row]) for row in self.slots if not done[row])
            proposals = self._propose(min(self.block, room))
            started = time.perf_counter()
            accepted, replacements = self._verify(proposals)
            self.teacher_seconds += time.perf_counter() - started
            kept, last = [], []
            for slot, row in enumerate(self.slots):
                proposal, count = proposals[slot].tolist(), int(accepted[slot])
                tokens = [*proposal[:count], *([int(replacements[slot])] if count < len(proposal) else [])]
                kept.append(len(tokens))
                last.append(tokens[-1])
                if not done[row]:
                    done[row] = self._keep(row, proposal, tokens, count, stops)
            self._advance(proposals, kept, last)
            left = [slot for slot, row in enumerate(self.slots) if not done[row]]
            if left and 2 * len(left) <= len(self.slots):
                self._leave(left)

    def _propose(self, count: int) -> torch.Tensor:
        """The student's next `count` tokens for each row, int64 (B, count)."""
        ids, mask, positions, cache = self.unread, self.mask, self.positions, self.caches[0]
        chosen: list[torch.Tensor] = []
        for ahead in range(count):
            output = self.student(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = with_room(output.past_key_values)
            logits = output.logits[:, -1, : self.vocabulary]  # (B, V)
            uniforms = self._uniforms(self.student_draws, [ahead] * len(self.slots), self.phase.sampling_temperature)
            chosen.append(choose(logits, self.phase.sampling_temperature, uniforms, self.phase.sampling_top_p))
            ids, mask, positions = chosen[-1][:, None], _with_ones(mask), self._after(positions, 1)
        self.caches = (cache, self.caches[1])
        return torch.stack(chosen, dim=1)

    def _verify(self, proposals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """How many tokens of each row are accepted, (B,), and the teacher's token for the place after them, (B,)."""
        count = proposals.shape[1]
        output = self.teacher(
            input_ids=torch.cat([self.unread, proposals[:, :-1]], dim=1),
            attention_mask=_with_ones(self.mask, count - 1),
            position_ids=torch.cat([self.positions, *(self._after(self.positions, n) for n in range(1, count))], dim=1),
            past_key_values=self.caches[1],
            use_cache=True,
            logits_to_keep=count,
        )
        self.caches = (self.caches[0], with_room(output.past_key_values))
        logits = output.logits[:, -count:, : self.vocabulary]  # (B, G, V)
        # tokens up to the first that is rejected
        accepted = in_top_k(logits, proposals, self.phase.accepted_top_k).long().cumprod(dim=1).sum(dim=1)
        place = accepted.clamp(max=count - 1)  # (B,)
        there = logits[torch.arange(len(place), device=place.device), place]  # (B, V)
        uniforms = self._uniforms(self.teacher_draws, place.tolist(), self.phase.teacher_temperature)
        return accepted, choose(there, self.phase.teacher_temperature, uniforms, self.phase.teacher_top_p)

    def _keep(self, row: int, proposal: list[int], tokens: list[int], accepted: int, stops: set[int]) -> bool:
        """Add a row's kept tokens to its answer and count what was done for them; whether the answer is over."""
        answer, room = self.answers[row], self.limits[row] - len(self.answers[row])
        judged = next((n for n, token in enumerate(proposal, 1) if token in stops), len(proposal))
        self.proposed += min(judged, room)  # alone, a row proposes nothing after its own end
        for place, token in enumerate(tokens[:room]):
            answer.append(token)
            self.replaced += place == accepted
            if token in stops:
                return True
        return len(answer) >= self.limits[row]

    def _advance(self, proposals: torch.Tensor, kept: list[int], last: list[int]) -> None:
        """Move on to each row's last kept token; proposed tokens that were cached and not kept become gaps."""
        count = torch.tensor(kept, device=self.mask.device)[:, None]  # (B, 1)
        # both caches hold all proposals but the last, which no model has processed
        read = torch.arange(1, proposals.shape[1], device=self.mask.device)  # (G - 1,)
        self.mask = _with_ones(torch.cat([self.mask, (read < count).to(self.mask.dtype)], dim=1))
        self.positions = self._after(self.positions, count)
        self.unread = torch.tensor(last, device=self.mask.device)[:, None]

    def _leave(self, left: list[int]) -> None:
        """Drop the other places of the batch, where both caches can be cut."""
        if all(hasattr(cache, "batch_select_indices") for cache in self.caches):
            keep = torch.tensor(left, device=self.mask.device)
            for cache in self.caches:
                cache.batch_select_indices(keep)
            self.unread, self.mask, self.positions = self.unread[keep], self.mask[keep], self.positions[keep]
            self.slots = [self.slots[slot] for slot in left]

    def _uniforms(self, draws: np.ndarray, ahead: list[int], temperature: float) -> np.ndarray | None:
        """Each row's number for the place `ahead` of its answer; rows that are over get any."""
        if not temperature:
            return None
        places = [len(self.answers[row]) + more for row, more in zip(self.slots, ahead, strict=True)]
        return draws[self.slots, np.minimum(places, draws.shape[1] - 1)]

    def _after(self, positions: torch.Tensor, count: Any) -> torch.Tensor:
        # a row that is over may run past the context until it leaves; its tokens are not kept
        return (positions[:, -1:] + count).clamp(max=self.context and self.context - 1)


def in_top_k(logits: torch.Tensor, tokens: torch.Tensor, k: int) -> torch.Tensor:
    """Whether each of `tokens` (...) is in the top k of `logits` (..., V), ties to the smaller id."""
    own = logits.gather(-1, tokens[..., None])
    smaller = torch.arange(logits.shape[-1], device=logits.device) < tokens[..., None]
    return ((logits > own) | ((logits == own) & smaller)).sum(-1) < k


def _reads_by_position(model: Any) -> bool:
    """Whether attention goes by mask and positions alone, so that a masked gap in the cache changes nothing.

    A sliding window counts columns, and a recurrent state cannot forget a token.
    """
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    windowed = set(kinds) != {"full_attention"} if kinds else getattr(config, "sliding_window", None) is not None
    return not windowed and not getattr(model, "_is_stateful", False)


def _with_ones(mask: torch.Tensor, count: int = 1) -> torch.Tensor:
    return torch.cat([mask, mask.new_ones(len(mask), count)], dim=1)
