"""Peers that are no completions server, or a bad one: each is named in one sentence, soon, and takes no memory."""

# ruff: noqa: E501
import json
import socket
import threading
import time
from contextlib import contextmanager

import pytest

from harness.config.checks import SettingsError
from harness.teachers.completions_client import CompletionsClient
from harness.teachers.http_endpoint import HttpEndpoint, ServerError, base_url

MODELS = {"data": [{"id": "tiny", "max_model_len": 64}]}
HTML = b"<!doctype html><script>alert(1)</script>"


def reply(body, status="200 OK", kind="application/json", *more):
    """The bytes of a whole HTTP answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(data)}", "Connection: close", *more]
    return "\r\n".join([*head, "", ""]).encode() + data


@contextmanager
def peer(answer):
    """A peer that gives each connection to `answer(connection, request)`; yields its address and the requests."""
    listening, requests, done = socket.create_server(("127.0.0.1", 0)), [], threading.Event()

    def serve(connection):
        with connection:
            text = b""
            try:
                while b"\r\n\r\n" not in text:
                    if not (part := connection.recv(1 << 16)):
                        return
                    text += part
                requests.append(text.split(b"\r\n", 1)[0].decode())
                answer(connection, requests[-1], done)
            except OSError:
                pass

    def accept():
        while not done.is_set():
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", requests
    finally:
        done.set()
        listening.close()


def sends(data):
    return lambda connection, request, done: connection.sendall(data)


def completions(choice):
    """A peer that lists its model and gives every completion this choice."""
    return lambda connection, request, done: connection.sendall(
        reply(MODELS if request.startswith("GET") else {"choices": [choice]})
    )


def endless(head):
    """An answer that never ends, as fast as it is read."""

    def answer(connection, request, done):
        connection.sendall(head)
        while not done.is_set():
            connection.sendall(b" " * (1 << 16))

    return answer


def drip(connection, request, done):
    """A byte now and then, so that no single read times out."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n")
    while not done.wait(0.05):
        connection.sendall(b" ")


# What a peer does, and what the sentence says of it.
HOSTILE = {
    "HTML": (sends(reply(HTML, kind="text/html")), "lacks a JSON object (it is text/html)"),
    "a page that is not there": (sends(reply(HTML, "404 Not Found", "text/html")), "refuses /v1/models (404"),
    "a login": (sends(reply({"error": "no"}, "401 Unauthorized")), "requires an API key (401 no)"),
    "a redirect to another host": (
        sends(reply(b"", "302 Found", "text/plain", "Location: http://me:pw1234567@evil.example/?token=abc")),
        "redirects to evil.example, which is not followed (302)",
    ),
    "a redirect for good": (sends(reply(b"", "308 Moved", "text/plain", "Location: /v2")), "redirects to another address"),
    "an error of its own": (sends(reply({"message": "broken"}, "500 Oops")), "does not answer (500 broken; 3 attempts in"),
    "a dropped connection": (lambda connection, request, done: None, "does not answer (Server disconnected"),
    "half an answer": (
        sends(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"), "does not answer (peer closed connection"),
    "no HTTP": (sends(b"SSH-2.0-OpenSSH_9.6\r\n"), "does not answer ("),
    "silence": (lambda connection, request, done: done.wait(20), "no answer within 0.3 s; 2 attempts in"),
    "a byte now and then": (drip, "no answer within 0.3 s; 2 attempts in"),
    "no end": (endless(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"), "longer than the 8 MiB that it may have"),
    "an announced gigabyte": (
        endless(b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n"), "longer than the 8 MiB that it may have"),
    "a header without an end": (endless(b"HTTP/1.1 200 OK\r\nX: "), "does not answer ("),
    "a compressed gigabyte": (
        sends(reply(b"\x1f\x8b" + bytes(1000), "200 OK", "application/json", "Content-Encoding: gzip")), "JSON object"),
    "deep JSON": (sends(reply(b"[" * 200_000)), "lacks a JSON object"),
    "a list": (sends(reply([1])), "lacks a JSON object"),
    "models that are no list": (sends(reply({"data": {"id": "tiny"}})), "lacks a list of models"),
    "other models": (sends(reply({"data": [{"id": "<b>x</b>"}]})), "serves <b>x</b>"),
    "a text as context": (
        sends(reply({"data": [{"id": "tiny", "max_model_len": "4096"}]})), "max_model_len as a number of tokens (it is '4096'"),
    "no context": (
        sends(reply({"data": [{"id": "tiny", "max_model_len": -1}]})), "max_model_len as a number of tokens (it is '-1'"),
    "a context that is true": (
        sends(reply({"data": [{"id": "tiny", "max_model_len": True}]})), "max_model_len as a number of tokens"),
    "ids beyond the vocabulary": (completions({"token_ids": [6, 300]}), "answers with token id 300, and the declared"),
    "negative ids": (completions({"token_ids": [-1]}), "answers with token id -1"),
    "ids as text": (completions({"token_ids": ["5"]}), "lacks token ids that are whole numbers"),
    "ids as fractions": (completions({"token_ids": [5.5]}), "lacks token ids that are whole numbers"),
    "ids of marks": (completions({"logprobs": {"tokens": ["token_id:-5"]}}), "lacks token ids"),
    "a text that is a number": (completions({"text": 5}), "lacks token ids"),
    "no choice": (lambda c, request, done: c.sendall(reply(MODELS if "GET" in request else {"choices": []})), "a completion"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_bad_peer_is_named_in_one_sentence_and_soon(name):
    answer, said = HOSTILE[name]
    started = time.monotonic()
    with peer(answer) as (url, requests):
        endpoint = HttpEndpoint(url, timeout_s=0.3, attempts=3, first_wait_s=0.01, connect_timeout_s=0.3)
        client = CompletionsClient(endpoint, "tiny")
        client.vocabulary = 262
        with pytest.raises(SettingsError) as refusal:
            client.complete([[1, 2]], 4, 0.0, [0], {5})
        assert said in str(refusal.value), str(refusal.value)
        assert "\n" not in str(refusal.value) and "pw1234567" not in str(refusal.value)
        assert len(requests) <= 4  # no endless retries, and nothing was asked of another host
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "entry",
    [
        {"7": {"logprob": "x", "rank": 1}},
        {"7": {"rank": 1}},
        {"7": {"logprob": -1.0, "rank": "first"}},
        {"7": {"logprob": -1.0, "rank": 2}, "seven": {"logprob": -1.0, "rank": 1}},
        {"7": [1]},
        {"7": {"logprob": -1.0, "rank": 2}, "99999999999": {"logprob": -1.0, "rank": 1}},
    ],
)
def test_scores_of_a_wrong_form_are_refused(entry):
    with peer(completions({"prompt_logprobs": [None, entry]})) as (url, _):
        endpoint = HttpEndpoint(url, timeout_s=2.0, attempts=1)
        with pytest.raises(SettingsError, match=r"lacks log-probabilities by token id, each with its rank"):
            CompletionsClient(endpoint, "tiny").score([[3, 7]], 1)


def test_a_failure_is_raised_while_other_requests_are_still_waited_for():
    def answer(connection, request, done):
        if request.startswith("GET"):
            connection.sendall(reply(MODELS))
        elif len(seen) == 0:
            seen.append(1)
            connection.sendall(reply({"message": "no"}, "400 Bad"))
        else:
            done.wait(20)

    seen = []
    with peer(answer) as (url, _):
        client = CompletionsClient(HttpEndpoint(url, timeout_s=20.0), "tiny", in_flight=4)
        started = time.monotonic()
        with pytest.raises(SettingsError, match="400 no"):
            client.complete([[1]] * 8, 4, 0.0, range(8), {5})
        assert time.monotonic() - started < 3


def test_a_connection_that_is_not_accepted_ends_with_its_own_time_out():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:  # fill the queue of connections, so that the next is not accepted
            one.setblocking(False)
            one.connect_ex(listening.getsockname())
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(ServerError, match=r"2 attempts in \d s"):
            HttpEndpoint(url, timeout_s=30.0, attempts=2, first_wait_s=0.01, connect_timeout_s=0.2).request(
                "/v1/models"
            )
        for one in waiting:
            one.close()


def test_a_token_in_an_addresss_path_is_kept_in_no_setting_and_shown_in_no_message(monkeypatch):
    address = "http://127.0.0.1:9/t0k3nt0k3nt0k3nt0k3n/v1"
    with pytest.raises(SettingsError, match=r"\(not shown\).*looks like a token.*'\$NAME'") as refusal:
        base_url(address)
    assert "t0k3n" not in str(refusal.value)
    monkeypatch.setenv("TEACHER_ADDRESS", address)
    endpoint = HttpEndpoint("$TEACHER_ADDRESS", timeout_s=1.0, attempts=1)
    assert endpoint.url.endswith("/t0k3nt0k3nt0k3nt0k3n")
    with pytest.raises(ServerError, match=r"http://127\.0\.0\.1:9/\.\.\.") as refusal:
        endpoint.request("/v1/models")
    assert "t0k3n" not in str(refusal.value)
    assert base_url("http://gateway:8000/team-7/llama-3.1-70b/v1") == "http://gateway:8000/team-7/llama-3.1-70b"
