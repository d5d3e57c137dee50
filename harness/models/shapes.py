"""Shapes: the sizes of a decoder by which its memory is estimated, from files or from a table of public models.

Nothing here loads a model. A local folder states its shape in `config.json`; for the hub ids of this project's presets
the published sizes stand below; any other model is given the shape of the nearest of them, scaled to its parameters.

    shape_of(model_of(cell.student)).parameters      # 1_235_814_400 for meta-llama/Llama-3.2-1B
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from harness.models.files import local_folder
from harness.models.kinds import PUBLISHED, GgufModel, HubModel, MiniModel, NoModel, ServedModel, TypedModel, sizes_of


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder."""

    layers: int
    width: int
    """Of the residual stream, d."""
    queries: int
    """Width of all query heads together."""
    keys: int
    """Width of all key heads together, and of all value heads, k."""
    inner: int
    """Width inside the MLP, f."""
    vocabulary: int
    """Rows of the embedding, V."""
    tied: bool = True
    """Whether the output layer is the embedding."""
    gated: bool = True
    """Whether the MLP has a gate beside its input layer."""

    @property
    def layer(self) -> int:
        """Parameters of the linear layers of one decoder layer."""
        return self.width * (2 * self.queries + 2 * self.keys + (3 if self.gated else 2) * self.inner)

    @property
    def embeddings(self) -> int:
        """Parameters of the embedding, and of the output layer where it is another."""
        return self.vocabulary * self.width * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All parameters; biases are left out."""
        return self.layers * (self.layer + 2 * self.width) + self.width + self.embeddings

    def scaled(self, parameters: int) -> "Shape":
        """The same depth and vocabulary with widths that give about so many parameters."""
        # layers grow with the square of the widths and embeddings with the width: the root of a quadratic
        body, head = float(self.layers * self.layer), float(self.embeddings)
        factor = (-head + math.sqrt(head**2 + 4 * body * parameters)) / (2 * body)
        widths = {name: max(1, round(getattr(self, name) * factor)) for name in ("width", "queries", "keys", "inner")}
        return replace(self, **widths)


def shape_of(model: TypedModel) -> Shape | None:
    """The shape of a model; None where there are no weights to be loaded: no model, or one behind a server."""
    if isinstance(model, NoModel | ServedModel):
        return None
    config, layers = _config(model), getattr(model, "kept_layers", None)
    found = None if config is None else shape_of_config(config)
    if found is None:
        parameters = model.parameters()
        known = [shape_of_config(one) for one in PUBLISHED.values()]
        nearest = min(filter(None, known), key=lambda one: abs(math.log(one.parameters / parameters)))
        found = nearest.scaled(parameters)
    return replace(found, layers=layers) if layers else found


def shape_of_config(config: Mapping[str, Any]) -> Shape | None:
    """The shape that a model's config states; None where a size is missing."""
    sizes = sizes_of(config)
    if sizes is None:
        return None
    config = {**config, **(config.get("text_config") or {})}
    head = config.get("head_dim") or sizes["width"] // sizes["heads"]
    return Shape(
        layers=sizes["layers"],
        width=sizes["width"],
        queries=sizes["heads"] * head,
        keys=(config.get("num_key_value_heads") or sizes["heads"]) * head,
        inner=sizes["inner"],
        vocabulary=int(config["vocab_size"]),
        tied=bool(config.get("tie_word_embeddings")),
        gated=config.get("intermediate_size") is not None,
    )


def _config(model: TypedModel) -> Mapping[str, Any] | None:
    if isinstance(model, MiniModel):
        from harness.data.miniature.sizes import llama_settings

        return llama_settings(model.size, model.family)
    if isinstance(model, HubModel):
        folder = local_folder(model.path)
        file = None if folder is None else folder / "config.json"
        return PUBLISHED.get(model.path) if file is None else json.loads(file.read_text())
    assert isinstance(model, GgufModel)
    return None  # its sizes stand in the file itself, which is read when it is converted
