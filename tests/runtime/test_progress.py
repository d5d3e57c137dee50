"""Progress: free when nobody listens, thinned when somebody does, never missing the last step."""

from harness.runtime import progress


def test_reports_reach_the_listener_thinned_and_with_the_last_step():
    heard = []
    with progress.listen(heard.append):
        for step in range(1, 1001):
            progress.report(step, 1000, loss=1.0)
    assert heard[-1].step == 1000
    assert len(heard) <= 3  # a thousand calls take far less than half a second


def test_without_a_listener_a_report_does_nothing():
    progress.report(1, 2)
