"""A Hugging Face hub on this machine: repositories of a few files, some gated, missing, private or broken.

It answers as the hub does: repository information, listing and files, and errors with the hub's own headers.

    with FakeHub({"org/tiny": Repository(folder)}) as hub: hub.use(monkeypatch, tmp_path / "cache")
"""

import hashlib
import json
import re
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c0ffee" + "0" * 34
ROUTE = re.compile(
    r"/api/(?P<kind>models|datasets)/(?P<id>[^/]+/[^/]+)(?:/(?P<what>revision|tree)/(?P<revision>[^/?]+))?"
)
FILE = re.compile(r"/(?P<kind>datasets/)?(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


@dataclass
class Repository:
    """`fault`: None, `gated` (until the token is `accepted`), `status` (every answer is that status), or `refused`
    (the hub does not take the token)."""

    folder: Path | None = None
    fault: str | None = None
    status: int = 503


class FakeHub:
    def __init__(self, repositories):
        self.repositories, self.requests, self.tokens = repositories, [], []

    def __enter__(self):
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self.answer(body=True)

            def do_HEAD(self):
                self.answer(body=False)

            def answer(self, body):
                token = (self.headers.get("authorization") or "").removeprefix("Bearer ")
                hub.requests.append(self.path)
                hub.tokens.append(token)
                status, headers, content = hub.answer(self.path, token)
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if body:
                    self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def use(self, monkeypatch, cache, token=None, url=None):
        """Point the hub's library at this server, online, with an empty cache and at most this token."""
        point_at(monkeypatch, url or self.url, cache, token)

    def answer(self, path, token):
        """Status, headers and body for a request."""
        found = ROUTE.match(path) or FILE.match(path)
        repository = self.repositories.get(found["id"]) if found else None
        if repository is None:  # the hub hides from anonymous users which names exist
            return (404 if token else 401), {"X-Error-Code": "RepoNotFound", "X-Error-Message": "not found"}, b""
        if repository.fault == "status":
            return repository.status, {}, b"<html>an error page</html>"
        if repository.fault == "refused":
            return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b""
        revision = found["revision"]
        if revision not in (None, "main", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"Invalid rev id: {revision}"}, b""
        if found.re is FILE:
            if repository.fault == "gated" and token != "accepted":
                return (403 if token else 401), {"X-Error-Code": "GatedRepo", "X-Error-Message": "restricted"}, b""
            return self.file(repository.folder / found["file"])
        if found["what"] == "tree":
            return self.json([self.entry(repository.folder, file) for file in self.files(repository.folder)])
        siblings = [{"rfilename": str(file.relative_to(repository.folder))} for file in self.files(repository.folder)]
        return self.json({"id": found["id"], "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})

    def files(self, folder):
        return sorted(file for file in folder.rglob("*") if file.is_file())

    def entry(self, folder, file):
        where = {"type": "file", "path": str(file.relative_to(folder))}
        return where | {"oid": hashlib.sha1(file.read_bytes()).hexdigest(), "size": file.stat().st_size}

    def file(self, path):
        if not path.is_file():
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        content = path.read_bytes()
        etag = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        return 200, etag, content

    def json(self, value):
        return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def point_at(monkeypatch, url, cache, token=None, offline=False):
    """Point the libraries of the hub at an address, with a cache of their own and at most this token."""
    import datasets.config
    from huggingface_hub import constants

    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache / "datasets")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no_token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
