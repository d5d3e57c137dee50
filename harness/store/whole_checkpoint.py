"""Whole checkpoints: whether a checkpoint's folder holds what was written, to the byte; nothing here needs torch.

A checkpoint's `state.json` holds the size and sha256 of the other files, and a seal of its own. What is in the files is
`training/checkpoints.py`'s.

    (folder / "state.json").write_text(sealed_state(state, folder))      # the last of its files
    read_checkpoint(folder)                                              # the state, or {}
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.config.file_hash import content_sha256, file_sha256

STATE = "state.json"


def sealed_state(state: Mapping[str, Any], folder: Path) -> str:
    """The text of `state.json` for a folder whose other files are written. Raises OSError where one cannot be read."""
    files = [path for path in sorted(folder.iterdir()) if path.name != STATE]
    whole = {
        **state,
        "files": {path.name: path.stat().st_size for path in files},
        "sha256": {path.name: file_sha256(path, remember=False) for path in files},
    }
    return json.dumps({**whole, "seal": _seal(whole)})


def read_checkpoint(folder: Path, content: bool = True) -> dict[str, Any]:
    """The state of a whole checkpoint; empty where a file is missing, of another size or, with `content`, changed.

    A checkpoint of an earlier version has sizes alone.
    """
    try:
        state = json.loads((folder / STATE).read_text())
        if any((folder / name).stat().st_size != size for name, size in state["files"].items()):
            return {}
        if content:
            if state.get("seal", "") not in ("", _seal(state)):
                return {}
            if any(content_sha256(folder / name) != known for name, known in state.get("sha256", {}).items()):
                return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return state


def _seal(state: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in state.items() if name != "seal"}
    return hashlib.sha256(json.dumps(json.loads(json.dumps(rest)), sort_keys=True).encode()).hexdigest()
