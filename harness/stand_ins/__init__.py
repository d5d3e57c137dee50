"""Stand-ins for rehearsals: small random models, a made-up mixture and made-up benchmark items.

They differ from each other as the real ones do (tokenizers, templates, ends of turn, padded embeddings, tied heads,
shards, bf16), so a grid of the paper runs end to end in minutes on a CPU (`scale=rehearsal`, `plan/rehearsal.py`).
Their weights are random: they teach nothing, and no number of a rehearsal means anything.

    folder = ensure(Path("outputs/rehearsal"))      # made once, under the version of these files
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

VERSION = "1"
"""Raised when what is written changes; stand-ins of another version lie beside it."""
MODELS, CORPUS, BENCHMARKS = "models", "tulu-3-sft-mixture", "benchmarks"
"""Folders of the stand-ins: models by `folder_of` their hub id, the mixture's shards, the benchmarks' JSON lines."""
LICENSE = "none: a stand-in with random weights for rehearsals"
"""The licence of every stand-in model, by which results of a rehearsal are recognised."""


def folder_of(hub_id: str) -> str:
    """The folder name of a stand-in: `meta-llama--Llama-3.2-1B`."""
    return hub_id.replace("/", "--")


def ensure(root: Path) -> Path:
    """The folder of the stand-ins under `root`, made first where it is not there.

    They are made by another process, so that planning loads neither torch nor transformers.
    """
    folder = root.resolve() / f"stand_ins-{VERSION}"
    if not folder.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".making-", dir=root))
        try:
            subprocess.run([sys.executable, "-m", "harness.stand_ins.make", str(made / "all")], check=True)
            _publish(made / "all", folder)
        finally:
            shutil.rmtree(made)
    return folder


def _publish(made: Path, folder: Path) -> None:
    try:
        os.rename(made, folder)
    except OSError:
        if not folder.is_dir():  # else another process published the same ones first
            raise
