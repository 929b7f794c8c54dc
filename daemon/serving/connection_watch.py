"""Cuts off a connection that sends without end what never becomes a message.

ZeroMQ bounds a part (MAXMSGSIZE) and the number of whole messages (RCVHWM). The parts of a message that is not whole
yet it keeps without any bound, and shows them to nobody: 64 bytes for each part, besides its content. But the kernel
knows how many bytes a TCP connection has received, each message tells its connection, and a connection that is shut
down frees all of that.

A UNIX socket has no such count. There the mode of its folder says who may connect.
"""

from __future__ import annotations

import logging
import os
import socket as unix
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import zmq
from zmq.utils.monitor import recv_monitor_message

from daemon.serving.throttle import Throttle

WATCH_INTERVAL_S = 0.02  # a sender of tiny parts takes 5 MiB of memory in this time
MIN_PENDING_BYTES = 16 << 10  # of a message that is not whole; a connection with less is never cut off
MAX_MEMORY_RATIO = 8  # memory that the process may take to what such a connection sent: tiny parts take 30 times
MAX_GROWTH_BYTES = 256 << 20  # memory that the process may take while a message arrives, for all connections together
FREE_GROWTH_BYTES = 32 << 20  # below this the process grows for many reasons
RENEWAL_S = 600.0  # then what a connection has sent counts anew: heartbeats are no message
TCP_INFO_RECEIVED = 128  # tcpi_bytes_received in struct tcp_info, Linux 4.1 and later
OPENED = zmq.Event.ACCEPTED | zmq.Event.CONNECTED
AGREED = zmq.Event.HANDSHAKE_SUCCEEDED
ENDED = zmq.Event.DISCONNECTED

log = logging.getLogger(__name__)


@dataclass
class WatchedConnection:
    """What a connection had sent when it last delivered a message, and the memory of the process then."""

    most_pending: int  # bytes of a message that is not whole
    received: int = 0  # bytes
    memory: int = 0  # bytes
    since: float = 0.0  # monotonic clock, s
    agreed: bool = False  # the handshake is over, and the peer's kind of socket fits


@dataclass
class WatchedSocket:
    monitor: zmq.Socket[bytes]
    most_pending: int
    on_disconnect: Callable[[], None]
    on_stranger: Callable[[], None]


class ConnectionWatch:
    """A thread that watches the TCP connections of sockets, from `start()` to `close()`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, memory: Callable[[], int] | None = None):
        """clock: monotonic, s. memory: bytes that the process takes."""
        self._clock = clock
        self._memory = memory or resident_bytes
        self._sockets: list[WatchedSocket] = []
        self._connections: dict[int, WatchedConnection] = {}  # by file descriptor
        self._delivered: set[int] = set()  # descriptors with a message since the last look
        self._warnings = Throttle(clock=clock)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="connections", daemon=True)

    def add(
        self,
        socket: zmq.Socket[bytes],
        most_pending: int,
        on_disconnect: Callable[[], None] = lambda: None,
        on_stranger: Callable[[], None] = lambda: None,
    ) -> None:
        """Watch a socket; call it before the socket is bound, and before `start`.

        most_pending: bytes that a peer may send before its message is whole. on_disconnect: called on the thread when
        a connection ends; on_stranger: also, when it ends before both sides have agreed to talk.
        """
        monitor = socket.get_monitor_socket(OPENED | AGREED | ENDED)
        self._sockets.append(WatchedSocket(monitor, most_pending, on_disconnect, on_stranger))

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop the thread and close the monitors; the sockets may be closed before or after."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        for watched in self._sockets:
            watched.monitor.close(linger=0)

    def delivered(self, part: zmq.Frame) -> None:
        """Note that the connection of this part has delivered a message. Any thread may call it."""
        if (descriptor := _source(part)) is not None:
            self._delivered.add(descriptor)

    def _run(self) -> None:
        while not self._stopping.wait(WATCH_INTERVAL_S):
            for watched in self._sockets:
                while watched.monitor.poll(0):
                    self._take_event(watched)
            self.look()

    def _take_event(self, watched: WatchedSocket) -> None:
        event = recv_monitor_message(watched.monitor)
        descriptor = int(event["value"])
        if event["event"] & OPENED:
            connection = WatchedConnection(watched.most_pending, memory=self._memory(), since=self._clock())
            self._connections[descriptor] = connection
        elif event["event"] == AGREED:
            self._agree()
        elif event["event"] & ENDED:
            self._end(watched, self._connections.pop(descriptor, None))

    def _agree(self) -> None:
        """Note a finished handshake. ZeroMQ does not tell whose: the oldest open one is taken, or a message tells."""
        for connection in self._connections.values():
            if not connection.agreed:
                connection.agreed = True
                return

    def _end(self, watched: WatchedSocket, connection: WatchedConnection | None) -> None:
        watched.on_disconnect()
        if connection is not None and not connection.agreed:
            watched.on_stranger()

    def look(self) -> None:
        """Look at each connection once, and cut off those that send too much."""
        if not self._connections:
            return
        memory, now = self._memory(), self._clock()
        delivered, self._delivered = self._delivered, set()
        for descriptor, connection in self._connections.items():
            received = received_bytes(descriptor)
            if received is None:
                continue
            if descriptor in delivered or now - connection.since > RENEWAL_S:
                connection.received, connection.memory, connection.since = received, memory, now
                connection.agreed |= descriptor in delivered
            elif reason := fault(connection, received - connection.received, memory - connection.memory):
                if count := self._warnings.passes():
                    log.warning("connections cut off: %d, the last: %s", count, reason)
                cut_off(descriptor)


def fault(connection: WatchedConnection, pending: int, growth: int) -> str:
    """Return why a connection must be cut off, or "".

    pending: bytes that it has sent since its last message. growth: of the process's memory since then, bytes.
    """
    if pending > connection.most_pending:
        return f"it sent {pending >> 20} MiB without the end of a message, at most {connection.most_pending >> 20} MiB"
    if pending < MIN_PENDING_BYTES or growth < FREE_GROWTH_BYTES:
        return ""
    if growth > max(MAX_GROWTH_BYTES, connection.most_pending) or growth > MAX_MEMORY_RATIO * pending:
        return f"memory grew by {growth >> 20} MiB while it sent {pending >> 10} KiB without the end of a message"
    return ""


def cut_off_sender(part: zmq.Frame) -> None:
    """Shut down the connection that a received part came from."""
    if (descriptor := _source(part)) is not None:
        cut_off(descriptor)


def _source(part: zmq.Frame) -> int | None:
    """Return the file descriptor of the connection of a part; None where ZeroMQ does not know it."""
    try:
        return int(part.get(zmq.SRCFD))
    except zmq.ZMQError:  # the peer was gone before the handshake was over
        return None


def cut_off(descriptor: int) -> None:
    """Shut a connection down in both directions; ZeroMQ then closes it and frees what it had sent."""
    with suppress(OSError), _borrowed(descriptor) as connection:  # OSError: it has ended by itself
        connection.shutdown(unix.SHUT_RDWR)


def received_bytes(descriptor: int) -> int | None:
    """Return how many bytes a TCP connection has received; None for anything else."""
    try:
        with _borrowed(descriptor) as connection:
            if connection.family not in (unix.AF_INET, unix.AF_INET6):
                return None
            info = connection.getsockopt(unix.IPPROTO_TCP, unix.TCP_INFO, TCP_INFO_RECEIVED + 8)
    except OSError:  # it has ended by itself
        return None
    return int(struct.unpack_from("=Q", info, TCP_INFO_RECEIVED)[0]) if len(info) == TCP_INFO_RECEIVED + 8 else None


@contextmanager
def _borrowed(descriptor: int) -> Iterator[unix.socket]:
    """Use the descriptor of another owner as a socket, and leave it open."""
    connection = unix.socket(fileno=descriptor)
    try:
        yield connection
    finally:
        connection.detach()


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
