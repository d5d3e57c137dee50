"""References to base models: their files lie outside the store, and are verified before a stage uses them.

check_references(store, spec)      # SettingsError names the file; nothing of the user's is moved
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.config.checks import refuse
from harness.config.file_hash import content_sha256
from harness.models.files import read_pointer
from harness.store.store import Store


def check_references(store: Store, spec: Mapping[str, Any]) -> None:
    """Verify the files of base models that a stage uses where they lie: the store has a reference to their folder.

    Raises SettingsError where one has another content than when it was planned; OSError where one cannot be read.
    """
    for key in dict.fromkeys(spec["inputs"].values()):
        if not key.startswith("base-"):
            continue
        planned = (store.manifest(key).get("settings") or {}).get("files") or {}
        folder = Path(read_pointer(store.folder(key))[0])
        if folder == store.folder(key) or not folder.is_dir():
            continue
        for name, sha256 in planned.items():
            file = folder / name
            if not file.is_file() or content_sha256(file) != sha256:
                found = "it has another content than when it was planned" if file.is_file() else "it is gone"
                way_out = "restore the file; to use it as it is, touch it and start the run again"
                raise refuse("path", str(file), f"{found}, though {key} was made from it", way_out)
