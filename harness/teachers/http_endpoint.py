"""Endpoint: one address that answers JSON over HTTP, asked again where an error may pass.

What is asked of a completions server is `served.py`'s matter; this file connects, waits and says in one
sentence what went wrong. A key is read from the environment when it is sent, and is in no object,
message or file; a server's own words are quoted shortened, without headers, and with the key blotted out.

    Endpoint("http://node7:8000", api_key_env="VLLM_API_KEY").ask("/v1/models")["data"]
"""

import json
import os
import re
import threading
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from harness.config.checks import SettingsError, refuse

FIELD = "teacher.path"
BY_SLURM = "slurm"
"""In the place of an address: the cluster serves it (`serving.py`)."""
START = "start the server there, or set teacher.path to where it listens"
LONGEST_WAIT_S = 60.0
QUOTED = 200  # characters of a server's own words in a message


def base_url(path: str) -> str:
    """The server's address without `/v1`; `$NAME` stands for what that environment variable holds now.

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
    if "@" in parts.netloc or parts.query:
        way_out = "give http://host:port and name the key's variable in teacher.api_key_env"
        raise refuse(FIELD, "(not shown)", "an address holds no user, password or query", way_out)
    if not valid:
        raise refuse(FIELD, path, "a server's address has the form http://host:port")
    return path.rstrip("/").removesuffix("/v1").rstrip("/")


class ServerError(SettingsError):
    """A server that does not answer; later, or started anew, it may."""


class Endpoint:
    """A server's address, its key's place, and how patiently it is asked."""

    def __init__(
        self,
        path: str,
        api_key_env: str | None = None,
        timeout_s: float = 600.0,
        attempts: int = 6,
        first_wait_s: float = 1.0,
    ) -> None:
        """`path` as in `base_url`. At most `attempts` requests, waiting `first_wait_s` and then twice as long
        each time, at most a minute, after errors that may pass: 429, 5xx, a lost connection, a timeout."""
        assert timeout_s > 0 and attempts > 0 and first_wait_s >= 0
        self.url, self.api_key_env = base_url(path), api_key_env
        self.timeout_s, self.attempts, self.first_wait_s = timeout_s, attempts, first_wait_s
        self._opener = urllib.request.build_opener(_NoRedirects)

    def ask(
        self, path: str, body: dict[str, Any] | None = None, stopped: threading.Event | None = None
    ) -> dict[str, Any]:
        """The JSON object a server answers with: POST where there is a `body`, else GET.

        `stopped` ends the waiting between attempts. Raises SettingsError where no such answer can be had, and
        ServerError, which is one, where there is none at all.
        """
        stopped, said, wait = stopped or threading.Event(), "", 0.0
        for attempt in range(self.attempts):
            if attempt and stopped.wait(min(max(wait, self.first_wait_s * 2 ** (attempt - 1)), LONGEST_WAIT_S)):
                break
            request, wait = self._request(path, body), 0.0
            try:
                with self._opener.open(request, timeout=self.timeout_s) as answer:
                    content = answer.read()
            except urllib.error.HTTPError as error:
                with error:
                    said = f"{error.code} {self._quoted(error)}".strip()
                    after = str(error.headers.get("Retry-After") or "")
                if error.code != 429 and error.code < 500:
                    raise self._refused(error.code, path, said) from None
                wait = float(after) if after.isdigit() else 0.0
            except (OSError, HTTPException) as error:
                said = self._hidden(str(getattr(error, "reason", error)) or type(error).__name__)
            else:
                return self._object(content)
        asked = f"the server does not answer ({said}; asked {self.attempts} times)"
        raise ServerError(str(refuse(FIELD, self.url, asked, START)))

    def malformed(self, wanted: str, way_out: str = START) -> SettingsError:
        """The refusal of an answer that lacks what was asked for."""
        return refuse(FIELD, self.url, f"the server's answer has not {wanted}", way_out)

    def _object(self, content: bytes) -> dict[str, Any]:
        try:
            values = json.loads(content)
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise self.malformed("a JSON object")
        return values

    def _request(self, path: str, body: dict[str, Any] | None) -> urllib.request.Request:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        if self.api_key_env:
            request.add_unredirected_header("Authorization", f"Bearer {self._key()}")
        return request

    def _key(self) -> str:
        assert self.api_key_env
        key = os.environ.get(self.api_key_env, "").strip()
        if not re.fullmatch(r"[!-~]+", key):  # http.client would quote a malformed header, key and all
            reason = "the variable holds no key" if not key else "what it holds cannot be sent as a key"
            raise refuse("teacher.api_key_env", self.api_key_env, reason, "set it where the stages run")
        return key

    def _refused(self, code: int, path: str, said: str) -> SettingsError:
        if code in (401, 403):
            way_out = f"put the server's key into the environment variable {self.api_key_env}"
            if not self.api_key_env:
                way_out = "set teacher.api_key_env to the name of the environment variable that holds its key"
            return refuse(FIELD, self.url, f"the server wants a key it knows ({said})", way_out)
        return refuse(FIELD, self.url, f"the server refuses {path} ({said})")

    def _quoted(self, error: urllib.error.HTTPError) -> str:
        """The server's own words, on one line and shortened."""
        try:
            text = error.read(1 << 16).decode(errors="replace")
        except (OSError, HTTPException):
            return ""
        try:
            content = json.loads(text)
            inner = content.get("error", content)
            text = str(inner["message"] if isinstance(inner, dict) else inner)
        except (ValueError, AttributeError, KeyError):
            pass
        text = " ".join(self._hidden(text).split()).rstrip(".")
        return text if len(text) <= QUOTED else text[:QUOTED] + "..."

    def _hidden(self, text: str) -> str:
        """A server may repeat the key it was sent."""
        key = os.environ.get(self.api_key_env or "", "").strip()
        return text.replace(key, "(key)") if key else text


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer like any other: following one would send prompts to an address nobody gave."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None
