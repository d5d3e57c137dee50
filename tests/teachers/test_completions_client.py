"""Completions and scores over HTTP against the same tiny model asked directly; what goes wrong, and what is said."""

import json
import threading

import numpy as np
import pytest
import torch

from harness.config.checks import SettingsError
from harness.models.generate import generate
from harness.teachers.completions_client import CompletionsClient, Probe
from harness.teachers.http_endpoint import HttpEndpoint, ServerError
from tests.doubles import byte_ids, byte_tokenizer, tiny_llama
from tests.fake_server import FakeServer

END = 5
PROMPTS = [[3, *byte_ids(text), 4] for text in ("hi", "a longer prompt", "x", "what is it?", "yes or no", "why")]
ROWS = [[3, *byte_ids("hi"), 4, *byte_ids("yo"), 5], [3, *byte_ids("hello there"), 4, *byte_ids("no"), 5], [3, 4]]


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


@pytest.fixture
def fake(model):
    with FakeServer(model) as server:
        yield server


def client(fake, served="tiny", encode=None, in_flight=4, **patience):
    endpoint = HttpEndpoint(fake.url, **{"timeout_s": 10.0, "attempts": 3, "first_wait_s": 0.0, **patience})
    return CompletionsClient(endpoint, served, encode, in_flight)


def complete(server, prompts=PROMPTS, most=12, temperature=0.0, stops=(END,)):
    return server.complete(prompts, most, temperature, range(len(prompts)), stops)


def sentence(refusal):
    text = str(refusal.value)
    assert "\n" not in text and text.endswith(".") and len(text) < 600
    return text


@pytest.mark.parametrize("top_k", [1, 7, 262])
def test_scores_are_the_models_own_and_entry_t_predicts_token_t_plus_one(fake, model, top_k):
    for row, scores in zip(ROWS, client(fake).score(ROWS, top_k), strict=True):
        with torch.no_grad():
            dense = torch.log_softmax(model(torch.tensor([row])).logits[0, :-1].double(), -1)
        values, ids = dense.topk(top_k)
        assert scores.ids.dtype == np.int32 and scores.logprobs.dtype == np.float32
        np.testing.assert_array_equal(scores.ids, ids.numpy())
        np.testing.assert_allclose(scores.logprobs, values.numpy(), atol=1e-5)
        np.testing.assert_allclose(scores.actual, dense.gather(1, torch.tensor(row[1:])[:, None])[:, 0], atol=1e-5)


def test_only_the_tokens_that_are_there_are_scored_for_a_top_k_of_zero(fake):
    server = client(fake)
    some, none = server.score(ROWS, 3)[0], server.score(ROWS, 0)[0]
    assert none.ids.shape == (len(ROWS[0]) - 1, 0)
    np.testing.assert_array_equal(none.actual, some.actual)


def entry(**ranks):
    return {name.removeprefix("t"): {"logprob": -1.0 - rank, "rank": rank} for name, rank in ranks.items()}


@pytest.mark.parametrize(
    ("second", "kept"),
    [
        (entry(t9=3, t7=2, t8=1), [8, 7]),  # the token that is there, 9, is the third likeliest: k + 1 entries
        (entry(t8=2, t9=1), [9, 8]),  # it is among the likeliest: k entries, in no order
        (entry(t9=2, t7=2, t8=1), [8, 7]),  # it ties with the second: two entries of one rank
    ],
)
def test_the_likeliest_tokens_are_told_by_rank_and_not_by_place(fake, second, kept):
    fake.body = {"choices": [{"prompt_logprobs": [None, second]}]}
    scores = client(fake).score([[3, 9]], 2)[0]
    assert scores.ids.tolist() == [kept]
    assert scores.actual.tolist() == [second["9"]["logprob"]]


def test_greedy_answers_equal_those_of_the_model_in_memory(fake, model):
    wanted = generate(model, byte_tokenizer(), PROMPTS, 12)
    assert complete(client(fake)) == wanted
    assert all(wanted)


def stops_of(model):
    """Some token that greedy answers do reach, to stop at."""
    answers = generate(model, byte_tokenizer(), PROMPTS, 12, stop_ids={END})
    return [answers[0][3], answers[1][5]]


@pytest.mark.parametrize("without", [(), ("stop_token",), ("token_ids",), ("logprobs",)])
def test_an_answer_ends_with_its_stop_token_however_ids_are_given(fake, model, without):
    stops, fake.without = stops_of(model), set(without)
    wanted = generate(model, byte_tokenizer(), PROMPTS, 12, stop_ids=stops)
    assert any(answer[-1] in stops for answer in wanted)
    server = client(fake)
    assert complete(server, stops=stops) == wanted
    assert server.reencoded == 0


def test_a_server_that_writes_on_after_a_stop_token_is_cut_there(fake):
    fake.body = {"choices": [{"token_ids": [7, 8, END, 9], "finish_reason": "length"}]}
    assert complete(client(fake), PROMPTS[:1]) == [[7, 8, END]]


def test_text_is_encoded_again_only_where_no_ids_are_given_and_it_is_counted(fake):
    fake.body = {"choices": [{"text": "yes", "finish_reason": "stop"}]}
    with pytest.raises(SettingsError, match="token ids"):
        complete(client(fake), PROMPTS[:1])
    server = client(fake, encode=byte_ids)
    assert complete(server, PROMPTS[:2]) == [[*byte_ids("yes"), END]] * 2
    assert server.reencoded == 2
    fake.body = {"choices": [{"text": "yes", "finish_reason": "length"}]}
    assert complete(server, PROMPTS[:1]) == [byte_ids("yes")]


def test_a_prompts_seed_goes_with_it_and_every_sampling_value_is_sent(fake):
    server = client(fake)
    seeds = [2**64 - 1, *range(len(PROMPTS) - 1)]
    first = server.complete(PROMPTS, 8, 1.0, seeds, {END})
    assert server.complete(PROMPTS[::-1], 8, 1.0, seeds[::-1], {END}) == first[::-1]
    assert server.complete(PROMPTS, 8, 1.0, [seed // 2 + 50 for seed in seeds], {END}) != first
    for request in fake.requests:
        assert 0 <= request["seed"] < 2**63
        for name in ("top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
            assert name in request  # else the server takes it from the model's generation config


def test_answers_stop_at_the_models_context_and_a_longer_row_is_refused_before_it_is_asked(fake):
    long = [7] * 120
    assert [len(answer) for answer in complete(client(fake), [long, long + [7] * 8], most=30, stops=())] == [8, 0]
    asked = fake.asked
    with pytest.raises(SettingsError) as refusal:
        client(fake).score([[7] * 128], 2)
    assert "at most 127 tokens" in sentence(refusal) and fake.asked == asked
    fake.without = {"context"}
    assert len(complete(client(fake), [long], most=9, stops=())[0]) == 9


def test_order_is_kept_while_many_requests_are_in_flight(fake, model):
    fake.delay_s = lambda number: 0.05 * (6 - number)  # the first to be asked are the last to answer
    wanted = generate(model, byte_tokenizer(), PROMPTS, 3)
    assert complete(client(fake, in_flight=6), most=3) == wanted
    assert fake.most_busy >= 4
    fake.most_busy, fake.delay_s = 0, lambda number: 0.01
    complete(client(fake, in_flight=2), most=3)
    assert fake.most_busy == 2


def test_requests_share_connections(fake):
    fake.delay_s = lambda number: 0.02
    client(fake, in_flight=2).complete(PROMPTS * 4, 2, 0.0, range(24), {END})
    assert fake.asked == 24 and fake.opened <= 3  # two in flight, and the question what is served


def test_more_requests_in_flight_than_a_pool_holds_by_default(fake):
    """httpx keeps 100 connections unless told otherwise; the rest would wait for one and time out."""
    both = threading.Barrier(120, timeout=60)
    fake.delay_s = lambda number: both.wait() and 0.0
    endpoint = client(fake, timeout_s=90.0, attempts=1).endpoint
    fake.body = {"choices": []}
    threads = [threading.Thread(target=endpoint.request, args=("/v1/completions", {})) for _ in range(120)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fake.asked == 120 and not both.broken


def test_a_proxy_that_the_environment_names_is_used(fake, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("http_proxy", fake.url)
    elsewhere = HttpEndpoint("http://nowhere.invalid:8000", attempts=1)
    assert elsewhere.request("/v1/models")["data"][0]["id"] == "tiny"
    monkeypatch.setenv("no_proxy", "nowhere.invalid")
    with pytest.raises(ServerError):
        HttpEndpoint("http://nowhere.invalid:8000", attempts=1).request("/v1/models")
    monkeypatch.setenv("http_proxy", "gopher://me:hunter2@node7")
    with pytest.raises(SettingsError, match="proxy that cannot be used") as refusal:
        HttpEndpoint(fake.url)
    assert "hunter2" not in sentence(refusal)


@pytest.mark.parametrize("faults", [[500, 500], [429, 503]])
def test_errors_that_may_pass_are_asked_again(fake, faults):
    fake.faults = list(faults)
    assert len(complete(client(fake), PROMPTS[:1])) == 1
    assert fake.asked == 3


def test_waits_double_and_end_with_the_attempts(fake):
    class Waits(threading.Event):
        seconds = ()

        def wait(self, timeout=None):
            Waits.seconds += (timeout,)
            return False

    fake.faults = [500] * 9
    endpoint = HttpEndpoint(fake.url, attempts=4, first_wait_s=0.5)
    with pytest.raises(SettingsError) as refusal:
        endpoint.request("/v1/completions", {}, Waits())
    assert Waits.seconds == (0.5, 1.0, 2.0) and fake.asked == 4
    assert "500 fault 500" in sentence(refusal) and "4 attempts" in sentence(refusal)


def test_a_redirect_is_not_followed_and_names_where_it_leads(fake):
    fake.faults = [302]
    with pytest.raises(SettingsError, match=r"it redirects to 127\.0\.0\.1:9, which is not followed \(302\)"):
        complete(client(fake), PROMPTS[:1])


@pytest.mark.parametrize("status", [400, 404])
def test_errors_that_stay_are_not_asked_again_and_are_quoted_shortened(fake, status):
    fake.faults = [status]
    with pytest.raises(SettingsError) as refusal:
        complete(client(fake), PROMPTS[:1])
    said = sentence(refusal)
    assert fake.asked == 1 and f"{status} fault" in said and fake.url in said and "x" * 150 in said
    assert "x" * 200 not in said and "Content-Length" not in said


def test_one_failure_stops_the_rows_that_are_not_asked_yet(fake):
    fake.faults = [400]
    with pytest.raises(SettingsError):
        complete(client(fake, in_flight=1), PROMPTS * 20)
    assert fake.asked <= 3


def test_a_server_that_is_down_is_one_sentence_with_its_address_and_what_to_do(model):
    with FakeServer(model) as gone:
        url = gone.url
    with pytest.raises(SettingsError) as refusal:
        complete(CompletionsClient(HttpEndpoint(url + "/v1/", attempts=2, first_wait_s=0.0), "tiny"))
    said = sentence(refusal)
    assert f"'{url}'" in said and "refused" in said and "2 attempts" in said and "start the server" in said


def test_a_server_that_is_too_slow_is_given_up(fake):
    fake.delay_s = lambda number: 0.4
    with pytest.raises(SettingsError, match=r"no answer within 0\.1 s"):
        complete(client(fake, timeout_s=0.1, attempts=2), PROMPTS[:1])


def test_another_model_is_refused_with_what_is_served(fake):
    fake.served = ("one", "two")
    with pytest.raises(SettingsError) as refusal:
        complete(client(fake))
    assert "teacher.served_model='tiny'" in sentence(refusal) and "serves one, two" in sentence(refusal)
    assert fake.asked == 0


def test_fewer_log_probabilities_than_asked_for_are_refused_with_both_numbers(fake):
    fake.without = {"one_of_k"}
    with pytest.raises(SettingsError) as refusal:
        client(fake).score(ROWS, 9)
    assert "top_k=9" in sentence(refusal) and "gave 8 of 9" in sentence(refusal)
    assert "--max-logprobs 9" in sentence(refusal)


@pytest.mark.parametrize(
    "entries",
    [
        None,
        [None],
        [entry(t3=1), entry(t9=1)],  # no null for the first token: shifted by one
        [None, entry(t8=1)],  # the token that is there is missing
        [None, {"9": {"logprob": 3.0, "rank": 1}}],  # logits, no log-probabilities
        [None, {"9": {"logprob": float("nan"), "rank": 1}}],
    ],
)
def test_scores_that_cannot_be_right_are_refused(fake, entries):
    fake.body = {"choices": [{"prompt_logprobs": entries}]}
    with pytest.raises(SettingsError) as refusal:
        client(fake).score([[3, 9]], 1)
    assert "lacks" in sentence(refusal)


@pytest.mark.parametrize("body", [b"<html>", [], {"choices": []}])
def test_answers_that_are_no_completions_are_refused(fake, body):
    fake.body = body
    with pytest.raises(SettingsError, match=r"lacks a (JSON object|completion)"):
        complete(client(fake), PROMPTS[:1])


def test_the_key_is_sent_and_is_in_no_message_object_or_redirect(fake, monkeypatch):
    fake.key = "sk-very-secret"
    with pytest.raises(SettingsError, match=r"teacher\.api_key_env to the name"):
        complete(client(fake))
    with pytest.raises(SettingsError, match=r"FAKE_KEY.*no key"):
        complete(client(fake, api_key_env="FAKE_KEY"))
    monkeypatch.setenv("FAKE_KEY", "sk-wrong-key")
    server = client(fake, api_key_env="FAKE_KEY")
    with pytest.raises(SettingsError) as refusal:
        complete(server)
    assert "sk-" not in sentence(refusal) and "(key)" in sentence(refusal) and "FAKE_KEY" in sentence(refusal)
    monkeypatch.setenv("FAKE_KEY", "sk-two\nlines")
    with pytest.raises(SettingsError) as refusal:
        complete(server)
    assert "sk-" not in sentence(refusal)
    monkeypatch.setenv("FAKE_KEY", "sk-very-secret\n")
    assert all(complete(server))
    assert "secret" not in repr(vars(server)) + repr(vars(server.endpoint))


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("node7:8000", "http://host:port"),
        ("ftp://node7", "http://host:port"),
        ("http://node7:port", "http://host:port"),
        ("http://me:hunter2@node7:8000", "no user, password"),
        ("http://node7:8000?key=hunter2", "no user, password"),
        ("$NOT_SET_ANYWHERE", "no such environment variable"),
    ],
)
def test_what_is_no_address_is_refused_and_passwords_are_not_repeated(path, said):
    with pytest.raises(SettingsError) as refusal:
        HttpEndpoint(path)
    assert said in sentence(refusal) and "hunter2" not in sentence(refusal)


def test_a_host_name_that_no_request_can_be_sent_to_is_refused_at_once():
    with pytest.raises(SettingsError) as refusal:
        HttpEndpoint("http://256.1.1.1:8000", first_wait_s=60.0).request("/v1/models")
    assert "http://host:port" in sentence(refusal) and not isinstance(refusal.value, ServerError)


def test_an_address_may_stand_in_an_environment_variable_and_end_in_v1(monkeypatch):
    monkeypatch.setenv("HERE", "https://node7/v1/")
    assert HttpEndpoint("$HERE").url == "https://node7" == HttpEndpoint("https://node7").url


def test_a_probe_tells_two_models_apart_and_one_from_itself_not(fake, model):
    first = client(fake).probe(PROMPTS[0], {END})
    assert first == client(fake).probe(PROMPTS[0], {END}) and first.agrees(first) and len(first.sha256) == 64
    assert len(first.logprobs) == len(first.ids) == 16
    fake.without = {"logprobs"}
    assert client(fake).probe(PROMPTS[0], {END}).logprobs == ()
    with FakeServer(tiny_llama(seed=1)) as other:
        second = client(other).probe(PROMPTS[0], {END})
    assert second.sha256 != first.sha256 and not second.agrees(first)


def test_a_probe_forgives_rounding_and_nothing_more():
    probe = Probe("tiny", (7, 8), (-0.449, -1.0))
    assert Probe("tiny", (7, 8), (-0.451, -1.0)).sha256 != probe.sha256  # the hash falls to one side or the other
    assert Probe("tiny", (7, 8), (-0.451, -1.0)).agrees(probe)
    for other in (
        Probe("tiny", (7, 8), (-0.449, -1.2)),
        Probe("tiny", (7, 9), (-0.449, -1.0)),
        Probe("tiny", (7, 8), ()),
        Probe("small", (7, 8), (-0.449, -1.0)),
    ):
        assert not other.agrees(probe) and other.sha256 != probe.sha256
    assert Probe("tiny", (7,), (-0.01,)).sha256 == Probe("tiny", (7,), (0.01,)).sha256
    assert json.loads(json.dumps(probe.logprobs)) == list(probe.logprobs)
