"""How much memory ZeroMQ takes for what arrives.

The process grows for many reasons: pictures that are kept, a homogenizer that is loaded, frames that are decoded. Only
ZeroMQ's own threads read from connections. So what arrives can be no more than what the process grew by, and no more
than the pages that these threads were the first to touch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

THREADS = Path("/proc/self/task")
ZEROMQ_THREAD = "ZMQbg/"  # how libzmq's threads are called since 4.3
MINOR_FAULTS = 7  # place in /proc/PID/stat, counted from the state, which follows the name
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class MemoryTaken:
    resident: int = 0  # bytes that the process has now
    touched: int = 0  # bytes of the pages that ZeroMQ's threads have ever been the first to touch
    sent: int = 0  # bytes that all peers have ever sent

    def received_since(self, before: MemoryTaken) -> int:
        """Return how many bytes, at most, were taken for what arrived since then."""
        return min(self.resident - before.resident, self.touched - before.touched)

    def unsent_since(self, before: MemoryTaken) -> int:
        """Return how many bytes were taken since then, beyond what peers sent: frames alone never take more."""
        return self.touched - before.touched - (self.sent - before.sent)


class ReceiverMemory:
    """Reads the memory that is taken; call it when a connection is open, for then ZeroMQ's threads run."""

    def __init__(self) -> None:
        self._threads: list[Path] = []

    def __call__(self) -> MemoryTaken:
        self._threads = self._threads or list(_zeromq_threads())
        return MemoryTaken(resident_bytes(), sum(map(_touched_bytes, self._threads)))


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def _zeromq_threads() -> Iterator[Path]:
    for thread in THREADS.iterdir():
        with suppress(OSError):  # it has ended meanwhile
            if (thread / "comm").read_text().startswith(ZEROMQ_THREAD):
                yield thread


def _touched_bytes(thread: Path) -> int:
    with suppress(OSError):  # it has ended, with its context
        return int((thread / "stat").read_text().rpartition(")")[2].split()[MINOR_FAULTS]) * PAGE_BYTES
    return 0
