"""Completions client: text and log-probabilities of a model served over HTTP by an OpenAI-compatible server (vLLM).

Prompts and answers are token ids, so no text is tokenised twice. `models/generate.py` generates with a model in
memory, this file with one behind an `HttpEndpoint`; `teacher.py` gives both the same interface. Every sampling value is
sent, since a server fills gaps from the model's own generation config. Needs neither torch nor transformers.

    client = CompletionsClient(HttpEndpoint("http://node7:8000"), "org/Teacher-70B")
    client.complete(prompts, max_new_tokens=256, temperature=0.0, seeds=seeds, stop_ids={2})
    client.score(rows, top_k=64)[0].logprobs          # (T - 1, 64): entry t predicts token t + 1
"""

import hashlib
import json
import queue
import re
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar, cast

import numpy as np

from harness.config.checks import refuse
from harness.runtime import progress
from harness.teachers.http_endpoint import HttpEndpoint

PROBE_TOKENS = 16
PROBE_SECONDS = 120.0
"""Seconds within which a server answers the probe, at most: it is short, also where answers may take long."""
TOLD_SECONDS = 15.0
"""Seconds without any answer after which the wait is shown, and between two such notes."""
HEAD_BYTES, BYTES_PER_VALUE = 1 << 20, 512
"""Room in an answer, apart from and for each token or log-probability; vLLM's take about 100 bytes."""
PROBE_TOLERANCE = 0.1  # nats; kernels and batch shapes move bf16 log-probabilities by hundredths
CURRENT = "serve it with a current vLLM"
# Sampling from the whole distribution, whatever the model's generation config says.
PLAIN: dict[str, Any] = {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
PLAIN |= {"presence_penalty": 0.0, "frequency_penalty": 0.0, "n": 1, "stream": False}

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class RowScores:
    """Log-probabilities of one row of T tokens; entry t predicts token t + 1, as logits at t do."""

    ids: np.ndarray
    """int32 (T - 1, K): the top-k tokens, the most probable first."""
    logprobs: np.ndarray
    """float32 (T - 1, K): their natural log-probabilities at temperature 1."""
    actual: np.ndarray
    """float32 (T - 1,): the log-probability of the row's own next token."""


@dataclass(frozen=True)
class Probe:
    """A greedy answer to one fixed prompt, by which one served model is distinguished from another."""

    model: str
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Of each id, in nats; empty where the server returns none."""

    @property
    def sha256(self) -> str:
        """Hash over name, ids and log-probabilities to one decimal."""
        values = [round(value, 1) + 0.0 for value in self.logprobs]  # + 0.0: -0.0 and 0.0 are one value
        return hashlib.sha256(json.dumps([self.model, self.ids, values]).encode()).hexdigest()

    def agrees(self, other: "Probe") -> bool:
        """Same name and ids, and log-probabilities within the tolerance: hashes may differ by rounding alone."""
        if (self.model, self.ids, len(self.logprobs)) != (other.model, other.ids, len(other.logprobs)):
            return False
        return bool(np.allclose(self.logprobs, other.logprobs, rtol=0, atol=PROBE_TOLERANCE))


class CompletionsClient:
    """One model of one endpoint; sends requests for many rows at once and keeps their order."""

    def __init__(
        self,
        endpoint: HttpEndpoint,
        served_model: str,
        encode: Callable[[str], list[int]] | None = None,
        in_flight: int = 64,
    ) -> None:
        """`encode` tokenises the text of a server that returns no ids; `in_flight` requests are open at once."""
        assert in_flight > 0
        self.endpoint, self.served_model, self.encode, self.in_flight = endpoint, served_model, encode, in_flight
        self.vocabulary: int | None = None
        """Tokens of the declared tokenizer; ids beyond are refused. None: not known."""
        self.reencoded = 0
        """Answers that came as text and were tokenised again; their ids may not be those the model generated."""

    @cached_property
    def context(self) -> int | None:
        """Tokens of prompt and answer the model takes together; None where the server does not state it.

        Sends one request. Raises SettingsError, with the list of the served models, where ours is not among them.
        """
        models = self.endpoint.request("/v1/models").get("data")
        if not isinstance(models, list):
            raise self.endpoint.malformed("a list of models")
        known = {model.get("id"): model for model in models if isinstance(model, dict)}
        if self.served_model not in known:
            listed = ", ".join(sorted(map(str, known))) or "nothing"
            there = f"the server at {self.endpoint.shown} serves {listed}"
            raise refuse("teacher.served_model", self.served_model, there, "set one of these, or serve this one")
        length = known[self.served_model].get("max_model_len")
        if length is not None and not (type(length) is int and length > 1):
            raise self.endpoint.malformed(f"max_model_len as a number of tokens (it is {str(length)[:40]!r})", CURRENT)
        return length

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: float,
        seeds: Sequence[int],
        stop_ids: Collection[int],
        top_p: float = 1.0,
        stop: Sequence[str] = (),
    ) -> list[list[int]]:
        """New token ids for each prompt, in order, the stop token included where it was reached.

        As `generate`: temperature 0 is greedy, else the full distribution or its nucleus (`top_p`). An answer that
        ends at `max_new_tokens`, or at the context's end, has no stop token; one that ends at a text of `stop` ends
        with that text. Each prompt's seed is sent with it; the server decides how its draws depend on the seed.
        Raises SettingsError where the server fails.
        """
        assert temperature >= 0 and len(seeds) == len(prompts) and all(len(prompt) > 0 for prompt in prompts)
        stops, context = frozenset(stop_ids), self.context
        more: dict[str, Any] = {"top_p": top_p} if top_p < 1 else {}
        if stop:
            more |= {"stop": list(stop), "include_stop_str_in_output": True}

        def answer(item: tuple[Sequence[int], int], stopped: threading.Event) -> tuple[list[int], bool]:
            prompt, seed = item
            # a server refuses a request that could run past its context
            limit = min(max_new_tokens, (context or 2**31) - len(prompt))
            if limit <= 0:
                return [], False
            choice = self._choice({**_generation_body(prompt, limit, temperature, seed, stops), **more}, stopped, limit)
            ids, was_text = self._answer_ids(choice, stops, limit)
            self._check_ids(ids)
            return ids, was_text

        answers = self._each(answer, list(zip(prompts, seeds, strict=True)))
        self.reencoded += sum(was_text for _, was_text in answers)
        return [ids for ids, _ in answers]

    def score(self, rows: Sequence[Sequence[int]], top_k: int) -> list[RowScores]:
        """The model's `top_k` log-probabilities at every position of each row, in order; 0: only `actual`.

        Raises SettingsError where the server fails, returns fewer values than requested, or where a row and the one
        token that a completion has to add exceed the model's context.
        """
        assert top_k >= 0 and all(len(row) > 0 for row in rows)
        longest = max(map(len, rows), default=0)
        if self.context is not None and longest >= self.context:
            there = f"the server at {self.endpoint.shown} takes rows of at most {self.context - 1} tokens"
            raise refuse("corpus.max_length", longest, there, f"start it with --max-model-len {longest + 1}")

        def scored(row: Sequence[int], stopped: threading.Event) -> RowScores:
            ids = list(map(int, row))
            body = {"prompt": ids, "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": top_k}
            choice = self._choice(body, stopped, len(ids) * (top_k + 2))
            return self._scores(ids, choice.get("prompt_logprobs"), top_k)

        return self._each(scored, rows)

    def probe(self, prompt: Sequence[int], stop_ids: Collection[int]) -> Probe:
        """The greedy answer that identifies the served model; `prompt` must always be the same.

        Raises SettingsError where the server fails.
        """
        room = PROBE_TOKENS if self.context is None else self.context - len(prompt)
        assert room > 0, "a context shorter than the probe"
        limit, stops = min(room, PROBE_TOKENS), frozenset(stop_ids)
        body = _generation_body(prompt, limit, 0.0, 0, stops)
        choice = self._choice(body, threading.Event(), limit, PROBE_SECONDS)
        ids, _ = self._answer_ids(choice, stops, limit)
        self._check_ids(ids)
        values = (choice.get("logprobs") or {}).get("token_logprobs") or []
        known = [] if None in values else values[: len(ids)]
        return Probe(self.served_model, tuple(ids), tuple(map(float, known)))

    def _each(self, function: Callable[[Item, threading.Event], Result], items: Sequence[Item]) -> list[Result]:
        """`function` of every item, `in_flight` at a time, in order; the first failure stops the rest."""
        stopped, ended = threading.Event(), queue.SimpleQueue[tuple[int, Result | None, BaseException | None]]()
        todo = iter(enumerate(items))
        lock = threading.Lock()

        def work() -> None:
            while not stopped.is_set():
                with lock:
                    place, item = next(todo, (None, None))
                if place is None:
                    return
                try:
                    ended.put((place, function(cast(Item, item), stopped), None))
                except BaseException as problem:
                    ended.put((place, None, problem))

        # daemons: requests that are under way when one fails are not waited for, here or at the end of the process
        for _ in range(min(self.in_flight, len(items))):
            threading.Thread(target=work, daemon=True).start()
        found: dict[int, Any] = {}
        quiet = 0.0
        try:
            while len(found) < len(items):
                try:
                    place, result, problem = ended.get(timeout=TOLD_SECONDS)
                except queue.Empty:
                    quiet += TOLD_SECONDS
                    progress.note(f"no answer from {self.endpoint.shown} for {quiet:.0f} s")
                    continue
                if problem is not None:
                    raise problem
                found[place], quiet = result, 0.0
        finally:
            stopped.set()  # ends the waits between attempts
        return [found[place] for place in range(len(items))]

    def _choice(
        self, body: dict[str, Any], stopped: threading.Event, values: int, seconds: float | None = None
    ) -> dict[str, Any]:
        """The completion of a request whose answer has about `values` tokens or log-probabilities."""
        body = {**PLAIN, "model": self.served_model, **body}
        most_bytes = HEAD_BYTES + BYTES_PER_VALUE * values
        answer = self.endpoint.request("/v1/completions", body, stopped, most_bytes, seconds)
        choices = answer.get("choices")
        if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
            raise self.endpoint.malformed("a completion")
        return choices[0]

    def _check_ids(self, ids: Sequence[int]) -> None:
        """Raise SettingsError for ids that are no tokens of the declared tokenizer."""
        wrong = [one for one in ids if one < 0 or (self.vocabulary is not None and one >= self.vocabulary)]
        if wrong:
            have = "" if self.vocabulary is None else f", and the declared tokenizer has {self.vocabulary} tokens"
            there = f"the server at {self.endpoint.shown} answers with token id {wrong[0]}{have}"
            raise refuse(
                "teacher.served_model",
                self.served_model,
                there,
                "set teacher.tokenizer to the tokenizer of the model that is served",
            )

    def _answer_ids(self, choice: dict[str, Any], stops: frozenset[int], limit: int) -> tuple[list[int], bool]:
        """Ids of an answer up to its first stop token, and whether they had to be tokenised from its text."""
        ids, was_text = self._ids_of(choice), False
        ended_by = choice.get("stop_reason", choice.get("matched_stop"))
        if ids is None:
            if self.encode is None:
                raise self.endpoint.malformed("token ids (return_token_ids)", CURRENT)
            text = choice.get("text") or ""
            if not isinstance(text, str):
                raise self.endpoint.malformed("an answer's text or token ids", CURRENT)
            ids, was_text = self.encode(text), True
            if ended_by is None and len(stops) == 1:
                (ended_by,) = stops  # the text ends before the stop token
        first = next((place for place, token in enumerate(ids[:limit]) if token in stops), None)
        if first is not None:
            return ids[: first + 1], was_text
        # the server ended at the stop token and left it out; it is put back, within the limit
        if choice.get("finish_reason") == "stop" and ended_by in stops:
            return [*ids[: limit - 1], int(ended_by)], was_text
        return ids[:limit], was_text

    def _ids_of(self, choice: dict[str, Any]) -> list[int] | None:
        """Token ids as the server returns them; None where it returns text alone. Raises SettingsError for others."""
        ids = choice.get("token_ids")
        if isinstance(ids, list):
            if not all(type(one) is int for one in ids):
                raise self.endpoint.malformed("token ids that are whole numbers", CURRENT)
            return ids
        logprobs = choice.get("logprobs")
        tokens = (logprobs.get("tokens") if isinstance(logprobs, dict) else None) or []
        if tokens and all(re.fullmatch(r"token_id:\d+", str(token)) for token in tokens):
            return [int(token.removeprefix("token_id:")) for token in tokens]
        return None

    def _scores(self, row: list[int], entries: Any, top_k: int) -> RowScores:
        """Entry i of `prompt_logprobs` scores token i, so it is row i - 1 here; entry 0 scores nothing.

        An entry maps ids to values in any order: the top-k tokens by rank, and the row's own token, which is one
        entry more where it is not among them.
        """
        if not isinstance(entries, list) or len(entries) != len(row) or entries[0] is not None:
            raise self.endpoint.malformed("prompt_logprobs, one entry a token and null for the first", CURRENT)
        # -1 marks a place that no entry filled
        ids = np.full((len(row) - 1, top_k), -1, dtype=np.int32)  # (T - 1, K)
        logprobs = np.zeros(ids.shape, dtype=np.float32)  # (T - 1, K)
        actual = np.zeros(len(row) - 1, dtype=np.float32)  # (T - 1,)
        for place, (token, entry) in enumerate(zip(row[1:], entries[1:], strict=True)):
            own = entry.get(str(token)) if isinstance(entry, dict) else None
            if own is None:
                raise self.endpoint.malformed("the log-probability of every token of the row", CURRENT)
            try:
                actual[place] = own["logprob"]
                # The row's own token comes last: where it ties with one of the top k, their ranks may be equal.
                others = [(name, value) for name, value in entry.items() if value is not own]
                for name, value in [*others, (token, own)]:
                    rank = (value.get("rank") or 0) - 1
                    if 0 <= rank < top_k and ids[place, rank] < 0:
                        ids[place, rank], logprobs[place, rank] = int(name), value["logprob"]
            except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
                raise self.endpoint.malformed("log-probabilities by token id, each with its rank", CURRENT) from None
        if (ids < 0).any():
            fewest = int((ids >= 0).sum(1).min())
            there = f"the server at {self.endpoint.shown} gave {fewest} of {top_k} log-probabilities at a position"
            raise refuse("signal.top_k", top_k, there, f"start it with --max-logprobs {top_k}, or ask for fewer")
        with np.errstate(over="ignore"):
            # processed log-probabilities (scaled, or of a cut distribution) would be stored as the model's own; their
            # mass may exceed 1
            mass = np.exp((logprobs if top_k else actual[:, None]).astype(np.float64)).sum(1)  # (T - 1,)
        if not (mass < 1.01).all():  # also where a value is no number
            raise self.endpoint.malformed("log-probabilities", "start it with --logprobs-mode raw_logprobs")
        return RowScores(ids, logprobs, actual)


def _generation_body(
    prompt: Sequence[int], limit: int, temperature: float, seed: int, stops: frozenset[int]
) -> dict[str, Any]:
    """A request for text that ends at `stops` and at no token that the server adds; the answer is in token ids."""
    return {
        "prompt": list(map(int, prompt)),
        "max_tokens": limit,
        "temperature": temperature,
        "seed": seed % 2**63,  # servers take signed 64-bit seeds
        "stop_token_ids": sorted(stops),
        "ignore_eos": True,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "return_token_ids": True,  # vLLM since 0.10.2; before, only "token_id:7" among log-probabilities
        "logprobs": 1,
        "return_tokens_as_token_ids": True,
    }
