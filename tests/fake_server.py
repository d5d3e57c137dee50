"""A completions server with a tiny Llama behind it, answering in vLLM's JSON, that fails on request.

It decodes and scores with plain dense loops of its own, so that it is a reference for the client.

    with FakeServer(tiny_llama()) as server: adopt(server, tokenizer_folder, out)
"""

import json
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import torch

from harness.config.machine import Machine
from harness.config.model import Teacher
from harness.models.kinds import model_of
from harness.stages.base import make_base


def adopt(fake, tokenizer, out, api_key_env=None):
    """Make the base artifact of a teacher behind this server in the new folder `out`; returns it and its facts."""
    settings = {"path": fake.url, "served_model": "tiny", "tokenizer": str(tokenizer), "api_key_env": api_key_env}
    teacher = Teacher(name="t", kind="http", **settings)
    out.mkdir()
    facts = make_base({**model_of(teacher).identity(0), "where": {"model": asdict(teacher)}}, {}, out, Machine())
    return out, facts


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256  # connections that wait to be accepted; more are reset


class FakeServer:
    """`faults`: statuses given to the next completions; `delay_s(n)`: wait before the n-th; `without`: what is
    left out of answers (`token_ids`, `logprobs`, `stop_token`, `one_of_k`, `prompt_logprobs`, `context`);
    `context`: tokens it takes; `body`: sent in place of any completion; `opened` counts connections."""

    def __init__(self, model, served=("tiny",), key=None, port=0):
        self.model, self.served, self.key, self.port = model, served, key, port
        self.faults, self.without, self.delay_s, self.body = [], set(), lambda number: 0.0, None
        self.context, self.requests, self.asked, self.busy, self.most_busy = 128, [], 0, 0, 0
        self.lock, self.connections, self.opened = threading.Lock(), set(), 0

    def __enter__(self):
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # connections stay open, as vLLM's do

            def setup(self):
                super().setup()
                with fake.lock:
                    fake.connections.add(self.connection)
                    fake.opened += 1

            def finish(self):
                super().finish()
                with fake.lock:
                    fake.connections.discard(self.connection)

            def do_GET(self):
                models = [{"id": name, "max_model_len": fake.context} for name in fake.served]
                if "context" in fake.without:
                    models = [{"id": name} for name in fake.served]
                self.answer(*fake.checked(self.headers, lambda: {"data": models}))

            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.answer(*fake.post(self.headers, request))

            def answer(self, status, content):
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "http://127.0.0.1:9/elsewhere")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.http = Server(("127.0.0.1", self.port), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()
        with self.lock:
            for connection in self.connections:  # a process that ends closes them too
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def checked(self, headers, answer):
        sent = headers.get("Authorization", "")
        if self.key and sent != f"Bearer {self.key}":
            return 401, {"error": {"message": f"Incorrect API key provided: {sent}."}}
        return 200, answer()

    def post(self, headers, request):
        with self.lock:
            number, self.asked = self.asked, self.asked + 1
            self.requests.append(request)
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
            fault = self.faults.pop(0) if self.faults else None
        time.sleep(self.delay_s(number))
        with self.lock:
            self.busy -= 1
            if fault:
                return fault, {"object": "error", "message": f"fault {fault} " + "x" * 500}
            if self.body is not None:
                return 200, self.body
            return self.checked(headers, lambda: {"choices": [self.choice(request)]})

    def logprobs(self, ids):
        with torch.no_grad():
            return torch.log_softmax(self.model(torch.tensor([ids])).logits[0].double(), -1).numpy()

    def choice(self, request):
        prompt, written, values, ended = request["prompt"], [], [], None
        draw = np.random.default_rng(request.get("seed", 0))
        while len(written) < request["max_tokens"] and ended is None:
            last = self.logprobs(prompt + written)[-1]
            token = int(last.argmax())
            if request["temperature"]:
                weights = np.exp(last / request["temperature"])
                token = int(draw.choice(len(weights), p=weights / weights.sum()))
            written, values = [*written, token], [*values, float(last[token])]
            ended = token if token in request.get("stop_token_ids", []) else None
        shown = written[:-1] if ended is not None else written
        choice = {"index": 0, "finish_reason": "length" if ended is None else "stop", "stop_reason": ended}
        choice["text"] = " ".join(f"<{token}>" for token in shown)
        choice["token_ids"] = shown if "stop_token" in self.without else written
        marks = [f"token_id:{token}" for token in written]
        choice["logprobs"] = {"tokens": marks, "token_logprobs": values}
        if "token_ids" in self.without:
            del choice["token_ids"]
        if "logprobs" in self.without:
            choice["logprobs"] = None
        if "prompt_logprobs" in request and "prompt_logprobs" not in self.without:
            choice["prompt_logprobs"] = self.prompt_logprobs(prompt, request["prompt_logprobs"])
        return choice

    def prompt_logprobs(self, prompt, k):
        scores, entries = self.logprobs(prompt), [None]
        for place, token in enumerate(prompt[1:]):
            order = np.argsort(-scores[place], kind="stable")
            ranks = np.argsort(order) + 1
            kept = order[: k - 1] if "one_of_k" in self.without else order[:k]
            chosen = [token, *(int(other) for other in reversed(kept))]  # not in the order of their ranks
            entries.append(
                {
                    str(other): {
                        "logprob": float(scores[place][other]),
                        "rank": int(ranks[other]),
                        "decoded_token": "?",
                    }
                    for other in chosen
                }
            )
        return entries
