"""A camera in front of a running daemon, which times each frame until its result is read."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import zmq

from daemon.config import load_config
from daemon.demo.service import Folder
from daemon.serving.message import build_frame
from daemon.serving.results import parse_result
from daemon.simulation.camera import open_camera, paced, wait_for_reader
from daemon.simulation.drifts import Drift
from daemon.zmq_sockets import connect, open_socket
from deploy.store.artefacts import FACTORY

FPS = 30.0
SENSOR = "front"
WATCH_S = 0.5  # between two looks at whether a phase is over
LAST_ANSWER_S = 1.5  # after the last frame


class Answer(NamedTuple):
    """One frame's result, as it was read."""

    seq: int
    sent: float  # s, perf_counter
    latency: float  # s, from the send call to the result being read
    homogenizer: str
    state: str  # of the sensor's recalibration when the frame was served
    output: np.ndarray


class Camera:
    """Sends raw frames at FPS from its own thread's schedule and times each until its result is read."""

    def __init__(self, context: zmq.Context, folder: Folder, images: np.ndarray):
        config = load_config(folder.config)
        self._results = open_socket(context, zmq.SUB)
        self._results.setsockopt(zmq.RCVHWM, 1000)
        self._results.setsockopt(zmq.SUBSCRIBE, b"")
        connect(self._results, config.output.bind)
        self._frames = open_camera(context, config.input.bind[0])
        wait_for_reader(self._frames, 5.0)
        self._images = images
        self._order = np.random.default_rng(0).permutation(len(images))
        self._under_way: dict[int, float] = {}
        self._answers: list[Answer] = []
        self.drift: Drift | None = None
        self.sent = 0
        self.homogenizer, self.state = FACTORY, "unknown"  # of the newest result
        self.swaps: queue.SimpleQueue[str] = queue.SimpleQueue()  # each homogenizer that began to answer

    @property
    def unanswered(self) -> int:
        return len(self._under_way)

    def run_for(self, seconds: float) -> list[Answer]:
        return self.run_during(lambda: time.sleep(seconds))

    def run_until(self, done: Callable[[], bool], timeout: float) -> list[Answer]:
        """Send until `done` or the timeout; returns the answers."""

        def watch() -> None:
            end = time.monotonic() + timeout
            while (left := end - time.monotonic()) > 0 and not done():
                time.sleep(min(WATCH_S, left))

        return self.run_during(watch)

    def run_during(self, script: Callable[[], None]) -> list[Answer]:
        """Send until `script`, on a thread of its own, has returned; returns the answers."""
        self._answers = []
        with ThreadPoolExecutor(1) as executor:
            over = executor.submit(script)

            def wait(left: float) -> bool:
                self._listen(left)
                return over.done()

            for _ in paced(FPS, wait):
                self._send()
            over.result()  # raises what the script raised
        return self._answers

    def image(self, seq: int) -> np.ndarray:
        """The picture of a frame, before any drift."""
        picture: np.ndarray = self._images[self._order[seq % len(self._order)]]
        return picture

    def settle(self) -> None:
        """Read what is still under way when no more is sent."""
        self._answers = []
        self._listen(LAST_ANSWER_S)

    def _send(self) -> None:
        image = self.image(self.sent)
        if self.drift is not None:
            image = self.drift(image, self.sent)
        parts = build_frame(SENSOR, image, seq=self.sent, timestamp=time.time_ns())
        self._under_way[self.sent] = time.perf_counter()
        self._frames.send_multipart(parts, zmq.NOBLOCK)
        self.sent += 1

    def _listen(self, seconds: float) -> None:
        """Read results until the time is over."""
        end = time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0:
            if self._results.poll(max(1, int(left * 1000))):
                self._take(time.perf_counter())

    def _take(self, now: float) -> None:
        _, header, output = parse_result(self._results.recv_multipart())
        seq, homogenizer = header["seq"], header["homogenizer"]
        sent = self._under_way.pop(seq)
        self.state = header["state"]
        self._answers.append(Answer(seq, sent, now - sent, homogenizer, self.state, output))
        if homogenizer != self.homogenizer:
            self.homogenizer = homogenizer
            self.swaps.put(homogenizer)

    def close(self) -> None:
        self._frames.close()
        self._results.close()
