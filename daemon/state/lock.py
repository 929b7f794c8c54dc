"""The claim on the state directory: one daemon at a time, and it notices when the directory is no longer there."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import socket
import struct
from contextlib import ExitStack, suppress
from pathlib import Path

from deploy.files import FileIdentity, identity

PEER_TIMEOUT_S = 1.0  # the kernel answers a local connect at once, unless the queue of the listener is full
PEER_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: socket(7), SO_PEERCRED

log = logging.getLogger(__name__)


class StateMoved(OSError):
    """The path of the state directory no longer leads to the directory that was claimed."""


class StateClaim:
    """The state directory, created where it is missing and claimed until `close`.

    Two locks hold it. The directory itself is locked, not a file in it, so that a full disk does not keep the daemon
    from starting. And its path is taken, as the name of a socket: that lasts when the directory is removed or replaced.
    """

    def __init__(self, directory: Path):
        """Raises OSError where another daemon has claimed the directory, or its path."""
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        with ExitStack() as on_failure:
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            on_failure.callback(os.close, descriptor)
            _lock(descriptor, directory)
            _take_path(directory, on_failure)
            found = os.fstat(descriptor)
            self._claimed: FileIdentity = found.st_dev, found.st_ino
            self._closing = on_failure.pop_all()

    def check(self) -> None:
        """Check that the path still leads to the claimed directory. Raises StateMoved."""
        if identity(self._directory) != self._claimed:
            what_to_do = "put it back, or restart recald"
            raise StateMoved(f"{self._directory}: removed or replaced while recald runs: {what_to_do}")

    def close(self) -> None:
        """Give the directory up."""
        self._closing.close()


def _lock(descriptor: int, directory: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _used(directory) from error


def _take_path(directory: Path, closing: ExitStack) -> None:
    """Listen on an abstract socket (unix(7)) named by the path, which the kernel frees when the process ends."""
    name = "\0recald-state-" + hashlib.sha256(os.fsencode(directory.resolve())).hexdigest()
    listener = closing.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    try:
        listener.bind(name)
        listener.listen(1)
    except OSError as error:
        if _owner(name) in (os.getuid(), 0):
            raise _used(directory) from error
        # Any user may take a name. One who has no right to this directory may not keep recald down.
        log.warning("%s: locked, but its path cannot be taken: %s", directory, error.strerror)


def _owner(name: str) -> int | None:
    """Return the user id of the process that listens on a socket; None if nobody answers any more."""
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(PEER_TIMEOUT_S)
        client.connect(name)
        _, uid, _ = PEER_CREDENTIALS.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return int(uid)
    return None


def _used(directory: Path) -> OSError:
    return OSError(f"another recald uses {directory}: stop it first, or set another state.directory")
