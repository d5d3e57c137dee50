"""Objectives inside the models: equal to loops written out, zero where they must be, and left behind after a fit."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

from harness.config.budget import Budget
from harness.config.checks import SettingsError
from harness.config.machine import Machine
from harness.config.recipe import TrainingPhase
from harness.data.sequences import Row, collate, visits
from harness.methods import load_method
from harness.models.loading import save_model
from harness.teachers.signals import LiveTeacher
from harness.training.losses.hidden import Features, Relations
from harness.training.losses.objectives import objective_for, trained_together
from harness.training.trainer import TrainingData, TrainingSettings, fit
from tests.doubles import byte_tokenizer

TOKENIZER = byte_tokenizer()
V = len(TOKENIZER)
FEATURES = TrainingPhase(divergence="features", forward_kl_weight=0.7, cross_entropy_weight=0.3, hidden_weight=2.0)
RELATIONS = TrainingPhase(
    divergence="relations", forward_kl_weight=0.7, cross_entropy_weight=0.3, hidden_weight=2.0, relation_heads=4
)
ONLY = {"forward_kl_weight": 0.0, "cross_entropy_weight": 0.0}


def llama(seed=0, width=16, layers=2, heads=2, key_value_heads=None, dtype=torch.float64):
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads or heads,
        max_position_embeddings=128,
        initializer_range=0.3,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).to(dtype).eval()


def wise(**shape):
    """A teacher wider and deeper than the student, with fewer key and value heads than query heads."""
    return LiveTeacher(llama(**{"seed": 1, "width": 24, "layers": 3, "heads": 4, "key_value_heads": 2} | shape), *PAIR)


PAIR = (TOKENIZER, TOKENIZER)


def rows(count=3):
    """Rows of unequal length; the second has two turns, the third is scored from its first position on."""
    draw = np.random.default_rng(0)
    spans = [([4], [9]), ([2, 6], [4, 8]), ([1], [5])]
    lengths = [10, 9, 5]
    made = [
        Row(draw.integers(6, V, length).astype(np.int32), *span) for length, span in zip(lengths, spans, strict=True)
    ]
    return made[:count]


def objective(stage, teacher, student, seed=0):
    made = objective_for(stage, teacher, V, student=student, seed=seed)
    if made.weights is not None:
        made.weights.double()
    return made


def value_and_gradient(made, student, batch):
    student.zero_grad(set_to_none=True)
    found = made.compare(student, batch)
    if found.sum.requires_grad:
        found.sum.backward()
    everything = [*student.parameters(), *(made.weights.parameters() if made.weights is not None else ())]
    return found, torch.cat([(torch.zeros_like(w) if w.grad is None else w.grad).ravel() for w in everything])


def by_hand(stage, student, teacher, weights=(), layer_map=()):
    """Loops over rows, positions, layers and heads, without padding, hooks or masks."""
    total = 0.0
    for row in rows():
        ids = torch.tensor([row.input_ids.tolist()])
        mine, theirs = (model(input_ids=ids, output_hidden_states=True) for model in (student, teacher.model))
        q, p = mine.logits[0].log_softmax(-1), theirs.logits[0].log_softmax(-1).detach()
        qkv = [vectors(model, output) for model, output in ((student, mine), (teacher.model, theirs))]
        for start, end in zip(row.starts, row.ends, strict=True):
            for t in range(start - 1, end - 1):
                total = total - stage.cross_entropy_weight * q[t, ids[0, t + 1]]
                total = total + stage.forward_kl_weight * kl(p[t], q[t])
                if stage.divergence == "features" and t > 0:
                    for weight, layer, other in zip(weights, range(1, 9), layer_map, strict=False):
                        h_s, h_t = mine.hidden_states[layer][0, t], theirs.hidden_states[other][0, t].detach()
                        error = (weight @ h_s - h_t).norm() ** 2 / h_t.norm() ** 2
                        total = total + stage.hidden_weight * error / len(layer_map)
                if stage.divergence == "relations":
                    for a_s, a_t in zip(*qkv, strict=True):
                        parts = (a.chunk(stage.relation_heads, -1) for a in (a_s, a_t))
                        for s, r in zip(*parts, strict=True):
                            student_r = (s[: t + 1] @ s[t] / s.shape[-1] ** 0.5).log_softmax(-1)
                            teacher_r = (r[: t + 1] @ r[t] / r.shape[-1] ** 0.5).log_softmax(-1).detach()
                            total = total + stage.hidden_weight * kl(teacher_r, student_r) / stage.relation_heads
    return total


def kl(teacher_logprobs, student_logprobs):
    return functional.kl_div(student_logprobs, teacher_logprobs, log_target=True, reduction="sum")


def vectors(model, output):
    """Queries, keys and values of the last layer, (T, d) each, key and value heads repeated for their queries."""
    layer = model.model.layers[-1]
    entered = layer.input_layernorm(output.hidden_states[-2][0])
    attention, times = layer.self_attn, layer.self_attn.num_key_value_groups
    keys, values = (
        torch.cat([head for head in part(entered).split(attention.head_dim, -1) for _ in range(times)], -1)
        for part in (attention.k_proj, attention.v_proj)
    )
    return attention.q_proj(entered), keys, values


@pytest.mark.parametrize("stage", [FEATURES, RELATIONS], ids=["features", "relations"])
def test_value_and_gradients_are_those_of_loops_written_out(stage):
    student, teacher = llama(), wise()
    made = objective(stage, teacher, student)
    found, gradient = value_and_gradient(made, student, collate(rows(), 0))
    student.zero_grad(set_to_none=True)
    weights = list(made.weights.parameters()) if made.weights is not None else []
    for weight in weights:
        weight.grad = None
    expected = by_hand(stage, student, teacher, weights, layer_map=[2, 3])
    expected.backward()
    torch.testing.assert_close(found.sum, expected, rtol=1e-9, atol=0)
    reference = torch.cat([w.grad.ravel() for w in (*student.parameters(), *weights)])
    # Llama's norms compute in fp32 even here
    torch.testing.assert_close(gradient, reference, rtol=1e-3, atol=1e-5)
    assert found.count == 5 + 4 + 4
    assert all(weight.grad is None for weight in teacher.model.parameters())


@pytest.mark.parametrize(
    ("shape", "layer_map"),
    [({"layers": 5}, [3, 5]), ({"layers": 1}, [1, 1]), ({"layers": 2}, [1, 2]), ({"layers": 24}, [12, 24])],
)
def test_every_student_layer_meets_a_teacher_layer_and_the_last_the_last(shape, layer_map):
    student, teacher = llama(), wise(**shape)
    made = objective(FEATURES, teacher, student)
    assert made.layer_map == layer_map
    torch.testing.assert_close(
        made.compare(student, collate(rows(), 0)).sum,
        by_hand(FEATURES, student, teacher, list(made.weights.parameters()), layer_map),
    )


@pytest.mark.parametrize(
    ("teacher_layers", "student_layers", "chosen"), [(3, 2, 3), (12, 2, 12), (24, 2, 20), (24, 24, 24), (28, 4, 23)]
)
def test_relations_take_an_upper_middle_layer_of_deep_teachers_only(teacher_layers, student_layers, chosen):
    made = objective(RELATIONS, wise(layers=teacher_layers), llama(layers=student_layers))
    assert made.layers == {"student": student_layers, "teacher": chosen}


@pytest.mark.parametrize("weights", [ONLY, {"forward_kl_weight": 1.0, "cross_entropy_weight": 0.0}])
@pytest.mark.parametrize("kind", ["features", "relations"])
def test_a_student_equal_to_its_teacher_has_neither_loss_nor_gradient(kind, weights):
    student, teacher = llama(seed=3), LiveTeacher(llama(seed=3), *PAIR)
    made = objective(TrainingPhase(divergence=kind, **weights), teacher, student)
    for weight in made.weights.parameters() if made.weights is not None else ():
        torch.nn.init.eye_(weight)
    found, gradient = value_and_gradient(made, student, collate(rows(), 0))
    assert abs(found.sum.item()) < 1e-12
    assert gradient.abs().max() < 1e-10


@pytest.mark.parametrize("stage", [FEATURES, RELATIONS], ids=["features", "relations"])
def test_padding_on_the_right_and_the_split_into_batches_move_nothing(stage):
    student, teacher = llama(), wise()
    made = objective(stage, teacher, student)
    whole, gradient = value_and_gradient(made, student, collate(rows(), 0))
    if made.weights is not None:
        made.weights.zero_grad()
    student.zero_grad()
    parts = [made.compare(student, collate([row], 0)) for row in rows()]
    sum(part.sum for part in parts).backward()
    torch.testing.assert_close(sum(part.sum for part in parts), whole.sum)
    assert sum(part.count for part in parts) == whole.count
    everything = [*student.parameters(), *(made.weights.parameters() if made.weights is not None else ())]
    torch.testing.assert_close(torch.cat([w.grad.ravel() for w in everything]), gradient)
    one, other = (collate(rows(), pad_id) for pad_id in (0, 200))
    assert not torch.equal(one["input_ids"], other["input_ids"])
    torch.testing.assert_close(made.compare(student, one).sum, made.compare(student, other).sum, rtol=0, atol=0)


def spoil(model, layer, change):
    """The model with what one layer puts out changed by `change`, in place of a test on logits."""
    model.model.layers[layer].register_forward_hook(lambda module, args, output: change(output.clone()))
    return model


@pytest.mark.parametrize("position", [0, 1, 2, 3, 7, 8])
def test_only_scored_positions_after_the_first_are_compared(position):
    # row 0 scores positions 3 to 7, row 2 positions 0 to 3 of which 0 is left out; the change stays in the last layer
    stage = TrainingPhase(divergence="features", **ONLY)

    def change(states):
        states[:, position] += 1
        return states

    student = llama()
    for number, compared in ((0, range(3, 8)), (2, range(1, 4))):
        row = rows()[number]
        if position >= len(row.input_ids):
            continue
        batch = collate([row], 0)
        plain = objective(stage, wise(), student).compare(student, batch).sum
        teacher = LiveTeacher(spoil(wise().model, -1, change), *PAIR)
        changed = objective(stage, teacher, student).compare(student, batch).sum
        assert (plain.item() != changed.item()) == (position in compared)


def test_a_first_position_alone_has_no_feature_term_and_still_a_gradient_for_every_projection():
    # a process whose rows have nothing to compare must take part in averaging gradients
    student, made_of = llama(), TrainingPhase(divergence="features", **ONLY)
    made = objective(made_of, wise(), student)
    found, _ = value_and_gradient(made, student, collate([Row(np.array([7, 8], np.int32), [1], [2])], 0))
    assert (found.sum.item(), found.count) == (0, 1)
    assert all(weight.grad is not None and not weight.grad.any() for weight in made.weights.parameters())


def test_relations_look_back_from_scored_positions_and_never_ahead():
    student, stage = llama(), RELATIONS
    row, batch = rows()[0], collate(rows()[:1], 0)
    made = objective(stage, wise(), student)
    found = []
    for position in range(len(row.input_ids)):
        changed = batch["input_ids"].clone()
        changed[0, position] = 6 if changed[0, position] != 6 else 7
        found.append(made.compare(student, batch | {"input_ids": changed}).diagnostics["hidden"].item())
    plain = made.compare(student, batch).diagnostics["hidden"].item()
    # positions 3 to 7 are scored: all up to 7 matter, prompt included; 8 and 9 are never looked at
    assert [value != plain for value in found] == [True] * 8 + [False] * 2


@pytest.mark.parametrize("stage", [FEATURES, RELATIONS], ids=["features", "relations"])
def test_another_teacher_gives_another_hidden_term(stage):
    student, batch = llama(), collate(rows(), 0)
    terms = [
        objective(stage, wise(seed=seed), student).compare(student, batch).diagnostics["hidden"].item()
        for seed in (1, 1, 2)
    ]
    assert terms[0] == terms[1] != terms[2]


@pytest.mark.parametrize("stage", [FEATURES, RELATIONS], ids=["features", "relations"])
def test_a_student_that_recomputes_its_activations_has_the_same_gradient(stage):
    found = []
    for checkpointing in (False, True):
        student = llama().train()
        if checkpointing:
            student.activation_checkpointing_enable()
        found.append(value_and_gradient(objective(stage, wise(), student), student, collate(rows(), 0)))
    torch.testing.assert_close(found[1][0].sum, found[0][0].sum)
    torch.testing.assert_close(found[1][1], found[0][1])


def test_heads_that_do_not_fit_at_once_have_the_same_value_and_gradient(monkeypatch):
    student = llama()
    made = objective(RELATIONS, wise(), student)
    whole, gradient = value_and_gradient(made, student, collate(rows(), 0))
    monkeypatch.setattr("harness.models.hidden_states.RELATION_ELEMENTS", 1)
    parts, other = value_and_gradient(made, student, collate(rows(), 0))
    torch.testing.assert_close(parts.sum, whole.sum)
    torch.testing.assert_close(other, gradient)


def test_hidden_terms_are_made_in_fp32_under_autocast():
    student = llama(dtype=torch.float32)
    for stage in (FEATURES, RELATIONS):
        made = objective_for(stage, wise(dtype=torch.bfloat16), V, student=student)
        with torch.autocast("cpu", torch.bfloat16):
            found = made.compare(student, collate(rows(), 0))
        assert found.sum.dtype == found.diagnostics["hidden"].dtype == torch.float32
        plain = made.compare(student, collate(rows(), 0))
        assert found.sum.item() == pytest.approx(plain.sum.item(), rel=0.05)


def test_projections_come_from_the_seed_and_leave_the_global_draws_alone():
    student, teacher = llama(), wise()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (Features(FEATURES, teacher, V, student, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert [tuple(weight.shape) for weight in one.weights.parameters()] == [(24, 16), (24, 16)]
    for a, b, c in zip(one.weights.parameters(), same.weights.parameters(), other.weights.parameters(), strict=True):
        assert torch.equal(a, b) and not torch.equal(a, c)
    first, second = one.weights.parameters()
    assert not torch.equal(first, second) and first.std().item() == pytest.approx(16**-0.5, rel=0.15)


def test_no_heads_asked_for_are_the_students_and_a_count_that_does_not_divide_is_refused():
    student, teacher = llama(), wise()
    stage = TrainingPhase(divergence="relations")
    assert Relations(stage, teacher, V, student).heads == 2
    assert Relations(TrainingPhase(divergence="relations", relation_heads=8), teacher, V, student).heads == 8
    for heads in (3, 5, 16, 24):
        with pytest.raises(SettingsError, match=f"relation_heads={heads} .*choose one of 1, 2, 4, 8"):
            Relations(TrainingPhase(divergence="relations", relation_heads=heads), teacher, V, student)
    with pytest.raises(SettingsError, match=r"relation_heads=4 .*student's 16 and the teacher's 18"):
        Relations(RELATIONS, wise(width=18, heads=3, key_value_heads=3), V, student)


def test_models_that_cannot_be_looked_into_are_refused_by_name():
    shape = {"vocab_size": V, "num_hidden_layers": 1, "num_attention_heads": 2, "pad_token_id": 0}
    fused = Phi3ForCausalLM(Phi3Config(hidden_size=16, intermediate_size=16, num_key_value_heads=2, **shape))
    with pytest.raises(SettingsError, match=r"student='Phi3ForCausalLM' .*no module q_proj.*method=feature_kd"):
        Relations(TrainingPhase(divergence="relations"), wise(), V, fused)
    assert Features(FEATURES, wise(), V, fused).weights is not None
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(SettingsError, match=r"teacher='GPT2LMHeadModel' .*layers"):
        Features(FEATURES, LiveTeacher(gpt2, *PAIR), V, llama())
    with pytest.raises(SettingsError, match=r"teacher='object' .*in memory"):
        Features(FEATURES, object(), V, llama())
    with pytest.raises(ValueError, match="needs a teacher"):
        objective_for(FEATURES, None, V, student=llama())


def trained(tmp_path, stage, steps=3, budget=None, micro=None, teacher=None, student=None):
    """A student after `steps` steps on the three rows, and the log."""
    student = student or llama(dtype=torch.float32)
    columns = {
        "input_ids": [row.input_ids.tolist() for row in rows()],
        "starts": [row.starts for row in rows()],
        "ends": [row.ends for row in rows()],
    }
    budget = budget or Budget(batch_size=3, learning_rate=1e-2, warmup_ratio=0.0, schedule="constant")
    fit(
        student,
        TOKENIZER,
        TrainingData(Dataset.from_dict(columns), visits(3, steps, 3, seed=0)),
        TrainingSettings(budget, stage, Machine(device="cpu", micro_batch_size=micro), seed=0),
        out=tmp_path,
        teacher=teacher or wise(dtype=torch.float32),
    )
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    return student, [line["loss"] for line in lines]


def test_a_fit_trains_the_projections_like_layers_of_the_student(tmp_path):
    # one optimizer, one clipping of all gradients together, the same decay: else the parameters differ
    budget = Budget(
        batch_size=3, learning_rate=1e-2, warmup_ratio=0.0, schedule="constant", max_grad_norm=0.1, weight_decay=0.1
    )
    student, losses = trained(tmp_path, FEATURES, budget=budget)
    expected, teacher = llama(dtype=torch.float32), wise(dtype=torch.float32)
    made = Features(FEATURES, teacher, V, expected, seed=0)
    matrices = [w for w in (*expected.parameters(), *made.weights.parameters()) if w.ndim > 1]
    norms = [w for w in expected.parameters() if w.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}],
        lr=1e-2,
        betas=(0.9, budget.beta2),
        eps=1e-8,
    )
    for step, batch in enumerate([collate(rows(), 0)] * 3):
        optimizer.zero_grad()
        found = made.compare(expected, batch)
        loss = found.sum / found.count
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*matrices, *norms], 0.1)
        optimizer.step()
        assert losses[step] == pytest.approx(loss.item(), rel=1e-3)
    for mine, theirs in zip(student.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=2e-4)


@pytest.mark.parametrize("stage", [FEATURES, RELATIONS], ids=["features", "relations"])
def test_micro_batches_of_a_fit_move_nothing(tmp_path, stage):
    whole, losses = trained(tmp_path, stage, steps=2)
    split, other = trained(tmp_path, stage, steps=2, micro=1)
    assert other == pytest.approx(losses, rel=1e-4)
    for mine, theirs in zip(split.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=2e-4)


def test_the_exported_folder_has_no_projection_and_loads(tmp_path):
    names = set(llama().state_dict())
    student, losses = trained(tmp_path, FEATURES)
    assert losses[-1] < losses[0]
    assert set(student.state_dict()) == names
    save_model(student, TOKENIZER, tmp_path / "model")
    assert [file.name for file in (tmp_path / "model").glob("*.safetensors")] == ["model.safetensors"]
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        assert not [name for name in list(file.keys()) if "objective" in name or "projection" in name]
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.tensor([[7, 8, 9]])
    torch.testing.assert_close(loaded(input_ids=ids).logits, student(input_ids=ids).logits)


def test_a_fit_that_fails_leaves_no_projection_behind():
    student = llama()
    made = objective(FEATURES, wise(), student)
    with pytest.raises(RuntimeError), trained_together(student, made):
        assert any("objective_weights" in name for name in student.state_dict())
        raise RuntimeError
    assert set(student.state_dict()) == set(llama().state_dict())


def test_projections_go_to_a_file_of_their_own_and_back(tmp_path):
    student, teacher, batch = llama(), wise(), collate(rows(), 0)
    made, fresh = (objective(FEATURES, teacher, student, seed) for seed in (0, 1))
    save_file(made.weights.state_dict(), tmp_path / "projection.safetensors")
    assert fresh.compare(student, batch).sum != made.compare(student, batch).sum
    fresh.weights.load_state_dict(load_file(tmp_path / "projection.safetensors"))
    assert fresh.compare(student, batch).sum == made.compare(student, batch).sum


@pytest.mark.parametrize("name", ["feature_kd", "relational_kd"])
def test_the_methods_default_is_forward_kl_beside_the_hidden_term(name):
    Method = load_method(name)
    (stage,) = Method().phases()
    assert (stage.forward_kl_weight, stage.cross_entropy_weight, stage.hidden_weight) == (1, 0, 1)
    assert stage.sequences == "gold" and stage.normal() == stage and TrainingPhase.of(stage.identity()) == stage
    (other,) = Method(forward_kl_weight=0.0, cross_entropy_weight=1.0, hidden_weight=0.5).phases()
    assert (other.forward_kl_weight, other.cross_entropy_weight, other.hidden_weight) == (0, 1, 0.5)
    refused = [
        {"forward_kl_weight": 0.0},
        {"forward_kl_weight": -1.0},
        {"hidden_weight": 0.0},
        {"cross_entropy_weight": float("nan")},
        *([{"relation_heads": -1}] if name == "relational_kd" else []),
    ]
    for settings in refused:
        with pytest.raises(SettingsError, match=f"method.{next(iter(settings))}"):
            Method(**settings)
