"""HTTP endpoint: one server address that answers JSON, with retries of the errors that may pass.

`completions_client.py` decides what is requested from a completions server; this file connects, waits, retries and
reports a failure in one sentence. An API key is read from the environment for each request and stands in no object,
message or file. A server's own error message is quoted shortened, without headers, and with the key removed. An answer
is read in parts up to a limit, and redirects are not followed.

    HttpEndpoint("http://node7:8000", api_key_env="VLLM_API_KEY").request("/v1/models")["data"]
"""

import json
import os
import re
import ssl
import threading
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from harness.config.checks import SettingsError, refuse
from harness.config.secrets import token_in_path

if TYPE_CHECKING:
    import httpx

FIELD = "teacher.path"
BY_SLURM = "slurm"
"""Stands in the place of an address where a job of the cluster serves the teacher (`discovery.py`)."""
START = "start the server there, or set teacher.path to where it listens"
LONGEST_WAIT_S = 60.0
TIMEOUTS = 2
"""Requests in a row that time out until the server is called silent; each has waited long already."""
LOOK_S = 30.0
"""Seconds within which a server answers what it need not compute, at most."""
ANSWER_BYTES = 8 << 20
"""Bytes of such an answer, at most."""
# Servers close a connection that is idle for 5 s (uvicorn, under vLLM); a request must not meet the closing.
KEEP_IDLE_S = 2.0
QUOTED = 200  # characters of a server's own message in ours


def base_url(path: str) -> str:
    """The server's address without `/v1`; `$NAME` stands for the present value of that environment variable.

    Raises SettingsError for what is no http(s) address, and for one that holds a password or token (not quoted).
    """
    named = path.startswith("$")
    if named:
        value = os.environ.get(path[1:], "")
        if not value:
            raise refuse(FIELD, path, "no such environment variable is set here", "set it where the stages run")
        path = value
    try:
        parts = urlsplit(path)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        raise refuse(FIELD, "(not shown)", "a server's address has the form http://host:port") from None
    # checked before the address is quoted in any message: it may hold a password
    if "@" in parts.netloc or parts.query:
        way_out = "give http://host:port and name the key's variable in teacher.api_key_env"
        raise refuse(FIELD, "(not shown)", "an address holds no user, password or query", way_out)
    # the address is kept in plans, records and attempts
    if not named and token_in_path(parts.path):
        way_out = "export the address as a variable and set teacher.path='$NAME', which keeps the name alone"
        raise refuse(FIELD, "(not shown)", "its path holds what looks like a token", way_out)
    if not valid:
        raise refuse(FIELD, path, "a server's address has the form http://host:port")
    return path.rstrip("/").removesuffix("/v1").rstrip("/")


class ServerError(SettingsError):
    """A server does not answer; it may answer later, or after a restart."""


class HttpEndpoint:
    """A server's address, the name of its key's variable, and how patiently requests are repeated."""

    def __init__(
        self,
        path: str,
        api_key_env: str | None = None,
        timeout_s: float = 600.0,
        attempts: int = 6,
        first_wait_s: float = 1.0,
        connect_timeout_s: float = 10.0,
    ) -> None:
        """`path` as in `base_url`. A connection may take `connect_timeout_s`, and a whole answer `timeout_s`. At most
        `attempts` requests, waiting `first_wait_s` and then twice as long each time, at most a minute, after errors
        that may pass: 429, 5xx, a lost connection; after `TIMEOUTS` time-outs in a row there is no other attempt.

        Raises SettingsError for a malformed address, and for a proxy in the environment that cannot be used.
        """
        assert timeout_s > 0 and connect_timeout_s > 0 and attempts > 0 and first_wait_s >= 0
        self.url, self.api_key_env = base_url(path), api_key_env
        self.timeout_s, self.attempts, self.first_wait_s = timeout_s, attempts, first_wait_s
        self._client = _client(timeout_s, connect_timeout_s)

    @property
    def shown(self) -> str:
        """The address as messages name it: without a path, which may hold a token."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}{'/...' if parts.path else ''}"

    def request(
        self,
        path: str,
        body: dict[str, Any] | None = None,
        stopped: threading.Event | None = None,
        most_bytes: int = ANSWER_BYTES,
        seconds: float | None = None,
    ) -> dict[str, Any]:
        """The JSON object a server answers with: POST where there is a `body`, else GET. Threads may share it.

        `stopped` ends the waiting between attempts; `seconds` shortens `timeout_s`. Raises SettingsError where the
        server refuses the request or its answer is no JSON object or longer than `most_bytes`, and ServerError, a
        SettingsError, where it does not answer at all.
        """
        import httpx

        stopped, problem, wait, tried, silent = stopped or threading.Event(), "", 0.0, 0, 0
        seconds = min(self.timeout_s, seconds or (LOOK_S if body is None else self.timeout_s))
        began = time.monotonic()
        for attempt in range(self.attempts):
            if attempt and stopped.wait(min(max(wait, self.first_wait_s * 2 ** (attempt - 1)), LONGEST_WAIT_S)):
                break
            # the key is read for each request, so that no object holds it
            headers, wait, tried = (
                {"Authorization": f"Bearer {self._key()}"} if self.api_key_env else {},
                0.0,
                tried + 1,
            )
            try:
                answer, content = self._exchange(path, body, headers, most_bytes, seconds)
            except httpx.InvalidURL:
                raise refuse(FIELD, self.shown, "a server's address has the form http://host:port") from None
            except httpx.ReadTimeout:
                problem, silent = f"no answer within {seconds:g} s", silent + 1
                if silent == TIMEOUTS:
                    break
                continue
            except httpx.RequestError as error:
                problem, silent = self._without_key(str(error)) or type(error).__name__, 0
                continue
            silent = 0
            if answer.is_success:
                return self._object(content, answer.headers.get("Content-Type", ""))
            problem = f"{answer.status_code} {self._quoted(content)}".strip()
            # the other 4xx stay errors however often they are sent
            if answer.status_code != 429 and answer.status_code < 500:
                raise self._refused(answer, path, problem)
            after = answer.headers.get("Retry-After", "")
            wait = float(after) if after.isdigit() else 0.0
        took = f"{tried} attempt{'s' if tried > 1 else ''} in {time.monotonic() - began:.0f} s"
        raise ServerError(str(refuse(FIELD, self.shown, f"the server does not answer ({problem}; {took})", START)))

    def _exchange(
        self, path: str, body: dict[str, Any] | None, headers: dict[str, str], most_bytes: int, seconds: float
    ) -> tuple["httpx.Response", bytes]:
        """One request: the response without its content, and that, read in parts as it comes.

        Raises httpx.ReadTimeout where the whole answer takes longer than `seconds`, httpx's other errors, and
        SettingsError where it is longer than `most_bytes`.
        """
        import httpx

        content, deadline = bytearray(), time.monotonic() + seconds
        # not compressed: a short answer could become a long one
        headers = {**headers, "Accept-Encoding": "identity"}
        timeout = httpx.Timeout(seconds, connect=self._client.timeout.connect)
        method = "GET" if body is None else "POST"
        with self._client.stream(method, self.url + path, json=body, headers=headers, timeout=timeout) as answer:
            for part in answer.iter_raw():
                content += part
                if len(content) > most_bytes:
                    reason = f"the server's answer to {path} is longer than the {most_bytes >> 20} MiB that it may have"
                    raise refuse(FIELD, self.shown, reason, "check that a completions server listens there")
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout("")
        return answer, bytes(content)

    def close(self) -> None:
        """Close the connections that are kept for later requests."""
        self._client.close()

    def malformed(self, wanted: str, way_out: str = START) -> SettingsError:
        """The refusal of an answer that lacks what was requested."""
        return refuse(FIELD, self.shown, f"the server's answer lacks {wanted}", way_out)

    def _object(self, content: bytes, kind: str) -> dict[str, Any]:
        try:
            values = json.loads(content)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            told = (
                f" (it is {kind.partition(';')[0]})"
                if "json" not in kind and re.fullmatch(r"[\w/+;=. -]{1,60}", kind)
                else ""
            )
            raise self.malformed(f"a JSON object{told}")
        return values

    def _key(self) -> str:
        assert self.api_key_env
        key = os.environ.get(self.api_key_env, "").strip()
        if not re.fullmatch(r"[!-~]+", key):  # the HTTP library would quote a malformed header, key and all
            reason = "the variable holds no key" if not key else "what it holds cannot be sent as a key"
            raise refuse("teacher.api_key_env", self.api_key_env, reason, "set it where the stages run")
        return key

    def _refused(self, answer: "httpx.Response", path: str, problem: str) -> SettingsError:
        status = answer.status_code
        if 300 <= status < 400:
            # without user, path and query
            host = urlsplit(answer.headers.get("Location", "")).netloc.rpartition("@")[2] or "another address"
            way_out = "set teacher.path to where the server itself listens"
            return refuse(FIELD, self.shown, f"it redirects to {host}, which is not followed ({status})", way_out)
        if status in (401, 403) and self.api_key_env:
            way_out = f"put the server's key into the environment variable {self.api_key_env}"
            return refuse(FIELD, self.shown, f"the server refuses the API key ({problem})", way_out)
        if status in (401, 403):
            way_out = "set teacher.api_key_env to the name of the environment variable that holds its key"
            return refuse(FIELD, self.shown, f"the server requires an API key ({problem})", way_out)
        return refuse(FIELD, self.shown, f"the server refuses {path} ({problem})")

    def _quoted(self, content: bytes) -> str:
        """The server's own error message, on one line and shortened."""
        # an error page may be large; what is quoted is short
        text = content[: 1 << 16].decode(errors="replace")
        try:
            values = json.loads(text)
            inner = values.get("error", values)
            text = str(inner["message"] if isinstance(inner, dict) else inner)
        except (ValueError, RecursionError, AttributeError, KeyError):
            pass
        text = " ".join(self._without_key(text).split()).rstrip(".")
        return text if len(text) <= QUOTED else text[:QUOTED] + "..."

    def _without_key(self, text: str) -> str:
        """The text without the key and without the address's path: a server may repeat what it received."""
        key, path = os.environ.get(self.api_key_env or "", "").strip(), urlsplit(self.url).path
        text = text.replace(path, "/...") if len(path) > 1 else text
        return text.replace(key, "(key)") if key else text


def _client(timeout_s: float, connect_timeout_s: float) -> "httpx.Client":
    """Pooled connections, through the proxy that the environment names.

    Raises SettingsError where that proxy cannot be used.
    """
    import httpx  # here, because status screens import this module for a name and make no request

    try:
        return httpx.Client(
            timeout=httpx.Timeout(timeout_s, connect=connect_timeout_s),
            # a redirect is an error: following it would send prompts to an address that the user did not give
            follow_redirects=False,
            # the caller bounds its requests in flight; a second bound here would end in a timeout of the pool
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEEP_IDLE_S),
            # the system's certificates, which hold a cluster's own authority; the default is certifi's list
            verify=ssl.create_default_context(),
        )
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        names = "HTTP_PROXY, HTTPS_PROXY or ALL_PROXY"
        raise SettingsError(
            f"{names} in the environment names a proxy that cannot be used ({type(error).__name__}). "
            "Set it to http://host:port, or unset it."
        ) from None
