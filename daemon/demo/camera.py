"""The demo's cameras: show pictures whose labels they remember, and hear what the daemon made of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import zmq

from daemon.demo.ledger import Ledger
from daemon.serving.message import build_frame
from daemon.serving.results import parse_result
from daemon.simulation.camera import open_camera, paced, send
from daemon.simulation.drifts import Drift
from daemon.zmq_sockets import connect, open_socket

RESULT_QUEUE = 1000  # results; far more than can be under way, so that none is lost on this side
DRAIN_S = 1.0  # the last answers are on their way for less


class Cameras:
    """One camera for each sensor, taking turns in one thread that also reads the results.

    The pictures come in random order, the same for the same seed.
    """

    def __init__(
        self,
        context: zmq.Context,
        ledger: Ledger,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        sensors: Sequence[str],
        frames: str,
        results: str,
        fps: float,
        seed: int,
    ) -> None:
        self.ledger, self.images, self.labels = ledger, images, labels
        self.sensors, self.fps = sensors, fps
        self.drifts: dict[str, Drift] = {}
        self._seen: dict[str, int] = dict.fromkeys(sensors, 0)
        self._rng = np.random.default_rng(seed)
        self._stop = threading.Event()
        self._results = open_socket(context, zmq.SUB)
        self._results.setsockopt(zmq.RCVHWM, RESULT_QUEUE)
        self._results.setsockopt(zmq.SUBSCRIBE, b"")
        connect(self._results, results)
        self._frames = open_camera(context, frames)
        self._executor = ThreadPoolExecutor(1, "cameras")
        self._running: Future[None] | None = None

    def start(self) -> None:
        self._running = self._executor.submit(self._run)

    def check(self) -> None:
        """Raise what ended the cameras, if anything did."""
        if self._running is not None and self._running.done():
            self._running.result()

    def drift(self, sensor: str, drift: Drift) -> None:
        """From its next frame on, let the camera of this sensor be a drifted one."""
        self.drifts[sensor] = drift

    def stop(self) -> None:
        """Take no more pictures, and wait for the answers to the last."""
        self._stop.set()
        if self._running is not None:
            self._running.result()

    def close(self) -> None:
        self._stop.set()
        self._executor.shutdown()
        self._frames.close()
        self._results.close()

    def _run(self) -> None:
        for turn in paced(self.fps * len(self.sensors), self._listen):
            self._show(self.sensors[turn % len(self.sensors)])
        self._receive_until(time.monotonic() + DRAIN_S)

    def _show(self, sensor: str) -> None:
        chosen = int(self._rng.integers(len(self.images)))
        seq = self._seen[sensor]
        self._seen[sensor] += 1
        drift = self.drifts.get(sensor)
        image = drift(self.images[chosen], seq) if drift else self.images[chosen]
        parts = build_frame(sensor, image, seq=seq, timestamp=time.time_ns())
        # Entered first: the answer may be here before send returns.
        self.ledger.shown(sensor, seq, int(self.labels[chosen]), drift is not None, time.monotonic())
        if not send(self._frames, parts):
            self.ledger.withdrawn(sensor, seq)

    def _listen(self, seconds: float) -> bool:
        """Read results for as long as the next picture is away; the wait of `paced`."""
        self._receive_until(time.monotonic() + seconds)
        return self._stop.is_set()

    def _receive_until(self, deadline: float) -> None:
        while True:
            left = deadline - time.monotonic()
            # poll counts in whole milliseconds; the rest is slept, or pictures would be late by up to one
            if self._results.poll(max(0, int(left * 1000))):
                sensor, header, _ = parse_result(self._results.recv_multipart())
                self.ledger.answered(sensor, header, time.monotonic())
            else:
                time.sleep(max(0.0, deadline - time.monotonic()))
                return
