"""A base model that stays where it lies is verified before a stage uses it."""

import hashlib
import json
import os

import pytest

from harness.config import file_hash
from harness.config.checks import SettingsError
from harness.config.machine import Machine
from harness.execution.attempt import attempt
from harness.execution.base_references import check_references
from harness.store.store import Store

BASE = "base-" + "aa" * 16
SPEC = {"key": "train-" + "bb" * 16, "address": "train", "kind": "train", "settings": {}, "where": {}}
SPEC |= {"inputs": {"start": BASE}}


@pytest.fixture
def base(tmp_path):
    store, folder = Store.open(tmp_path / "store"), tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"0123456789")
    planned = {"model.safetensors": hashlib.sha256(b"0123456789").hexdigest()}
    with store.scratch(BASE) as out:
        (out / "model.json").write_text(json.dumps({"path": str(folder), "revision": None}))
        store.publish(BASE, out, {"facts": {}, "settings": {"files": planned}, "inputs": {}})
    return store, folder / "model.safetensors"


def test_a_flipped_bit_of_a_referenced_base_model_is_refused_by_file_and_nothing_is_set_aside(base):
    store, weights = base
    check_references(store, SPEC)
    times = weights.stat()
    weights.write_bytes(b"0123456788")
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))  # planning would remember the hash
    file_hash._contents.clear()
    with pytest.raises(SettingsError, match=r"model\.safetensors.*another content than when it was planned.*restore"):
        check_references(store, SPEC)
    outcome = attempt(store, SPEC, "tests.makers:make", Machine())
    assert (outcome.status, outcome.failure_class) == ("failed", "settings") and store.done(BASE)
    outcome = attempt(store, {**SPEC, "verify": "size"}, "tests.makers:make", Machine())
    assert (outcome.status, outcome.reason) == ("done", None)


def test_a_referenced_base_model_that_is_gone_is_named(base):
    store, weights = base
    weights.unlink()
    with pytest.raises(SettingsError, match="it is gone"):
        check_references(store, SPEC)
