"""What all ZeroMQ sockets of recald share: they do not linger, take over no endpoint, and name it in errors."""

from __future__ import annotations

import errno
import os
import socket as unix
from pathlib import Path

import zmq

SUBSCRIBED, UNSUBSCRIBED = b"\x01", b"\x00"  # first byte of what an XPUB socket receives; the topic follows
HANDSHAKE_MS = 5000  # libzmq's default of 30 s would keep half-open peers for too long
PROBE_TIMEOUT_S = 1.0  # the kernel answers a local connect at once, unless the queue of the listener is full


def open_socket(context: zmq.Context, kind: int) -> zmq.Socket:
    """Return a socket that drops unsent messages when it is closed, and detects dead TCP peers."""
    socket = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    return socket


def bind(socket: zmq.Socket, endpoint: str) -> str:
    """Bind the socket and return the bound endpoint, with the real port for `*`.

    The folder of an ipc:// endpoint is made where it is missing, for this user alone. Raises OSError, and closes the
    socket, where the endpoint is taken or cannot be bound.
    """
    try:
        if (path := ipc_path(endpoint)) is not None:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _refuse_taken(path)
        socket.bind(endpoint)
    except (zmq.ZMQError, OSError) as error:
        socket.close()
        raise _bind_error(endpoint, error) from error
    return socket.getsockopt_string(zmq.LAST_ENDPOINT)


def check_bindable(context: zmq.Context, endpoint: str) -> None:
    """Raise the OSError that `bind` would raise for this endpoint now; leave nothing behind."""
    path = ipc_path(endpoint)
    if path is None:
        socket = open_socket(context, zmq.PUB)
        bind(socket, endpoint)
        socket.close()
        return
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, f"cannot bind {endpoint}: this user cannot write to {folder}")
    try:
        _refuse_taken(path)
    except OSError as error:
        raise _bind_error(endpoint, error) from error


def _bind_error(endpoint: str, error: zmq.ZMQError | OSError) -> OSError:
    advice = ": stop the other program, or choose another endpoint" if error.errno == errno.EADDRINUSE else ""
    return OSError(error.errno, f"cannot bind {endpoint}: {error.strerror or error}{advice}")


def connect(socket: zmq.Socket, endpoint: str) -> str:
    """Connect the socket and return the endpoint. Raises OSError, as for an unknown host, and closes the socket."""
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        socket.close()
        raise OSError(error.errno, f"cannot connect {endpoint}: {error.strerror or error}") from error
    return endpoint


def ipc_path(endpoint: str) -> Path | None:
    """Return the socket file of an ipc:// endpoint; None for other endpoints."""
    return Path(endpoint.removeprefix("ipc://")) if endpoint.startswith("ipc://") else None


def probe(path: Path) -> None:
    """Connect to a UNIX socket and disconnect at once. Raises the OSError that says why nobody can be reached."""
    with unix.socket(unix.AF_UNIX, unix.SOCK_STREAM) as client:
        client.settimeout(PROBE_TIMEOUT_S)
        client.connect(str(path))


def _refuse_taken(path: Path) -> None:
    """Raise OSError where a file or the socket of a running process is at `path`: libzmq's bind would delete it."""
    if path.exists() and not path.is_socket():
        raise OSError(errno.EEXIST, "there is a file that is not a socket")
    try:
        probe(path)
    except (FileNotFoundError, ConnectionRefusedError):
        return  # there is nothing, or a socket that a dead process left
    except (TimeoutError, PermissionError):
        pass  # in use: the process is busy, or belongs to another user
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
