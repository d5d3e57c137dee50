"""Labels, caches, synthetic rows and scores of student text through a real vLLM, against the model's own forward pass.

Tolerance: log-probabilities of the top 16 tokens within 0.02 nats, in fp32 on both sides (0.004 was the largest
difference seen); two tokens may change places where theirs differ by less.
"""

import json

import numpy as np
import pytest
import torch

import harness.api as harness
from harness.config.machine import Launch
from harness.data.chat import render
from harness.models.loading import load_model, load_tokenizer
from harness.plan.frozen import frozen_plan
from harness.store.store import Store
from harness.teachers.completions_client import CompletionsClient
from harness.teachers.http_endpoint import HttpEndpoint
from tests.vllm.conftest import NAME

TOLERANCE = 0.02
TOP_K = 16
QUESTIONS = ("What is the capital of France?", "How many legs has a spider?", "Name a colour.", "What is 2 + 2?")


@pytest.fixture(scope="module")
def model(smollm2):
    return load_model(smollm2)


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    return load_tokenizer(smollm2)


@pytest.fixture(scope="module")
def client(server):
    return CompletionsClient(HttpEndpoint(server), NAME)


def texts(tokenizer):
    answers = ("Paris.", "Eight.", "Blue, like the sky.", "It is 4.")
    pairs = zip(QUESTIONS, answers, strict=True)
    rows = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in pairs]
    return [render(tokenizer, row, 256).input_ids for row in rows]


def test_top_k_scores_are_those_of_the_forward_pass(client, model, tokenizer):
    for ids, scored in zip(texts(tokenizer), client.score(texts(tokenizer), TOP_K), strict=True):
        with torch.no_grad():
            expected = torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), -1)[:-1]  # (T - 1, V)
        mine = expected.gather(1, torch.from_numpy(scored.ids.astype(np.int64))).numpy()
        assert np.abs(mine - scored.logprobs).max() < TOLERANCE
        # no token outside the sixteen is more probable than the last of them, up to the tolerance
        outside = expected.scatter(1, torch.from_numpy(scored.ids.astype(np.int64)), -torch.inf).max(-1).values.numpy()
        assert (outside <= scored.logprobs[:, -1] + TOLERANCE).all()
        own = expected[range(len(ids) - 1), ids[1:]].numpy()
        assert np.abs(own - scored.actual).max() < TOLERANCE


def test_greedy_answers_and_seeded_draws(client, tokenizer):
    prompts = [ids[:20] for ids in texts(tokenizer)]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    greedy = client.complete(prompts, 12, 0.0, [0] * 4, {end})
    assert greedy == client.complete(prompts, 12, 0.0, [1] * 4, {end})
    drawn = [client.complete(prompts, 12, 1.0, seeds, {end}) for seeds in ([1, 2, 3, 4], [1, 2, 3, 4], [5, 6, 7, 8])]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_grid_takes_labels_caches_synthetic_rows_and_scores_of_student_text_from_it(server, smollm2, tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": f"{q} ({n})"}, {"role": "assistant", "content": f"It is {n}."}]}
        for n in range(10)
        for q in QUESTIONS
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {
        "corpus": "jsonl",
        "corpus__path": str(tmp_path / "rows.jsonl"),
        "corpus__max_length": 128,
        "corpus__max_new_tokens": 16,
        "corpus__heldout_rows": 8,
        "student": "hf",
        "student__path": str(smollm2),
        "student__init": "pruned",
        "student__layers": 3,
        "teacher": "served",
        "teacher__path": server,
        "teacher__served_model": NAME,
        "teacher__tokenizer": str(smollm2),
        "budget__amount": 4,
        "budget__batch_size": 4,
        "budget__learning_rate": 1e-4,
        "signal__top_k": TOP_K,
        "evals__names": [["heldout"]],
        "measure__formats": [[]],
    }
    cells = harness.grid(**common, method=["sft", "seq_kd", "kd"])
    cells += harness.grid(**common, method="logit_kd", signal__kind="top_k")
    cells += harness.grid(**common, method="two_stage", method__synthetic_rows=6, method__second="sft")
    finished = harness.run(cells, str(tmp_path / "store"), grid="vllm", launch=Launch(kind="inline"))
    assert [(record.method, record.reason) for record in finished.records if record.status != "done"] == []
    plan = frozen_plan(Store.open(tmp_path / "store"), "vllm")
    assert {"labels", "cache", "synthesize"} <= {key.partition("-")[0] for key in plan.stages}
