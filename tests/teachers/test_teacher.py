"""One face for two kinds of teacher: the same answers from a model here and the same model behind a server."""

import json

import pytest

from harness.config.checks import SettingsError
from harness.models.loading import count_parameters
from harness.teachers.teacher import LocalTeacher, ServedTeacher, open_teacher
from tests.doubles import byte_ids, save_tiny, tiny_llama
from tests.fake_server import FakeServer, adopt

PROMPTS = [[3, *byte_ids(text), 4] for text in ("hi", "a longer prompt")]
ASKED = {"max_new_tokens": 8, "temperature": 0.0, "seeds": [1, 2], "stop_ids": {5}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setenv("FAKE_KEY", "sk-very-secret")
    with FakeServer(tiny_llama(), key="sk-very-secret") as server:
        yield server


def test_a_teacher_here_and_one_behind_a_server_give_the_same_greedy_answers(folder, fake, tmp_path):
    served, _ = adopt(fake, folder, tmp_path / "served", "FAKE_KEY")
    here, there = open_teacher(folder), open_teacher(served)
    assert isinstance(here, LocalTeacher) and isinstance(there, ServedTeacher)
    assert here.answers(PROMPTS, **ASKED) == there.answers(PROMPTS, **ASKED)
    assert (here.parameters, there.parameters) == (count_parameters(tiny_llama()), 0)
    assert here.warnings == [] and "FLOPs are not counted" in there.warnings[0] and len(there.warnings) == 1
    assert here.spent == there.spent and here.spent["read"] == sum(map(len, PROMPTS)) and here.spent["written"] > 2
    assert (here.longest_row, there.longest_row) == (512, 127)
    assert there.score([PROMPTS[0]], 3)[0].ids.shape == (len(PROMPTS[0]) - 1, 3)


def test_text_in_the_place_of_ids_is_said(folder, fake, tmp_path):
    served, _ = adopt(fake, folder, tmp_path / "served", "FAKE_KEY")
    teacher = open_teacher(served)
    fake.body = {"choices": [{"text": "yes", "finish_reason": "stop"}]}
    assert teacher.answers(PROMPTS, **ASKED) == [[*byte_ids("yes"), 5]] * 2
    assert "2 answers came as text" in teacher.warnings[1]


def test_a_server_that_changed_since_it_was_adopted_is_refused(folder, fake, tmp_path):
    served, facts = adopt(fake, folder, tmp_path / "served", "FAKE_KEY")
    open_teacher(served)
    fake.model = tiny_llama(seed=1)
    with pytest.raises(SettingsError, match=r"serves another model now; .*teacher\.revision") as refusal:
        open_teacher(served)
    assert facts["probe"][:12] in str(refusal.value)


def test_a_server_that_moved_is_found_where_it_is_now(folder, fake, tmp_path):
    served, _ = adopt(fake, folder, tmp_path / "served", "FAKE_KEY")
    with FakeServer(tiny_llama()) as moved:
        assert open_teacher(served, url=moved.url).answers(PROMPTS, **ASKED)
        assert moved.asked == 3 and fake.asked == 1  # a probe and two answers there; only the adoption here


def test_the_key_is_in_no_file_fact_or_message(folder, fake, tmp_path):
    served, facts = adopt(fake, folder, tmp_path / "served", "FAKE_KEY")
    assert "FAKE_KEY" in (served / "server.json").read_text()
    fake.faults = [400]
    with pytest.raises(SettingsError) as refusal:
        open_teacher(served)
    texts = [file.read_text() for file in served.iterdir()] + [json.dumps(facts), str(refusal.value)]
    assert not any("secret" in text for text in texts)


def test_a_key_that_is_set_after_the_server_was_adopted_is_the_one_that_is_sent(folder, tmp_path, monkeypatch):
    with FakeServer(tiny_llama()) as fake:
        served, _ = adopt(fake, folder, tmp_path / "served")
        fake.key = "asked-for-later"
        with pytest.raises(SettingsError, match=r"requires an API key .*set teacher\.api_key_env"):
            open_teacher(served)
        monkeypatch.setenv("LATER_KEY", "asked-for-later")
        access = {"api_key_env": "LATER_KEY", "connect_timeout_s": 1.0, "timeout_s": 20.0}
        assert open_teacher(served, access=access).answers(PROMPTS, **ASKED)


def test_empty_answers_are_counted_and_refused_where_all_of_many_are_empty(folder, fake, tmp_path):
    served, _ = adopt(fake, folder, tmp_path / "served", "FAKE_KEY")
    teacher = open_teacher(served)
    fake.body = {"choices": [{"token_ids": [5], "finish_reason": "stop"}]}
    assert teacher.answers(PROMPTS, **ASKED) == [[5], [5]]
    assert teacher.spent["empty"] == 2 and "2 answers of tiny are empty" in teacher.warnings[1]
    many = {**ASKED, "seeds": range(16)}
    with pytest.raises(SettingsError, match=r"answers 16 prompts, and every answer is empty; look at"):
        teacher.answers(PROMPTS * 8, **many)
    fake.body = {"choices": [{"token_ids": [], "finish_reason": "length"}]}
    with pytest.raises(SettingsError, match=r"every answer is empty"):
        teacher.answers(PROMPTS * 8, **many)
