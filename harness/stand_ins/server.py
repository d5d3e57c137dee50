"""A completions server of stand-ins, in the place of vLLM: `python -m harness.stand_ins.server FOLDER PORT`.

It serves every model of a folder by its hub id, with the parts of the OpenAI-compatible protocol that
`teachers/completions_client.py` uses: answers from token ids with seeds and stop tokens, and `prompt_logprobs`. One
request is computed at a time; it is made for models of a few thousand parameters.

    GET  /v1/models          {"data": [{"id": "meta-llama/Llama-3.2-1B", "max_model_len": 384}, ...]}
    POST /v1/completions     {"choices": [{"token_ids": [...], "logprobs": {...}, "prompt_logprobs": [...]}]}
"""

import json
import sys
import threading
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.stand_ins import folder_of
from harness.stand_ins.shapes import CONTEXT, STAND_INS

if TYPE_CHECKING:
    import torch


class StandInServer(ThreadingHTTPServer):
    """The server; `url` is its address."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, folder: Path, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self._folder, self._computing = folder, threading.Lock()
        self._model = cache(self._load)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def complete(self, request: dict[str, Any]) -> dict[str, Any]:
        """The completion of one request, as JSON. Raises ValueError for what this server does not have."""
        name, prompt = request.get("model"), request.get("prompt")
        if name not in STAND_INS:
            raise ValueError(f"no model {name}")
        if not isinstance(prompt, list) or not 0 < len(prompt) < CONTEXT:
            raise ValueError(f"the prompt must be 1 to {CONTEXT - 1} token ids")
        with self._computing:
            model, tokens = self._model(str(name))
            choice = _answer(model, tokens, prompt, request)
            if (top_k := request.get("prompt_logprobs")) is not None:
                choice["prompt_logprobs"] = _prompt_logprobs(model, tokens, prompt, int(top_k))
        return {"choices": [{"index": 0, **choice}]}

    def _load(self, name: str) -> tuple[Any, int]:
        """A model and how many tokens it has. A trained one never writes the rows that only fill up its embedding;
        those of random weights are left out."""
        from harness.models.loading import load_model, load_tokenizer

        folder = self._folder / folder_of(name)
        return load_model(folder), len(load_tokenizer(folder))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StandInServer

    def do_GET(self) -> None:
        self._send(200, {"data": [{"id": name, "max_model_len": CONTEXT} for name in STAND_INS]})

    def do_POST(self) -> None:
        try:
            length = int(self.headers["Content-Length"])
            self._send(200, self.server.complete(json.loads(self.rfile.read(length))))
        except ValueError as error:
            self._send(400, {"error": {"message": str(error)}})

    def _send(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        return None


def _answer(model: Any, tokens: int, prompt: list[int], request: dict[str, Any]) -> dict[str, Any]:
    """New tokens after a prompt, greedy or drawn with the request's seed, up to a stop token or the limit."""
    import torch

    temperature, stops = float(request.get("temperature", 1)), set(request.get("stop_token_ids") or ())
    generator = torch.Generator().manual_seed(int(request.get("seed") or 0))
    limit = min(int(request["max_tokens"]), CONTEXT - len(prompt))
    ids: list[int] = []
    values: list[float] = []
    step, past = torch.tensor([prompt]), None  # (1, T)
    with torch.no_grad():
        while len(ids) < limit and not (ids and ids[-1] in stops):
            out = model(step, past_key_values=past, use_cache=True)
            past, scores = out.past_key_values, torch.log_softmax(out.logits[0, -1, :tokens].float(), -1)  # (V,)
            token = int(scores.argmax())
            if temperature:
                token = int(torch.multinomial(torch.softmax(scores / temperature, -1), 1, generator=generator))
            ids, values = [*ids, token], [*values, float(scores[token])]
            step = torch.tensor([[token]])  # (1, 1)
    stopped = ids[-1] if ids and ids[-1] in stops else None
    logprobs = {"tokens": [f"token_id:{token}" for token in ids], "token_logprobs": values}
    ended = {"finish_reason": "length" if stopped is None else "stop", "stop_reason": stopped}
    return {"text": "", "token_ids": ids, "logprobs": logprobs, **ended}


def _prompt_logprobs(model: Any, tokens: int, prompt: list[int], top_k: int) -> list[dict[str, Any] | None]:
    """For every token but the first: the `top_k` most probable ones in its place and itself, with ranks from 1."""
    import torch

    with torch.no_grad():
        scores = torch.log_softmax(model(torch.tensor([prompt])).logits[0, :, :tokens].float(), -1)  # (T, V)
    found: list[dict[str, Any] | None] = [None]
    for place, token in enumerate(prompt[1:]):
        # ranks by place, since tokens of bf16 weights may tie
        top = scores[place].topk(top_k).indices.tolist()
        entries = {str(one): _entry(scores[place], one, rank) for rank, one in enumerate(top, start=1)}
        own = _entry(scores[place], token, int((scores[place] >= scores[place][token]).sum()))
        found.append({str(token): own} | entries)
    return found


def _entry(scores: "torch.Tensor", token: int, rank: int) -> dict[str, Any]:
    return {"logprob": float(scores[token]), "rank": rank}


if __name__ == "__main__":
    with StandInServer(Path(sys.argv[1]), int(sys.argv[2])) as server:
        server.serve_forever()
