"""The demo's terminal output, with and without a terminal."""

import dataclasses
import io

from demo_answers import FITTED
from rich.console import Console

from daemon.demo.display import Display, SensorView

VIEW = SensorView("front", True, 30.0, 0.52, (0.99, 0.5), 2.5, 1.6, "collecting", 0.4, FITTED, 1)


def test_without_a_terminal_events_and_now_and_then_the_state_are_lines_with_times():
    now = [100.0]
    out = io.StringIO()
    with Display("demo", Console(file=out, width=40), lambda: now[0]) as display:
        for second in range(7):
            now[0] = 100.0 + second
            display.update([VIEW])
        display.event("front: drift alarm")
    state = (
        "front: 30.0 frames/s, accuracy 52.0%, drift score 2.50 (alarm at 1.6), collecting 40%, homogenizer ffffffff"
    )
    assert out.getvalue().splitlines() == [f"   0.0 s  {state}", f"   5.0 s  {state}", "   6.0 s  front: drift alarm"]


def test_on_a_terminal_everything_fits_into_80_columns():
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, color_system=None)
    display = Display("demo", console)
    rear = dataclasses.replace(VIEW, sensor="rear", drifted=False, drift_score=None, accuracy=None, progress=0.0)
    display.update([VIEW, rear])
    display.event("front: drift alarm")
    console.print(display.render())
    text = out.getvalue()
    for shown in ("front, drifted", "rear", "52.0%", "█▅", "2.50", "alarm 1.6", "40%", "ffffffff, swaps: 1", "30.0"):
        assert shown in text
    assert "…" not in text and "drift alarm" in text
