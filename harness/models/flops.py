"""FLOPs of training and of forward passes, by the number of parameters and tokens."""


def train_flops(parameters: int, tokens: float, frozen: int = 0) -> float:
    """FLOPs of forward and backward over `tokens` read by a model of `parameters`, `frozen` of them not trained."""
    return (6.0 * parameters - 2.0 * frozen) * tokens


def forward_flops(parameters: int, tokens: float) -> float:
    """FLOPs of forward passes over `tokens` read by a model of `parameters`."""
    return 2.0 * parameters * tokens
