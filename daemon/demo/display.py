"""The terminal output of the demo: both cameras live and the events; plain lines without a terminal."""

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

CURVE_GLYPHS = "▁▂▃▄▅▆▇█"  # from accuracy 0 to 1
CURVE_POINTS = 20
BAR_WIDTH = 8  # characters
CAMERA_COLUMN_WIDTH = 28  # characters, so that two cameras fit into 80
MAX_EVENTS = 12  # shown at a time
REFRESH_HZ = 8
LINE_INTERVAL_S = 5.0  # between status lines without a terminal
GREEN_ACCURACY, YELLOW_ACCURACY = 0.9, 0.7  # from these accuracies on


@dataclass(frozen=True)
class SensorView:
    """What is shown of one camera; None for what is not known yet."""

    sensor: str
    drifted: bool
    rate: float  # answers per second
    accuracy: float | None
    history: Sequence[float]  # of the accuracy
    drift_score: float | None
    threshold: float
    state: str
    progress: float
    homogenizer: str
    swaps: int


class Display:
    """Shows views and events: live on a terminal, elsewhere as lines with times."""

    def __init__(self, title: str, console: Console, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._title, self._console, self._monotonic = title, console, monotonic
        self._start = monotonic()
        self._views: Sequence[SensorView] = ()
        self._events: deque[tuple[float, str]] = deque(maxlen=MAX_EVENTS)
        self._next_line = 0.0
        self._live = Live(get_renderable=self.render, console=console, refresh_per_second=REFRESH_HZ)

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def event(self, text: str) -> None:
        """Show an event, with its time."""
        self._events.append((self._elapsed(), text))
        if not self._console.is_terminal:
            self._print_line(text)

    def update(self, views: Sequence[SensorView]) -> None:
        """Show these views from now on; without a terminal as a line every LINE_INTERVAL_S."""
        self._views = views
        if not self._console.is_terminal and self._elapsed() >= self._next_line:
            self._next_line = self._elapsed() + LINE_INTERVAL_S
            for view in views:
                self._print_line(status_line(view))

    def render(self) -> Panel:
        events = Table.grid(padding=(0, 2))
        events.add_column(justify="right", style="dim", no_wrap=True)
        for at, text in self._events:
            events.add_row(f"{at:.1f} s", Text(text))
        body = Group(sensor_table(self._views), Text(), events)
        return Panel(body, title=self._title, subtitle=f"{self._elapsed():.0f} s", padding=(1, 2))

    def _elapsed(self) -> float:
        return self._monotonic() - self._start

    def _print_line(self, text: str) -> None:
        self._console.print(f"{self._elapsed():6.1f} s  {text}", markup=False, highlight=False, soft_wrap=True)


def sensor_table(views: Sequence[SensorView]) -> Table:
    """Return a table with a column for each camera."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    for view in views:
        heading = Text(f"{view.sensor}, drifted", "red") if view.drifted else Text(view.sensor)
        table.add_column(heading, no_wrap=True, min_width=CAMERA_COLUMN_WIDTH)
    rows: dict[str, Callable[[SensorView], Text | str]] = {
        "accuracy": accuracy_curve,
        "drift score": drift_score_bar,
        "recalibration": state_bar,
        "homogenizer": lambda view: f"{short_version(view.homogenizer)}, swaps: {view.swaps}",
        "frames/s": lambda view: f"{view.rate:.1f}",
    }
    for label, cell in rows.items():
        table.add_row(label, *(cell(view) for view in views))
    return table


def status_line(view: SensorView) -> str:
    score = "-" if view.drift_score is None else f"{view.drift_score:.2f}"
    progress = f" {view.progress:.0%}" if 0 < view.progress < 1 else ""
    return (
        f"{view.sensor}: {view.rate:.1f} frames/s, accuracy {percent(view.accuracy)}, "
        f"drift score {score} (alarm at {view.threshold:g}), {view.state}{progress}, "
        f"homogenizer {short_version(view.homogenizer)}"
    )


def accuracy_curve(view: SensorView) -> Text:
    """Return the accuracy of now, and its history as a curve, one character for each point."""
    text = Text(f"{percent(view.accuracy):6} ", accuracy_colour(view.accuracy))
    for value in view.history[-CURVE_POINTS:]:
        glyph = CURVE_GLYPHS[min(int(value * len(CURVE_GLYPHS)), len(CURVE_GLYPHS) - 1)]
        text.append(glyph, accuracy_colour(value))
    return text


def drift_score_bar(view: SensorView) -> Text:
    """Return the drift score and a bar, with the threshold in the middle of the bar."""
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


def accuracy_colour(accuracy: float | None) -> str:
    if accuracy is None:
        return "dim"
    return "green" if accuracy >= GREEN_ACCURACY else "yellow" if accuracy >= YELLOW_ACCURACY else "red"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def short_version(version: str) -> str:
    """Return the first eight characters of a version, as people compare it."""
    return version[:8]
