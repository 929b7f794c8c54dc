"""An intake of frames for tests, and frames for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
import zmq

from daemon.config import InputConfig, SensorConfig
from daemon.metrics import Metrics
from daemon.serving.connection_watch import ConnectionWatch
from daemon.serving.intake import Intake
from daemon.serving.message import Frame, build_frame
from daemon.serving.refusals import Refusals
from daemon.serving.slots import NewestFrames

NOW = 1_700_000_000_000_000_000
IMAGE = np.zeros((4, 4, 3), np.uint8)
WAIT = 10.0  # seconds; only a failure takes as long


def frame(sensor: str = "front", seq: int = 0, timestamp: int = NOW, image: np.ndarray = IMAGE) -> list[bytes]:
    return build_frame(sensor, image, seq=seq, timestamp=timestamp)


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.005)


class Receiver(Intake):
    """An intake, and the newest frames that it delivered."""

    def __init__(self, context: zmq.Context, config: InputConfig, metrics: Metrics, monotonic, **sensor: int):
        refusals = Refusals(metrics)
        self._frames: NewestFrames[Frame] = NewestFrames(refusals.superseded)
        sensors = {"front": SensorConfig(**sensor), "rear": SensorConfig()}
        deliver, refuse = self._frames.put, refusals.add
        self.watch = ConnectionWatch()
        with ExitStack() as on_failure:
            on_failure.callback(self.watch.close)
            super().__init__(context, config, sensors, metrics, deliver, refuse, self.watch, lambda: NOW, monotonic)
            on_failure.pop_all()

    def start(self) -> None:
        self.watch.start()
        super().start()

    def close(self) -> None:
        self.watch.close()
        super().close()

    def take(self, timeout: float) -> Frame | None:
        return self._frames.take(timeout)
