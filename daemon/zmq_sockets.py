"""What the daemon's ZeroMQ sockets have in common: no lingering, no theft, errors that name the endpoint."""

from __future__ import annotations

import errno
import os
import socket as unix
from pathlib import Path

import zmq

HANDSHAKE_MS = 5000  # libzmq's 30 s would keep half-open peers
KNOCK_S = 1.0  # the kernel answers a local connect at once, unless the listener's queue is full


def open_socket(context: zmq.Context, kind: int) -> zmq.Socket:
    """Return a socket that drops what is unsent when closed and notices dead TCP peers."""
    socket = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    return socket


def bind(socket: zmq.Socket, endpoint: str) -> str:
    """Bind and return the endpoint as bound, with the port chosen for `*`; OSError closes the socket."""
    try:
        if (path := ipc_path(endpoint)) is not None:
            _check_free(path)
        socket.bind(endpoint)
    except (zmq.ZMQError, OSError) as error:
        socket.close()
        raise OSError(error.errno, f"cannot bind {endpoint}: {error.strerror or error}") from error
    return socket.getsockopt_string(zmq.LAST_ENDPOINT)


def connect(socket: zmq.Socket, endpoint: str) -> str:
    """Connect and return the endpoint; OSError, as for an unknown host name, closes the socket."""
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        socket.close()
        raise OSError(error.errno, f"cannot connect {endpoint}: {error.strerror or error}") from error
    return endpoint


def ipc_path(endpoint: str) -> Path | None:
    """Return the socket file of an ipc:// endpoint, None for the others."""
    return Path(endpoint.removeprefix("ipc://")) if endpoint.startswith("ipc://") else None


def knock(path: Path) -> None:
    """Connect to a UNIX socket and leave again; the OSError says why nobody can be reached."""
    with unix.socket(unix.AF_UNIX, unix.SOCK_STREAM) as visitor:
        visitor.settimeout(KNOCK_S)
        visitor.connect(str(path))


def _check_free(path: Path) -> None:
    """Refuse what libzmq would do: delete whatever is at `path`, even where a living process listens."""
    if path.exists() and not path.is_socket():
        raise OSError(errno.EEXIST, "there is a file that is not a socket")
    try:
        knock(path)
    except (FileNotFoundError, ConnectionRefusedError):
        return  # nothing, or left behind by a dead process
    except (TimeoutError, PermissionError):
        pass  # alive, but busy or another user's
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
