"""Code snapshot: the package that jobs run, published in the store under its hash.

A job that starts hours or days later imports the code as it was when the job was submitted.

    publish_code(store)      # <store>/code/3f2a.../, to be put on PYTHONPATH
"""

import hashlib
import os
import shutil
import uuid
from pathlib import Path

from harness.store.store import Store, fsync_tree

PACKAGE = Path(__file__).resolve().parents[2]


def publish_code(store: Store) -> Path:
    """The folder with a copy of this package, for PYTHONPATH; made once for each state of the code.

    Raises OSError where the store cannot be written.
    """
    files = sorted(path for path in PACKAGE.rglob("*.py"))
    digest = hashlib.sha256()
    for path in files:
        # A NUL, which Python source cannot contain, ends each name and each file: two trees give the same bytes only
        # where they are the same.
        digest.update(f"{path.relative_to(PACKAGE)}\0".encode() + path.read_bytes() + b"\0")
    target = store.root / "code" / digest.hexdigest()[:32]
    if target.is_dir():
        return target
    target.parent.mkdir(exist_ok=True)
    written = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    for path in files:
        copy = written / PACKAGE.name / path.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    fsync_tree(written)
    try:
        os.rename(written, target)
    except OSError:
        shutil.rmtree(written)
        if not target.is_dir():  # there, another process has published the same code
            raise
    return target
