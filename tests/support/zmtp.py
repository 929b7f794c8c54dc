"""A peer that speaks ZeroMQ's protocol byte by byte, and so can send what no library sends."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlparse

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)
MORE, LONG = 1, 2  # flags of a frame


@contextmanager
def raw_peer(endpoint: str, kind: str) -> Iterator[socket.socket]:
    """Connect to a tcp:// endpoint as a socket of this kind, such as PUB, and finish the handshake."""
    address = urlparse(endpoint)
    with socket.create_connection((address.hostname, address.port), timeout=10) as peer:
        peer.sendall(GREETING)
        _read(peer, len(GREETING))
        ready = b"\x05READY\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind.encode()
        peer.sendall(bytes([4, len(ready)]) + ready)
        yield peer


def part(data: bytes, more: bool = False) -> bytes:
    """Return the bytes of one part of a message."""
    flags = MORE if more else 0
    if len(data) < 256:
        return bytes([flags, len(data)]) + data
    return bytes([flags | LONG]) + struct.pack(">Q", len(data)) + data


def sent_until_cut(peer: socket.socket, data: bytes, most: int, pause: float = 0.0) -> int | None:
    """Send `data` again and again; return the bytes sent when the other side cut the connection, None for never."""
    sent = 0
    try:
        while sent < most:
            peer.sendall(data)
            sent += len(data)
            time.sleep(pause)
        peer.settimeout(1)
        while peer.recv(4096):
            pass
    except TimeoutError:
        return None
    except OSError:
        pass
    return sent


def _read(peer: socket.socket, count: int) -> None:
    while count > 0:
        count -= len(peer.recv(count))
