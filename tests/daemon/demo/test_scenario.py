"""`recald demo --keep`: the daemon and the cameras go on until Ctrl-C, which is a planned end."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from daemon.demo import scenario
from daemon.demo.processes import DaemonProcess
from daemon.demo.scenario import keep_running, run_scenario
from daemon.simulation.drifts import parse_drift


class Observed:
    """An observer whose daemon recovers at once; a person presses Ctrl-C at the third look."""

    def __init__(self) -> None:
        self.looks, self.events, self.done = 0, [], []
        self.display = SimpleNamespace(event=self.events.append)
        self.daemon = SimpleNamespace(page="http://127.0.0.1:7/")
        self.cameras = SimpleNamespace(
            start=lambda: self.done.append("start"),
            drift=lambda sensor, drift: self.done.append("drift"),
            stop=lambda: self.done.append("stop"),
        )

    def follow(self, seconds: float, until: Any = None) -> bool:
        if seconds == scenario.UPDATE_INTERVAL_S:
            self.looks += 1
            if self.looks == 3:
                raise KeyboardInterrupt
        return True

    def update(self) -> None:
        self.done.append("update")

    def monotonic(self) -> float:
        return 0.0


@pytest.fixture
def observed() -> Any:
    return Observed()


def test_it_goes_on_until_ctrl_c_and_names_the_page(observed):
    keep_running(observed)
    assert observed.looks == 3 and "http://127.0.0.1:7/" in observed.events[0]


@pytest.mark.parametrize("keep", [True, False])
def test_the_cameras_stop_as_planned(observed, keep):
    run_scenario(observed, parse_drift("exposure=-1", 0), keep)
    assert observed.done == ["start", "drift", "stop", "update"]
    assert "http://127.0.0.1:7/" in observed.events[0], "nobody sees the drift on the page"
    assert observed.looks == (3 if keep else 0)


@pytest.mark.process
def test_ctrl_c_of_the_terminal_does_not_reach_the_daemon(tmp_path):
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with DaemonProcess(tmp_path / "recald.yaml", tmp_path / "log", 1, command) as daemon:
        assert os.getpgid(daemon.process.pid) != os.getpgid(0)
