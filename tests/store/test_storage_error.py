"""Storage faults in one sentence, whichever library met them."""

import errno
import os

import pandas as pd
import pyarrow as pa
import pytest
from safetensors import SafetensorError
from tokenizers import Tokenizer, models

from harness.store.storage_error import StorageError, storage_error, storage_faults

FULL = "/dev/full"  # every write to it fails as on a full disk


def _text():
    with open(FULL, "w") as file:
        file.write("x")


def _table():
    pd.DataFrame({"a": [1.0]}).to_parquet(FULL)


def _arrow():
    with pa.OSFile(FULL, "wb") as file:
        file.write(b"x")


def _tokenizer():
    Tokenizer(models.BPE(vocab={"a": 0}, merges=[])).save(FULL)


def _weights():
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("write", [_text, _table, _arrow, _tokenizer, _weights])
def test_a_full_disk_is_one_sentence_whichever_library_writes(tmp_path, write):
    with pytest.raises(StorageError) as caught, storage_faults(tmp_path):
        write()
    said = str(caught.value)
    assert caught.value.number == errno.ENOSPC and "\n" not in said
    assert "No space left on device" in said and "MB are free" in said and "the same command goes on" in said


def test_the_sentence_names_the_file_and_how_much_of_the_artifact_was_written(tmp_path):
    (tmp_path / "objects").mkdir()
    (tmp_path / "tmp" / "train-1").mkdir(parents=True)
    (tmp_path / "tmp" / "train-1" / "weights").write_bytes(bytes(3 * 2**20))
    with pytest.raises(StorageError) as caught, storage_faults(tmp_path, tmp_path / "tmp" / "train-1"):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(tmp_path / "tmp" / "train-1" / "config.json"))
    assert str(caught.value).startswith(f"store='{tmp_path}' failed: Disk quota exceeded at tmp/train-1/config.json (")
    assert "3.0 MB of this artifact were written); make room there or have the quota raised" in str(caught.value)


def test_a_file_elsewhere_is_named_by_its_own_folder(tmp_path):
    error = storage_error(OSError(errno.EIO, "Input/output error", "/data/rows.jsonl"), tmp_path)
    assert str(error).startswith("'/data' failed: Input/output error at rows.jsonl; check the disk")


def test_the_cause_of_a_librarys_error_is_found(tmp_path):
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as cause:
            raise RuntimeError("the data set was not generated") from cause
    except RuntimeError as wrapped:
        assert storage_error(wrapped, tmp_path).number == errno.ENOSPC


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "config.json"),
        PermissionError(errno.EACCES, "Permission denied", "/etc/shadow"),
        OSError(errno.ENOTCONN, "Transport endpoint is not connected"),  # of a socket
        RuntimeError("CUDA error, code: 28"),
        ValueError("line 28 (os error 28)"),
    ],
)
def test_other_errors_pass_as_they_are(tmp_path, error):
    with pytest.raises(type(error)) as caught, storage_faults(tmp_path):
        raise error
    assert caught.value is error


def test_a_store_that_is_gone_is_a_fault_and_a_file_that_is_absent_is_none(tmp_path):
    root = tmp_path / "store"
    absent = FileNotFoundError(errno.ENOENT, "No such file or directory", str(root / "objects" / "x"))
    assert "put the folder back" in str(storage_error(absent, root))
    root.mkdir()
    assert storage_error(absent, root) is None
