"""Tell systemd how the daemon is (sd_notify(3)); silent where nobody listens."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

PATIENCE_S = 30.0  # asked of systemd, again and again, while a compile goes on

log = logging.getLogger(__name__)


class Notifier:
    """Sends to NOTIFY_SOCKET; a lost datagram costs a log line, never the daemon."""

    def __init__(
        self,
        environ: Mapping[str, str] = os.environ,
        monotonic: Callable[[], float] = time.monotonic,
        pid: Callable[[], int] = os.getpid,
    ):
        self._monotonic = monotonic
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._watchdog_period = _watchdog_period(environ, pid())
        self._next_watchdog = float("-inf")

    def ready(self) -> None:
        self._send("READY=1")

    def status(self, text: str) -> None:
        """Show one line in `systemctl status`."""
        self._send("STATUS=" + " ".join(text.split()))

    def watchdog(self) -> None:
        """Say that the daemon lives; call as often as you like, it is sent twice a watchdog period."""
        if self._watchdog_period is None or (now := self._monotonic()) < self._next_watchdog:
            return
        sent = self._send("WATCHDOG=1")
        self._next_watchdog = now + self._watchdog_period / (2 if sent else 10)

    def extend_timeout(self, seconds: float) -> None:
        """Ask for this much more time to start or stop, counted from now."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def _send(self, message: str) -> bool:
        if not self._address:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
                sender.sendto(message.encode(), self._address)
        except OSError as error:  # also a full queue: waiting for systemd would hold up frames
            log.warning("systemd was not told %s: %s", message, error)
            return False
        return True


def _address(name: str) -> str:
    if name.startswith("@"):  # an abstract socket
        return "\0" + name[1:]
    if name and not name.startswith("/"):
        log.warning("NOTIFY_SOCKET=%s is neither a path nor an abstract socket, systemd is not told", name)
        return ""
    return name


def _watchdog_period(environ: Mapping[str, str], pid: int) -> float | None:
    period = environ.get("WATCHDOG_USEC", "")
    meant_for = environ.get("WATCHDOG_PID", str(pid))
    if not period.isdecimal() or int(period) == 0 or meant_for != str(pid):
        return None
    return int(period) / 1e6


@contextmanager
def asking_for_patience(notifier: Notifier) -> Iterator[None]:
    """A compile may take minutes on a small device: systemd hears that it goes on."""
    done = threading.Event()

    def tell() -> None:
        while not done.wait(PATIENCE_S / 6):
            notifier.extend_timeout(PATIENCE_S)

    teller = threading.Thread(target=tell, name="patience", daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()
