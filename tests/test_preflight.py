"""Preflight: pairs and parts that cannot work are refused from their files alone."""

import pytest

from harness.compose import compose
from harness.config import SettingsError
from harness.plan import Plan
from harness.preflight import preflight
from tests.doubles import byte_tokenizer, save_tiny


def check(*arguments):
    preflight(Plan.of(compose(list(arguments)).cells))


def test_the_main_grid_passes():
    check("data_frac=0.01,1.0", "method=sft,kd")


def test_a_pair_whose_tokenizers_differ_is_refused_by_name(tmp_path):
    save_tiny(tmp_path / "tiny")
    with pytest.raises(SettingsError, match=r"teacher='hf'.*tokenizer.*student=mini"):
        check("method=logit_kd", "teacher=hf", f"teacher.path={tmp_path / 'tiny'}")


def test_a_pair_with_one_tokenizer_passes(tmp_path):
    save_tiny(tmp_path / "tiny")
    path = tmp_path / "tiny"
    check("method=logit_kd", "student=hf", f"student.path={path}", "teacher=hf", f"teacher.path={path}")


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
