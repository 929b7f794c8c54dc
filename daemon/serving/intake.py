"""The receiver: one thread reads the input socket, checks each message and hands its frame on."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

import numpy as np
import zmq

from daemon.config import InputConfig, SensorConfig
from daemon.metrics import Metrics
from daemon.serving.connection_watch import ConnectionWatch, cut_off_sender
from daemon.serving.message import Frame, FrameError, check_pixels, parse_frame
from daemon.serving.sequence import SequenceCheck
from daemon.serving.throttle import Throttle
from daemon.zmq_sockets import bind, connect, open_socket

INTAKE_POLL_MS = 100  # the longest time that close() waits for the thread
RECEIVE_QUEUE_FRAMES = 4  # the thread empties the queue all the time; a longer one would only hold older frames
MAX_KEPT_PARTS = 4  # of a message; a frame has 3, imagezmq's 2
MAX_SKIPPED_PARTS = 4096  # of a message: to read them takes as long as to serve a frame or two
MAX_PENDING_FRAMES = RECEIVE_QUEUE_FRAMES + 1  # of a sender, not yet read; ZeroMQ reads no more of them
INTAKE_REST_RATIO = 3.0  # rest to work after a message that was of no use, while that takes less than a third of a ms
MAX_INTAKE_REST_S = 0.001  # other senders wait for it
RECONNECT_MS, RECONNECT_MAX_MS = 100, 5000
HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS = 1000, 3000  # detects a peer that is gone and did not close its connection
MAX_KEPT_BLOCK_BYTES = (32 << 20) - (64 << 10)  # glibc never keeps a freed block above 32 MiB
SOCKET_KINDS = {"sub": zmq.SUB, "pull": zmq.PULL, "rep": zmq.REP}
PEER_KINDS = {"sub": "PUB", "pull": "PUSH", "rep": "REQ"}
REPLY = b"OK"  # what imagezmq's own hub answers; the senders wait for any
JUMP_WARNING_INTERVAL_S = 3600.0  # numbers that jump do so for as long as the camera is as it is

log = logging.getLogger(__name__)


class Intake:
    """Receives frames from `start()` to `close()`; `endpoints` are the bound and connected ones, with real ports."""

    def __init__(
        self,
        context: zmq.Context,
        config: InputConfig,
        sensors: Mapping[str, SensorConfig],
        metrics: Metrics,
        deliver: Callable[[Frame], bool],
        refuse: Callable[[FrameError], None],
        watch: ConnectionWatch,
        clock_ns: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
    ):
        """Open the socket; OSError where an endpoint cannot be bound or connected.

        deliver: called on the receiver thread with each checked frame; returns whether a frame that waited gave way.
        refuse: called on the receiver thread with the error of each refused message.
        clock_ns: ns since the epoch.
        """
        self._sensors = sensors
        self._max_age = config.max_age
        self._pattern = config.pattern
        self._metrics = metrics
        self._deliver = deliver
        self._refuse = refuse
        self._clock_ns = clock_ns
        self._monotonic = monotonic
        self._sequences = {sensor: SequenceCheck() for sensor in sensors}
        self._jumps = {sensor: Throttle(JUMP_WARNING_INTERVAL_S) for sensor in sensors}
        self._disagreements = Throttle()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._receive, name="intake", daemon=True)
        self._socket = _input_socket(context, config)
        self._watched = watch.add(
            self._socket,
            MAX_PENDING_FRAMES * config.max_frame_bytes,
            metrics.input_disconnects.inc,
            self._warn_of_no_agreement,
        )
        try:
            self.endpoints = [bind(self._socket, endpoint) for endpoint in config.bind]
            self.endpoints += [connect(self._socket, endpoint) for endpoint in config.connect]
        except OSError:
            self._socket.close()
            raise

    def start(self) -> None:
        """Start the receiver thread."""
        keep_freed_memory()
        self._thread.start()

    def _receive(self) -> None:
        """Receive until close() is called: the body of the thread.

        ZeroMQ takes turns between senders, so a message waits for one of each other sender and for its rest. While it
        has something to give, it looks for those who have begun to send only when polled, or every 100 messages.
        """
        while not self._stopping.is_set():
            if self._socket.poll(INTAKE_POLL_MS):
                self._receive_one()

    def _receive_one(self) -> None:
        """Receive a message and accept it; rest where that was of no use."""
        began = self._monotonic()
        try:
            parts = self._receive_parts()
        except zmq.Again:  # a request without an envelope, which ZeroMQ drops
            self._stopping.wait(MAX_INTAKE_REST_S)
            return
        self._watched.delivered(parts[0])
        if self._pattern == "rep":
            self._socket.send(REPLY, zmq.NOBLOCK)
        if not self._accept([part.buffer for part in parts]):
            self._stopping.wait(min(MAX_INTAKE_REST_S, INTAKE_REST_RATIO * (self._monotonic() - began)))

    def _receive_parts(self) -> list[zmq.Frame]:
        """Receive one message, and of its parts at most MAX_KEPT_PARTS. Raises zmq.Again where there is none."""
        parts = [self._socket.recv(zmq.NOBLOCK, copy=False)]
        while parts[-1].more and len(parts) < MAX_KEPT_PARTS:
            parts.append(self._socket.recv(zmq.NOBLOCK, copy=False))
        if parts[-1].more:  # a sender of frames never does this
            cut_off_sender(parts[-1])
            self._skip_rest(parts[-1])
        return parts

    def _skip_rest(self, part: zmq.Frame) -> None:
        """Read the parts that follow this one. A million take seconds, so who sends many is not let in again soon."""
        skipped = 0
        while self._socket.recv(zmq.NOBLOCK, copy=False).more:
            skipped += 1
            if skipped == MAX_SKIPPED_PARTS:
                self._watched.shut_out(part)

    def _accept(self, parts: list[memoryview]) -> bool:
        """Check one message and deliver its frame; return whether all of that was of use. Count it in any case."""
        try:
            frame = parse_frame(
                parts,
                sensors=self._sensors,
                now_ns=self._clock_ns(),
                received=self._monotonic(),
                max_age=self._max_age,
            )
            check_pixels(frame, self._sensors[frame.sensor].max_pixels)
        except FrameError as error:
            self._metrics.frames_received.labels(error.sensor).inc()
            self._refuse(error)
            if error.frame is not None:  # the header was readable, so this frame was not missed
                self._count_missed(error.frame)
            return False
        self._metrics.frames_received.labels(frame.sensor).inc()
        self._metrics.last_frame_timestamp_seconds.labels(frame.sensor).set(frame.timestamp / 1e9)
        self._count_missed(frame)
        return not self._deliver(frame)

    def _count_missed(self, frame: Frame) -> None:
        """Count the frames that were lost between the last one and this one."""
        step = self._sequences[frame.sensor].step(frame.seq, frame.timestamp, frame.received)
        if step.missed:
            self._metrics.frames_missed.labels(frame.sensor).inc(step.missed)
        if step.jump:
            self._metrics.sequence_jumps.labels(frame.sensor).inc()
            if count := self._jumps[frame.sensor].passes():
                log.warning("%s: sequence numbers jumped %d times, the last: %s", frame.sensor, count, step.jump)

    def _warn_of_no_agreement(self) -> None:
        """Tell of a peer that could not even agree to talk: ZeroMQ closes such a connection without a word."""
        if count := self._disagreements.passes():
            log.warning(
                "%d connection(s) ended before the first message. input.pattern %s talks to %s sockets alone: imagezmq "
                "sends by REQ unless told otherwise, which needs the pattern rep",
                count,
                self._pattern,
                PEER_KINDS[self._pattern],
            )

    def close(self) -> None:
        """Stop the thread and close the socket. Safe to call twice, or without start()."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self._socket.close()


def _input_socket(context: zmq.Context, config: InputConfig) -> zmq.Socket:
    socket = open_socket(context, SOCKET_KINDS[config.pattern])
    socket.setsockopt(zmq.RCVHWM, RECEIVE_QUEUE_FRAMES)
    socket.setsockopt(zmq.MAXMSGSIZE, config.max_frame_bytes)  # libzmq disconnects a peer that sends more
    socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
    if config.pattern != "rep":  # libzmq's REQ takes a heartbeat for a reply
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TTL, HEARTBEAT_TIMEOUT_MS)
    if config.pattern == "sub":
        socket.setsockopt(zmq.SUBSCRIBE, b"")  # to all topics: imagezmq sends none; parse_frame checks the sensor
    return socket


def keep_freed_memory() -> None:
    """Make malloc keep up to 64 MiB of freed frames, instead of returning their memory to the kernel.

    By default glibc returns what is free beyond twice the largest block that was ever freed, here two frames. The
    receiver frees more than that, so its pages were returned and fetched again all the time: 87 page faults a frame
    at 1080p, and a sixth fewer frames a second. Freeing one large block, whose pages were never touched, raises that
    limit (mallopt(3): M_MMAP_THRESHOLD is dynamic). Where the environment sets the limit, or with another C library,
    this changes nothing.
    """
    np.empty(MAX_KEPT_BLOCK_BYTES, np.uint8)
