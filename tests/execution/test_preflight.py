"""Preflight: pairs and parts that cannot work are refused from their files alone."""

import json

import pytest

from harness.config.checks import SettingsError
from harness.config.machine import Machine
from harness.config.model import Teacher
from harness.execution.preflight import preflight
from harness.models.loading import save_model
from harness.plan.cell_plan import Plan
from harness.plan.compose import compose
from tests.doubles import byte_tokenizer, save_tiny, tiny_llama
from tests.fake_server import FakeServer
from tests.thinking import family_tokenizer


def check(*arguments):
    preflight(Plan.of(compose(list(arguments)).cells))


def test_each_part_of_the_main_grid_is_checked_once(monkeypatch):
    checked = []
    monkeypatch.setattr("harness.execution.preflight.check_model", lambda model: checked.append(model.name))
    check("data_frac=0.01,1.0", "method=sft,kd")
    assert checked == ["mini", "weak"], "four cells share a student, and two of them a teacher"


def test_a_pair_whose_tokenizers_differ_is_refused_by_name(tmp_path):
    save_tiny(tmp_path / "tiny")
    with pytest.raises(SettingsError, match=r"teacher='hf'.*tokenizer.*student=mini"):
        check("method=logit_kd", "teacher=hf", f"teacher.path={tmp_path / 'tiny'}")


def save_with(tmp_path, name, *tokens):
    """A tiny model whose tokenizer has added tokens."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(list(tokens))
    tiny_llama(len(tokenizer)).save_pretrained(tmp_path / name)
    tokenizer.save_pretrained(tmp_path / name)
    return tmp_path / name


def test_a_pair_may_have_added_tokens_of_its_own_and_shares_the_ids_of_the_others(tmp_path):
    path = save_with(tmp_path, "plain")
    pair = ["method=logit_kd", "student=hf", f"student.path={path}", "teacher=hf"]
    check(*pair, f"teacher.path={path}")
    check(*pair, f"teacher.path={save_with(tmp_path, 'more', 'more')}")
    one, other = save_with(tmp_path, "one", "a-mark", "b-mark"), save_with(tmp_path, "other", "b-mark", "a-mark")
    words = r"teacher='hf'.*its tokenizer is not that of student=hf.*the token a-mark has the id 262 in one and 263 in"
    with pytest.raises(SettingsError, match=words):
        check("method=logit_kd", "student=hf", f"student.path={one}", "teacher=hf", f"teacher.path={other}")


def test_a_model_folder_without_weights_or_template_is_refused(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path / "no_weights")
    with pytest.raises(SettingsError, match="path"):
        check("method=sft", "student=hf", f"student.path={tmp_path / 'no_weights'}")
    save_tiny(tmp_path / "no_template")
    (tmp_path / "no_template" / "chat_template.jinja").unlink()
    with pytest.raises(SettingsError, match="chat_template=tulu"):
        check("method=sft", "student=hf", f"student.path={tmp_path / 'no_template'}")


def test_an_unknown_evaluation_is_refused_with_the_list():
    with pytest.raises(SettingsError, match=r"evals\.names='nonesuch'.*heldout, verified"):
        check("method=sft", "evals.names=[nonesuch]")


def test_a_served_teacher_writes_and_scores_and_takes_no_part_in_writing_with_the_student(tmp_path):
    path = save_tiny(tmp_path / "tiny")
    pair = ["student=hf", f"student.path={path}", "teacher=served", f"teacher.tokenizer={path}"]
    pair += ["teacher.path=http://node7:8000/v1", "teacher.served_model=org/big", "teacher.api_key_env=VLLM_API_KEY"]
    for method in ("seq_kd", "kd", "logit_kd", "on_policy", "jsd_kd", "reverse_kd"):
        check(f"method={method}", *pair)
    for method in ("skd", "feature_kd"):
        with pytest.raises(SettingsError, match=r"teacher\.kind='http'.*use a teacher with weights here"):
            check(f"method={method}", *pair)
    with pytest.raises(SettingsError) as refusal:
        check("method=seq_kd", *pair[:-1], "teacher.api_key_env=sk-secret")
    assert "api_key_env" in str(refusal.value) and "secret" not in str(refusal.value)


def test_a_teacher_that_only_a_cluster_can_serve_is_refused_on_one_machine(tmp_path):
    path = save_tiny(tmp_path / "tiny")
    teacher = ["teacher=served", f"teacher.tokenizer={path}", "teacher.path=slurm", "teacher.served_model=org/big"]
    plan = Plan.of(compose(["student=hf", f"student.path={path}", "method=seq_kd", *teacher]).cells)
    preflight(plan)
    with pytest.raises(SettingsError, match=r"teacher\.path='slurm' .*slurm=<cluster>"):
        preflight(plan, Machine())


def test_a_served_teacher_is_scored_into_a_cache_of_its_likeliest_tokens_and_nothing_else(tmp_path):
    path = save_tiny(tmp_path / "tiny")
    teacher = [
        "teacher=served",
        f"teacher.tokenizer={path}",
        "teacher.path=http://node7:8000",
        "teacher.served_model=x",
    ]
    pair = ["student=hf", f"student.path={path}", *teacher, "method=logit_kd"]
    check(*pair, "signal.kind=top_k")
    check(*pair[:-1], "method=two_stage", "method.second=logit_kd", "signal.kind=top_k")
    with pytest.raises(SettingsError, match=r"signal\.kind='sampled'.*returns only top-k logits.*signal\.kind=top_k"):
        check(*pair, "signal.kind=top_k,sampled")
    with pytest.raises(SettingsError, match=r"teacher='served'.*its tokenizer is not that of student"):
        check("student=mini", *teacher, "method=logit_kd", "signal.kind=top_k")


def test_code_that_a_model_wrote_is_run_only_where_that_was_allowed(tmp_path):
    student = ["student=hf", f"student.path={save_tiny(tmp_path)}"]
    with pytest.raises(SettingsError, match=r"evals\.names='humaneval'.*evals\.run_code=true"):
        check("method=untrained", "evals.names=[humaneval]", *student)
    check("method=untrained", "evals.names=[humaneval]", "evals.run_code=true", *student)


def test_a_benchmark_of_real_text_is_refused_for_a_miniature_that_has_no_tokens_for_it(tmp_path):
    with pytest.raises(SettingsError, match=r"^evals\.names='gsm8k' .*student=mini is a model of the miniature"):
        check("method=untrained", "evals.names=[verified,gsm8k]")
    with pytest.raises(SettingsError, match=r"^evals\.names='gsm8k' .*teacher=weak is a model of the miniature"):
        student = ["student=hf", f"student.path={save_tiny(tmp_path)}"]
        check("method=seq_kd", "evals.names=[gsm8k]", *student)


def test_more_top_k_tokens_than_the_vocabulary_has_are_refused():
    check("method=logit_kd", "signal.kind=top_k", "signal.top_k=16")
    with pytest.raises(
        SettingsError, match=r"^signal\.top_k=100000 .*student=mini has only \d+ tokens; set it to at most"
    ):
        check("method=logit_kd", "signal.kind=top_k", "signal.top_k=100000")


def test_a_teacher_whose_licence_forbids_distillation_is_refused_unless_acknowledged():
    forbidden = ["method=kd", "teacher.license=Restricted-1", "teacher.distillation_allowed=no"]
    with pytest.raises(
        SettingsError, match=r"distillation_allowed='no'.*Restricted-1.*acknowledge_license=true"
    ) as said:
        check(*forbidden)
    assert "\n" not in str(said.value)
    check(*forbidden, "teacher.acknowledge_license=true")
    check("method=sft", *forbidden[1:])  # it trains on nothing of the teacher
    check("method=kd", "teacher.distillation_allowed=unknown")


@pytest.mark.parametrize(("written", "meant"), [("no", "no"), (False, "no"), (True, "yes"), ("unknown", "unknown")])
def test_a_bare_yes_or_no_in_a_yaml_file_means_what_it_says(written, meant):
    assert Teacher(name="t", kind="mini", distillation_allowed=written).distillation_allowed == meant


def test_only_yes_no_and_unknown_are_answers():
    with pytest.raises(SettingsError, match=r"distillation_allowed='perhaps'.*yes, no, unknown"):
        check("method=kd", "teacher.distillation_allowed=perhaps")


def test_formats_are_checked_by_name_and_by_package(monkeypatch):
    with pytest.raises(SettingsError, match=r"measure\.formats='int3'.*fp32, bf16, int8, nf4"):
        check("method=sft", "measure.formats=[int3]")
    check("method=sft", "measure=deploy")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check("method=sft")
    with pytest.raises(SettingsError, match=r"measure\.formats='int8'.*bitsandbytes.*harness\[quantise\]"):
        check("method=sft", "measure=deploy")


def test_a_teacher_that_thinks_otherwise_answers_visited_rows_in_its_own_rendering(tmp_path):
    tokenizer = family_tokenizer("qwen3")
    save_model(tiny_llama(len(tokenizer)), tokenizer, tmp_path / "qwen3")
    path = tmp_path / "qwen3"
    pair = ("method=seq_kd", "student=hf", f"student.path={path}", "teacher=hf", f"teacher.path={path}")
    visited = (*pair, "teacher.label_rows=visited")
    check(*pair, "teacher.thinking=true")

    def reads_its_own(*words):
        (cell,) = Plan.of(compose(list(words)).cells).cells
        check(*words)
        return ["teacher_reading" in stage.inputs for stage in cell.teaching]

    assert reads_its_own(*visited) == [False]
    assert reads_its_own(*visited, "teacher.thinking=true", "student.thinking=true") == [False]
    assert reads_its_own(*visited, "teacher.thinking=true") == [True]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architectures": ["BertForMaskedLM"]}, "BertForMaskedLM is not a causal language model"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification is not"),
        ({"architectures": ["BartForConditionalGeneration"], "is_encoder_decoder": True}, "is an encoder-decoder"),
        (None, "holds no settings of a model"),
    ],
)
def test_a_folder_that_is_no_causal_language_model_is_refused_before_the_run(changes, reason, tmp_path):
    folder = save_tiny(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps([] if changes is None else config | changes))
    with pytest.raises(SettingsError, match=rf"student\.path=.*{reason}"):
        check("method=sft", "student=hf", f"student.path={folder}")


def test_layers_of_a_nested_config_bound_what_pruning_keeps(tmp_path):
    folder = save_tiny(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] = {name: config.pop(name) for name in ("hidden_size", "num_hidden_layers")}
    (folder / "config.json").write_text(json.dumps(config))
    pruned = ["method=sft", "student=hf", f"student.path={folder}", "student.init=pruned"]
    check(*pruned, "student.layers=2")
    with pytest.raises(SettingsError, match=r"student\.layers=3 .*it must be 2 to 2"):
        check(*pruned, "student.layers=3")


def test_a_teacher_whose_template_rejects_the_rows_system_turns_is_refused_before_the_run(tmp_path):
    student, teacher = family_tokenizer("qwen2_5"), family_tokenizer("gemma")
    for name, tokenizer in (("student", student), ("teacher", teacher)):
        save_model(tiny_llama(len(tokenizer)), tokenizer, tmp_path / name)
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    rows = {"plain": turns, "system": [{"role": "system", "content": "Be brief."}, *turns]}
    for name, messages in rows.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"id": "r7", "messages": messages}) + "\n")
    pair = ["student=hf", f"student.path={tmp_path / 'student'}", "teacher=hf", f"teacher.path={tmp_path / 'teacher'}"]
    words = ["method=logit_kd", *pair, "corpus=jsonl"]
    check(*words, f"corpus.path={tmp_path / 'plain.jsonl'}")
    with pytest.raises(
        SettingsError, match=r"teacher\.rendering='own'.*teacher=hf rejects a system turn.*row r7 has.*=st"
    ):
        check(*words, f"corpus.path={tmp_path / 'system.jsonl'}")
    check(*words, f"corpus.path={tmp_path / 'system.jsonl'}", "teacher.rendering=student")


def test_a_server_that_cannot_score_given_text_is_refused_before_the_run(tmp_path):
    path = save_tiny(tmp_path / "tiny")
    with FakeServer(tiny_llama()) as fake:
        pair = ["student=hf", f"student.path={path}", "teacher=served", f"teacher.tokenizer={path}"]
        pair += [f"teacher.path={fake.url}", "teacher.served_model=tiny", "signal.top_k=8"]
        for method, estimator in (("kd", ()), ("on_policy", ("method.estimator=policy_gradient",))):
            plan = Plan.of(compose([f"method={method}", *estimator, *pair]).cells)
            fake.without = set()
            preflight(plan, Machine(device="cpu"))
            assert fake.requests[-1]["prompt_logprobs"] == (0 if estimator else 8)
            fake.without = {"prompt_logprobs"}
            preflight(plan)  # planning asks no server
            with pytest.raises(SettingsError, match=r"prompt_logprobs") as refusal:
                preflight(plan, Machine(device="cpu"))
            assert "\n" not in str(refusal.value)


def served(tmp_path, url, *more):
    path = save_tiny(tmp_path / "tiny")
    pair = ["student=hf", f"student.path={path}", "teacher=served", f"teacher.tokenizer={path}", "method=seq_kd"]
    return Plan.of(compose([*pair, f"teacher.path={url}", "teacher.served_model=tiny", *more]).cells)


def test_a_server_that_will_be_queried_is_asked_before_the_run_and_one_that_was_queried_is_not(tmp_path):
    with FakeServer(tiny_llama()) as fake:
        plan = served(tmp_path, fake.url)
        preflight(plan, Machine())
        fake.served = ("other",)
        with pytest.raises(SettingsError, match=r"teacher\.served_model='tiny'.* serves other"):
            preflight(plan, Machine())
        fake.served, fake.key = ("tiny",), "secret-of-the-server"
        with pytest.raises(SettingsError, match=r"requires an API key .*set teacher\.api_key_env"):
            preflight(plan, Machine())
    with pytest.raises(SettingsError, match=r"the server does not answer \(.*; 1 attempt in \d s\)"):
        preflight(plan, Machine())
    preflight(plan, Machine(), made=lambda key: True)  # all is done, so nothing is asked of the server that ended
    preflight(plan)


def test_a_key_whose_variable_is_not_set_is_refused_before_a_run_here_or_on_a_cluster(tmp_path, monkeypatch):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    plan = served(tmp_path, "http://127.0.0.1:9", "teacher.api_key_env=VLLM_API_KEY")
    for machine in (None, Machine()):
        with pytest.raises(
            SettingsError,
            match="no such environment variable is set here; export",
        ):
            preflight(plan, machine, made=lambda key: False)
    preflight(plan)  # a plan alone needs no key
    monkeypatch.setenv("VLLM_API_KEY", "k" * 12)
    preflight(plan, None, made=lambda key: False)
