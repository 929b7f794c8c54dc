"""Cuts off a connection that sends without end what never becomes a message.

ZeroMQ bounds a part (MAXMSGSIZE) and the number of whole messages (RCVHWM). The parts of a message that is not whole
yet it keeps without any bound, and shows them to nobody: 64 bytes for each part, besides its content. But the kernel
knows how many bytes a TCP connection has received, each message tells its connection, and a connection that is shut
down frees all of that. Who sent a whole message of thousands of parts, which take long to read, is not let in again
soon.

Nobody is cut off for memory that he cannot have taken: what counts is what ZeroMQ took beyond the bytes that arrived,
while this message was under way, and only a connection that sent enough for its share of that.

A UNIX socket has no such count. There the mode of its folder says who may connect.
"""

from __future__ import annotations

import logging
import math
import socket as unix
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue

import zmq
from zmq.utils.monitor import recv_monitor_message

from daemon.serving.receiver_memory import MemoryTaken, ReceiverMemory
from daemon.serving.throttle import Throttle

WATCH_INTERVAL_S = 0.02  # a sender of tiny parts takes 5 MiB of memory in this time
MIN_PENDING_BYTES = 16 << 10  # of a message that is not whole; below, heartbeats and the start of a message
MEMORY_RATIO = 32  # memory that empty parts take to what they are on the wire: 64 bytes to 2
MAX_UNSENT_BYTES = 64 << 20  # memory beyond all that was sent meanwhile: a million empty parts, seconds to read
MAX_OVERHEAD_BYTES = 256 << 20  # memory beyond what is not whole, whatever was sent meanwhile
SHUT_OUT_S = 30.0  # for new connections from where a message of thousands of parts came
RENEWAL_S = 600.0  # then what a connection has sent counts anew: heartbeats are no message
TCP_INFO_RECEIVED = 128  # tcpi_bytes_received in struct tcp_info, Linux 4.1 and later
UNIX_PEER = "localhost:"  # begins ZeroMQ's address of the process behind a UNIX socket
RESET = struct.pack("ii", 1, 0)  # struct linger: a close ends the connection on both sides at once
OPENED = zmq.Event.ACCEPTED | zmq.Event.CONNECTED
AGREED = zmq.Event.HANDSHAKE_SUCCEEDED
ENDED = zmq.Event.DISCONNECTED

log = logging.getLogger(__name__)


@dataclass
class WatchedConnection:
    """What a connection has sent since it last delivered a message, and the memory that was taken when it began to."""

    most_pending: int  # bytes of a message that is not whole
    pending: int = 0  # bytes that it has sent of such a message
    sent: int = 0  # bytes, in all
    whole: int = 0  # bytes that it had sent before this message
    memory: MemoryTaken = MemoryTaken()
    since: float = 0.0  # monotonic clock, s
    agreed: bool = False  # the handshake is over, and the peer's kind of socket fits

    def count(self, sent: int, delivered: bool, now: float) -> int:
        """Note how many bytes it has sent in all, and whether a message of it was read; return how many are new."""
        if delivered or now - self.since > RENEWAL_S:
            self.whole, self.since = sent, now
        self.agreed |= delivered
        self.pending, new, self.sent = max(0, sent - self.whole), max(0, sent - self.sent), sent
        return new


class WatchedSocket:
    """A socket's connections. A descriptor that is closed may be another socket's next, so each has its own."""

    def __init__(
        self,
        monitor: zmq.Socket[bytes],
        most_pending: int,
        on_disconnect: Callable[[], None],
        on_no_agreement: Callable[[], None],
        clock: Callable[[], float],
    ):
        self.monitor = monitor
        self.connections: dict[int, WatchedConnection] = {}  # by file descriptor
        self._most_pending = most_pending
        self._on_disconnect = on_disconnect
        self._on_no_agreement = on_no_agreement
        self._clock = clock
        self._delivered: SimpleQueue[int] = SimpleQueue()  # descriptors with a message since the last look
        self._shut_out_until: dict[str, float] = {}  # monotonic clock, s, by address

    def delivered(self, part: zmq.Frame) -> None:
        """Note that the connection of this part has delivered a message. Any thread may call it."""
        if (descriptor := _source(part)) is not None:
            self._delivered.put(descriptor)

    def shut_out(self, part: zmq.Frame) -> None:
        """Let no new connection in from where this part came, for SHUT_OUT_S. Only for the thread that receives."""
        with suppress(zmq.ZMQError):
            address = str(part.get("Peer-Address"))
            if not address.startswith(UNIX_PEER):
                now = self._clock()
                kept = {other: until for other, until in self._shut_out_until.items() if until > now}
                self._shut_out_until = kept | {address: now + SHUT_OUT_S}
                log.warning("%s sent thousands of parts: cut off, new connections too for %g s", address, SHUT_OUT_S)

    def take_event(self, memory: MemoryTaken, now: float) -> None:
        event = recv_monitor_message(self.monitor)
        descriptor = int(event["value"])
        if event["event"] & OPENED:
            shut_out = now < self._shut_out_until.get(peer_address(descriptor), -math.inf)
            connection = WatchedConnection(self._most_pending, memory=memory, since=now, agreed=shut_out)
            self.connections[descriptor] = connection
            if shut_out:
                cut_off(descriptor)
        elif event["event"] == AGREED:
            self._agree()
        elif event["event"] & ENDED:
            self._end(self.connections.pop(descriptor, None))

    def _agree(self) -> None:
        """Note a finished handshake. ZeroMQ does not tell whose: the oldest open one is taken, or a message tells."""
        for connection in self.connections.values():
            if not connection.agreed:
                connection.agreed = True
                return

    def _end(self, connection: WatchedConnection | None) -> None:
        self._on_disconnect()
        if connection is not None and not connection.agreed:
            self._on_no_agreement()

    def count(self, now: float) -> int:
        """Note what each connection has sent by now; return how many bytes are new."""
        delivered, new = set(_drained(self._delivered)), 0
        for descriptor, connection in self.connections.items():
            if (received := received_bytes(descriptor)) is not None:
                new += connection.count(received, descriptor in delivered, now)
        return new


class ConnectionWatch:
    """A thread that watches the TCP connections of sockets, from `start()` to `close()`."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, memory: Callable[[], MemoryTaken] | None = None
    ) -> None:
        """clock: monotonic, s."""
        self._clock = clock
        self._memory = memory or ReceiverMemory()
        self._sockets: list[WatchedSocket] = []
        self._sent = 0  # bytes, by all connections
        self._warnings = Throttle(clock=clock)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="connections", daemon=True)

    def add(
        self,
        socket: zmq.Socket[bytes],
        most_pending: int,
        on_disconnect: Callable[[], None] = lambda: None,
        on_no_agreement: Callable[[], None] = lambda: None,
    ) -> WatchedSocket:
        """Watch a socket; call it before the socket is bound, and before `start`.

        Tell what it returns of each message that is read; untold, all that a peer sends in 10 minutes counts as one.
        most_pending: bytes that a peer may send before its message is whole. on_disconnect: called on the thread when
        a connection ends; on_no_agreement: also, when it ends before both sides have agreed to talk.
        """
        monitor = socket.get_monitor_socket(OPENED | AGREED | ENDED)
        watched = WatchedSocket(monitor, most_pending, on_disconnect, on_no_agreement, self._clock)
        self._sockets.append(watched)
        return watched

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop the thread and close the monitors; the sockets may be closed before or after."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        for watched in self._sockets:
            watched.monitor.close(linger=0)

    def _run(self) -> None:
        while not self._stopping.wait(WATCH_INTERVAL_S):
            self.take_events()
            self.look()

    def take_events(self) -> None:
        """Take what has happened until all sockets are quiet: a descriptor may go from one to another meanwhile."""
        while pending := [watched for watched in self._sockets if watched.monitor.poll(0)]:
            for watched in pending:
                watched.take_event(replace(self._memory(), sent=self._sent), self._clock())

    def look(self) -> None:
        """Look at each connection once, and cut off those that send too much."""
        if not any(watched.connections for watched in self._sockets):
            return
        memory, now = self._memory(), self._clock()  # before the bytes: what arrives in between counts as sent
        self._sent += sum(watched.count(now) for watched in self._sockets)
        memory = replace(memory, sent=self._sent)
        connections = [item for watched in self._sockets for item in watched.connections.items()]
        pending = sum(connection.pending for _, connection in connections)
        senders = sum(connection.pending >= MIN_PENDING_BYTES for _, connection in connections)
        for descriptor, connection in connections:
            if connection.pending < MIN_PENDING_BYTES:
                connection.memory = memory
            elif reason := fault(connection, memory, pending, senders):
                if count := self._warnings.passes():
                    log.warning("connections cut off: %d, the last: %s", count, reason)
                cut_off(descriptor)


def fault(connection: WatchedConnection, memory: MemoryTaken, pending: int, senders: int) -> str:
    """Return why a connection with a message that is not whole must be cut off, or "".

    memory: what is taken now. pending, senders: bytes of all messages that are not whole, and how many send one. Where
    empty parts take too much, one of the senders, at least, sent enough to have taken its share.
    """
    own, most = connection.pending, connection.most_pending
    if own > most:
        return f"it sent {own >> 20} MiB without the end of a message, at most {most >> 20} MiB"
    unsent = memory.unsent_since(connection.memory)
    overhead = memory.received_since(connection.memory) - pending
    for taken, bound in ((unsent, MAX_UNSENT_BYTES), (overhead, max(MAX_OVERHEAD_BYTES, most))):
        if taken > bound and own * MEMORY_RATIO * senders >= bound:
            return f"memory grew by {taken >> 20} MiB while it sent {own >> 10} KiB without the end of a message"
    return ""


def _drained(notes: SimpleQueue[int]) -> Iterator[int]:
    with suppress(Empty):
        while True:
            yield notes.get_nowait()


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
        connection.setsockopt(unix.SOL_SOCKET, unix.SO_LINGER, RESET)  # a peer whose buffers are full learns of it, too
        connection.shutdown(unix.SHUT_RDWR)


def peer_address(descriptor: int) -> str:
    """Return the IP address at the other end of a TCP connection, or ""."""
    with suppress(OSError, IndexError), _borrowed(descriptor) as connection:
        return str(connection.getpeername()[0])
    return ""


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
