"""The receiver: one thread drains the input socket into one slot per sensor, where the newest frame wins."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection

import numpy as np
import zmq

from daemon.config import InputConfig
from daemon.metrics import Metrics
from daemon.serving.message import Frame, FrameError, parse_frame
from daemon.zmq_sockets import bind, connect, open_socket

LARGEST_KEPT = (32 << 20) - (64 << 10)  # glibc never keeps a block above 32 MiB

log = logging.getLogger(__name__)

RECEIVE_QUEUE = 4  # messages; the thread always drains, so a longer queue would only hold old frames
DRAIN_LIMIT = 256  # messages a wake-up, so that a flood cannot keep the thread from closing
POLL_MS = 100  # the longest that close() waits
RECONNECT_MS, RECONNECT_MAX_MS = 100, 5000
HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS = 1000, 3000  # notices a peer that is gone without a word
PATTERNS = {"sub": zmq.SUB, "pull": zmq.PULL}


class Intake:
    """Receives frames from `start()` to `close()`; `endpoints` are where, with the ports chosen for `*`."""

    def __init__(
        self,
        context: zmq.Context,
        config: InputConfig,
        sensors: Collection[str],
        metrics: Metrics,
        clock_ns: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
    ):
        self._sensors = frozenset(sensors)
        self._max_age = config.max_age
        self._metrics = metrics
        self._clock_ns = clock_ns
        self._monotonic = monotonic
        self._last_seq: dict[str, int] = {}
        self._slots: dict[str, Frame] = {}  # in the order in which they were filled
        self._filled = threading.Condition()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="intake", daemon=True)
        self._socket = _input_socket(context, config)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        try:
            self.endpoints = [bind(self._socket, endpoint) for endpoint in config.bind]
            self.endpoints += [connect(self._socket, endpoint) for endpoint in config.connect]
        except OSError:
            self._close_sockets()
            raise

    def start(self) -> None:
        keep_freed_memory()
        self._thread.start()

    def take(self, timeout: float) -> Frame | None:
        """Remove and return the frame whose slot was filled first; None if none is there for `timeout` s."""
        with self._filled:
            if self._filled.wait_for(lambda: self._slots, timeout):
                return self._slots.pop(next(iter(self._slots)))
        if self._thread.ident and not self._thread.is_alive() and not self._stopping.is_set():
            raise RuntimeError("the receiver thread has died, its traceback is in the log")
        return None

    def close(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self._close_sockets()

    def _close_sockets(self) -> None:
        if not self._socket.closed:
            self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close()

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)
        while not self._stopping.is_set():
            ready = dict(poller.poll(POLL_MS))
            if self._monitor in ready:
                self._monitor.recv_multipart()
                self._metrics.input_disconnects.inc()
            if self._socket in ready:
                self._drain()

    def _drain(self) -> None:
        for _ in range(DRAIN_LIMIT):
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            self._accept([part.buffer for part in parts])

    def _accept(self, parts: list[memoryview]) -> None:
        try:
            frame = parse_frame(
                parts,
                sensors=self._sensors,
                now_ns=self._clock_ns(),
                received=self._monotonic(),
                max_age=self._max_age,
            )
        except FrameError as error:
            log.debug("frame of %s refused: %s", error.sensor, error)
            self._metrics.frames_received.labels(error.sensor).inc()
            self._metrics.frames_dropped.labels(error.sensor, error.reason).inc()
            if error.seq is not None:
                self._count_missed(error.sensor, error.seq)
            return
        self._metrics.frames_received.labels(frame.sensor).inc()
        self._metrics.last_frame_timestamp_seconds.labels(frame.sensor).set(frame.timestamp / 1e9)
        self._count_missed(frame.sensor, frame.seq)
        self._fill(frame)

    def _count_missed(self, sensor: str, seq: int) -> None:
        skipped = seq - self._last_seq.get(sensor, seq) - 1
        if skipped > 0:  # below 0 the camera has started again
            self._metrics.frames_missed.labels(sensor).inc(skipped)
        self._last_seq[sensor] = seq

    def _fill(self, frame: Frame) -> None:
        with self._filled:
            superseded = frame.sensor in self._slots
            self._slots[frame.sensor] = frame  # keeps its place: a fast sensor cannot push a slow one back
            self._filled.notify()
        if superseded:
            self._metrics.frames_dropped.labels(frame.sensor, "superseded").inc()


def _input_socket(context: zmq.Context, config: InputConfig) -> zmq.Socket:
    socket = open_socket(context, PATTERNS[config.pattern])
    socket.setsockopt(zmq.RCVHWM, RECEIVE_QUEUE)
    socket.setsockopt(zmq.MAXMSGSIZE, config.max_frame_bytes)  # libzmq disconnects who sends more
    socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TTL, HEARTBEAT_TIMEOUT_MS)
    if config.pattern == "sub":
        socket.setsockopt(zmq.SUBSCRIBE, b"")  # imagezmq has no topic; foreign sensors are refused one by one
    return socket


def keep_freed_memory() -> None:
    """Have malloc keep up to 64 MiB of freed frames instead of giving them back to the kernel.

    By default glibc gives back what is free beyond twice the largest block that was ever freed, here two frames. The
    receiver holds more of them, so their pages went and came all the time: 87 page faults a frame at 1080p, and a
    sixth fewer frames a second. Freeing one large block, whose pages nobody touched, raises that bound (mallopt(3):
    M_MMAP_THRESHOLD is dynamic). Where the environment sets the bound, or with another C library, nothing changes.
    """
    np.empty(LARGEST_KEPT, np.uint8)
