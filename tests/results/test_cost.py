"""Costs: 6 N per trained token, 2 N per read one, and the teacher's share counted apart, once."""

from harness.models.flops import forward_flops, train_flops
from harness.results.cost import Cost, cell_cost


def test_flops_follow_kaplan():
    assert train_flops(parameters=10, tokens=7) == 420
    assert forward_flops(parameters=10, tokens=7) == 140


def test_a_live_teachers_forward_passes_are_the_teachers_and_the_rest_is_the_students():
    train = {
        "cost": {
            "trained_tokens": 5, "teacher_tokens": 100, "generated_tokens": 30, "flops": 900.0,
            "teacher_flops": 300.0, "teacher_seconds": 2.0,
        },
        "counts": {"read_tokens": 100},
        "seconds": 10.0,
    }  # fmt: skip
    labels = {"cost": {"generated_tokens": 40, "teacher_tokens": 60, "flops": 50.0}, "seconds": 4.0}
    lesson = {"cost": {"trained_tokens": 9, "flops": 1000.0}, "counts": {"read_tokens": 20}, "seconds": 60.0}
    cost = cell_cost([train], [(labels, 4)], [(lesson, 10)])
    assert cost["train"] == Cost(130.0, 600.0, 8.0)
    assert cost["teacher"] == Cost(200.0, 350.0, 6.0)
    assert cost["total"] == Cost(330.0, 950.0, 14.0)
    assert cost["with_teacher_training"] == Cost(350.0, 1950.0, 74.0)
    # own 600 and live teacher 300, a quarter of the labels' 50, a tenth of the lesson's 1000
    assert cost["amortised"] == Cost(330.0 - 100 + 25 + 2, 900.0 + 12.5 + 100, 10.0 + 1 + 6)
