"""Colours: a method keeps its own in every figure.

colour_of("kd[student_share=1.0]")     # kd's
"""

# Okabe and Ito's colours, told apart under the common kinds of colour blindness
COLOURS = {
    "sft": "#404040",
    "sft_restart": "#8C8C8C",
    "kd": "#0072B2",
    "on_policy": "#D55E00",
    "logit_kd": "#009E73",
    "seq_kd": "#CC79A7",
    "two_stage": "#E69F00",
    "skd": "#56B4E9",
    "distillm": "#8C510A",
    "self_kd": "#6A51A3",
}
OTHERS = "#404040"
SPARE = ("#332288", "#44AA99", "#AA4499", "#999933", "#882255", "#117733", "#88CCEE", "#DDCC77")


def colour_of(method: str) -> str:
    """The colour that a method, or a variant of it, has in every figure."""
    return COLOURS.get(method.partition("[")[0], OTHERS)
