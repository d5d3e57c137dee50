"""The hub's refusals, from a hub on this machine: one sentence, the setting, and what to do."""

import re
import shutil

import pytest

from harness.config.checks import SettingsError
from harness.config.hub import HubRepository, check_cached, fetch, resolve
from harness.models.files import HUB_FILES, check_downloaded, hub_model
from tests.doubles import save_tiny
from tests.fake_hub import COMMIT, FakeHub, Repository, point_at

SECRET = "hf_abcdefghijklmnop"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = save_tiny(tmp_path_factory.mktemp("hub") / "tiny")
    faults = {
        "tiny": {},
        "gated": {"fault": "gated"},
        "refused": {"fault": "refused"},
        "down": {"fault": "status"},
        "busy": {"fault": "status", "status": 429},
        "forbidden": {"fault": "status", "status": 403},
        "teapot": {"fault": "status", "status": 418},
    }
    with FakeHub({f"org/{name}": Repository(folder, **fault) for name, fault in faults.items()}) as hub:
        yield hub


def model(name, revision=None):
    return hub_model("student", f"org/{name}", revision)


def refusal(call, *arguments):
    with pytest.raises(SettingsError) as found:
        call(*arguments)
    assert "\n" not in str(found.value) and SECRET not in str(found.value)
    hidden = found.value.__suppress_context__ or found.value.__context__ is None
    assert hidden, "the hub's own text may repeat addresses with passwords"
    return str(found.value)


def test_a_model_is_fetched_once_and_then_found_in_the_cache(hub, monkeypatch, tmp_path):
    hub.use(monkeypatch, tmp_path)
    folder = fetch(model("tiny"), HUB_FILES)
    assert folder.name == COMMIT and (folder / "model.safetensors").is_file()
    check_downloaded(model("tiny"), folder)
    point_at(monkeypatch, "http://127.0.0.1:9", tmp_path, offline=True)
    assert fetch(model("tiny"), HUB_FILES) == folder and resolve(model("tiny")) == COMMIT


@pytest.mark.parametrize(
    ("name", "token", "sentence"),
    [
        (
            "gated",
            None,
            r"student\.path='org/gated' .*licence .*\(401\); accept it at {hub}/org/gated, then `hf auth login`",
        ),
        (
            "gated",
            SECRET,
            r"student\.path='org/gated' .*\(403\); accept it at {hub}/org/gated with the account of your",
        ),
        (
            "refused",
            SECRET,
            r"refuses the token \(401\): it expired.*{hub}/settings/tokens, then `hf auth login`.*HF_TOKEN",
        ),
        ("refused", None, r"requires a login \(401\); run `hf auth login`"),
        ("missing", None, r"no such model, or it is private \(401\); check the id, `hf auth login` if it is private"),
        (
            "missing",
            SECRET,
            r"no such model, or it is private \(404\); check the id, .*with an account that may read it",
        ),
        ("forbidden", SECRET, r"does not let this token read it \(403\); give the token read access to gated"),
        ("down", None, r"the hub at {hub} answers 503; run the same command again.*local folder by student\.path"),
        ("busy", None, r"the hub at {hub} answers 429; run the same command again"),
        ("teapot", None, r"the hub answers 418; look at {hub}/org/teapot"),
        ("a--b", None, r"student\.path='org/a--b' .*takes no such id; the form is org/name"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence_with_the_way_out(hub, name, token, sentence, monkeypatch, tmp_path):
    hub.use(monkeypatch, tmp_path, token)
    assert re.search(sentence.format(hub=re.escape(hub.url)), refusal(fetch, model(name), HUB_FILES))


def test_an_accepted_licence_opens_a_gated_model(hub, monkeypatch, tmp_path):
    hub.use(monkeypatch, tmp_path, "accepted")
    assert (fetch(model("gated"), HUB_FILES) / "config.json").is_file()


def test_a_revision_that_does_not_exist_is_refused_by_its_own_setting(hub, monkeypatch, tmp_path):
    hub.use(monkeypatch, tmp_path)
    for call in (lambda: fetch(model("tiny", "v9"), HUB_FILES), lambda: resolve(model("tiny", "v9"))):
        assert refusal(call).startswith("student.revision='v9' cannot be run: org/tiny has no such revision;")


def test_a_data_set_is_shown_by_the_address_of_its_page(hub, monkeypatch, tmp_path):
    hub.use(monkeypatch, tmp_path)
    data = HubRepository("org/gated", "corpus", "corpus.revision", kind="dataset", instead="set corpus.path")
    assert f"accept it at {hub.url}/datasets/org/gated, then" in refusal(fetch, data, ["*"])


def test_a_hub_out_of_reach_is_named_without_what_its_address_hides(monkeypatch, tmp_path):
    point_at(monkeypatch, f"http://user:{SECRET}@127.0.0.1:9/mirror?key={SECRET}", tmp_path, SECRET)
    for call in (lambda: fetch(model("tiny"), HUB_FILES), lambda: resolve(model("tiny"))):
        sentence = refusal(call)
        assert "the hub at http://127.0.0.1:9/mirror cannot be reached (ConnectError)" in sentence
        assert "HF_ENDPOINT" in sentence and "user" not in sentence


def test_offline_what_is_not_cached_is_refused_before_a_run(monkeypatch, tmp_path):
    point_at(monkeypatch, "http://127.0.0.1:9", tmp_path, offline=True)
    for call in (lambda: check_cached(model("tiny"), HUB_FILES), lambda: resolve(model("tiny"))):
        sentence = refusal(call)
        assert "HF_HUB_OFFLINE is set, and the cache of HF_HOME does not have it; unset HF_HUB_OFFLINE" in sentence
    point_at(monkeypatch, "http://127.0.0.1:9", tmp_path)
    assert check_cached(model("tiny"), HUB_FILES) is None, "online nothing is looked up before the run"


def test_half_a_download_is_finished_online_and_refused_offline(hub, monkeypatch, tmp_path):
    hub.use(monkeypatch, tmp_path)
    folder = fetch(model("tiny"), HUB_FILES)
    (folder / "model.safetensors").unlink()
    point_at(monkeypatch, "http://127.0.0.1:9", tmp_path, offline=True)
    sentence = refusal(check_cached, model("tiny"), HUB_FILES)
    assert "its download in the cache is incomplete" in sentence and "unset HF_HUB_OFFLINE, and the same" in sentence
    # caches of older versions of the hub's library do not list what belongs to a snapshot
    shutil.rmtree(tmp_path / "models--org--tiny" / "trees")
    assert "the cache has no .safetensors weights of it" in refusal(check_downloaded, model("tiny"), folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00002.safetensors"}}')
    sentence = refusal(check_downloaded, model("tiny"), folder)
    assert "incomplete: model-00002.safetensors is missing; `hf download org/tiny` without HF_HUB_OFFLINE" in sentence
    hub.use(monkeypatch, tmp_path)
    assert (fetch(model("tiny"), HUB_FILES) / "model.safetensors").is_file()
