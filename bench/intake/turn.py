"""One turn of one reader, in a process of its own: `python -m bench.intake.turn READER ENDPOINT RATE SECONDS`.

Of its own, since how malloc deals with frames depends on everything that a process did before.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from typing import Any, NamedTuple

from bench.intake.readers import READERS, Reader, Stamp, Take
from bench.intake.sender import PATIENCE_S, sending

SETTLE_S = 0.5  # until queues and heap are as full as they stay


class Turn(NamedTuple):
    """What one reader took in one turn."""

    frames: int
    skipped: int  # published in between and not taken
    seconds: float
    cpu_seconds: float  # of the reading process, all threads
    page_faults: int
    ages: list[float]  # s, from just before the send call to taken

    @property
    def rate(self) -> float:
        return self.frames / self.seconds


def run_turn(reader: str, endpoint: str, rate: float, seconds: float) -> Turn:
    command = [sys.executable, "-m", "bench.intake.turn", reader, endpoint, str(rate), str(seconds)]
    return Turn(*json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))


def _turn(reader: Reader, endpoint: str, rate: float, seconds: float) -> Turn:
    life = 2 * PATIENCE_S + SETTLE_S + seconds
    with reader.open(endpoint) as take, sending(reader.sender, endpoint, rate, life):
        take()
        _collect(take, SETTLE_S)
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        taken = _collect(take, seconds)
        took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    stamps = [reader.stamp(what) for _, what in taken]
    return Turn(
        frames=len(taken),
        skipped=_skipped(stamps),
        seconds=took,
        cpu_seconds=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        page_faults=after.ru_minflt - before.ru_minflt,
        ages=[(arrived - stamp.published) / 1e9 for (arrived, _), stamp in zip(taken, stamps, strict=True)],
    )


def _collect(take: Take, seconds: float) -> list[tuple[int, Any]]:
    """Take frames until the time is over, each with the time of its arrival in ns."""
    taken = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        what = take()
        taken.append((time.time_ns(), what))
    return taken


def _skipped(stamps: list[Stamp]) -> int:
    return stamps[-1].seq - stamps[0].seq + 1 - len(stamps)


if __name__ == "__main__":
    print(json.dumps(_turn(READERS[sys.argv[1]], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))))
