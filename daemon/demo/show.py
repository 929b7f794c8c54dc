"""The demo on the terminal: both cameras live and what happened when; plain lines without a terminal."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

LEVELS = "▁▂▃▄▅▆▇█"
BAR_WIDTH = 8
COLUMN_WIDTH = 28  # of a camera
HISTORY = 20  # points of the accuracy curve
EVENTS_SHOWN = 12
REFRESH_HZ = 8
LINE_EVERY_S = 5.0  # without a terminal
GOOD, FAIR = 0.9, 0.7  # accuracies: green from the first on, yellow from the second


@dataclass(frozen=True)
class SensorView:
    """What is to be seen of one camera; None where it is not known yet."""

    sensor: str
    drifted: bool
    rate: float  # answers a second
    accuracy: float | None
    history: Sequence[float]
    drift_score: float | None
    threshold: float
    state: str
    progress: float
    homogenizer: str
    swaps: int


class Display:
    """Shows views and events, live on a terminal, as lines with times elsewhere."""

    def __init__(self, title: str, console: Console, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._title, self._console, self._monotonic = title, console, monotonic
        self._start = monotonic()
        self._views: Sequence[SensorView] = ()
        self._events: deque[tuple[float, str]] = deque(maxlen=EVENTS_SHOWN)
        self._next_line = 0.0
        self._live = Live(get_renderable=self.render, console=console, refresh_per_second=REFRESH_HZ)

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def elapsed(self) -> float:
        return self._monotonic() - self._start

    def event(self, text: str) -> None:
        """Tell what has just happened."""
        self._events.append((self.elapsed(), text))
        if not self._console.is_terminal:
            self._line(text)

    def update(self, views: Sequence[SensorView]) -> None:
        self._views = views
        if not self._console.is_terminal and self.elapsed() >= self._next_line:
            self._next_line = self.elapsed() + LINE_EVERY_S
            for view in views:
                self._line(status_line(view))

    def render(self) -> Panel:
        body = Group(sensor_table(self._views), Text(), event_table(self._events))
        return Panel(body, title=self._title, subtitle=f"{self.elapsed():.0f} s", padding=(1, 2))

    def _line(self, text: str) -> None:
        self._console.print(f"{self.elapsed():6.1f} s  {text}", markup=False, highlight=False, soft_wrap=True)


def sensor_table(views: Sequence[SensorView]) -> Table:
    """A column for each camera, so that two fit next to each other into 80 characters."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    for view in views:
        heading = Text(f"{view.sensor}, drifted", "red") if view.drifted else Text(view.sensor)
        table.add_column(heading, no_wrap=True, min_width=COLUMN_WIDTH)
    for label, cell in ROWS.items():
        table.add_row(label, *(cell(view) for view in views))
    return table


def event_table(events: Sequence[tuple[float, str]] | deque[tuple[float, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="dim", no_wrap=True)
    for at, text in events:
        table.add_row(f"{at:.1f} s", Text(text))
    return table


def status_line(view: SensorView) -> str:
    score = "-" if view.drift_score is None else f"{view.drift_score:.2f}"
    progress = f" {view.progress:.0%}" if 0 < view.progress < 1 else ""
    return (
        f"{view.sensor}: {view.rate:.1f} frames/s, accuracy {percent(view.accuracy)}, "
        f"drift score {score} (alarm at {view.threshold:g}), {view.state}{progress}, "
        f"homogenizer {short(view.homogenizer)}"
    )


def accuracy_curve(view: SensorView) -> Text:
    """The accuracy now, and a curve of it: one character a point."""
    text = Text(f"{percent(view.accuracy):6} ", colour(view.accuracy))
    for value in view.history[-HISTORY:]:
        text.append(LEVELS[min(int(value * len(LEVELS)), len(LEVELS) - 1)], colour(value))
    return text


def score_bar(view: SensorView) -> Text:
    """The drift score on a bar with the threshold in its middle."""
    if view.drift_score is None:
        return Text("-", "dim")
    filled = min(BAR_WIDTH, round(view.drift_score / view.threshold * BAR_WIDTH / 2))
    style = "red" if view.drift_score > view.threshold else "green"
    text = Text.assemble((f"{view.drift_score:5.2f}  ", style), bar(filled, style))
    return text.append(f" alarm {view.threshold:g}", "dim")


def state_bar(view: SensorView) -> Text:
    if not 0 < view.progress < 1:
        return Text(view.state)
    return Text.assemble(f"{view.state} ", bar(round(view.progress * BAR_WIDTH), "cyan"), f" {view.progress:.0%}")


def bar(filled: int, style: str) -> Text:
    return Text.assemble(("━" * filled, style), ("━" * (BAR_WIDTH - filled), "bright_black"))


ROWS: dict[str, Callable[[SensorView], Text | str]] = {
    "accuracy": accuracy_curve,
    "drift score": score_bar,
    "recalibration": state_bar,
    "homogenizer": lambda view: f"{short(view.homogenizer)}, swaps: {view.swaps}",
    "frames/s": lambda view: f"{view.rate:.1f}",
}


def colour(accuracy: float | None) -> str:
    if accuracy is None:
        return "dim"
    return "green" if accuracy >= GOOD else "yellow" if accuracy >= FAIR else "red"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def short(version: str) -> str:
    """A version as people compare it: its first eight characters."""
    return version[:8]
