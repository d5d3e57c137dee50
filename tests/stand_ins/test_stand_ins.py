"""Stand-ins differ where the paper's models and rows differ, and no more; another process publishes them once."""

import json
from collections import Counter, defaultdict

import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open

from harness.data.chat import end_of_turn_id, render, set_template
from harness.data.corpora.tulu3 import DOMAINS, SOURCES, Corpus
from harness.models.files import HUB_ID, tokenizer_fingerprint_of_folder
from harness.models.loading import load_model, load_tokenizer
from harness.plan.compose import presets_folder
from harness.stand_ins import CORPUS, MODELS, ensure, folder_of
from harness.stand_ins.shapes import CONTEXT, STAND_INS

BASE, LARGER = "meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.1-8B"
TULU, INSTRUCT = "allenai/Llama-3.1-Tulu-3-70B-SFT", "meta-llama/Llama-3.3-70B-Instruct"
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]


@pytest.fixture
def folder(stand_ins):
    return lambda hub_id: stand_ins / MODELS / folder_of(hub_id)


def test_every_model_of_a_preset_or_a_paper_experiment_that_is_on_the_hub_has_a_stand_in():
    files = [*presets_folder().glob("conf/*/*.yaml"), *presets_folder().glob("experiments/paper/*.yaml")]
    settings = [OmegaConf.to_container(OmegaConf.load(file)) for file in files]
    models = [one for values in settings for one in (values, values.get("student"), values.get("teacher")) if one]
    paths = {str(model.get("path")) for model in models}
    on_hub = {path for path in paths if HUB_ID.fullmatch(path)}
    assert on_hub and on_hub <= set(STAND_INS)


def test_the_tulu_teacher_has_the_students_tokens_and_one_more_and_another_padding_of_its_embedding(folder):
    student, teacher = load_tokenizer(folder(BASE)), load_tokenizer(folder(TULU))
    mine, theirs = student.get_vocab(), teacher.get_vocab()
    assert {token: theirs.get(token) for token in mine} == mine and set(theirs) - set(mine) == {"<pad>"}
    rows = [load_model(folder(hub_id)).get_input_embeddings().weight.shape[0] for hub_id in (BASE, TULU)]
    assert rows[0] % 64 == 0 and rows[1] % 8 == 0 and rows[1] % 64 and rows[1] >= len(teacher)
    assert tokenizer_fingerprint_of_folder(folder(BASE)) != tokenizer_fingerprint_of_folder(folder(TULU))


def test_templates_and_ends_of_turn_are_those_of_their_kinds(folder):
    student, tulu, instruct = (load_tokenizer(folder(hub_id)) for hub_id in (BASE, TULU, INSTRUCT))
    assert student.chat_template is None
    set_template(student, "tulu")
    assert render(student, CHAT, 99).input_ids == render(tulu, CHAT, 99).input_ids
    ends = [one.convert_ids_to_tokens(end_of_turn_id(one)) for one in (student, tulu, instruct)]
    assert ends == ["<|end_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    assert tokenizer_fingerprint_of_folder(folder(BASE)) == tokenizer_fingerprint_of_folder(folder(INSTRUCT))


def test_weights_are_bf16_in_shards_and_heads_are_tied_or_not(folder):
    for hub_id, tied in ((BASE, True), (LARGER, False)):
        shards = sorted(folder(hub_id).glob("model-*.safetensors"))
        assert len(shards) > 1 and (folder(hub_id) / "model.safetensors.index.json").is_file()
        with safe_open(shards[0], "pt") as opened:
            assert {opened.get_tensor(name).dtype for name in opened.keys()} == {torch.bfloat16}  # noqa: SIM118
        model = load_model(folder(hub_id))
        assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
        assert model.config.max_position_embeddings == CONTEXT


def test_the_mixture_has_every_source_in_order_with_the_shapes_of_its_conversations(stand_ins):
    corpus = Corpus(path=str(stand_ins / CORPUS))
    corpus.check()
    rows = list(corpus.examples(0))
    assert corpus.provenance()["dropped"] == {}
    order = [row.source for row in rows]
    assert list(dict.fromkeys(order)) == list(SOURCES) and order == sorted(order, key=list(SOURCES).index)
    turns, lengths = defaultdict(Counter), defaultdict(list)
    for row in rows:
        turns[row.source].update(turn["role"] for turn in row.messages)
        lengths[row.source].append(len(row.messages[-1]["content"]))
    asks = {name.rpartition("/")[2]: counts["user"] / order.count(name) for name, counts in turns.items()}
    assert asks["tulu_v3.9_wildchat_100k"] > 2 > asks["flan_v2_converted"] == 1
    assert {name for name, counts in turns.items() if counts["system"]} >= {"ai2-adapt-dev/no_robots_converted"}
    long, short = "ai2-adapt-dev/personahub_math_v5_regen_149960", "ai2-adapt-dev/flan_v2_converted"
    assert min(lengths[long]) > max(lengths[short])
    repeated = [row.messages for row in rows if "hard_coded" in row.source]
    assert repeated[0] == repeated[1] == repeated[2] != repeated[3]
    assert all(list(Corpus(path=str(stand_ins / CORPUS), domains=[name]).examples(0)) for name in DOMAINS)


def test_stand_ins_are_made_once_and_found_again(tmp_path, monkeypatch):
    made = []

    def run(command, check):
        assert check and command[1:3] == ["-m", "harness.stand_ins.make"]
        made.append(command[3])
        (tmp_path / command[3]).mkdir()
        (tmp_path / command[3] / "models").mkdir()

    monkeypatch.setattr("harness.stand_ins.subprocess.run", run)
    first = ensure(tmp_path / "root")
    assert ensure(tmp_path / "root") == first and len(made) == 1
    assert [path.name for path in (tmp_path / "root").iterdir()] == [first.name]
    assert json.dumps(first.name).startswith('"stand_ins-')
