"""Suite model: one of our models as lm-eval asks it, for text or for the likelihood of given choices.

lm-eval makes prompts and reads answers; writing and scoring happen here, with the same `generate` and the same
heads as everywhere in this project. Requests are sorted by length and batched by tokens. A prompt that does not
fit into the model's context is never cut: it is not asked, gets an empty answer or equal likelihoods, and is told
apart in `too_long` (lm-eval's own back end drops the beginning of the prompt without a word).

    model = LmEvalModel(model, tokenizer, chat=True); lm_eval.evaluator.evaluate(model, tasks)
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lm_eval.api.model import TemplateLM

from harness.data.chat import end_of_turn_id
from harness.data.sequences import Row, collate, longest_first
from harness.models.generate import context_of, evaluating, generate
from harness.models.logits import logits_at, scored_positions, scored_tokens
from harness.runtime import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROWS_AT_ONCE = 64
NEVER = -1e9  # the log-likelihood of a choice that could not be asked: finite, so that differences are numbers

Write = Callable[..., list[list[int]]]
"""From prompts (ids) and, by name, `max_new_tokens`, `temperature`, `top_p`, `seeds` and `stop` to answers (ids)."""


@dataclass
class RequestTally:
    """What was asked and what it took."""

    read_tokens: int = 0
    generated_tokens: int = 0
    tokens: dict[tuple[str, int], int] = field(default_factory=dict)
    """Tokens of each answer, by prompt and number of the draw."""
    cut: set[tuple[str, int]] = field(default_factory=set)
    """Answers that reached the length limit."""
    too_long: set[str] = field(default_factory=set)
    """Prompts that do not fit into the model's context."""


class LmEvalModel(TemplateLM):
    """A model and its tokenizer, asked by lm-eval; one process."""

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        chat: bool,
        write: Write | None = None,
        rows_at_once: int = ROWS_AT_ONCE,
    ) -> None:
        """`chat`: prompts are rendered by the chat template, which brings its own special tokens.

        `write`: who writes answers, where it is not `model` (a server of the same weights).
        """
        super().__init__()
        self.model, self.tokenizer, self.chat = model, tokenizer, chat
        self.write = write or self._write
        self.rows_at_once = rows_at_once
        self.context = context_of(model) or 1 << 30
        self.tally = RequestTally()

    @property
    def eot_token_id(self) -> int:
        """The token that ends a turn, or a text where there are no turns."""
        return end_of_turn_id(self.tokenizer) if self.chat else self.tokenizer.eos_token_id

    @property
    def tokenizer_name(self) -> str:
        """Names no cache: lm-eval's caches of requests are not used."""
        return self.tokenizer.name_or_path

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a prompt; special tokens are added to plain text only, and never twice."""
        if add_special_tokens is None:
            bos = self.tokenizer.bos_token
            add_special_tokens = not self.chat and not (bos and string.startswith(bos))
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt as the model saw conversations in training."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers, each cut before the first of its stop texts."""
        draws: defaultdict[str, int] = defaultdict(int)
        texts = [""] * len(requests)
        waiting: dict[str, list[tuple[int, str, int, list[int]]]] = defaultdict(list)
        options: dict[str, dict[str, Any]] = {}
        for index, request in enumerate(requests):
            prompt, told = request.args
            draw, draws[prompt] = draws[prompt], draws[prompt] + 1
            ids = self.tok_encode(prompt)
            if len(ids) + 1 > self.context:
                self.tally.too_long.add(prompt)
                continue
            options[repr(told)] = told
            waiting[repr(told)].append((index, prompt, draw, ids))
        total, done = sum(map(len, waiting.values())), 0
        for name, group in waiting.items():
            told = _options(options[name])
            for batch in longest_first(group, lambda one: len(one[3]), self.rows_at_once, told["max_new_tokens"]):
                seeds = [_seed(prompt, draw) for _, prompt, draw, _ in batch]
                answers = self.write([ids for *_, ids in batch], seeds=seeds, **told)
                for (index, prompt, draw, ids), answer in zip(batch, answers, strict=True):
                    texts[index] = self._text((prompt, draw), ids, answer, told["stop"])
                done += len(batch)
                progress.report(done, total, note="answers")
        return texts

    def _text(self, name: tuple[str, int], prompt: list[int], answer: list[int], stop: Sequence[str]) -> str:
        self.tally.read_tokens += len(prompt)
        self.tally.generated_tokens += len(answer)
        self.tally.tokens[name] = len(answer)
        ended = bool(answer) and answer[-1] == self.eot_token_id
        whole = str(self.tokenizer.decode(answer[:-1] if ended else answer, skip_special_tokens=True))
        text = min((whole.split(one)[0] for one in stop if one), key=len, default=whole)
        if not ended and text == whole:
            self.tally.cut.add(name)
        return text

    def _write(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        seeds: Sequence[int],
        stop: Sequence[str],
    ) -> list[list[int]]:
        longest = max((len(self.tok_encode(text, add_special_tokens=False)) for text in stop), default=0)

        def ended(answer: list[int]) -> bool:
            tail = str(self.tokenizer.decode(answer[-longest - 4 :]))
            return any(text in tail for text in stop)

        return generate(
            self.model,
            self.tokenizer,
            prompts,
            max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seeds=seeds,
            batch_size=len(prompts),
            stop_ids={self.eot_token_id},
            ended=ended if longest else None,
            share_prefix=True,
        )

    def _loglikelihood_tokens(self, requests: list[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether greedy decoding writes it) of each continuation.

        Choices of one token after one prompt share a forward pass.
        """
        found: list[tuple[float, bool]] = [(NEVER, False)] * len(requests)
        alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, ((prompt, _), before, after) in enumerate(requests):
            if len(before) + len(after) > self.context:
                self.tally.too_long.add(prompt)
            else:
                alike[(*before, *after[:-1])].append(index)
        done = 0
        with evaluating(self.model), torch.no_grad():
            for batch in longest_first(alike.items(), lambda one: len(one[0]), self.rows_at_once, 1):
                self.tally.read_tokens += sum(len(ids) for ids, _ in batch)
                for (_, indices), logits in zip(batch, self._logits(batch, requests), strict=True):
                    for index in indices:
                        after = torch.tensor(requests[index][2], device=logits.device)
                        own = logits[len(logits) - len(after) :]
                        chosen = own.gather(-1, after[:, None]).double().sum().item()
                        found[index] = chosen, bool((own.argmax(-1) == after).all())
                done += len(batch)
                progress.report(done, len(alike), note="choices")
        return found

    def _logits(self, batch: list[tuple[tuple[int, ...], list[int]]], requests: list[Any]) -> Iterator[torch.Tensor]:
        """Log-probabilities (n, V) at the last n positions of each sequence, n its longest continuation."""
        spans = [max(len(requests[index][2]) for index in indices) for _, indices in batch]
        rows = [  # one token more, so that the last position is one that predicts
            Row(np.asarray([*ids, 0], dtype=np.int32), [len(ids) + 1 - span], [len(ids) + 1])
            for (ids, _), span in zip(batch, spans, strict=True)
        ]
        tensors = {name: tensor.to(self.model.device) for name, tensor in collate(rows, pad_id=0).items()}
        scored = scored_positions(tensors["labels"])
        assert len(scored_tokens(tensors["labels"])) == sum(spans)
        logits = logits_at(self.model, tensors["input_ids"], tensors["attention_mask"], scored).float()
        yield from logits.log_softmax(-1).split(spans)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """No benchmark asks for it."""
        raise ValueError(
            "perplexity of whole documents is not asked here; held-out NLL is harness/evals/corpus/heldout.py"
        )


def _options(told: dict[str, Any]) -> dict[str, Any]:
    """lm-eval's generation options in this project's words; raises ValueError for one that is not known here."""
    stop = told.get("until", [])
    sampled = told.get("do_sample", False)
    unknown = told.keys() - {"until", "max_gen_toks", "do_sample", "temperature", "top_p"}
    if unknown:
        raise ValueError(f"generation option {sorted(unknown)[0]} is not known here")
    return {
        "stop": [stop] if isinstance(stop, str) else list(stop),
        "max_new_tokens": int(told["max_gen_toks"]),
        "temperature": float(told.get("temperature", 1.0)) if sampled else 0.0,
        "top_p": float(told.get("top_p", 1.0)) if sampled else 1.0,
    }


def _seed(prompt: str, draw: int) -> int:
    """A draw's seed: the same for every model, whatever else is asked."""
    return int.from_bytes(hashlib.sha256(f"{draw}\x1f{prompt}".encode()).digest()[:8], "big") >> 1
