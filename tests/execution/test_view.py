"""What a person sees: counts, failures in one line, time left; a panel on a terminal."""

import io

from harness.execution.view import LiveView, PlainView, describe, view_of
from harness.plan.graph import Stage
from harness.runtime.progress import Progress
from harness.store.status import StageState


def stage(name="sft-0.01-s0"):
    return Stage("train", name, {"name": name})


def test_plain_lines_tell_starts_ends_and_failures():
    stream = io.StringIO()
    view = view_of(stream)
    assert type(view) is PlainView
    with view:
        for name in ("a", "b"):
            view.changed(stage(name), StageState("waiting"))
        view.changed(stage("a"), StageState("running"))
        view.progressed(stage("a"), Progress(30, 300, 0.5))
        view.changed(stage("a"), StageState("done"))
        view.changed(stage("b"), StageState("running"))
        view.changed(stage("b"), StageState("failed", "diverged", "the loss at step 3 is nan"))
    printed = stream.getvalue().splitlines()
    assert printed[0].startswith("[  0/2] start   train-a-")
    assert printed[1].startswith("[  1/2] done    train-a-") and printed[1].endswith("loss 0.500")
    assert "FAILED" in printed[3] and "(diverged): the loss at step 3 is nan" in printed[3]


def test_progress_says_how_much_time_is_left():
    assert describe(Progress(30, 300, 0.41234), seconds=3.0) == "30/300  loss 0.412  27 s left"
    assert describe(Progress(10, 100, None, "answers"), seconds=60.0) == "10/100  9 min left  answers"


def test_the_whole_runs_time_left_follows_the_expected_cost_of_what_is_done():
    view = PlainView(io.StringIO())
    view.begun -= 30
    view.expect({stage("a").key: 10.0, stage("b").key: 20.0})
    assert view.time_left() == ""
    for status in ("waiting", "running", "done"):
        view.changed(stage("a"), StageState(status))
    assert view.time_left() == "60 s left"  # a third of the cost took 30 s


def test_the_live_panel_shows_running_stages_and_failures():
    from rich.console import Console

    view = LiveView(io.StringIO())
    view.changed(stage("a"), StageState("running"))
    view.progressed(stage("a"), Progress(30, 300, 0.5))
    view.changed(stage("b"), StageState("failed", "oom_host", "no memory"))
    console = Console(file=io.StringIO(), width=120)
    console.print(view.panel())
    panel = console.file.getvalue()
    assert "1 of 2 stages, 1 running" in panel
    assert "30/300  loss 0.500" in panel and "train-a-" in panel
    assert "failed (oom_host): no memory" in panel
