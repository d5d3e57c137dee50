"""A model behind lm-eval's interface: it generates answers, or scores the likelihood of given choices.

lm-eval makes prompts and parses answers; generation and scoring happen here, with the same `generate` and the same
logits as everywhere in this project. Requests are sorted by length and batched by tokens. A prompt longer than the
model's context is never cut: it gets an empty answer or equal likelihoods and is listed in `tally.too_long`
(lm-eval's own back end drops the beginning of such a prompt silently). Reasoning is no part of an answer: lm-eval
grades what follows it, stop texts end that alone, and a choice is scored after reasoning that the prompt begins.

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

from harness.data.chat import AFTER_REASONING, end_of_turn_id, rendered_ids
from harness.data.control_tokens import CUT, marks_of
from harness.data.reasoning import CLOSING, MARKS, answer_of, decoded_answer, opened_by, prompt_end
from harness.data.sequences import Row, collate, longest_first
from harness.models.diverged import DivergedError
from harness.models.generate import context_of, evaluating, generate
from harness.models.logits import logits_at, scored_positions, scored_tokens
from harness.runtime import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROWS_AT_ONCE = 64
NEVER = -1e9  # the log-likelihood of a choice that does not fit: finite, so that differences are numbers

Write = Callable[..., list[list[int]]]
"""From prompts (ids) and, by name, `max_new_tokens`, `temperature`, `top_p`, `seeds` and `stop` to answers (ids)."""


@dataclass
class RequestTally:
    """The tokens that the requests took, and the requests that were cut or did not fit."""

    read_tokens: int = 0
    generated_tokens: int = 0
    tokens: dict[tuple[str, int], int] = field(default_factory=dict)
    """Tokens of each answer, by prompt and number of the draw."""
    cut: set[tuple[str, int]] = field(default_factory=set)
    """Answers that reached the length limit, by prompt and number of the draw."""
    unclosed: set[tuple[str, int]] = field(default_factory=set)
    """Answers that ended within their reasoning, by prompt and number of the draw."""
    too_long: set[str] = field(default_factory=set)
    """Prompts that do not fit into the model's context."""


class LmEvalModel(TemplateLM):
    """A model and its tokenizer for lm-eval's `evaluate`, in one process."""

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        chat: bool,
        write: Write | None = None,
        rows_at_once: int = ROWS_AT_ONCE,
        choices: bool = False,
    ) -> None:
        """`chat`: prompts are rendered by the chat template, which brings its own special tokens.

        `choices`: given choices are scored and nothing is generated, so a prompt ends the reasoning that it begins.
        `write`: generates answers in place of `model`, e.g. a server of the same weights.
        """
        super().__init__()
        self.model, self.tokenizer, self.chat = model, tokenizer, chat
        self.served, self.write = write is not None, write or self._write
        self.rows_at_once, self.choices = rows_at_once, choices
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
        if CUT in string:  # put there by `apply_chat_template`, whose prompts bring their own special tokens
            return rendered_ids(self.tokenizer, string)
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt as the model saw conversations in training; cut where an item speaks of a control token."""
        text = str(
            self.tokenizer.apply_chat_template(
                marks_of(self.tokenizer).cut_messages(chat_history),
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )
        opened = opened_by(text) if self.choices else None
        return text + AFTER_REASONING.format(closing=CLOSING[opened]) if opened else text

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers, each cut before the first of its stop texts. Raises ValueError for an unknown generation option."""
        draws: defaultdict[str, int] = defaultdict(int)
        texts = [""] * len(requests)
        waiting: dict[str, list[tuple[int, str, int, list[int]]]] = defaultdict(list)
        options: dict[str, dict[str, Any]] = {}
        for index, request in enumerate(requests):
            prompt, settings = request.args
            # lm-eval sends a prompt once for each sample, so its n-th request is its n-th draw
            draw, draws[prompt] = draws[prompt], draws[prompt] + 1
            ids = self.tok_encode(prompt)
            # one place is needed for the answer
            if len(ids) + 1 > self.context:
                self.tally.too_long.add(prompt)
                continue
            options[repr(settings)] = settings
            # a batch has one set of options, so requests are grouped by theirs
            waiting[repr(settings)].append((index, prompt, draw, ids))
        total, done = sum(map(len, waiting.values())), 0
        for name, group in waiting.items():
            ours = _options(options[name])
            for batch in longest_first(group, lambda one: len(one[3]), self.rows_at_once, ours["max_new_tokens"]):
                seeds = [_seed(prompt, draw) for _, prompt, draw, _ in batch]
                # a server would end an answer at a stop text within its reasoning; all are cut at theirs below
                sent = {**ours, "stop": []} if self.served and self._may_reason() else ours
                answers = self.write([ids for *_, ids in batch], seeds=seeds, **sent)
                for (index, prompt, draw, ids), answer in zip(batch, answers, strict=True):
                    texts[index] = self._text((prompt, draw), ids, answer, ours["stop"])
                done += len(batch)
                progress.report(done, total, note="answers")
        return texts

    def _may_reason(self) -> bool:
        """Whether the chat template knows of reasoning."""
        return self.chat and any(mark in str(self.tokenizer.chat_template) for mark in MARKS)

    def _text(self, name: tuple[str, int], prompt: list[int], answer: list[int], stop: Sequence[str]) -> str:
        self.tally.read_tokens += len(prompt)
        self.tally.generated_tokens += len(answer)
        self.tally.tokens[name] = len(answer)
        # the end of turn is counted with the answer and is not part of its text
        ended = bool(answer) and answer[-1] == self.eot_token_id
        found = decoded_answer(self.tokenizer, answer[:-1] if ended else answer, name[0])
        if found is None:
            self.tally.unclosed.add(name)
            # neither the end of a turn nor of the reasoning, so the length limit ended it
            if not ended:
                self.tally.cut.add(name)
            return ""
        whole = found
        # cut at the first stop text that occurs: the shortest beginning
        text = min((whole.split(one)[0] for one in stop if one), key=len, default=whole)
        # neither an end of turn nor a stop text, so the length limit ended it
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
        # the prompts of a benchmark end alike: all in the template's generation prompt, or none
        prompt = prompt_end(self.tokenizer, prompts[0])

        def ended(answer: list[int]) -> bool:
            # a few tokens more than the stop text has alone: within an answer it may be tokenised differently
            tail = str(self.tokenizer.decode(answer[-longest - 4 :]))
            if not any(text in tail for text in stop):
                return False
            # within reasoning it stops nothing
            found = answer_of(str(self.tokenizer.decode(answer)), prompt)
            return found is not None and any(text in found for text in stop)

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
        """(log-likelihood in nats, whether greedy decoding gives it) of each continuation.

        Choices of one token after the same prompt share a forward pass.
        """
        found: list[tuple[float, bool]] = [(NEVER, False)] * len(requests)
        alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, ((prompt, _), before, after) in enumerate(requests):
            if len(before) + len(after) > self.context:
                self.tally.too_long.add(prompt)
            else:
                # the last token of a continuation is only predicted, never read, so choices of one token share what
                # is read
                alike[(*before, *after[:-1])].append(index)
        done = 0
        with evaluating(self.model), torch.no_grad():
            for batch in longest_first(alike.items(), lambda one: len(one[0]), self.rows_at_once, 1):
                self.tally.read_tokens += sum(len(ids) for ids, _ in batch)
                for (_, indices), logits in zip(batch, self._logits(batch, requests), strict=True):
                    for index in indices:
                        after = torch.tensor(requests[index][2], device=logits.device)  # (n,)
                        # the sequence was scored for its longest continuation; a shorter one has its last positions
                        own = logits[len(logits) - len(after) :]  # (n, V)
                        chosen = own.gather(-1, after[:, None]).double().sum().item()
                        found[index] = chosen, bool((own.argmax(-1) == after).all())
                done += len(batch)
                progress.report(done, len(alike), note="choices")
        return found

    def _logits(self, batch: list[tuple[tuple[int, ...], list[int]]], requests: list[Any]) -> Iterator[torch.Tensor]:
        """Log-probabilities (n, V) at the last n positions of each sequence, n its longest continuation."""
        spans = [max(len(requests[index][2]) for index in indices) for _, indices in batch]
        rows = [  # one token is appended, because the last position of a row predicts none
            Row(np.asarray([*ids, 0], dtype=np.int32), [len(ids) + 1 - span], [len(ids) + 1])
            for (ids, _), span in zip(batch, spans, strict=True)
        ]
        tensors = {name: tensor.to(self.model.device) for name, tensor in collate(rows, pad_id=0).items()}  # (B, T)
        scored = scored_positions(tensors["labels"])  # (B, T)
        assert len(scored_tokens(tensors["labels"])) == sum(spans)
        logits = logits_at(self.model, tensors["input_ids"], tensors["attention_mask"], scored).float()  # (N, V)
        logprobs = logits.log_softmax(-1)
        if bool(logprobs.isnan().any()):
            raise DivergedError("the log-probabilities of an item's choices are NaN, so no choice is the most probable")
        yield from logprobs.split(spans)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Not used by any benchmark here; raises ValueError."""
        raise ValueError("perplexity of documents is not supported; for held-out NLL use the evaluation `heldout`")


def _options(settings: dict[str, Any]) -> dict[str, Any]:
    """lm-eval's generation options under this project's names; raises ValueError for an option it does not have."""
    stop = settings.get("until", [])
    sampled = settings.get("do_sample", False)
    known = ("until", "max_gen_toks", "do_sample", "temperature", "top_p")
    if unknown := sorted(settings.keys() - set(known)):
        raise ValueError(f"generation option {unknown[0]!r} is not supported; a benchmark may set {', '.join(known)}")
    return {
        "stop": [stop] if isinstance(stop, str) else list(stop),
        "max_new_tokens": int(settings["max_gen_toks"]),
        "temperature": float(settings.get("temperature", 1.0)) if sampled else 0.0,
        "top_p": float(settings.get("top_p", 1.0)) if sampled else 1.0,
    }


def _seed(prompt: str, draw: int) -> int:
    """A draw's seed: it depends on the prompt and the draw's number alone, so it is the same for every model."""
    return int.from_bytes(hashlib.sha256(f"{draw}\x1f{prompt}".encode()).digest()[:8], "big") >> 1
