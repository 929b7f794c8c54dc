"""A message without an end costs its sender the connection, and nobody else anything."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import zmq
from zmtp import part, raw_peer, sent_until_cut

from daemon.serving.connection_watch import (
    FREE_GROWTH_BYTES,
    MAX_GROWTH_BYTES,
    MIN_PENDING_BYTES,
    ConnectionWatch,
    WatchedConnection,
    fault,
    received_bytes,
    resident_bytes,
)

MIB = 1 << 20


@pytest.mark.parametrize(
    ("pending", "growth", "text"),
    [
        (0, 0, ""),
        (10 * MIB, 10 * MIB, ""),  # a large frame arrives
        (10 * MIB + 1, 0, "sent 10 MiB without the end"),
        (MIB, FREE_GROWTH_BYTES - 1, ""),  # the process grows for other reasons, too
        (MIB, FREE_GROWTH_BYTES, "grew by 32 MiB while it sent 1024 KiB"),  # tiny parts
        (MIN_PENDING_BYTES - 1, 10 * MAX_GROWTH_BYTES, ""),  # a camera that rests is never cut off
        (10 * MIB, 79 * MIB, ""),
        (10 * MIB, MAX_GROWTH_BYTES + 1, "grew by 256 MiB"),
    ],
)
def test_what_is_a_fault(pending: int, growth: int, text: str):
    found = fault(WatchedConnection(10 * MIB), pending, growth)
    assert text in found and bool(text) == bool(found)


@pytest.fixture
def watched(context):
    """A PULL socket of which a peer may have 1 MiB pending; the watch, which looks when asked; what it reports."""
    told: list[str] = []
    watch = ConnectionWatch()
    with context.socket(zmq.PULL) as socket:
        socket.linger = 0
        watch.add(socket, MIB, lambda: told.append("ended"), lambda: told.append("stranger"))
        socket.bind("tcp://127.0.0.1:*")
        watch.start()
        yield socket, watch, told
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
    socket, watch, told = watched
    with raw_peer(endpoint(socket), "PUSH") as peer:
        for _ in range(40):
            peer.sendall(part(bytes(MIB // 4), more=True) + part(b"end"))
            assert socket.poll(5000)
            watch.delivered(socket.recv_multipart(copy=False)[0])
        assert not told


def test_a_peer_of_the_wrong_kind_is_told_apart(watched, open_peer):
    socket, _, told = watched
    sender = open_peer(zmq.REQ, connect=endpoint(socket))
    sender.send(b"frame")
    eventually(lambda: "stranger" in told)


def test_only_tcp_connections_have_a_count(tmp_path):
    with (tmp_path / "file").open("w") as file:
        assert received_bytes(file.fileno()) is None
    assert received_bytes(10**6) is None
