"""Generation: batched text from a causal model, greedy or sampled, stopping each sequence at its own end.

One function for student-generated sequences, teacher labels, synthetic rows and evaluation, so they cannot differ
in padding or stopping; `speculative.py` generates from two models. Prompts are batched by length
and padded on the left; the mask comes from lengths, so a pad token equal to the end-of-turn token is safe.
A sampled token is the inverse of the cumulative distribution at one uniform number of the row's own stream,
one number for each place in the answer: a row's draws depend on its seed and not on the rows beside it.

    answers = generate(model, tokenizer, prompts, max_new_tokens=16, temperature=1.0, seeds=[3, 4, 5])
"""

import copy
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from harness.data.chat import end_of_turn_id
from harness.data.sequences import draw_seed
from harness.models.diverged import DivergedError
from harness.models.fsdp import gathered
from harness.models.kv_cache import with_room

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NUCLEUS_CANDIDATES = 512
"""Most probable tokens among which a nucleus is looked for before the whole vocabulary is sorted."""
SHARED_TOKENS = 32
"""A common prefix of prompts is processed once if it has at least as many tokens."""


def generate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = 0.0,
    seeds: int | Sequence[int] = 0,
    batch_size: int = 256,
    stop_ids: Collection[int] | None = None,
    top_p: float = 1.0,
    ended: Callable[[list[int]], bool] | None = None,
    share_prefix: bool = False,
    never: Sequence[int] = (),
) -> list[list[int]]:
    """New token ids for each prompt, in the prompts' order, the stop token included where it was reached.

    An answer that does not end in a stop token was cut by `max_new_tokens` or by the model's context
    (then possibly empty). `temperature` 0 is greedy; above it, tokens are drawn from the full
    distribution at that temperature, or from its nucleus of `top_p`. `seeds`: one for each prompt, or one
    from which row i gets its own. `stop_ids` defaults to the tokenizer's end of turn; `ended` says of an
    answer so far whether it ends there too (a text that stops it). `share_prefix`: the common prefix of all prompts
    (worked examples) is processed once. Tokens of `never` are not generated. The model is put in eval mode meanwhile.
    """
    assert temperature >= 0 and 0 < top_p <= 1 and all(len(prompt) > 0 for prompt in prompts)
    if isinstance(seeds, int):
        seeds = [draw_seed(seeds, row) for row in range(len(prompts))]
    assert len(seeds) == len(prompts), "one seed for each prompt"
    stops = {end_of_turn_id(tokenizer)} if stop_ids is None else set(stop_ids)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(stops)
    context = context_of(model)
    answers: list[list[int]] = [[] for _ in prompts]
    by_length = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    with evaluating(model), torch.no_grad():
        prefix = _prefix(model, prompts) if share_prefix else None
        for start in range(0, len(by_length), batch_size):
            rows = by_length[start : start + batch_size]
            limits = [min(max_new_tokens, (context or 2**31) - len(prompts[row])) for row in rows]
            draws = np.stack([row_uniforms(seeds[row], max_new_tokens) for row in rows]) if temperature else None
            batch = _DecodingBatch(model, [prompts[row] for row in rows], limits, pad_id, context, prefix)
            for row, answer in zip(rows, batch.run(temperature, top_p, draws, stops, ended, never), strict=True):
                answers[row] = answer
    return answers


class _Prefix(NamedTuple):
    """The common prefix of all prompts: its tokens and the KV cache of one row of it."""

    length: int
    cache: Any


def _prefix(model: Any, prompts: Sequence[Sequence[int]]) -> _Prefix | None:
    """The KV cache of the prompts' common prefix; None where it is too short or the cache cannot be repeated."""
    same = itertools.takewhile(lambda tokens: len(set(tokens)) == 1, zip(*prompts, strict=False))
    length = min(sum(1 for _ in same), min(map(len, prompts)) - 1)
    if len(prompts) == 1 or length < SHARED_TOKENS:
        return None
    ids = torch.tensor([prompts[0][:length]], device=model.device)  # (1, length)
    output = model(input_ids=ids, use_cache=True, logits_to_keep=1)
    repeatable = hasattr(output.past_key_values, "batch_repeat_interleave")
    return _Prefix(length, output.past_key_values) if repeatable else None


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """While the block runs dropout is off and an FSDP-sharded model is gathered; afterwards training modes are back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with gathered(model):
            yield
    finally:
        for module in training:
            module.training = True


class _DecodingBatch:
    """Prompts of similar length, decoded together; finished rows leave once half of the batch is done."""

    def __init__(
        self,
        model: Any,
        prompts: list[Sequence[int]],
        limits: list[int],
        pad_id: int,
        context: int | None,
        prefix: _Prefix | None = None,
    ) -> None:
        self.model, self.limits, self.context, self.cache = model, limits, context, None
        length = prefix.length if prefix else 0
        self.ids, self.mask, self.positions = padded_left([one[length:] for one in prompts], pad_id, model.device)
        if prefix:
            self.mask = torch.cat([self.mask.new_ones(len(prompts), length), self.mask], dim=1)
            self.positions = self.positions + length
            self.cache = copy.deepcopy(prefix.cache)
            self.cache.batch_repeat_interleave(len(prompts))

    def run(
        self,
        temperature: float,
        top_p: float,
        draws: np.ndarray | None,
        stops: set[int],
        ended: Callable[[list[int]], bool] | None = None,
        never: Sequence[int] = (),
    ) -> list[list[int]]:
        """Decode until every row has stopped or reached its limit."""
        answers: list[list[int]] = [[] for _ in self.limits]
        done = [limit <= 0 for limit in self.limits]
        slots = list(range(len(self.limits)))  # which row sits in each place of the batch
        cache = self.cache
        for step in range(max(self.limits)):
            output = self.model(
                input_ids=self.ids,
                attention_mask=self.mask,
                position_ids=self.positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = with_room(output.past_key_values)
            uniforms = None if draws is None else draws[slots, step]
            logits = output.logits[:, -1]  # (B, V)
            if never:
                logits[:, never] = -torch.inf
            chosen = choose(logits, temperature, uniforms, top_p)  # (B,)
            for slot, token in enumerate(chosen.tolist()):
                row = slots[slot]
                if not done[row]:
                    answers[row].append(token)
                    done[row] = token in stops or len(answers[row]) >= self.limits[row]
                    done[row] = done[row] or (ended is not None and ended(answers[row]))
            left = [slot for slot, row in enumerate(slots) if not done[row]]
            if not left:
                break
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(slots), 1)], dim=1)
            # a finished row may run past the context until it leaves; its tokens are not kept
            self.positions = (self.positions[:, -1:] + 1).clamp(max=self.context and self.context - 1)
            self.ids = chosen[:, None]  # (B, 1)
            if 2 * len(left) <= len(slots) and hasattr(cache, "batch_select_indices"):
                keep = torch.tensor(left, device=self.ids.device)
                cache.batch_select_indices(keep)
                self.ids, self.mask, self.positions = self.ids[keep], self.mask[keep], self.positions[keep]
                slots = [slots[slot] for slot in left]
        return answers


def context_of(model: Any) -> int | None:
    """The context length of a model in tokens, or None where its config states no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def padded_left(
    prompts: Sequence[Sequence[int]], pad_id: int, device: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Prompts as ids, attention mask and positions, int64 of shape (B, W), W the longest prompt."""
    width = max(len(prompt) for prompt in prompts)
    ids = np.full((len(prompts), width), pad_id, dtype=np.int64)
    attention_mask = np.zeros((len(prompts), width), dtype=np.int64)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :], attention_mask[i, width - len(prompt) :] = prompt, 1
    mask = torch.from_numpy(attention_mask).to(device)
    return torch.from_numpy(ids).to(device), mask, (mask.cumsum(-1) - 1).clamp(min=0)


def row_uniforms(seed: int, count: int) -> np.ndarray:
    """A row's stream of `count` uniform numbers in [0, 1), one for each place in its answer."""
    return np.random.default_rng(seed).random(count)


def choose(logits: torch.Tensor, temperature: float, uniforms: np.ndarray | None, top_p: float = 1.0) -> torch.Tensor:
    """A token for each row of `logits` (B, V), int64 (B,): the argmax without `uniforms`, else the draw at `uniforms`.

    A draw is the inverse of the cumulative distribution at a number (B,) in [0, 1). With `top_p` below 1 it is from
    the nucleus (Holtzman et al. 2020, arXiv 1904.09751): the fewest tokens, most probable first, that together hold
    at least `top_p`, ties to the smaller id. Raises DivergedError where logits are NaN.
    """
    if uniforms is None:
        chosen = logits.argmax(-1)  # NaN is its maximum
        _check_numbers(logits.gather(-1, chosen[:, None]))
        return chosen
    # fp64 keeps the tail of a large vocabulary reachable: fp32 sums of 100,000 terms stop short of 1
    probabilities = torch.softmax(logits.double() / temperature, dim=-1)  # (B, V)
    if top_p < 1:
        probabilities = probabilities.masked_fill(~nucleus(probabilities, top_p), 0.0)
    cumulative = probabilities.cumsum(-1)  # (B, V)
    _check_numbers(cumulative[:, -1:])
    # the last sum stands for 1, from which rounding and the nucleus may keep it
    targets = torch.from_numpy(uniforms).to(logits.device)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, targets, right=True).clamp(max=logits.shape[-1] - 1)[:, 0]


def _check_numbers(values: torch.Tensor) -> None:
    if bool(values.isnan().any()):
        raise DivergedError("the logits of a next token are NaN, so there is no answer to generate")


def nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Which tokens of `probabilities` (B, V) are in the nucleus of `top_p`, bool (B, V).

    A whole vocabulary is sorted only where its first few hundred tokens do not hold `top_p`.
    """
    size = probabilities.shape[-1]
    for first in (min(NUCLEUS_CANDIDATES, size), size):
        ordered = probabilities.topk(first).values  # (B, first), descending
        held = ordered.cumsum(-1)
        if first == size or bool((held[:, -1] >= top_p).all()):
            break
    # a token belongs to the nucleus while those before it hold less than top_p
    count = (held - ordered < top_p).sum(-1, keepdim=True)  # (B, 1)
    least = ordered.gather(-1, count - 1)  # (B, 1), the smallest probability in the nucleus
    # of the tokens that tie with it, those with the smallest ids fill the count
    above, equal = probabilities > least, probabilities == least
    return above | (equal & (equal.cumsum(-1) <= count - above.sum(-1, keepdim=True)))
