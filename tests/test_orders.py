"""Orders cross from the control thread to the frame thread: carried out once, or not at all."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from running import write_config

from daemon.config import load_config
from daemon.loop import Daemon
from daemon.notify import Notifier

ROLLBACK = {"command": "rollback", "sensor": "front", "by": "somebody"}


class Frames:
    """The frame thread's end of a daemon that was not started: it obeys when it is told to."""

    def __init__(self, config: Path) -> None:
        self.done: list[tuple[str, str]] = []
        self.daemon = Daemon(load_config(config), CollectorRegistry(), Notifier())
        sensor: Any = object()
        self.daemon.sensors = {"front": sensor}
        self.daemon._orders = SimpleNamespace(names=lambda: ("rollback",), carry_out=self.carry_out)

    def carry_out(self, order: str, sensor: object, by: str) -> dict[str, str]:
        self.done.append((order, by))
        if len(self.done) > 1:
            raise ValueError("there is nothing to go back to")
        return {"said": "factory serves again"}


@pytest.fixture
def frames(tmp_path: Path, tiny_model: Path) -> Frames:
    return Frames(write_config(tmp_path, tiny_model))


def ask(frames: Frames) -> dict[str, Any]:
    """Ask from another thread, and obey until there is an answer."""
    with ThreadPoolExecutor(1) as control:
        answer = control.submit(frames.daemon._answer, ROLLBACK)
        while not answer.done():
            frames.daemon._obey()
        return answer.result()


def test_an_order_is_carried_out_and_answered(frames):
    assert ask(frames) == {"said": "factory serves again"}
    assert frames.done == [("rollback", "somebody")]


def test_a_refusal_names_the_sensor(frames):
    ask(frames)
    with pytest.raises(ValueError, match="^front: there is nothing to go back to$"):
        ask(frames)


def test_an_order_that_waited_too_long_is_dropped_for_good(frames, monkeypatch):
    monkeypatch.setattr("daemon.loop.ORDER_TIMEOUT_S", 0.05)
    with pytest.raises(ValueError, match="the order was dropped: try again"):
        frames.daemon._answer(ROLLBACK)
    frames.daemon._obey()
    assert frames.done == []


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"command": "explode", "sensor": "front"}, "unknown command 'explode': status, rollback"),
        ({"command": "rollback", "sensor": "side"}, "unknown sensor 'side': configured are front"),
    ],
)
def test_what_makes_no_sense_is_answered_at_once(frames, request_, said):
    with pytest.raises(ValueError, match=said):
        frames.daemon._answer(request_)
