"""View: what the user sees while a grid runs: a live panel on a terminal, plain lines elsewhere.

with view_of(sys.stderr) as view:
    execute(plan, store, settings, view)
"""

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, TextIO

from harness.plan.graph import Stage
from harness.runtime.progress import Progress
from harness.store.status import StageState

PLAIN_SECONDS_BETWEEN_LINES = 15.0
FINAL = ("done", "failed", "blocked")


class PlainView:
    """One line when a stage starts, ends or fails, and one every 15 seconds of a long stage."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.total = 0
        self.finished = 0
        self.states: dict[str, str] = {}
        self.started: dict[str, float] = {}
        self.progress: dict[str, Progress] = {}
        self.lines: dict[str, float] = {}
        self.failures: list[str] = []
        self.begun = time.monotonic()
        self.expected: dict[str, float] = {}

    def __enter__(self) -> "PlainView":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Keep the expected seconds of every stage to be made, from which the time left is estimated."""
        self.expected = dict(seconds)

    def time_left(self) -> str:
        """The run's time left in words, from the expected seconds of finished stages; empty until a tenth is done."""
        whole = sum(self.expected.values())
        left = sum(seconds for key, seconds in self.expected.items() if self.states.get(key) not in FINAL)
        if not whole or whole - left < 0.1 * whole or not left:
            return ""
        # Time spent over expected seconds done: the ratio corrects wrong estimates, and counts stages that run at
        # once.
        return in_words((time.monotonic() - self.begun) * left / (whole - left))

    def changed(self, stage: Stage, state: StageState) -> None:
        """Count the stage, and print a line where its state changes."""
        before = self.states.get(stage.key)
        self.states[stage.key] = state.status
        self.total = len(self.states)
        # the difference: a state that is reported twice counts once, and one that is taken back no longer counts
        self.finished += (state.status in FINAL) - (before in FINAL)
        if state.status == "running":
            self.started[stage.key] = self.lines[stage.key] = time.monotonic()
        if state.status == "failed":
            self.failures.append(f"{stage.address} failed ({state.failure_class}): {state.reason}")
        # the first report of each stage is its state before the run, which is no event
        if before is not None:
            self.say(stage, state)

    def say(self, stage: Stage, state: StageState) -> None:
        """Print one line about a stage that starts, waits, ends or fails."""
        if state.status == "running":
            self.line(f"start   {short(stage)}")
        elif state.status == "done":
            seconds = time.monotonic() - self.started.get(stage.key, self.begun)
            left = self.time_left()
            self.line(f"done    {short(stage)}  {seconds:.1f} s{self._loss(stage.key)}{left and f'  ({left} in all)'}")
        elif state.status == "waiting":
            self.line(f"waits   {short(stage)}: {state.reason}")
        elif state.status == "failed":
            self.line(f"FAILED  {self.failures[-1]}")

    def progressed(self, stage: Stage, progress: Progress) -> None:
        """Keep the stage's progress; a long stage gets a line every `PLAIN_SECONDS_BETWEEN_LINES`."""
        self.progress[stage.key] = progress
        now = time.monotonic()
        if now - self.lines.get(stage.key, now) >= PLAIN_SECONDS_BETWEEN_LINES:
            self.lines[stage.key] = now
            self.line(f"        {short(stage)}  {describe(progress, now - self.started[stage.key])}")

    def warn(self, text: str) -> None:
        """Print a warning, which stays on the screen."""
        print(f"warning: {text}", file=self.stream, flush=True)

    def tick(self) -> None:
        """Nothing to redraw."""

    def line(self, text: str) -> None:
        """Print one line with the count of finished stages."""
        print(f"[{self.finished:>3}/{self.total}] {text}", file=self.stream, flush=True)

    def _loss(self, key: str) -> str:
        loss = self.progress[key].loss if key in self.progress else None
        return "" if loss is None else f"  loss {loss:.3f}"


class LiveView(PlainView):
    """A panel that redraws: running stages with step, loss and time left, then failures."""

    def __enter__(self) -> "LiveView":
        from rich.console import Console
        from rich.live import Live

        # the panel is a function: each redraw shows the clock as it is then, though no state has changed
        self.live = Live(console=Console(file=self.stream), refresh_per_second=4, get_renderable=self.panel)
        self.live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.__exit__(kind, error, trace)

    def say(self, stage: Stage, state: StageState) -> None:
        """Print nothing: the panel shows states."""

    def warn(self, text: str) -> None:
        """Print a warning above the panel."""
        self.live.console.print(f"warning: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True)

    def line(self, text: str) -> None:
        """Print nothing: the panel shows progress."""

    def panel(self) -> Any:
        """The panel as of now."""
        # imported here, since plain lines need no `rich`
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        now = time.monotonic()
        # a copy: `rich` draws the panel in a thread of its own, while states change
        running = [key for key, status in list(self.states.items()) if status == "running"]
        table = Table.grid(padding=(0, 2))
        for key in running:
            progress = self.progress.get(key)
            bar = ProgressBar(
                total=progress.total if progress else None,
                completed=progress.step if progress else 0,
                width=24,
                pulse=progress is None,
            )
            table.add_row(self.names[key], bar, describe(progress, now - self.started[key]) if progress else "")
        minutes, seconds = divmod(int(now - self.begun), 60)
        left = self.time_left()
        clock = f"{minutes}:{seconds:02d}{left and f', about {left}'}"
        head = Text(f"{self.finished} of {self.total} stages, {len(running)} running, {clock}", "bold")
        failures = [Text(failure, "red") for failure in self.failures[-5:]]
        return Group(head, table, *failures)

    def changed(self, stage: Stage, state: StageState) -> None:
        """Keep the stage's name for the panel, then count the stage."""
        self.names[stage.key] = short(stage)
        super().changed(stage, state)

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self.names: dict[str, str] = {}


def view_of(stream: TextIO | None = None) -> PlainView:
    """The view that suits the stream: live on a terminal, plain lines otherwise."""
    stream = stream or sys.stderr
    return LiveView(stream) if stream.isatty() else PlainView(stream)


def short(stage: Stage) -> str:
    """Kind, name and the first eight digits of the fingerprint."""
    return f"{stage.kind}-{stage.name}-{stage.fingerprint[:8]}"


def in_words(seconds: float) -> str:
    """Time left in words, e.g. `40 s left`, `3 min left`."""
    return f"{seconds:.0f} s left" if seconds < 90 else f"{seconds / 60:.0f} min left"


def describe(progress: Progress, seconds: float) -> str:
    """Step, loss and time left, e.g. `120/300  loss 0.412  8 s left`."""
    parts = [f"{progress.step}/{progress.total}"]
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.step and progress.step < progress.total:
        parts.append(in_words(seconds * (progress.total - progress.step) / progress.step))
    if progress.note:
        parts.append(progress.note)
    return "  ".join(parts)
