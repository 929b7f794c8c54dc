"""Result messages: published without waiting for any reader, whatever readers send; parsed by readers and tests."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import zmq

from calibrate.errors import RecaldError
from daemon.serving.connection_watch import ConnectionWatch, cut_off_sender
from daemon.serving.message import topic_of
from daemon.serving.throttle import Throttle
from daemon.zmq_sockets import SUBSCRIBED, UNSUBSCRIBED, bind, open_socket

RESULT_VERSION = 1  # of the header: its key "v"
RESULT_DTYPES = frozenset("bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64".split())
PUBLISHER_QUEUE_MESSAGES = 64  # for each reader; a reader that is slower loses the newest
MAX_READER_MESSAGE_BYTES = 512  # a subscription has 66, a handshake below 400; ZeroMQ takes 63 times as much memory
MAX_READER_PENDING_BYTES = 1 << 20
SUBSCRIPTION_QUEUE_MESSAGES = 16  # of each reader; ZeroMQ stops reading from it beyond
MAX_READ_SUBSCRIPTIONS = 64  # at a time, so that no reader keeps a frame waiting
MAX_FOREIGN_TOPICS = 64  # that no sensor has, of all readers together: ZeroMQ keeps them, 32 KiB each

log = logging.getLogger(__name__)


class ResultError(RecaldError):
    """A message that is no result of this version."""


class Publisher:
    """Publishes results; `endpoint` is the bound one, with the real port."""

    def __init__(
        self,
        context: zmq.Context,
        endpoint: str,
        sensors: Iterable[str],
        watch: ConnectionWatch,
        on_overrun: Callable[[], None] = lambda: None,
    ):
        """Open the socket, an XPUB: a PUB that tells who subscribes. OSError where the endpoint cannot be bound.

        on_overrun: called when a reader falls so far behind that it loses results.
        """
        self._topics = [topic_of(sensor) for sensor in sensors]
        self._foreign: set[bytes] = set()  # topics that readers wait for in vain
        self._foreign_warnings, self._cut_warnings = Throttle(), Throttle()
        self._socket = open_socket(context, zmq.XPUB)
        self._socket.setsockopt(zmq.SNDHWM, PUBLISHER_QUEUE_MESSAGES)
        self._socket.setsockopt(zmq.RCVHWM, SUBSCRIPTION_QUEUE_MESSAGES)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_READER_MESSAGE_BYTES)  # libzmq disconnects a peer that sends more
        self._socket.setsockopt(zmq.XPUB_NODROP, 1)  # so that a full queue is told; see _send
        self._on_overrun = on_overrun
        watch.add(self._socket, MAX_READER_PENDING_BYTES)
        self.endpoint = bind(self._socket, endpoint)

    def send(self, sensor: str, header: Mapping[str, Any], output: np.ndarray) -> None:
        """Send a header of plain values and a tensor. Floats that are not finite become null: JSON has no NaN."""
        self._read_subscriptions()
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in header.items()}
        text = json.dumps({"v": RESULT_VERSION} | finite | {"dtype": output.dtype.name, "shape": output.shape})
        # tobytes copies: the runner may write its next output into the same memory before this one is sent.
        parts = [topic_of(sensor), text.encode(), output.tobytes()]
        self._send(parts)

    def _send(self, parts: list[bytes]) -> None:
        """Send to every reader whose queue has room.

        ZeroMQ refuses a message for all while the queue of one is full, or drops it for that one and says nothing. A
        reader whose queue was full is left out, and does not fill it again, until it has read half of it.
        """
        try:
            self._socket.send_multipart(parts, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            self._on_overrun()
            self._socket.setsockopt(zmq.XPUB_NODROP, 0)
            self._socket.send_multipart(parts, zmq.NOBLOCK, copy=False)
            self._socket.setsockopt(zmq.XPUB_NODROP, 1)

    def _read_subscriptions(self) -> None:
        """Look at what readers have subscribed to since the last result."""
        for _ in range(MAX_READ_SUBSCRIPTIONS):
            try:
                message = self._socket.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            self._check_subscription(message)

    def _check_subscription(self, message: zmq.Frame) -> None:
        """Note a subscription; cut its reader off where too many are of topics that no sensor has."""
        kind, topic = message.bytes[:1], message.bytes[1:]
        if kind == UNSUBSCRIBED:
            self._foreign.discard(topic)
        elif kind == SUBSCRIBED and any(known.startswith(topic) for known in self._topics):
            return
        elif kind != SUBSCRIBED or len(self._foreign) == MAX_FOREIGN_TOPICS:
            if count := self._cut_warnings.passes():
                log.warning("readers of results cut off: %d, which subscribe to too much that no sensor has", count)
            cut_off_sender(message)
        else:
            self._foreign.add(topic)
            if self._foreign_warnings.passes():
                log.warning("a reader of results waits for %r, and no sensor is of this name", topic[:64])

    def close(self) -> None:
        self._socket.close()


def parse_result(parts: Sequence[bytes]) -> tuple[str, dict[str, Any], np.ndarray]:
    """Return sensor, header and output of a received message. Raises ResultError and nothing else."""
    try:
        topic, text, payload = parts
        header = json.loads(text)
        if header["v"] != RESULT_VERSION or header["dtype"] not in RESULT_DTYPES:
            raise ValueError(f"v is {header['v']!r}, dtype is {header['dtype']!r}")
        output = np.frombuffer(payload, header["dtype"]).reshape(header["shape"])
        return topic.decode("ascii").removesuffix("/"), header, output
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ResultError(f"not a result of version {RESULT_VERSION}: {error}") from error
