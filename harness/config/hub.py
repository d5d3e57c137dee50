"""The Hugging Face hub: a repository fetched into its cache, and why it is not given, in one sentence.

huggingface_hub is imported where a repository is used, never at planning. It finds the user's token itself: no token
is read here, so none can enter a message, and addresses are shown without user, password and query.

    model = HubRepository("org/model-1B", "student.path", "student.revision")
    fetch(model, ["*.json", "*.safetensors"])      # the snapshot's folder, or e.g.
    # student.path='org/model-1B' cannot be run: its licence must be accepted first (401); accept it at [...]
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from harness.config.checks import SettingsError, refuse

LOG_IN = "`hf auth login`"


@dataclass(frozen=True)
class HubRepository:
    """A repository of the hub, and the settings by which a person chose it."""

    id: str
    """`org/name`."""
    setting: str
    """The setting that names it, for messages: `student.path`."""
    revision_setting: str
    """The setting of its revision, for messages: `student.revision`."""
    revision: str | None = None
    """Branch, tag or commit; null: the default branch."""
    kind: str = "model"
    """`model` or `dataset`."""
    instead: str = "give a local folder"
    """The way out that needs no hub."""

    @property
    def page(self) -> str:
        """The address of its page, where its licence is accepted."""
        return f"{_endpoint()}/{'datasets/' if self.kind == 'dataset' else ''}{self.id}"


def fetch(repository: HubRepository, patterns: Sequence[str]) -> Path:
    """The folder of a repository's files in the hub's cache; files that are not there yet are downloaded.

    Raises SettingsError, in one sentence, where the hub does not give them.
    """
    from huggingface_hub import snapshot_download

    with hub_refusals(repository):
        folder = snapshot_download(
            repository.id,
            repo_type=repository.kind,
            revision=repository.revision,
            allow_patterns=list(patterns),
        )
    return Path(folder)


def resolve(repository: HubRepository) -> str:
    """The commit behind a repository's revision: the hub's, or the cached one where the hub is out of reach.

    Raises SettingsError, in one sentence, where neither has it.
    """
    from huggingface_hub import HfApi

    with hub_refusals(repository):
        return HfApi().resolve_revision(repository.id, repo_type=repository.kind, revision=repository.revision).resolved


def check_cached(repository: HubRepository, patterns: Sequence[str]) -> Path | None:
    """In offline mode, the repository's folder in the cache, or SettingsError; online, None: nothing is looked up."""
    return fetch(repository, patterns) if _offline() else None


@contextmanager
def hub_refusals(repository: HubRepository) -> Iterator[None]:
    """Raise what goes wrong with the hub as SettingsError: the reason and the way out, in one sentence.

    Other errors pass. The hub's own error is not chained: its text may repeat an address with a password.
    """
    from huggingface_hub import errors

    try:
        yield
    except (_http_error(), OSError, errors.RevisionResolutionError, errors.HFValidationError) as error:
        raise _refusal(repository, error) from None


def _refusal(repository: HubRepository, error: BaseException) -> SettingsError:
    """The sentence for an error of the hub's library, its causes looked through."""
    from huggingface_hub import errors

    causes = _causes(error)
    answered = next((cause for cause in causes if isinstance(cause, errors.HfHubHTTPError)), None)
    # before the cause: the files that are there say more than why the others cannot be fetched now
    incomplete = next((cause for cause in causes if isinstance(cause, errors.IncompleteSnapshotError)), None)
    if incomplete is not None:
        why = f"its download in the cache is incomplete ({Path(incomplete.snapshot_path).name[:12]})"
        way_out = "unset HF_HUB_OFFLINE" if _offline() else f"check the network and the hub's address {_endpoint()}"
        way_out += ", and the same command finishes the download"
        return refuse(repository.setting, repository.id, why, way_out)
    if isinstance(error, errors.HFValidationError):
        return refuse(repository.setting, repository.id, "the hub takes no such id", "the form is org/name")
    if answered is not None:
        return _refused_by_hub(repository, answered)
    if _offline():
        have = "HF_HUB_OFFLINE is set, and the cache of HF_HOME does not have it"
        way_out = f"unset HF_HUB_OFFLINE, set HF_HOME to the folder whose cache has it, or {repository.instead}"
        return refuse(repository.setting, repository.id, have, way_out)
    lost = next((one for one in causes if isinstance(one, (_http_error(), ConnectionError, TimeoutError))), None)
    if lost is not None:
        why = f"the hub at {_endpoint()} cannot be reached ({type(lost).__name__}), and the cache does not have it"
        way_out = f"check the network, the proxy and HF_ENDPOINT, or {repository.instead}"
        return refuse(repository.setting, repository.id, why, way_out)
    why = f"it cannot be fetched ({type(error).__name__}: {_first_line(error)})"
    return refuse(repository.setting, repository.id, why, f"check the folder of HF_HOME, or {repository.instead}")


def _refused_by_hub(repository: HubRepository, error: Any) -> SettingsError:
    """The sentence for an answer of the hub that is an error, by its kind, its status and whether a token was sent."""
    from huggingface_hub import errors

    status, headers = error.response.status_code, error.response.headers
    sent = "authorization" in error.response.request.headers
    name, value = repository.setting, repository.id
    if isinstance(error, errors.GatedRepoError):
        why = f"its licence must be accepted first ({status})"
        then = f"with the account of your token, or log in with another by {LOG_IN}" if sent else f"then {LOG_IN}"
        return refuse(name, value, why, f"accept it at {repository.page}{' ' if sent else ', '}{then}")
    if isinstance(error, errors.RevisionNotFoundError):
        way_out = f"its branches, tags and commits are listed at {repository.page}/tree/main"
        return refuse(repository.revision_setting, repository.revision, f"{value} has no such revision", way_out)
    no_such = headers.get("X-Error-Code") == "RepoNotFound"
    if status == 401 and sent and not no_such:
        why = "the hub refuses the token (401): it expired, was revoked or is not complete"
        way_out = (
            f"make a new one at {_endpoint()}/settings/tokens, then {LOG_IN} (or a new HF_TOKEN where that is set)"
        )
        return refuse(name, value, why, way_out)
    if isinstance(error, errors.RepositoryNotFoundError):
        why = f"the hub has no such {repository.kind}, or it is private ({status})"
        to_read = "with an account that may read it" if sent else "if it is private"
        return refuse(name, value, why, f"check the id, {LOG_IN} {to_read}, or {repository.instead}")
    if isinstance(error, errors.DisabledRepoError):
        return refuse(name, value, "its publisher or the hub disabled it", f"choose another, or {repository.instead}")
    if status in (401, 403) and not sent:
        return refuse(name, value, f"the hub requires a login ({status})", f"run {LOG_IN}")
    if status == 403:
        way_out = f"give the token read access to gated repositories at {_endpoint()}/settings/tokens"
        return refuse(name, value, "the hub does not let this token read it (403)", way_out)
    if status == 429 or status >= 500:
        why = f"the hub at {_endpoint()} answers {status}"
        return refuse(name, value, why, f"run the same command again in some minutes, or {repository.instead}")
    return refuse(name, value, f"the hub answers {status}", f"look at {repository.page}, or {repository.instead}")


def _causes(error: BaseException) -> list[BaseException]:
    """An error and what led to it, the error itself first."""
    found = [error]
    while (before := found[-1].__cause__ or found[-1].__context__) is not None and before not in found:
        found.append(before)
    return found


def _first_line(error: BaseException) -> str:
    from huggingface_hub import constants

    return (str(error).strip().splitlines() or [""])[0].replace(constants.ENDPOINT, _endpoint())


def _http_error() -> type[Exception]:
    """The base of all errors of the HTTP client that the installed hub library uses; not all are OSErrors."""
    from huggingface_hub import errors

    return vars(errors)["HTTPError"]


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _endpoint() -> str:
    """The hub's address (`HF_ENDPOINT`), without user, password and query."""
    from huggingface_hub import constants

    parts = urlsplit(constants.ENDPOINT)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
