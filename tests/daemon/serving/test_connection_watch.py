"""A message without an end costs its sender the connection, and nobody else anything."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

import pytest
import zmq
from zmtp import part, raw_peer, sent_until_cut

from daemon.serving.connection_watch import (
    MAX_OVERHEAD_BYTES,
    MAX_UNSENT_BYTES,
    MEMORY_RATIO,
    ConnectionWatch,
    WatchedConnection,
    fault,
    received_bytes,
)
from daemon.serving.receiver_memory import MemoryTaken, ReceiverMemory, resident_bytes

MIB = 1 << 20


@pytest.mark.parametrize("bound", [MAX_UNSENT_BYTES, MAX_OVERHEAD_BYTES])
@pytest.mark.parametrize(
    ("share", "more", "senders", "text"),
    [
        (1, MIB, 1, "without the end of a message"),  # empty parts
        (1, 0, 1, ""),
        (0.99, 10 * MAX_OVERHEAD_BYTES, 1, ""),  # others took it
        (0.25, MIB, 4, "without the end of a message"),  # each of four attackers took its share
        (0.24, MIB, 4, ""),
    ],
)
def test_empty_parts_are_a_fault_of_who_sent_enough_for_its_share(bound, share, more, senders, text):
    pending = int(share * bound / MEMORY_RATIO)
    taken = bound + more
    sent = 0 if bound == MAX_UNSENT_BYTES else 100 * MAX_OVERHEAD_BYTES  # by others, in messages that are whole
    connection = WatchedConnection(10 * MIB, pending)
    found = fault(connection, MemoryTaken(pending + taken, pending + taken, pending + sent), pending, senders)
    assert text in found and bool(text) == bool(found)


@pytest.mark.parametrize(
    ("pending", "resident", "touched", "text"),
    [
        (10 * MIB, 10 * MIB, 10 * MIB, ""),  # a large frame arrives
        (10 * MIB, 4000 * MIB, 10 * MIB, ""),  # the process grows for other reasons
        (10 * MIB + 1, 10 * MIB, 10 * MIB, "sent 10 MiB without the end"),
    ],
)
def test_a_frame_is_no_fault(pending: int, resident: int, touched: int, text: str):
    found = fault(WatchedConnection(10 * MIB, pending), MemoryTaken(resident, touched, pending), pending, 1)
    assert text in found and bool(text) == bool(found)


def test_large_frames_of_many_cameras_at_a_time_are_no_fault():
    frames = 5 * 60 * MIB
    taken = MemoryTaken(2 * frames, 2 * frames, 2 * frames)  # half of it delivered
    assert not fault(WatchedConnection(320 * MIB, 60 * MIB), taken, frames, 5)


def test_a_message_begins_where_the_last_one_was_delivered():
    connection = WatchedConnection(MIB)
    assert connection.count(sent=100, delivered=False, now=1.0) == 100
    assert connection.count(sent=150, delivered=True, now=2.0) == 50
    assert connection.count(sent=400, delivered=False, now=3.0) == 250
    assert (connection.pending, connection.sent, connection.agreed) == (250, 400, True)


@pytest.fixture
def freed_memory_returned():
    """Give the system the memory that tests before have freed: taken again, it would not be seen to be taken."""
    ctypes.CDLL(None).malloc_trim(0)


@pytest.mark.usefixtures("freed_memory_returned")
def test_memory_that_others_take_is_not_of_what_arrives(context):
    with context.socket(zmq.PULL) as socket:
        socket.bind("tcp://127.0.0.1:*")
        with raw_peer(endpoint(socket), "PUSH") as peer:
            memory = ReceiverMemory()
            before = memory()
            kept = b"x" * (64 * MIB)
            assert memory().resident - before.resident > 32 * MIB
            assert memory().received_since(before) < 8 * MIB
            peer.sendall(part(b"", more=True) * (3 * MIB))  # take 192 MiB
            eventually(lambda: memory().received_since(before) > 48 * MIB)
            del kept


@pytest.fixture
def watched(context):
    """A PULL socket of which a peer may have 16 MiB pending; its watched connections; what they report."""
    told: list[str] = []
    watch = ConnectionWatch()
    with context.socket(zmq.PULL) as socket:
        socket.linger = 0
        watched = watch.add(socket, 16 * MIB, lambda: told.append("ended"), lambda: told.append("no agreement"))
        socket.bind("tcp://127.0.0.1:*")
        watch.start()
        yield socket, watched, told
        watch.close()


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.005)


def endpoint(socket: zmq.Socket) -> str:
    return socket.last_endpoint.decode()


def test_a_message_without_an_end_is_cut_off_and_its_memory_freed(watched):
    socket, _, told = watched
    before = resident_bytes()
    with raw_peer(endpoint(socket), "PUSH") as peer:
        sent = sent_until_cut(peer, part(bytes(MIB // 4), more=True), 512 * MIB, pause=0.005)
    assert sent is not None and sent < 64 * MIB
    eventually(lambda: told == ["ended"])
    assert resident_bytes() - before < 128 * MIB
    assert not socket.poll(0)


def test_messages_that_end_are_never_cut_off(watched):
    socket, connections, told = watched
    with raw_peer(endpoint(socket), "PUSH") as peer:
        for _ in range(80):
            peer.sendall(part(bytes(MIB // 4), more=True) + part(b"end"))
            assert socket.poll(5000)
            connections.delivered(socket.recv_multipart(copy=False)[0])
        assert not told


def test_a_slow_frame_arrives_whatever_else_takes_memory(watched):
    socket, _, told = watched
    frame = part(bytes(15 * MIB))
    with raw_peer(endpoint(socket), "PUSH") as peer:
        peer.sendall(frame[: 12 * MIB])
        time.sleep(0.2)
        kept = b"x" * (MAX_OVERHEAD_BYTES + 64 * MIB)  # pictures of another sensor, a candidate
        time.sleep(0.2)
        peer.sendall(frame[12 * MIB :])
        assert socket.poll(5000) and not told
        del kept


def test_empty_parts_without_an_end_are_cut_off_before_they_fill_the_memory(watched):
    socket, _, told = watched
    before = resident_bytes()
    with raw_peer(endpoint(socket), "PUSH") as peer:
        sent = sent_until_cut(peer, part(b"", more=True) * 100_000, 512 * MIB, pause=0.02)
    assert sent is not None and sent < 32 * MIB  # of these the kernel keeps most
    eventually(lambda: told == ["ended"])
    assert resident_bytes() - before < 2 * MAX_OVERHEAD_BYTES


def test_a_descriptor_that_another_socket_had_is_watched(context):
    watch = ConnectionWatch()
    with context.socket(zmq.PULL) as second, context.socket(zmq.PULL) as first:
        for socket, most in ((second, MIB), (first, 1 << 40)):
            watch.add(socket, most)
            socket.bind("tcp://127.0.0.1:*")
        with raw_peer(endpoint(first), "PUSH"):
            pass
        time.sleep(0.2)  # ZeroMQ closes the descriptor, the next connection gets it
        with raw_peer(endpoint(second), "PUSH") as peer:
            watch.start()  # it learns of all of this at once, of the second socket first
            sent = sent_until_cut(peer, part(bytes(MIB // 4), more=True), 64 * MIB, pause=0.005)
        watch.close()
        assert sent is not None


def test_a_peer_of_the_wrong_kind_is_told_apart(watched, open_peer):
    socket, _, told = watched
    sender = open_peer(zmq.REQ, connect=endpoint(socket))
    sender.send(b"frame")
    eventually(lambda: "no agreement" in told)


def test_only_tcp_connections_have_a_count(tmp_path):
    with (tmp_path / "file").open("w") as file:
        assert received_bytes(file.fileno()) is None
    assert received_bytes(10**6) is None
