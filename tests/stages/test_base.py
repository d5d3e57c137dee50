"""The base stage: adopting, pruning, fresh weights and a set template; a mini in a few steps."""

import json
import shutil
from dataclasses import asdict

import pytest
import torch

from harness.config.checks import SettingsError
from harness.config.machine import Machine
from harness.config.model import Model, Student, Teacher
from harness.data.chat import TULU_TEMPLATE, end_of_turn_id, prompt_ids
from harness.models.files import tokenizer_json_fingerprint
from harness.models.kinds import model_of
from harness.models.loading import load_model, load_tokenizer, save_model
from harness.stages.base import line_rows, make_base
from harness.store.store import write_json
from tests.doubles import save_tiny, tiny_llama
from tests.fake_hub import COMMIT, FakeHub, Repository, point_at
from tests.fake_server import FakeServer
from tests.thinking import family_tokenizer

CPU = Machine(device="cpu")
IDS = torch.tensor([[3, 110, 111, 4, 112, 5]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny", layers=4)


def make(model: Model, out, **changes):
    out.mkdir(parents=True, exist_ok=True)
    settings = model_of(model).identity(0) | changes
    return make_base({**settings, "where": {"model": asdict(model), "world_seed": 0}}, {}, out, CPU)


def test_a_local_folder_is_adopted_by_pointing_to_it(folder, tmp_path):
    facts = make(Model(name="s", kind="hf", path=str(folder)), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.json"]
    assert json.loads((tmp_path / "model.json").read_text()) == {"path": str(folder), "revision": None}
    assert torch.equal(load_model(tmp_path)(IDS).logits, tiny_llama(layers=4)(IDS).logits)
    json.dumps(facts)


def test_a_set_template_travels_with_the_artifact_and_the_weights_stay(folder, tmp_path):
    make(Model(name="s", kind="hf", path=str(folder), chat_template="tulu"), tmp_path)
    assert load_tokenizer(tmp_path).chat_template == TULU_TEMPLATE
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_pruned_student_is_a_folder_of_its_own(folder, tmp_path):
    facts = make(Model(name="s", kind="hf", path=str(folder), init="pruned", layers=2), tmp_path)
    assert not (tmp_path / "model.json").exists()
    model = load_model(tmp_path)
    assert model.config.num_hidden_layers == 2
    assert facts["counts"]["parameters"] == sum(weight.numel() for weight in model.parameters())
    first = tiny_llama(layers=4).model.layers[3].mlp.up_proj.weight
    assert torch.equal(model.model.layers[1].mlp.up_proj.weight, first)


def test_fresh_weights_keep_the_shape_and_follow_the_seed(folder, tmp_path):
    for seed in (0, 1):
        make(Model(name="s", kind="hf", path=str(folder), init="random", init_seed=seed), tmp_path / str(seed))
    zero, one = load_model(tmp_path / "0"), load_model(tmp_path / "1")
    assert zero.config.num_hidden_layers == 4
    assert not torch.equal(zero(IDS).logits, one(IDS).logits)


def test_a_folder_that_changed_since_planning_is_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    model = Model(name="s", kind="hf", path=str(copy))
    settings = model_of(model).identity(0)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    (tmp_path / "out").mkdir()
    with pytest.raises(SettingsError, match="changed after"):
        make_base({**settings, "where": {"model": asdict(model)}}, {}, tmp_path / "out", CPU)


def make_from_hub(model: Model, out):
    """The base stage as planning makes it: with the setting that the model came from."""
    out.mkdir(parents=True)
    where = {"model": asdict(model), "world_seed": 0, "setting": model.setting}
    return make_base({**model_of(model).identity(0), "where": where}, {}, out, CPU)


def test_a_hub_model_that_cannot_be_had_is_refused_in_one_sentence(folder, tmp_path, monkeypatch):
    with FakeHub({"org/tiny": Repository(folder, "gated")}) as hub:
        hub.use(monkeypatch, tmp_path / "cache", "hf_secret")
        with pytest.raises(
            SettingsError, match=r"^student\.path='org/tiny' .*accept it at .*/org/tiny with the account"
        ):
            make_from_hub(Student(name="s", kind="hf", path="org/tiny"), tmp_path / "student")
        with pytest.raises(SettingsError, match=r"^teacher\.path='org/none' .*no such model"):
            make_from_hub(Teacher(name="t", kind="hf", path="org/none"), tmp_path / "teacher")
        served = Teacher(name="t", kind="http", path="http://n:1", served_model="x", tokenizer="org/tiny")
        with pytest.raises(SettingsError, match=r"^teacher\.tokenizer='org/tiny' .*accept it at"):
            make_from_hub(served, tmp_path / "served")


def test_the_revision_that_was_found_is_recorded_and_read_later(folder, tmp_path, monkeypatch):
    with FakeHub({"org/tiny": Repository(folder)}) as hub:
        hub.use(monkeypatch, tmp_path / "cache")
        make_from_hub(Model(name="s", kind="hf", path="org/tiny"), tmp_path / "out")
    pointer = json.loads((tmp_path / "out" / "model.json").read_text())
    assert pointer == {"path": "org/tiny", "revision": COMMIT}
    point_at(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache", offline=True)
    assert torch.equal(load_model(tmp_path / "out")(IDS).logits, load_model(folder)(IDS).logits)
    assert load_tokenizer(tmp_path / "out").chat_template == load_tokenizer(folder).chat_template
    point_at(monkeypatch, "http://127.0.0.1:9", tmp_path / "emptied", offline=True)
    with pytest.raises(SettingsError, match=r"'org/tiny' .*HF_HUB_OFFLINE is set"):
        load_model(tmp_path / "out")


def test_lines_are_rows_whose_answers_alone_are_trained():
    from harness.data.miniature.tokenizer import load_mini_tokenizer

    tokenizer = load_mini_tokenizer()
    row = line_rows(tokenizer, [("Q: Add 37 and 8.\nA: ", "45\n")])[0]
    assert row["input_ids"][0] == tokenizer.bos_token_id
    assert tokenizer.decode(row["input_ids"][row["starts"][0] : row["ends"][0]]) == "45\n"
    assert tokenizer.decode(row["input_ids"][1 : row["starts"][0]]) == "Q: Add 37 and 8.\nA: "
    assert row["ends"] == [len(row["input_ids"])]


def test_a_fresh_mini_is_not_pre_trained(tmp_path):
    facts = make(Model(name="m", size="tiny", init="random", init_seed=0), tmp_path)
    assert "cost" not in facts and not (tmp_path / "log.jsonl").exists()
    assert load_model(tmp_path).config.hidden_size == 64


@pytest.mark.parametrize("family", ["words", "letters"])
def test_a_mini_is_pre_trained_and_its_loss_falls(family, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    short = {"lines": 400, "steps": 30, "batch_size": 16, "learning_rate": 3e-3}
    mini = Model(name="m", size="tiny", init_seed=0, family=family)
    facts = make(mini, tmp_path, pretraining=short)
    assert facts["metrics"]["last_loss"] < 0.85 * facts["metrics"]["first_loss"]
    assert facts["cost"]["trained_tokens"] > 30 * 16 and facts["cost"]["flops"] > 0
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)
    built = tokenizer_json_fingerprint((tmp_path / "tokenizer.json").read_text())
    assert built == model_of(mini).tokenizer_fingerprint()
    assert model.config.vocab_size == len(tokenizer) == facts["counts"]["vocabulary"]
    assert facts["counts"]["parameters"] == model.num_parameters() == model_of(mini).parameters()
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == end_of_turn_id(load_tokenizer(tmp_path))
    assert model(torch.tensor([prompt_ids(tokenizer, [{"role": "user", "content": "hi"}])])).logits.isfinite().all()
    json.dumps(facts)


def test_a_server_is_written_down_with_its_probe_and_the_declared_tokenizer(folder, tmp_path):
    with FakeServer(tiny_llama()) as fake:
        teacher = Teacher(name="t", kind="http", path=fake.url, served_model="tiny", tokenizer=str(folder))
        facts = make(teacher, tmp_path / "one")
        page = json.loads((tmp_path / "one" / "server.json").read_text())
        assert (page["url"], page["served_model"], page["api_key_env"]) == (fake.url, "tiny", None)
        assert facts["probe"] == page["probe"]["sha256"] and facts["counts"]["vocabulary"] == 262
        assert load_tokenizer(tmp_path / "one").chat_template == load_tokenizer(folder).chat_template
        with pytest.raises(SettingsError, match=r"teacher\.served_model='tiny'.*served over HTTP"):
            load_model(tmp_path / "one")
        with pytest.raises(SettingsError, match=r"teacher\.tokenizer=.*changed after"):
            make(teacher, tmp_path / "two", tokenizer={"tokenizer.json": "0" * 64})
        fake.served = ("another",)
        with pytest.raises(SettingsError, match="serves another"):
            make(teacher, tmp_path / "three")
    assert not (tmp_path / "three" / "server.json").exists()
    json.dumps(facts)


def test_thinking_and_the_date_are_written_into_the_template_of_the_artifact(tmp_path):
    published = family_tokenizer("smollm3")
    save_model(tiny_llama(len(published)), published, tmp_path / "published")
    (tmp_path / "old").mkdir()
    found = {}
    for name, asked in {"none": {}, "set": {"thinking": False, "template_date": "2025-02-03"}}.items():
        make(Model(name="s", kind="hf", path=str(tmp_path / "published"), **asked), tmp_path / name)
        found[name] = load_tokenizer(tmp_path / name).apply_chat_template(
            [{"role": "user", "content": "q"}], tokenize=False, add_generation_prompt=True
        )
    assert "26 July 2024" in found["none"] and found["none"].endswith("assistant\n")
    assert "03 February 2025" in found["set"] and found["set"].endswith("assistant\n<think>\n\n</think>\n\n")
    # a reference that was made before dates were fixed has no tokenizer of its own
    write_json(tmp_path / "old" / "model.json", {"path": str(tmp_path / "published"), "revision": None})
    assert load_tokenizer(tmp_path / "old").chat_template == load_tokenizer(tmp_path / "none").chat_template
