"""A file's sha256 is that of its content now, whatever was remembered of it."""

import os

from harness.config.file_hash import file_sha256


def test_a_sha256_is_remembered_only_while_size_and_mtime_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "rows"
    path.write_text("abc")
    os.utime(path, ns=(10**18, 10**18))
    # sha256 of "abc": FIPS 180-2, appendix B.1
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(path) == known
    path.write_text("abd")
    os.utime(path, ns=(10**18, 10**18))
    assert file_sha256(path) == known  # shows that the cache is read: same size, same mtime
    os.utime(path, ns=(10**18, 10**18 + 1))
    assert file_sha256(path) != known
    path.write_text("abc")  # just now: must not be remembered
    assert file_sha256(path) == known
    stamp = path.stat().st_mtime_ns
    path.write_text("abd")
    os.utime(path, ns=(stamp, stamp))
    assert file_sha256(path) != known


def test_a_sha256_that_is_not_to_be_remembered_is_read_from_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path, digests = tmp_path / "rows", []
    for text in ("abc", "abd"):
        path.write_text(text)
        os.utime(path, ns=(10**18, 10**18))
        digests.append(file_sha256(path, remember=False))
    assert digests[0] != digests[1] and not (tmp_path / "cache").exists()


def test_a_cache_folder_that_cannot_be_written_changes_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    os.utime(tmp_path / "file", ns=(10**18, 10**18))
    assert file_sha256(tmp_path / "file").startswith("e3b0c44298fc1c14")  # sha256 of nothing
