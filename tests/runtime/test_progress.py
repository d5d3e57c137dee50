"""Progress: dropped without a listener, thinned with one, and never without the last step."""

from harness.runtime import progress


def test_reports_reach_the_listener_thinned_and_with_the_last_step():
    heard = []
    with progress.listen(heard.append):
        for step in range(1, 1001):
            progress.report(step, 1000, loss=1.0)
    assert heard[-1].step == 1000
    assert len(heard) <= 3  # a thousand calls take far less than half a second


def test_a_report_reaches_a_listener_only_while_it_listens():
    heard, lines = [], []
    with progress.listen(heard.append, lines.append):
        with progress.listen(lambda one: None):
            progress.report(1, 2)
            progress.log({"step": 1})
        progress.report(2, 2, loss=0.5, note="last")
        progress.log({"step": 2})
    assert heard == [progress.Progress(2, 2, 0.5, "last")] and lines == [{"step": 2}]
    progress.report(3, 3)
    progress.log({"step": 3})
    assert len(heard) == len(lines) == 1, "outside `listen` a report goes nowhere"
