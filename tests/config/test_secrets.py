"""What looks like a secret is masked in every refusal and refused where a setting would be kept."""

import pytest

from harness.config.checks import SettingsError, refuse
from harness.config.cluster import Cluster
from harness.config.evaluation import Evals
from harness.config.secrets import HIDDEN, masked, token_in_path


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("https://me:pw1@host/rows.jsonl", "pw1"),
        ("s3://me@bucket/x", "me@"),
        ("vllm serve m --api-key abc123", "abc123"),
        ("vllm serve m --api-key='a b'", "a b"),
        ("tool --hf-token=abc --port 1", "abc"),
        ("HF_TOKEN=abc vllm serve", "abc"),
        ("export WANDB_API_KEY='abc'", "abc"),
        ("http://h/v1?x=1&api_key=abc&y=2", "abc"),
        ("http://h/v1?X-Amz-Signature=abc", "abc"),
        ("Authorization: Bearer abcdefgh12", "abcdefgh12"),
        ("got hf_abcdefghijklmnop1234", "hf_abcdef"),
        ("sk-proj-abcdefghijklmnop", "sk-proj"),
        ("ghp_abcdefghijklmnop1234", "ghp_"),
        ("AKIAABCDEFGHIJKLMNOP", "AKIA"),
        ("eyJhbGciOiJI.eyJzdWIiOiIx.abc", "eyJ"),
    ],
)
def test_a_secret_is_masked(text, secret):
    assert secret not in masked(text) and HIDDEN in masked(text)
    assert secret not in str(refuse("name", text, f"because of {text}", f"do {text}"))
    assert secret not in str(SettingsError(text))


@pytest.mark.parametrize(
    "text",
    [
        "vllm serve {model} --port {port} --max-num-batched-tokens 4096 --tokenizer x --api-key $VLLM_API_KEY",
        "export HF_TOKEN=$(cat ~/.token)",
        "signal.top_k=64 max_new_tokens=256 teacher.api_key_env=VLLM_API_KEY",
        "keyword=yes monkey=no http://host:8000/v1 a@b.org",
        "task-based risk-averse desk-1234567890123",
    ],
)
def test_what_is_no_secret_is_left_alone(text):
    assert masked(text) == text


def test_the_value_of_a_variable_that_holds_a_secret_is_masked(monkeypatch):
    monkeypatch.setenv("MY_SERVER_KEY", "open sesame")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "not-a-secret")
    monkeypatch.setenv("SHORT_KEY", "a")
    assert masked("it said open sesame, not-a-secret, a") == f"it said {HIDDEN}, not-a-secret, a"


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda text: Evals(server=f"vllm serve {{model}} --port {{port}} {text}"), "evals.server"),
        (
            lambda text: Cluster.of({"name": "c", "serve": {"command": f"serve --port {{port}} {text}"}}),
            "serve.command",
        ),
        (lambda text: Cluster.of({"name": "c", "setup": ["module load cuda", text]}), "slurm.setup"),
        (lambda text: Cluster.of({"name": "c", "python": f"env {text} python"}), "slurm.python"),
    ],
)
@pytest.mark.parametrize("text", ["--api-key pl4nted", "SOME_TOKEN=pl4nted", "--token=pl4nted"])
def test_a_setting_that_would_be_kept_is_refused_unshown(make, name, text):
    with pytest.raises(SettingsError, match=r"\(not shown\) cannot be run: it holds what looks like") as refusal:
        make(text)
    assert name in str(refusal.value) and "pl4nted" not in str(refusal.value)


def test_a_token_in_a_path_is_long_and_mixed():
    assert token_in_path("/a1b2c3d4e5f6a7b8/v1") and token_in_path("/x/sk-abcdefghijklmn")
    assert not token_in_path("/team/llama-3.1-70b-instruct/v1") and not token_in_path("/deployments/long-model-name/v1")
