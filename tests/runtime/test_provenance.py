"""What an artifact says of the code and the machine that made it."""

from pathlib import Path

import pytest

from harness.runtime.provenance import provenance


@pytest.mark.parametrize(
    ("cpuinfo", "told"),
    [
        ("model name\t: A CPU\nflags\t\t: fpu avx avx2 avx512f\n\nmodel name\t: A CPU\n", "A CPU, AVX-512"),
        ("model name\t: A CPU\nflags\t\t: fpu avx avx2\n", "A CPU, AVX2"),
        ("model name\t: A CPU\nflags\t\t: fpu\n", "A CPU"),
    ],
)
def test_a_cpu_is_told_with_its_widest_vectors_for_they_decide_how_sums_are_rounded(monkeypatch, cpuinfo, told):
    read = Path.read_text
    answer = {Path("/proc/cpuinfo"): cpuinfo}
    monkeypatch.setattr(Path, "read_text", lambda path, *more, **named: answer.get(path) or read(path, *more, **named))
    provenance.cache_clear()
    assert provenance()["hardware"]["cpu"] == told
    provenance.cache_clear()
