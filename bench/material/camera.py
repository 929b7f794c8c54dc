"""A camera in front of a running daemon that measures the latency of each frame."""

from __future__ import annotations

import gc
import queue
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import zmq

from daemon.config import load_config
from daemon.demo.processes import RunFolder
from daemon.serving.message import build_frame
from daemon.serving.results import parse_result
from daemon.simulation.camera import open_camera, paced, wait_for_reader
from daemon.simulation.drifts import Drift
from daemon.zmq_sockets import connect, open_socket
from deploy.store.artefacts import FACTORY

FPS = 30.0
SENSOR = "front"
ORDER_SEED = 0  # of the order in which the pictures are shown
RESULT_QUEUE = 1000  # results: more than can be under way, so that none is lost on this side
CONNECT_TIMEOUT_S = 5.0
DONE_POLL_S = 0.5  # between two tests of whether a phase is over
LAST_ANSWER_S = 1.5  # wait after the last frame


class Answer(NamedTuple):
    """The result of one frame."""

    seq: int
    sent: float  # s, perf_counter
    latency: float  # s, from the send call until the result was read
    homogenizer: str
    state: str  # of the sensor's recalibration when the frame was served
    output: np.ndarray


class Camera:
    """Sends raw frames at FPS and measures the time of each until its result is read, all in one thread."""

    def __init__(self, context: zmq.Context, folder: RunFolder, images: np.ndarray):
        gc.collect()
        gc.freeze()  # a search of all that PyTorch made for garbage would be measured as a late answer
        config = load_config(folder.config)
        self._results = open_socket(context, zmq.SUB)
        self._results.setsockopt(zmq.RCVHWM, RESULT_QUEUE)
        self._results.setsockopt(zmq.SUBSCRIBE, f"{SENSOR}/".encode())
        connect(self._results, config.output.bind)
        self._frames = open_camera(context, config.input.bind[0])
        wait_for_reader(self._frames, CONNECT_TIMEOUT_S)
        self._images = images
        self._order = np.random.default_rng(ORDER_SEED).permutation(len(images))
        self._sent_at: dict[int, float] = {}  # s, of frames without an answer, by their number
        self._answers: list[Answer] = []
        self.drift: Drift | None = None
        self.sent = 0
        self.homogenizer, self.state = FACTORY, "unknown"  # of the newest result
        self.swaps: queue.SimpleQueue[str] = queue.SimpleQueue()  # each homogenizer that began to answer

    @property
    def unanswered(self) -> int:
        return len(self._sent_at)

    def run_for(self, seconds: float) -> list[Answer]:
        """Send for so long; return the answers."""
        return self.run_during(lambda: time.sleep(seconds))

    def run_until(self, done: Callable[[], bool], timeout: float) -> list[Answer]:
        """Send until `done` returns true or the timeout (s) is over; return the answers."""

        def wait() -> None:
            end = time.monotonic() + timeout
            while (left := end - time.monotonic()) > 0 and not done():
                time.sleep(min(DONE_POLL_S, left))

        return self.run_during(wait)

    def run_during(self, script: Callable[[], None]) -> list[Answer]:
        """Send until `script`, in a thread of its own, has returned; return the answers. Raises what it raises."""
        self._answers = []
        with ThreadPoolExecutor(1) as executor:
            running = executor.submit(script)

            def wait(left: float) -> bool:
                self._receive_for(left)
                return running.done()

            for _ in paced(FPS, wait):
                self._send()
            running.result()
        return self._answers

    def image(self, seq: int) -> np.ndarray:
        """Return the picture of a frame, before any drift."""
        picture: np.ndarray = self._images[self._order[seq % len(self._order)]]
        return picture

    def settle(self) -> None:
        """Wait for the answers that are still to come, without sending more."""
        self._answers = []
        self._receive_for(LAST_ANSWER_S)

    def _send(self) -> None:
        image = self.image(self.sent)
        if self.drift is not None:
            image = self.drift(image, self.sent)
        parts = build_frame(SENSOR, image, seq=self.sent, timestamp=time.time_ns())
        self._sent_at[self.sent] = time.perf_counter()
        self._frames.send_multipart(parts, zmq.NOBLOCK)
        self.sent += 1

    def _receive_for(self, seconds: float) -> None:
        end = time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0:
            if self._results.poll(max(1, int(left * 1000))):
                self._receive_one(time.perf_counter())

    def _receive_one(self, now: float) -> None:
        _, header, output = parse_result(self._results.recv_multipart())
        seq, homogenizer = header["seq"], header["homogenizer"]
        sent = self._sent_at.pop(seq)
        self.state = header["state"]
        self._answers.append(Answer(seq, sent, now - sent, homogenizer, self.state, output))
        if homogenizer != self.homogenizer:
            self.homogenizer = homogenizer
            self.swaps.put(homogenizer)

    def close(self) -> None:
        self._frames.close()
        self._results.close()
