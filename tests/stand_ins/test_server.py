"""The stand-ins' server: what the harness's own client reads from it equals the model's forward pass."""

import threading

import numpy as np
import pytest
import torch

from harness.config.checks import SettingsError
from harness.models.loading import load_model, load_tokenizer
from harness.stand_ins import MODELS, folder_of
from harness.stand_ins.server import StandInServer
from harness.teachers.completions_client import CompletionsClient
from harness.teachers.http_endpoint import HttpEndpoint

NAME = "allenai/Llama-3.1-Tulu-3-8B-SFT"
ROWS = [[5, 9, 17, 40, 41], [7, 300, 12]]


@pytest.fixture(scope="module")
def client(stand_ins):
    with StandInServer(stand_ins / MODELS) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield CompletionsClient(HttpEndpoint(server.url), NAME)
        server.shutdown()


@pytest.fixture(scope="module")
def model(stand_ins):
    return load_model(stand_ins / MODELS / folder_of(NAME))


def test_scores_of_a_row_are_those_of_the_forward_pass(client, model, stand_ins):
    tokens = len(load_tokenizer(stand_ins / MODELS / folder_of(NAME)))  # fewer than the rows of the embedding
    for row, scored in zip(ROWS, client.score(ROWS, 6), strict=True):
        with torch.no_grad():
            expected = torch.log_softmax(model(torch.tensor([row])).logits[0, :, :tokens].float(), -1)  # (T, V)
        values, ids = expected[:-1].topk(6)
        assert np.array_equal(scored.ids, ids.numpy()) and np.allclose(scored.logprobs, values, atol=1e-5)
        own = expected[range(len(row) - 1), row[1:]]
        assert np.allclose(scored.actual, own, atol=1e-5)


def test_greedy_answers_are_the_models_and_draws_follow_their_seeds(client, model):
    answers = client.complete(ROWS, 6, 0.0, [0, 0], {1})
    for row, answer in zip(ROWS, answers, strict=True):
        ids = list(row)
        for token in answer:
            with torch.no_grad():
                assert token == int(model(torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(token)
    drawn = [client.complete(ROWS, 6, 1.0, seeds, {1}) for seeds in ([3, 4], [3, 4], [5, 6])]
    assert drawn[0] == drawn[1] != drawn[2]


def test_an_answer_ends_at_its_stop_token(client):
    (answer,) = client.complete(ROWS[:1], 6, 0.0, [0], {1})
    (stopped,) = client.complete(ROWS[:1], 6, 0.0, [0], {answer[2]})
    assert stopped == answer[: answer.index(answer[2]) + 1]


def test_a_model_that_is_not_served_and_a_prompt_that_is_too_long_are_refused(client):
    with pytest.raises(SettingsError, match="serves"):
        CompletionsClient(client.endpoint, "org/other").complete(ROWS, 6, 0.0, [0, 0], {1})
    with pytest.raises(SettingsError):
        client.score([[1] * 400], 4)
