"""What a cluster file's `serve.command` may start in tests: the fake server with the model of a folder.

python -m tests.serve_tiny FOLDER PORT [seconds before each answer]
"""

import sys
import threading
from pathlib import Path

from harness.models.loading import load_model
from tests.fake_server import FakeServer


def main(folder, port, seconds="0"):
    """Serve the model under the name of its folder."""
    model = load_model(Path(folder))
    with FakeServer(model, served=(folder,), port=int(port)) as server:
        server.context, server.delay_s = model.config.max_position_embeddings, lambda number: float(seconds)
        print("serving", folder, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
