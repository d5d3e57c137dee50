"""What a model setting points to: checked, named and fingerprinted without loading it."""

import json
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, OPTConfig

from harness.config.checks import SettingsError
from harness.config.model import Lesson, Model, Student, Teacher
from harness.execution.model_checks import check_model
from harness.models.files import tensor_shapes, tokenizer_fingerprint_of_folder, weight_files
from harness.models.kinds import GgufModel, HubModel, MiniModel, NoModel, ServedModel, model_of
from harness.models.loading import random_model, save_model
from harness.store.store import write_json
from tests.doubles import byte_tokenizer, save_tiny, tiny_llama
from tests.fake_hub import point_at
from tests.thinking import family_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


def mini(**settings):
    return Model(**{"name": "m", "init_seed": 0, **settings})


def hf(path, **settings):
    return Model(name="student", kind="hf", path=str(path), **settings)


def served(tokenizer, kind=Teacher, **settings):
    values = {"name": "t", "kind": "http", "path": "http://node7:8000", "served_model": "org/big"}
    return kind(**{**values, "tokenizer": str(tokenizer), **settings})


@pytest.fixture
def online(monkeypatch, tmp_path):
    """Not in offline mode, in which a hub id that is not cached is refused; nothing is fetched here either."""
    point_at(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")


def test_a_complete_folder_a_hub_id_and_a_mini_pass_and_are_named_by_what_they_are(folder, online):
    models = (hf(folder), hf("org/name-1.5B"), mini(size="small"), Model(name="n", kind="none"))
    for model in models:
        check_model(model)
    files, hub, small, none = (model_of(model).identity(0) for model in models)
    assert set(files["files"]) >= {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    assert (hub["path"], hub["revision"], small["size"]) == ("org/name-1.5B", None, "small")
    assert none == {"kind": "none", "init": "pretrained"}


SERVER = {"api_key_env", "connect_timeout_s", "read_timeout_s"}
TEMPLATE = {"chat_template", "thinking", "template_date"}


@pytest.mark.parametrize(
    ("settings", "kind", "own"),
    [
        ({"kind": "none"}, NoModel, set()),
        ({"kind": "mini"}, MiniModel, {"init", "layers", "init_seed", "size", "family", "knows"}),
        (
            {"kind": "hf", "path": "org/m"},
            HubModel,
            {"init", "layers", "init_seed", "path", "revision", *TEMPLATE},
        ),
        ({"kind": "gguf", "path": "m.gguf"}, GgufModel, {"init", "layers", "init_seed", "path", *TEMPLATE}),
        (
            {"kind": "http", "path": "http://node7:8000"},
            ServedModel,
            {
                "path",
                "served_model",
                "revision",
                "tokenizer",
                *TEMPLATE,
                "api_key_env",
                "connect_timeout_s",
                "read_timeout_s",
            },
        ),
    ],
    ids=lambda value: value.get("kind") if isinstance(value, dict) else "",
)
def test_a_kind_of_model_has_the_fields_it_reads_and_no_other(settings, kind, own):
    model = model_of(Model(name="m", **settings))
    assert type(model) is kind and set(vars(model)) == own
    assert model.weights_here == (settings["kind"] not in ("none", "http"))
    assert {name: getattr(model, name) for name in own & set(settings)} == {
        name: value for name, value in settings.items() if name in own
    }


def test_a_model_read_back_from_an_older_plan_has_defaults_for_what_it_does_not_name():
    assert model_of({"kind": "mini", "size": "tiny", "init": "pretrained"}) == MiniModel(size="tiny")


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "no weights"),
        ("tokenizer.json", "tokenizer.json"),
        ("chat_template.jinja", "chat_template=tulu"),
    ],
)
def test_a_folder_without_a_needed_file_is_refused_by_name(folder, tmp_path, missing, said):
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / missing).unlink()
    with pytest.raises(SettingsError, match=said):
        check_model(hf(broken))


def test_a_folder_without_a_template_passes_when_tulu_is_set(folder, tmp_path):
    bare = shutil.copytree(folder, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(SettingsError, match=r"student\.chat_template='own'"):
        check_model(hf(bare))
    check_model(hf(bare, chat_template="tulu"))
    assert model_of(hf(bare, chat_template="tulu")).identity(0)["chat_template"] == "tulu"


def test_fresh_weights_need_no_weight_file(folder, tmp_path):
    bare = shutil.copytree(folder, tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    with pytest.raises(SettingsError, match="no weights"):
        check_model(hf(bare))
    check_model(hf(bare, init="random"))
    assert "model.safetensors" not in model_of(hf(bare, init="random", init_seed=0)).identity(0)["files"]


def test_a_missing_shard_is_refused_by_name(folder, tmp_path):
    sharded = shutil.copytree(folder, tmp_path / "sharded")
    (sharded / "model.safetensors").rename(sharded / "model-00001.safetensors")
    index = {"weight_map": {"a": "model-00001.safetensors", "b": "model-00002.safetensors"}}
    write_json(sharded / "model.safetensors.index.json", index)
    with pytest.raises(SettingsError, match="model-00002"):
        check_model(hf(sharded))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "hf", "path": "/no/such/folder"}, "org/name"),
        ({"kind": "hf", "path": "gpt2"}, "org/name"),
        ({"kind": "gguf", "path": "/no/such/file.gguf"}, "no such file"),
        ({"kind": "mini", "size": "huge"}, "tiny"),
        ({"kind": "mini", "init": "pruned", "layers": 9}, "must be 2 to 3 with init=pruned"),
    ],
)
def test_what_certainly_fails_is_refused_before_anything_runs(settings, said):
    with pytest.raises(SettingsError, match=said):
        check_model(Model(name="student", **settings))


@pytest.mark.parametrize(
    ("model", "setting"),
    [(lambda: hf("org/name"), r"student\.path"), (lambda: served("org/name"), r"teacher\.tokenizer")],
)
def test_offline_a_hub_id_that_is_not_cached_is_refused_before_anything_runs(model, setting, monkeypatch, tmp_path):
    point_at(monkeypatch, "http://127.0.0.1:9", tmp_path, offline=True)
    with pytest.raises(SettingsError, match=rf"^{setting}='org/name' .*HF_HUB_OFFLINE is set"):
        check_model(model())


def test_a_file_that_only_ends_in_gguf_is_refused(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"not a model")
    with pytest.raises(SettingsError, match="no GGUF"):
        check_model(Model(name="s", kind="gguf", path=str(tmp_path / "x.gguf")))


def test_a_copied_folder_under_another_name_has_the_same_identity(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    other = Model(name="another", kind="hf", path=str(copy), license="MIT")
    assert model_of(hf(folder)).identity(0) == model_of(other).identity(5)
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    assert model_of(hf(folder)).identity(0) != model_of(other).identity(0)


def test_the_world_enters_a_mini_only_where_it_is_pre_trained():
    assert model_of(mini()).identity(0) != model_of(mini()).identity(1)
    fresh = mini(init="random")
    assert model_of(fresh).identity(0) == model_of(fresh).identity(1)
    assert model_of(fresh).identity(0) != model_of(mini(init="random", init_seed=1)).identity(0)


@pytest.mark.parametrize(
    "change", [{"size": "large"}, {"knows": "all"}, {"init_seed": 3}, {"init": "pruned", "layers": 2}]
)
def test_every_setting_that_changes_a_mini_changes_its_identity(change):
    assert model_of(mini()).identity(0) != model_of(mini(**change)).identity(0)


def test_identity_is_plain_json_and_a_pointer_is_followed(folder, tmp_path):
    pointing = tmp_path / "pointing"
    pointing.mkdir()
    write_json(pointing / "model.json", {"path": str(folder), "revision": None})
    assert model_of(hf(pointing)).identity(0) == model_of(hf(folder)).identity(0)
    assert json.loads(json.dumps(model_of(hf(folder)).identity(0))) == model_of(hf(folder)).identity(0)
    assert model_of(hf("org/name", revision="abc")).identity(0)["revision"] == "abc"


def test_tokenizers_with_the_same_ids_have_one_fingerprint(folder, tmp_path):
    same = byte_tokenizer("{{ 'another template' }}", pad_is_end=True)
    same("warm up", padding="max_length", max_length=8, truncation=True)  # leaves padding in tokenizer.json
    same.save_pretrained(tmp_path / "same")
    assert tokenizer_fingerprint_of_folder(tmp_path / "same") == model_of(hf(folder)).tokenizer_fingerprint()
    different = byte_tokenizer()
    different.add_tokens(["more"])
    different.save_pretrained(tmp_path / "different")
    assert tokenizer_fingerprint_of_folder(tmp_path / "different") != model_of(hf(folder)).tokenizer_fingerprint()
    assert model_of(hf("org/name")).tokenizer_fingerprint() is None


def test_parameters_are_counted_from_the_config(folder):
    assert model_of(hf(folder)).parameters() == sum(p.numel() for p in tiny_llama().parameters())
    assert model_of(hf("org/Llama-3.1-8B-Instruct")).parameters() == 8_000_000_000
    kept = {"kind": "hf", "path": "org/Small-135M", "init": "pretrained", "layers": None}  # as a plan keeps it
    assert model_of(kept).parameters() == 135_000_000


def test_planning_a_model_imports_neither_torch_nor_transformers(folder):
    code = (
        "import sys; from harness.config.model import Model; from harness.models.kinds import model_of\n"
        "from harness.execution.model_checks import check_model\n"
        f"m = Model(name='s', kind='hf', path={str(folder)!r})\n"
        "for x in (m, Model(name='m', init_seed=0)):\n"
        "    check_model(x), model_of(x).identity(0), model_of(x).tokenizer_fingerprint(), model_of(x).parameters()\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_served_teacher_is_its_name_revision_template_and_tokenizer_and_never_its_address(folder, tmp_path, online):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "model.safetensors").unlink()
    one, other = served(folder), served(copy, path="$TEACHER_URL", api_key_env="KEY", name="another")
    for model in (one, other, served("org/tokenizer")):
        check_model(model)
    assert model_of(one).identity(0) == model_of(other).identity(1)
    assert "node7" not in json.dumps(model_of(one).identity(0))
    assert model_of(one).tokenizer_fingerprint() == model_of(hf(folder)).tokenizer_fingerprint() is not None
    for change in ({"served_model": "org/other"}, {"revision": "v2"}, {"chat_template": "tulu"}):
        assert model_of(served(folder, **change)).identity(0) != model_of(one).identity(0)
    byte_tokenizer("{{ 'another template' }}").save_pretrained(copy)
    assert model_of(other).identity(0) != model_of(one).identity(0)
    assert model_of(served("org/tokenizer", served_model="org/Big-70B")).parameters() == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": Student}, "its weights must be here"),
        ({"lessons": [Lesson()]}, r"teacher\.lessons=1 .*used as it is"),
        ({"init": "random"}, r"teacher\.init='random' .*used as it is"),
        ({"served_model": None}, r"teacher\.served_model=None .*kind=http needs it"),
        ({"path": None}, r"teacher\.path=None .*kind=http needs it"),
        ({"path": "node7"}, "http://host:port"),
        ({"tokenizer": "/no/such/folder"}, r"teacher\.tokenizer='/no/such/folder' .*org/name"),
    ],
)
def test_a_served_teacher_that_cannot_work_is_refused_before_anything_runs(settings, said):
    with pytest.raises(SettingsError, match=said):
        check_model(served(**{"tokenizer": "org/name", **settings}))


def test_a_key_in_the_place_of_its_variables_name_is_refused_and_not_repeated():
    with pytest.raises(
        SettingsError, match=r"teacher\.api_key_env='\(not shown\)' .*name the environment variable"
    ) as refusal:
        served("org/name", api_key_env="sk-secret")
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize(
    ("prefix", "wrapper"), [("_orig_mod.", "torch.compile"), ("module.", "DistributedDataParallel")]
)
def test_weights_of_a_wrapped_model_are_refused_before_anything_runs(folder, tmp_path, prefix, wrapper):
    copy = shutil.copytree(folder, tmp_path / "copy")
    kept = load_file(copy / "model.safetensors")
    save_file({prefix + name: one for name, one in kept.items()}, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(SettingsError, match=rf"student\.path=.*saved inside {wrapper} \({prefix}.*unwrapped"):
        check_model(hf(copy))


def test_more_tokens_than_rows_of_the_embedding_are_refused(tmp_path):
    tokenizer = byte_tokenizer()
    save_tiny(tmp_path)
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(SettingsError, match=r"student\.path=.*has 263 tokens and its embedding 262 rows.*resize"):
        check_model(hf(tmp_path))


def test_a_damaged_header_of_the_weights_is_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "model.safetensors").write_bytes((2**40).to_bytes(8, "little") + b"{}")
    with pytest.raises(SettingsError, match=r"student\.path=.*model\.safetensors is damaged or cut off \("):
        check_model(hf(copy))


@pytest.mark.parametrize("kind", ["gpt2", "opt", "nested", "unknown"])
def test_parameters_are_estimated_for_configs_of_other_shapes(tmp_path, kind):
    """Sizes have other names, stand under `text_config`, or are not stated: then the weights themselves are counted."""
    configs = {
        "gpt2": GPT2Config(vocab_size=604, n_embd=32, n_layer=2, n_head=4, n_positions=8),
        "opt": OPTConfig(
            vocab_size=604,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            ffn_dim=96,
            word_embed_proj_dim=32,
            max_position_embeddings=8,
        ),
    }
    model = random_model(configs[kind], 0) if kind in configs else tiny_llama()
    model.save_pretrained(tmp_path)
    if kind in ("nested", "unknown"):
        config = json.loads((tmp_path / "config.json").read_text())
        sizes = {name: config.pop(name) for name in ("hidden_size", "intermediate_size", "vocab_size")}
        write_json(tmp_path / "config.json", config | ({"text_config": sizes} if kind == "nested" else {}))
    assert model_of(hf(tmp_path)).parameters() == pytest.approx(model.num_parameters(), rel=0.15)


def test_weights_that_loading_does_not_read_are_not_checked(folder, tmp_path):
    """Some publishers lay a second copy under other names beside the shards that the index lists."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    names = load_file(copy / "model.safetensors")
    write_json(copy / "model.safetensors.index.json", {"weight_map": dict.fromkeys(names, "model.safetensors")})
    save_file({f"module.{name}": one for name, one in names.items()}, copy / "consolidated.safetensors")
    check_model(hf(copy))
    assert set(tensor_shapes(weight_files(copy, "path", None))) == set(names)


def family(tmp_path, name):
    """A model folder with a family's chat template."""
    tokenizer = family_tokenizer(name)
    save_model(tiny_llama(len(tokenizer)), tokenizer, tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("qwen2_5", {"thinking": False}, r"student\.thinking='false'.*no switch"),
        ("qwen3", {"thinking": False, "chat_template": "tulu"}, r"student\.thinking='false'.*no switch"),
        ("qwen3", {"template_date": "2025-02-03"}, r"student\.template_date='2025-02-03'.*reads no date"),
        ("llama3_2", {"chat_template": "trl"}, r"student\.chat_template='trl'.*TRL has no training template"),
    ],
)
def test_a_setting_that_the_template_does_not_read_is_refused_from_files(tmp_path, name, settings, said):
    folder = family(tmp_path, name)
    check_model(hf(folder))
    with pytest.raises(SettingsError, match=said) as refusal:
        check_model(hf(folder, **settings))
    assert str(refusal.value).count(". ") == 0


@pytest.mark.parametrize("value", ["2024-13-01", "26 Jul 2024", "20240726", "tomorrow"])
def test_a_date_is_a_day_written_year_month_day(value):
    with pytest.raises(SettingsError, match=r"student\.template_date.*YYYY-MM-DD"):
        Student(name="s", kind="hf", path="org/m", template_date=value)


def test_a_model_without_a_template_of_its_own_choice_has_no_thinking_to_set():
    with pytest.raises(SettingsError, match=r"m\.thinking=True.*kind=mini"):
        mini(thinking=True)


def test_only_what_changes_a_prompt_enters_the_identity(tmp_path):
    qwen, llama, old = (family(tmp_path, name) for name in ("qwen3", "llama3_2", "llama3_1"))
    plain = model_of(hf(qwen)).identity(0)
    assert not {"thinking", "template_date", "trl"} & plain.keys()
    assert model_of(hf(qwen, thinking=False)).identity(0) == plain | {"thinking": False}
    assert model_of(hf(qwen, chat_template="trl")).identity(0).keys() == plain.keys() | {"trl"}
    # a template that would print today's date prints a fixed one; by default or by name, it is the same stage
    dated = model_of(hf(llama)).identity(0)
    assert dated["template_date"] == "2024-07-26"
    assert dated == model_of(hf(llama, template_date="2024-07-26")).identity(0)
    assert "template_date" not in model_of(hf(llama, chat_template="tulu")).identity(0)
    # one that has a date of its own keeps its address, unless another is set
    assert "template_date" not in model_of(hf(old)).identity(0)
    assert model_of(hf(old, template_date="2025-02-03")).identity(0)["template_date"] == "2025-02-03"
    assert model_of(served(llama)).identity(0)["template_date"] == "2024-07-26"
    assert [model_of(hf(folder)).reasons for folder in (qwen, llama)] == [True, False]
