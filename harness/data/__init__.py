"""Data: rows and what is done to them before a model sees them.

Corpora are plug-ins (`corpora/`, one kind a file); the generator of the miniature corpus is `miniature/`. Here are also
chat templates, tokenised sequences, 8-gram overlap (decontamination) and text similarity. Stages that write rows are
in `stages/`.
"""

from harness.config.registry import public_face

__getattr__ = public_face(
    __name__,
    {
        "corpora": ["Example", "corpus_names", "load_corpus"],
        "sequences": ["Rows"],
    },
)
