"""Provenance: which code, versions and hardware made an artifact. Never the environment's variables."""

import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "trl", "datasets", "tokenizers", "hydra-core", "numpy", "pandas")


# One process makes many stages, and the code it has imported does not change with the checkout.
@functools.cache
def provenance() -> dict[str, Any]:
    """Git commit of this checkout (and whether it was changed), package versions, and the hardware."""
    root = Path(__file__).resolve().parents[2]
    ours = _git(root, "rev-parse", "--show-toplevel") == str(root)  # an installed package may lie in another repository
    commit = _git(root, "rev-parse", "HEAD") if ours else None
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "commit": commit,
        "changed": bool(_git(root, "status", "--porcelain", "--untracked-files=no")) if commit else None,
        "python": platform.python_version(),
        "versions": versions,
        "hardware": {"machine": platform.machine(), "cpu": _cpu_name(), "cores": os.cpu_count()},
    }


def _git(root: Path, *arguments: str) -> str | None:
    try:
        answer = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
    # a node may have no git, or a file system that keeps it waiting; the artifact then names no commit
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _cpu_name() -> str:
    """The processor and its widest vectors, which decide how sums are rounded: `AMD EPYC, AVX-512`."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    # Every core has its own entries. The last assignment to a name stays, so from the end it is that of core 0.
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    flags = fields.get("flags", "").split()
    widest = [words for flag, words in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags]
    return ", ".join([fields.get("model name") or platform.processor(), *widest[:1]])
