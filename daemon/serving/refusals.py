"""What became of frames that got no result: counted, the newest told to the operator, and one a minute logged."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from daemon.metrics import Metrics
from daemon.serving.message import FrameError
from daemon.serving.throttle import Throttle

WARNING_INTERVAL_S = 60.0  # between two warnings of one sensor: a camera with a wrong clock sends thirty a second

log = logging.getLogger(__name__)


@dataclass
class RefusalTally:
    """The frames of one sensor that got no result."""

    warnings: Throttle
    dropped: int = 0  # refused and superseded ones
    newest: FrameError | None = None  # without its frame, whose pixels would stay in memory
    refused_at: float = 0.0  # monotonic clock, s


class Refusals:
    """Any thread may report to it, and ask it."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float] = time.monotonic):
        """clock: monotonic, s."""
        self._metrics = metrics
        self._clock = clock
        self._lock = threading.Lock()
        self._tallies: defaultdict[str, RefusalTally] = defaultdict(self._new_tally)  # by sensor, also the unknown one

    def _new_tally(self) -> RefusalTally:
        return RefusalTally(Throttle(WARNING_INTERVAL_S, self._clock))

    def add(self, error: FrameError) -> None:
        """Count a refused frame; log it unless its sensor had a warning within the last minute."""
        self._metrics.frames_dropped.labels(error.sensor, error.reason).inc()
        now = self._clock()
        with self._lock:
            tally = self._tallies[error.sensor]
            tally.dropped += 1
            tally.newest, tally.refused_at = _without_frame(error), now
            count = tally.warnings.passes()
        self._metrics.set_last_refusal(error.sensor, error.reason, error.field)
        if count:
            log.warning("%s: %s refused, the newest: %s: %s", error.sensor, _frames(count), error.reason, error)

    def superseded(self, sensor: str) -> None:
        """Count a frame that gave way to a newer one."""
        self._metrics.frames_dropped.labels(sensor, "superseded").inc()
        with self._lock:
            self._tallies[sensor].dropped += 1

    def status(self, sensor: str) -> dict[str, Any]:
        """Return what `recald status` shows, JSON-able: how many frames got no result, and the newest refusal."""
        with self._lock:
            tally = self._tallies[sensor]
            since = self._clock() - tally.refused_at
            newest = tally.newest
        if newest is None:
            return {"dropped": tally.dropped, "last_refusal": None}
        refusal = {"reason": newest.reason, "field": newest.field, "text": str(newest), "seconds_ago": round(since, 1)}
        return {"dropped": tally.dropped, "last_refusal": refusal}


def _without_frame(error: FrameError) -> FrameError:
    return FrameError(error.reason, str(error), error.sensor, field=error.field)


def _frames(count: int) -> str:
    return f"{count} frame" if count == 1 else f"{count} frames"
