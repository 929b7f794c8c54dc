"""Report the state of the daemon to systemd (sd_notify(3)); does nothing where systemd did not start it."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

TIMEOUT_EXTENSION_S = 30.0  # asked of systemd, again and again, during a long step of the start

log = logging.getLogger(__name__)


class Notifier:
    """Sends messages to NOTIFY_SOCKET. A message that cannot be sent is logged; no method raises or blocks."""

    def __init__(
        self,
        environ: Mapping[str, str] = os.environ,
        monotonic: Callable[[], float] = time.monotonic,
        pid: Callable[[], int] = os.getpid,
    ):
        self._monotonic = monotonic
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        # One socket from the start: a process that has run out of descriptors must still be able to say that it lives.
        self._socket = (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) if self._address else None
        )
        self._watchdog_period = _watchdog_period(environ, pid())
        self._next_watchdog = float("-inf")

    def ready(self) -> None:
        """Report that the start is over and frames are served."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """Show one line in `systemctl status`."""
        self._send("STATUS=" + " ".join(text.split()))

    def watchdog(self) -> None:
        """Report that the daemon is alive. Call it as often as you like: it is sent twice in a watchdog period."""
        if self._watchdog_period is None or (now := self._monotonic()) < self._next_watchdog:
            return
        sent = self._send("WATCHDOG=1")
        self._next_watchdog = now + self._watchdog_period / (2 if sent else 10)

    def extend_timeout(self, seconds: float) -> None:
        """Ask for so much time to start or stop, counted from now."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def stopping(self) -> None:
        """Report that the daemon stops."""
        self._send("STOPPING=1")

    def close(self) -> None:
        """Close the socket; nothing can be sent after that."""
        if self._socket is not None:
            self._socket.close()

    def _send(self, message: str) -> bool:
        """Return whether the message was sent; False, too, where there is no NOTIFY_SOCKET."""
        if self._socket is None:
            return False
        try:
            self._socket.sendto(message.encode(), self._address)
        except OSError as error:  # a full queue, too: waiting for systemd would delay frames
            log.warning("the message %s was not sent to systemd: %s", message, error)
            return False
        return True


def _address(name: str) -> str:
    if name.startswith("@"):  # an abstract socket
        return "\0" + name[1:]
    if name and not name.startswith("/"):
        log.warning("NOTIFY_SOCKET=%s is neither a path nor an abstract socket: nothing is sent to systemd", name)
        return ""
    return name


def _watchdog_period(environ: Mapping[str, str], pid: int) -> float | None:
    """Return the period in which systemd expects a sign of life, s; None where it expects none from this process."""
    period = environ.get("WATCHDOG_USEC", "")
    watched_pid = environ.get("WATCHDOG_PID", str(pid))
    if not period.isdecimal() or int(period) == 0 or watched_pid != str(pid):
        return None
    return int(period) / 1e6


@contextmanager
def extending_timeout(notifier: Notifier) -> Iterator[None]:
    """Keep systemd's start timeout from ending while the `with` block runs: a compile may take minutes."""
    done = threading.Event()

    def extend() -> None:
        while not done.wait(TIMEOUT_EXTENSION_S / 6):
            notifier.extend_timeout(TIMEOUT_EXTENSION_S)

    thread = threading.Thread(target=extend, name="extend-timeout", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
