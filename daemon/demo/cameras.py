"""The cameras of the demo: they show images with known labels, and enter the daemon's answers in the books."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import zmq

from daemon.client import open_camera, send
from daemon.demo.bookkeeping import Bookkeeping
from daemon.serving.message import build_frame
from daemon.serving.results import parse_result
from daemon.simulation.camera import paced
from daemon.simulation.drifts import Drift
from daemon.zmq_sockets import connect, open_socket

RESULT_QUEUE_MESSAGES = 1000  # far more than can be on their way, so that none is lost on this side
LAST_ANSWERS_S = 1.0  # the last answers arrive in less


class Cameras:
    """One camera for each sensor. They take turns in one thread, which also reads the results.

    The images come in random order, the same order for the same seed.
    """

    def __init__(
        self,
        context: zmq.Context,
        books: Bookkeeping,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        sensors: Sequence[str],
        frames: str,
        results: str,
        fps: float,
        seed: int,
    ) -> None:
        """images: (N, H, W, 3) uint8 RGB. labels: (N,). frames, results: endpoints. fps: of each camera."""
        self.books, self.images, self.labels = books, images, labels
        self.sensors, self.fps = sensors, fps
        self.drifts: dict[str, Drift] = {}  # of the drifting cameras
        self._next_seq: dict[str, int] = dict.fromkeys(sensors, 0)
        self._rng = np.random.default_rng(seed)
        self._stop = threading.Event()
        self._results = open_socket(context, zmq.SUB)
        self._results.setsockopt(zmq.RCVHWM, RESULT_QUEUE_MESSAGES)
        self._results.setsockopt(zmq.SUBSCRIBE, b"")
        connect(self._results, results)
        self._frames = open_camera(context, frames)
        self._executor = ThreadPoolExecutor(1, "cameras")
        self._running: Future[None] | None = None

    def start(self) -> None:
        """Start the thread of the cameras."""
        self._running = self._executor.submit(self._run)

    def check(self) -> None:
        """Raise the error that ended the cameras, if one did."""
        if self._running is not None and self._running.done():
            self._running.result()

    def drift(self, sensor: str, drift: Drift) -> None:
        """Apply the drift to this camera, from its next frame on."""
        self.drifts[sensor] = drift

    def stop(self) -> None:
        """Show no more frames, and wait for the answers to the last ones."""
        self._stop.set()
        if self._running is not None:
            self._running.result()

    def close(self) -> None:
        """Stop the thread and close the sockets."""
        self._stop.set()
        self._executor.shutdown()
        self._frames.close()
        self._results.close()

    def _run(self) -> None:
        for turn in paced(self.fps * len(self.sensors), self._receive_for):
            self._show(self.sensors[turn % len(self.sensors)])
        self._receive_until(time.monotonic() + LAST_ANSWERS_S)

    def _show(self, sensor: str) -> None:
        index = int(self._rng.integers(len(self.images)))
        seq = self._next_seq[sensor]
        self._next_seq[sensor] += 1
        drift = self.drifts.get(sensor)
        image = drift(self.images[index], seq) if drift else self.images[index]
        parts = build_frame(sensor, image, seq=seq, timestamp=time.time_ns())
        # Entered first: the answer may arrive before send returns.
        self.books.add_shown(sensor, seq, int(self.labels[index]), drift is not None, time.monotonic())
        if not send(self._frames, parts):
            self.books.remove_shown(sensor, seq)

    def _receive_for(self, seconds: float) -> bool:
        """Read results until the next frame is due; return whether to stop. `paced` calls it to wait."""
        self._receive_until(time.monotonic() + seconds)
        return self._stop.is_set()

    def _receive_until(self, deadline: float) -> None:
        while True:
            remaining = deadline - time.monotonic()
            # poll() counts whole milliseconds; the rest is slept, or frames would be late by up to one
            if self._results.poll(max(0, int(remaining * 1000))):
                sensor, header, _ = parse_result(self._results.recv_multipart())
                self.books.add_answer(sensor, header, time.monotonic())
            else:
                time.sleep(max(0.0, deadline - time.monotonic()))
                return
