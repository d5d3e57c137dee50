"""FLOPs of training and of forward passes, by the number of parameters N and tokens D.

The usual estimate: 2 N D for a forward pass, 4 N D more for a backward pass (Kaplan et al. 2020, arXiv 2001.08361,
section 2.1). Attention over the context is left out.
"""


def train_flops(parameters: int, tokens: float, frozen: int = 0) -> float:
    """FLOPs of forward and backward passes over `tokens` of a model of `parameters`, `frozen` of them not trained."""
    # a frozen weight has no gradient of its own (2 per token), but gradients still flow through it (2 per token)
    return (6.0 * parameters - 2.0 * frozen) * tokens


def forward_flops(parameters: int, tokens: float) -> float:
    """FLOPs of forward passes over `tokens` of a model of `parameters`."""
    return 2.0 * parameters * tokens
