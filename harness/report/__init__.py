"""Report: what a person reads.

The terminal's summary, the HTML and Markdown page, figures (`figures/`), the receipt and model card of every student,
licences. Numbers come from `results/`.
"""

from harness import notebook_function
from harness.config.registry import public_face

__getattr__ = public_face(
    __name__,
    {
        "page": ["write_report"],
        "terminal": ["Finished"],
    },
)

notebook_function(__name__)
