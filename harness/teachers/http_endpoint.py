"""HTTP endpoint: one server address that answers JSON, with retries of the errors that may pass.

`completions_client.py` decides what is requested from a completions server; this file connects, waits, retries and
reports a failure in one sentence. An API key is read from the environment for each request and stands in no object,
message or file. A server's own error message is quoted shortened, without headers, and with the key removed.

    HttpEndpoint("http://node7:8000", api_key_env="VLLM_API_KEY").request("/v1/models")["data"]
"""

import json
import os
import re
import ssl
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from harness.config.checks import SettingsError, refuse

if TYPE_CHECKING:
    import httpx

FIELD = "teacher.path"
BY_SLURM = "slurm"
"""Stands in the place of an address where a job of the cluster serves the teacher (`discovery.py`)."""
START = "start the server there, or set teacher.path to where it listens"
LONGEST_WAIT_S = 60.0
# Servers close a connection that is idle for 5 s (uvicorn, under vLLM); a request must not meet the closing.
KEEP_IDLE_S = 2.0
QUOTED = 200  # characters of a server's own message in ours


def base_url(path: str) -> str:
    """The server's address without `/v1`; `$NAME` stands for the present value of that environment variable.

    Raises SettingsError for what is no http(s) address, and for one that holds a password (not quoted).
    """
    if path.startswith("$"):
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
    ) -> None:
        """`path` as in `base_url`. At most `attempts` requests, waiting `first_wait_s` and then twice as long
        each time, at most a minute, after errors that may pass: 429, 5xx, a lost connection, a timeout.

        Raises SettingsError for a malformed address, and for a proxy in the environment that cannot be used.
        """
        assert timeout_s > 0 and attempts > 0 and first_wait_s >= 0
        self.url, self.api_key_env = base_url(path), api_key_env
        self.timeout_s, self.attempts, self.first_wait_s = timeout_s, attempts, first_wait_s
        self._client = _client(timeout_s)

    def request(
        self, path: str, body: dict[str, Any] | None = None, stopped: threading.Event | None = None
    ) -> dict[str, Any]:
        """The JSON object a server answers with: POST where there is a `body`, else GET. Threads may share it.

        `stopped` ends the waiting between attempts. Raises SettingsError where the server refuses the request or its
        answer is no JSON object, and ServerError, a SettingsError, where it does not answer at all.
        """
        import httpx

        stopped, problem, wait = stopped or threading.Event(), "", 0.0
        for attempt in range(self.attempts):
            if attempt and stopped.wait(min(max(wait, self.first_wait_s * 2 ** (attempt - 1)), LONGEST_WAIT_S)):
                break
            # the key is read for each request, so that no object holds it
            headers, wait = {"Authorization": f"Bearer {self._key()}"} if self.api_key_env else {}, 0.0
            try:
                answer = self._client.request(
                    "GET" if body is None else "POST", self.url + path, json=body, headers=headers
                )
            except httpx.InvalidURL:
                raise refuse(FIELD, self.url, "a server's address has the form http://host:port") from None
            except httpx.RequestError as error:
                problem = self._without_key(str(error)) or type(error).__name__
                continue
            if answer.is_success:
                return self._object(answer.content)
            problem = f"{answer.status_code} {self._quoted(answer.content)}".strip()
            # the other 4xx stay errors however often they are sent
            if answer.status_code != 429 and answer.status_code < 500:
                raise self._refused(answer.status_code, path, problem)
            after = answer.headers.get("Retry-After", "")
            wait = float(after) if after.isdigit() else 0.0
        reason = f"the server does not answer ({problem}; {self.attempts} attempts)"
        raise ServerError(str(refuse(FIELD, self.url, reason, START)))

    def close(self) -> None:
        """Close the connections that are kept for later requests."""
        self._client.close()

    def malformed(self, wanted: str, way_out: str = START) -> SettingsError:
        """The refusal of an answer that lacks what was requested."""
        return refuse(FIELD, self.url, f"the server's answer lacks {wanted}", way_out)

    def _object(self, content: bytes) -> dict[str, Any]:
        try:
            values = json.loads(content)
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise self.malformed("a JSON object")
        return values

    def _key(self) -> str:
        assert self.api_key_env
        key = os.environ.get(self.api_key_env, "").strip()
        if not re.fullmatch(r"[!-~]+", key):  # the HTTP library would quote a malformed header, key and all
            reason = "the variable holds no key" if not key else "what it holds cannot be sent as a key"
            raise refuse("teacher.api_key_env", self.api_key_env, reason, "set it where the stages run")
        return key

    def _refused(self, status: int, path: str, problem: str) -> SettingsError:
        if status in (401, 403) and self.api_key_env:
            way_out = f"put the server's key into the environment variable {self.api_key_env}"
            return refuse(FIELD, self.url, f"the server refuses the API key ({problem})", way_out)
        if status in (401, 403):
            way_out = "set teacher.api_key_env to the name of the environment variable that holds its key"
            return refuse(FIELD, self.url, f"the server requires an API key ({problem})", way_out)
        return refuse(FIELD, self.url, f"the server refuses {path} ({problem})")

    def _quoted(self, content: bytes) -> str:
        """The server's own error message, on one line and shortened."""
        # an error page may be large; what is quoted is short
        text = content[: 1 << 16].decode(errors="replace")
        try:
            values = json.loads(text)
            inner = values.get("error", values)
            text = str(inner["message"] if isinstance(inner, dict) else inner)
        except (ValueError, AttributeError, KeyError):
            pass
        text = " ".join(self._without_key(text).split()).rstrip(".")
        return text if len(text) <= QUOTED else text[:QUOTED] + "..."

    def _without_key(self, text: str) -> str:
        """The text without the key: a server may repeat the one it received."""
        key = os.environ.get(self.api_key_env or "", "").strip()
        return text.replace(key, "(key)") if key else text


def _client(timeout_s: float) -> "httpx.Client":
    """Pooled connections, through the proxy that the environment names.

    Raises SettingsError where that proxy cannot be used.
    """
    import httpx  # here, because status screens import this module for a name and make no request

    try:
        return httpx.Client(
            timeout=timeout_s,
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
