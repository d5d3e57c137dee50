"""Launchers: where attempts run. Each offers the same three calls to `harness.execute`.

`slots` (how many attempts may run at once), `submit(spec, maker)`, and `events(timeout)` which yields
`Progress` and `Outcome` by key as they come.
"""
