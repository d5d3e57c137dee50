"""Damaged model folders: each is refused in one sentence, by its setting, before anything is computed."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.config.checks import SettingsError
from harness.config.machine import Machine
from harness.config.model import Student, Teacher
from harness.execution.model_checks import check_model
from harness.models.kinds import model_of
from harness.plan.cell_plan import Plan
from harness.plan.compose import compose
from harness.stages.base import make_base
from tests.doubles import save_tiny

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CONFIG, TOKENIZER, SETTINGS, TEMPLATE = "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n"


def written(name, content):
    def damage(folder):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def cut(name, share):
    def damage(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return damage


def changed(name, **values):
    def damage(folder):
        found = json.loads((folder / name).read_text()) | values
        (folder / name).write_text(json.dumps(found))

    return damage


def without(name, key):
    def damage(folder):
        found = json.loads((folder / name).read_text())
        del found[key]
        (folder / name).write_text(json.dumps(found))

    return damage


def tensors(change):
    def damage(folder):
        found = change(load_file(folder / WEIGHTS))
        save_file({name: one.clone() for name, one in found.items()}, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def gone(*names):
    def damage(folder):
        for name in names:
            (folder / name).unlink()

    return damage


def all_of(*damages):
    def damage(folder):
        for one in damages:
            one(folder)

    return damage


def folder_instead(name):
    return all_of(gone(name), lambda folder: (folder / name).mkdir())


def renamed(prefix):
    return tensors(lambda found: {prefix + name: one for name, one in found.items()})


def left_out(part):
    return tensors(lambda found: {name: one for name, one in found.items() if part not in name})


def replaced(name, *shape):
    return tensors(lambda found: found | {name: torch.zeros(shape)})


def indexed(content):
    return all_of(lambda folder: (folder / WEIGHTS).rename(folder / "part.safetensors"), written(INDEX, content))


def header(text):
    return written(WEIGHTS, len(text).to_bytes(8, "little") + text.encode() + bytes(8))


def pickled(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def more_tokens(folder):
    found = json.loads((folder / TOKENIZER).read_text())
    found["added_tokens"].append(found["added_tokens"][-1] | {"id": 262, "content": "<new>"})
    (folder / TOKENIZER).write_text(json.dumps(found))


def token_far_away(folder):
    found = json.loads((folder / TOKENIZER).read_text())
    found["model"]["vocab"]["zz"] = 5000
    (folder / TOKENIZER).write_text(json.dumps(found))


def template(text):
    return written(TEMPLATE, text)


FOR = "{% for m in messages %}"
DAMAGES = {
    # weights of another model
    "saved by torch.compile": (renamed("_orig_mod."), "torch.compile"),
    "saved by DistributedDataParallel": (renamed("module."), "DistributedDataParallel"),
    "saved by peft": (renamed("base_model.model."), "peft"),
    "another prefix": (renamed("student."), r"the files lack model\.embed_tokens\.weight.*has no student\.model"),
    "names of GPT-2": (tensors(lambda t: {k.replace("model.layers", "transformer.h"): v for k, v in t.items()}), "h.0"),
    "a layer is missing": (left_out("layers.1."), r"the files lack model\.layers\.1\."),
    "a tensor is missing": (
        left_out("layers.1.mlp.up_proj"),
        r"the files lack model\.layers\.1\.mlp\.up_proj\.weight;",
    ),
    "the norm is missing": (left_out("model.norm"), r"the files lack model\.norm\.weight"),
    "the embedding is missing": (left_out("embed"), r"the files lack model\.embed_tokens\.weight"),
    "a tensor too many": (replaced("foo.weight", 2), r"the model has no foo\.weight"),
    "a layer too many": (replaced("model.layers.2.input_layernorm.weight", 32), r"has no model\.layers\.2"),
    "an embedding of another width": (replaced("model.embed_tokens.weight", 262, 16), "262 x 16 .*262 x 32"),
    "an embedding with fewer rows": (replaced("model.embed_tokens.weight", 100, 32), "100 x 32 .*262 x 32"),
    "a layer of another size": (replaced("model.layers.0.mlp.up_proj.weight", 8, 32), "8 x 32 .*64 x 32"),
    # configs
    "a larger vocabulary": (changed(CONFIG, vocab_size=1000), "262 x 32 .*1000 x 32"),
    "a smaller vocabulary": (changed(CONFIG, vocab_size=100), "262 x 32 .*100 x 32"),
    "more layers": (changed(CONFIG, num_hidden_layers=3), r"the files lack model\.layers\.2"),
    "fewer layers": (changed(CONFIG, num_hidden_layers=1), r"the model has no model\.layers\.1"),
    "another width": (changed(CONFIG, hidden_size=64), "262 x 32 .*262 x 64"),
    "a width in words": (changed(CONFIG, hidden_size="big"), "hidden_size in its config.json is 'big'"),
    "a negative width": (changed(CONFIG, hidden_size=-1), "hidden_size in its config.json is -1"),
    "no heads": (changed(CONFIG, num_attention_heads=0), "num_attention_heads in its config.json is 0"),
    "heads of another size": (changed(CONFIG, num_attention_heads=3), "32 x 32 .*48 x 32"),
    "heads that do not divide": (changed(CONFIG, num_attention_heads=3, head_dim=None), "32 does not divide among 3"),
    "no layers": (changed(CONFIG, num_hidden_layers=0), "num_hidden_layers in its config.json is 0"),
    "BERT": (changed(CONFIG, architectures=["BertForMaskedLM"], model_type="bert"), "not a causal language model"),
    "T5": (changed(CONFIG, is_encoder_decoder=True, architectures=["T5Model"]), "an encoder-decoder"),
    "an unknown type": (changed(CONFIG, model_type="nonesuch"), "no model of its model_type nonesuch"),
    "code of its own": (changed(CONFIG, model_type="m", auto_map={"A": "m.M"}), "code that comes .*is not run"),
    "no type": (without(CONFIG, "model_type"), "names no model_type"),
    "a config that is a list": (written(CONFIG, "[]"), r"config\.json holds no settings"),
    "a config that is a number": (written(CONFIG, "3"), r"config\.json holds no settings"),
    "a config without settings": (written(CONFIG, "{}"), r"config\.json holds no settings"),
    "an empty config": (written(CONFIG, ""), r"config\.json is not JSON"),
    "a truncated config": (cut(CONFIG, 0.5), r"config\.json is not JSON"),
    "a binary config": (written(CONFIG, b"\xff\xfe\0"), r"config\.json is not JSON"),
    "no config": (gone(CONFIG), r"no config\.json"),
    "a folder for a config": (folder_instead(CONFIG), r"no config\.json"),
    "a decoder in words": (changed(CONFIG, text_config="x"), "text_config in its config.json is 'x'"),
    "an architecture without a list": (changed(CONFIG, architectures="LlamaForCausalLM"), "not a list of names"),
    "an architecture that is a number": (changed(CONFIG, architectures=3), "not a list of names"),
    # files of weights
    "weights in a pickle": (pickled, r"pickled \(pytorch_model\.bin\).*convert the folder to safetensors"),
    "garbage in a pickle": (all_of(gone(WEIGHTS), written("pytorch_model.bin", "x")), "pickled"),
    "shards in pickles": (all_of(gone(WEIGHTS), written("pytorch_model.bin.index.json", "{}")), "pickled"),
    "weights of TensorFlow": (all_of(gone(WEIGHTS), written("tf_model.h5", "x")), "the folder has no weights"),
    "an adapter alone": (all_of(gone(WEIGHTS), written("adapter_model.safetensors", "x")), "the folder has no weights"),
    "no weights": (gone(WEIGHTS), "the folder has no weights"),
    "a folder for weights": (folder_instead(WEIGHTS), "the folder has no weights"),
    "a dangling link": (all_of(gone(WEIGHTS), lambda f: (f / WEIGHTS).symlink_to("/nonesuch")), "are missing"),
    "half of the weights": (cut(WEIGHTS, 0.5), f"{WEIGHTS} is damaged or cut off"),
    "all weights but the last": (cut(WEIGHTS, 0.99), f"{WEIGHTS} is damaged or cut off"),
    "half of the header": (cut(WEIGHTS, 0.005), f"{WEIGHTS} is damaged or cut off"),
    "an empty file of weights": (written(WEIGHTS, b""), f"{WEIGHTS} is damaged or cut off"),
    "four bytes": (written(WEIGHTS, b"\x10\0\0\0"), f"{WEIGHTS} is damaged or cut off"),
    "garbage": (written(WEIGHTS, b"garbage" * 100), f"{WEIGHTS} is damaged or cut off"),
    "zeros": (written(WEIGHTS, bytes(5000)), f"{WEIGHTS} is damaged or cut off"),
    "a web page": (written(WEIGHTS, "<html>404</html>" * 50), f"{WEIGHTS} is damaged or cut off"),
    "bytes behind the weights": (lambda f: (f / WEIGHTS).open("ab").write(b"xx"), f"{WEIGHTS} is damaged or cut off"),
    "a pointer of Git LFS": (written(WEIGHTS, LFS), "git lfs pull"),
    "a header that is a list": (header("[]"), f"{WEIGHTS} is damaged or cut off"),
    "a header without tensors": (written(WEIGHTS, (2).to_bytes(8, "little") + b"{}"), "holds no weights"),
    "places beyond the file": (
        header('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,800]}}'),
        f"{WEIGHTS} is damaged or cut off",
    ),
    "an unknown number format": (
        header('{"a":{"dtype":"X9","shape":[2],"data_offsets":[0,8]}}'),
        f"{WEIGHTS} is damaged or cut off",
    ),
    "no shape": (header('{"a":{"dtype":"F32","data_offsets":[0,8]}}'), f"{WEIGHTS} is damaged or cut off"),
    "an index that is not JSON": (indexed("{"), "does not list"),
    "an index that is a list": (indexed("[]"), "does not list"),
    "an empty index": (indexed("{}"), "does not list"),
    "an index of nothing": (indexed('{"weight_map":null}'), "does not list"),
    "an index of a number": (indexed('{"weight_map":{"a":3}}'), "does not list"),
    "an index out of the folder": (indexed('{"weight_map":{"a":"../x.safetensors"}}'), "does not list"),
    "a shard that is missing": (indexed('{"weight_map":{"a":"two.safetensors"}}'), "two.safetensors are missing"),
    "a tensor that is in no shard": (indexed('{"weight_map":{"a.b":"part.safetensors"}}'), r"lists a\.b, which none"),
    # tokenizers
    "half of a tokenizer": (cut(TOKENIZER, 0.5), r"tokenizer\.json is no tokenizer"),
    "an empty tokenizer": (written(TOKENIZER, ""), r"tokenizer\.json is no tokenizer"),
    "a tokenizer that is a list": (written(TOKENIZER, "[]"), r"tokenizer\.json is no tokenizer"),
    "a tokenizer without a model": (written(TOKENIZER, "{}"), r"tokenizer\.json is no tokenizer"),
    "a binary tokenizer": (written(TOKENIZER, b"\xff\0\1"), r"tokenizer\.json is no tokenizer"),
    "no tokenizer": (gone(TOKENIZER), r"it has no tokenizer\.json or"),
    "half of its settings": (cut(SETTINGS, 0.5), r"tokenizer_config\.json is not JSON"),
    "settings that are a list": (written(SETTINGS, "[]"), r"tokenizer_config\.json holds no settings"),
    "empty settings": (written(SETTINGS, ""), r"tokenizer_config\.json is not JSON"),
    "a broken special_tokens_map.json": (written("special_tokens_map.json", "{"), r"special_tokens_map\.json is not"),
    "a broken added_tokens.json": (written("added_tokens.json", "{"), r"added_tokens\.json is not JSON"),
    "a broken generation_config.json": (written("generation_config.json", "{"), r"generation_config\.json is not JSON"),
    "more tokens than embeddings": (more_tokens, "its tokenizer has 263 tokens and its embedding 262 rows"),
    "a token far beyond": (token_far_away, "its tokenizer has 5001 tokens"),
    "an EOS beyond the embedding": (changed(SETTINGS, eos_token="<nope>"), "its tokenizer has 263 tokens"),
    "an EOS that is a number": (changed(SETTINGS, eos_token=5), "eos_token of its tokenizer is 5"),
    # chat templates
    "no template": (gone(TEMPLATE), "no chat template"),
    "an empty template": (template(""), "no chat template"),
    "a template that cannot be parsed": (template("{% for %}"), "cannot be parsed"),
    "a loop without end": (template(FOR + "x"), "cannot be parsed"),
    "an unknown filter": (template(FOR + "{{ m.content|nonesuch }}{% endfor %}"), "cannot be parsed"),
    "a template without messages": (template("hello"), "leaves out the question and the answer"),
    "a template without answers": (template("{{ messages[0].content }}"), "leaves out the answer"),
    "a template that reads classes": (template("{{ ''.__class__.__mro__ }}"), "reads what a template must not"),
    "a template that reads files": (template("{% import 'os' as os %}{{ os }}"), "reads other files"),
    "a template of undefined names": (template("{{ foo.bar.baz }}"), "rejects a question"),
    "a template that raises": (template("{{ raise_exception('no') }}"), "rejects a question and an answer .no"),
    "a template without an end": (template("{% for i in range(10**9) %}x{% endfor %}"), "fails on a question"),
    "a template in another encoding": (template(b"\xff\xfe\0x"), "cannot be read"),
    "a list of templates without texts": (
        all_of(gone(TEMPLATE), changed(SETTINGS, chat_template=[{"name": "x"}])),
        "cannot be read",
    ),
    "a template that is a number": (all_of(gone(TEMPLATE), changed(SETTINGS, chat_template=5)), "cannot be read"),
    # the folder itself
    "a broken reference": (written("model.json", "{"), r"model\.json is no reference"),
    "a reference that is a list": (written("model.json", "[]"), r"model\.json is no reference"),
    "an empty folder": (lambda folder: [file.unlink() for file in folder.iterdir()], r"no config\.json"),
    "a file": (lambda folder: (shutil.rmtree(folder), folder.write_text("x")), "no such folder"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "whole")


@pytest.fixture
def folder(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "m"))


@pytest.mark.parametrize(
    ("name", "role"), [*((name, Student) for name in DAMAGES), *((name, Teacher) for name in [*DAMAGES][::9])]
)
def test_a_damaged_folder_is_refused_in_one_sentence_from_its_files(folder, name, role):
    damage, said = DAMAGES[name]
    settings = role(name="m", kind="hf", path=str(folder))
    check_model(settings)
    damage(folder)
    with pytest.raises(SettingsError, match=said) as refusal:
        check_model(settings)
    sentence = str(refusal.value)
    assert "\n" not in sentence and sentence.count(" cannot be run: ") == 1 and len(sentence) < 600
    assert sentence.startswith((f"{settings.setting}.path=", f"{settings.setting}.chat_template=", "path="))
    assert "weights_only" not in sentence and "trust_remote_code" not in sentence


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (changed(CONFIG, architectures=["GPT2LMHeadModel"], model_type="gpt2"), r"the files lack .*transformer\.h\.0"),
        (changed(CONFIG, architectures=["BertLMHeadModel"], model_type="bert"), r"the files lack bert\.embeddings"),
        (changed(CONFIG, num_hidden_layers=None), r"cannot read its config\.json .*num_hidden_layers"),
        (changed(CONFIG, hidden_act="nonesuch"), "cannot make a model of it .*nonesuch"),
        (changed(CONFIG, rope_parameters={"rope_type": "nonesuch"}), "transformers cannot"),
        (template("{% for m in messages %}{{ m.content }}{% endfor %}"), "no end-of-turn token"),
    ],
    ids=["gpt2", "bert", "layers", "activation", "rope", "no end of turn"],
)
def test_what_only_the_models_code_can_tell_is_refused_when_the_model_is_adopted(folder, tmp_path, damage, said):
    damage(folder)
    settings = Student(name="m", kind="hf", path=str(folder))
    check_model(settings)
    where = {"model": asdict(settings), "setting": "student"}
    (tmp_path / "out").mkdir()
    with pytest.raises(SettingsError, match=said) as refusal:
        make_base({**model_of(settings).identity(0), "where": where}, {}, tmp_path / "out", Machine(device="cpu"))
    assert "\n" not in str(refusal.value)


def test_a_tokenizer_without_an_eos_token_is_told_what_ends_a_turn(folder, tmp_path):
    without(SETTINGS, "eos_token")(folder)
    settings = Student(name="m", kind="hf", path=str(folder))
    check_model(settings)
    where = {"model": asdict(settings), "setting": "student"}
    (tmp_path / "out").mkdir()
    facts = make_base({**model_of(settings).identity(0), "where": where}, {}, tmp_path / "out", Machine(device="cpu"))
    assert facts["warnings"] == [
        "no EOS token: the tokenizer names none; a turn ends with '<|end|>', as the chat template writes it"
    ]


def test_a_folder_is_read_before_its_identity_is_planned(folder):
    cut(TOKENIZER, 0.5)(folder)
    cut(CONFIG, 0.5)(folder)
    with pytest.raises(SettingsError, match=r"^student\.path=.*config\.json is not JSON"):
        Plan.of(compose(["method=sft", "student=hf", f"student.path={folder}"]).cells)
    # a teacher that no arm uses is not looked at
    Plan.of(compose(["method=sft", "teacher=hf", f"teacher.path={folder}"]).cells)


def test_two_models_with_one_name_are_refused(whole, folder):
    def cells(*words):
        return compose(["student=hf", *words]).cells

    students = [cells("method=sft", f"student.path={path}") for path in (whole, folder)]
    with pytest.raises(SettingsError, match=r"^student\.name='hf' .*two models have this name \(path="):
        Plan.of([*students[0], *students[1]])
    taught = ["method=seq_kd", f"student.path={whole}", "teacher=hf"]
    teachers = [cells(*taught, f"teacher.path={path}") for path in (whole, folder)]
    with pytest.raises(SettingsError, match=r"^teacher\.name='hf' .*two models have this name \(path="):
        Plan.of([*teachers[0], *teachers[1]])
    # one model at several seeds, as student and as teacher, is one model
    Plan.of([*students[0], *teachers[0], *cells("method=sft", f"student.path={whole}", "seed=0,1")])


def test_a_folder_where_a_gguf_file_belongs_is_refused(whole):
    with pytest.raises(SettingsError, match=r"^student\.path=.*it is a folder and no GGUF file; set student\.kind=hf"):
        check_model(Student(name="m", kind="gguf", path=str(whole)))
