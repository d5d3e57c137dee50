"""Golden draws: no label of a random draw changes, and none draws other integers.

A renamed label changes numbers while every address stays, so no other test would notice. The labels that calls in
`harness/` pass are exactly those listed here, and each draws the integers it drew when the list was made.
"""

import ast
from pathlib import Path

import pytest

from harness.data.miniature import digest, generator
from harness.data.sequences import draw_seed
from harness.evals.lm_evaluation.model import _seed
from harness.evals.subsample import _draw
from harness.models.generate import row_uniforms
from harness.stages.subset import _generator

HARNESS = Path(__file__).resolve().parent.parent / "harness"

# label: draw_seed(0, label, i) for i in 0, 1, 2
DRAW_SEEDS = {
    "answer": [10625277188150514978, 17840249721404885357, 17935360679772113541],
    "answer again 0": [17431802356090375445, 15143106268129753743, 8467566165445544029],
    "coin": [3807381003953942850, 9450723727257645939, 494206468397289924],
    "dealt": [1333835806115896245, 6313097105837740088, 16760999422873486285],
    "examples": [11558901839689816358, 15804983934405180185, 3096765985243336156],
    "flops": [8478280995072339928, 2921348329714385163, 5110550658067290668],
    "human": [8419022539452891008, 14732865701537776701, 6590483670821364720],
    "like length": [11878972656070848426, 15212876098456219548, 12444391609047016436],
    "lora": [4340915783855312153, 9981427251205500059, 15074353254019829954],
    "pretraining": [6255606161690855043, 15629435907021999908, 17626115007450570519],
    "projection": [3830397273161987960, 4315309729849113548, 9541219463231131163],
    "prompt": [733905783380080140, 13230844590176492402, 4148079602750673465],
    "replay": [2339935218402428307, 14238764878349813200, 7702318883898549980],
    "sampled logits": [10946843825531396723, 12832731706686335380, 7144538968358202940],
    "shuffled": [15959933023013090411, 7216107893000229618, 12686310374145834873],
    "student text": [1416989762515230468, 2081462779137233665, 14475293303239162543],
    "synthetic": [6463356491266571431, 17830506661610432648, 2340333126754625647],
    "teacher": [8566345623101961925, 16572273813736518973, 11697763141139066170],
    "teacher of a row": [12915465778454265779, 12542790391757005326, 16679076698058841070],
    "train": [4643107866248972884, 10220963718100463424, 9193074041732035194],
    "turn": [17529880539797120637, 3101031449460792245, 11501563387207933526],
    "visits": [10678210169829260185, 11546609203130679065, 15539488853587618431],
}
NAMED_BY_CALLERS = {"prompt", "answer again 0"}  # synthesis hands these labels on in a variable

# labels of one call, joined by /: the first three 32-bit integers of generator(*labels, 0)
WORLD_GENERATORS = {
    "mini/facts": [2754824391, 1876332, 1094999513],
    "mini/heldout": [4228794982, 454010225, 2038266665],
    "mini/heldout answer": [2140175723, 197807296, 874899952],
    "mini/kinds": [1980126755, 2381553882, 1531220946],
    "mini/lines": [832676524, 55226691, 3058936214],
    "mini/names": [2932234965, 2078093547, 2676886548],
    "mini/row": [3230916108, 2602143165, 3806516552],
}
WORLD_DIGESTS = {"mini/split": "555fa22c", "mini/reserved": "e680fc63"}
SUBSET_GENERATORS = {
    "order": [1533747495, 1288943508, 29192266],
    "pool": [2530732547, 1887249616, 323856479],
    "validation": [441652086, 1376085247, 3067589533],
}


def labels_passed(*functions: str) -> set[str]:
    """The text constants that calls of these functions pass, joined by / within a call; calls without any left out."""
    found = set()
    for path in HARNESS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in functions:
                words = [one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
                found |= {"/".join(words)} if words else set()
    return found


def test_the_labels_in_the_code_are_the_golden_ones():
    assert labels_passed("draw_seed") == DRAW_SEEDS.keys() - NAMED_BY_CALLERS
    assert labels_passed("generator", "digest") == WORLD_GENERATORS.keys() | WORLD_DIGESTS.keys()
    assert labels_passed("_generator") == SUBSET_GENERATORS.keys()


@pytest.mark.parametrize("label", DRAW_SEEDS)
def test_a_label_draws_what_it_always_drew(label):
    assert [draw_seed(0, label, i) for i in range(3)] == DRAW_SEEDS[label]


@pytest.mark.parametrize("labels", WORLD_GENERATORS)
def test_the_miniature_draws_what_it_always_drew(labels):
    draw = generator(*labels.split("/"), 0)
    assert [draw.getrandbits(32) for _ in range(3)] == WORLD_GENERATORS[labels]


def test_digests_and_streams_of_no_label_stay():
    assert {labels: digest(*labels.split("/"), 0)[:8] for labels in WORLD_DIGESTS} == WORLD_DIGESTS
    drawn = {name: _generator(name, 0, "add").integers(0, 2**32, 3).tolist() for name in SUBSET_GENERATORS}
    assert drawn == SUBSET_GENERATORS
    assert [_seed("2+2=", draw) for draw in range(3)] == [
        1530590812380114115,
        7684079581031963704,
        7063766620004229764,
    ]
    assert [_draw(0, "add", str(name)).hex()[:8] for name in range(3)] == ["9b36a39e", "093efd96", "5dfcd925"]
    assert row_uniforms(0, 3).tolist() == [0.6369616873214543, 0.2697867137638703, 0.04097352393619469]
