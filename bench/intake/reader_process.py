"""Measure one reader in a process of its own: `python -m bench.intake.reader_process READER ENDPOINT RATE SECONDS`.

A process of its own, because the way malloc handles frames depends on everything that the process did before.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from typing import Any, NamedTuple

from bench.intake.readers import READERS, Reader, Take
from bench.intake.sender import READER_TIMEOUT_S, sending

SETTLE_S = 0.5  # until queues and heap have reached their steady size


class Reading(NamedTuple):
    """What one reader received in one round."""

    frames: int
    skipped: int  # frames that were published in between and not received
    seconds: float
    cpu_seconds: float  # of the reading process, all threads
    page_faults: int
    ages: list[float]  # s, from just before the send call until the frame was taken

    @property
    def rate(self) -> float:
        return self.frames / self.seconds


def measure_in_process(reader: str, endpoint: str, rate: float, seconds: float) -> Reading:
    """Start a process that measures the reader for so long; return what it received. rate: the sender's frames/s."""
    command = [sys.executable, "-m", "bench.intake.reader_process", reader, endpoint, str(rate), str(seconds)]
    return Reading(*json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))


def _measure(reader: Reader, endpoint: str, rate: float, seconds: float) -> Reading:
    sender_life = 2 * READER_TIMEOUT_S + SETTLE_S + seconds
    with reader.open(endpoint) as take, sending(reader.sender, endpoint, rate, sender_life):
        take()
        _take_for(take, SETTLE_S)
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        taken = _take_for(take, seconds)
        took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    stamps = [reader.stamp(frame) for _, frame in taken]
    return Reading(
        frames=len(taken),
        skipped=stamps[-1].seq - stamps[0].seq + 1 - len(stamps),
        seconds=took,
        cpu_seconds=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        page_faults=after.ru_minflt - before.ru_minflt,
        ages=[(arrived - stamp.published) / 1e9 for (arrived, _), stamp in zip(taken, stamps, strict=True)],
    )


def _take_for(take: Take, seconds: float) -> list[tuple[int, Any]]:
    """Take frames for so long; return each with its time of arrival in ns since the epoch."""
    taken = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        frame = take()
        taken.append((time.time_ns(), frame))
    return taken


if __name__ == "__main__":
    print(json.dumps(_measure(READERS[sys.argv[1]], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))))
