"""The demo while it runs: looks at the daemon and the cameras, and tells the display what it sees."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

from daemon.demo.camera import Cameras
from daemon.demo.ledger import Ledger, Reading
from daemon.demo.service import Daemon, Metrics
from daemon.demo.show import HISTORY, Display, SensorView, short
from deploy.store.artefacts import FACTORY

LOOK_S = 0.25  # from one look to the next
SAMPLE_S = 2.0  # from one point of the accuracy curve to the next

STATES = {
    "collecting": "collecting frames to fit to",
    "fitting": "fitting a homogenizer, in a process of its own",
    "judging": "judging it on frames it has not seen",
    "compiling": "compiling it",
    "shadow": "the fitted homogenizer runs beside, on new frames",
    "probation": "the fitted homogenizer serves, on probation",
    "active": "the probation is over",
    "failed": "the recalibration failed",
}


class Scene:
    """Follows one run; an end of the daemon or the cameras that nobody asked for is raised from here."""

    def __init__(
        self,
        sensors: Sequence[str],
        daemon: Daemon,
        cameras: Cameras,
        ledger: Ledger,
        display: Display,
        threshold: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.sensors, self.daemon, self.cameras, self.ledger = sensors, daemon, cameras, ledger
        self.display, self.threshold, self.monotonic = display, threshold, monotonic
        self.metrics = Metrics("")
        self._last: dict[tuple[str, str], object] = {}
        self._history: dict[str, deque[float]] = {sensor: deque(maxlen=HISTORY) for sensor in sensors}
        self._next_sample = monotonic()

    def follow(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Look on for so long, or until something has come true; returns whether it has."""
        deadline = self.monotonic() + seconds
        while not until():
            if self.monotonic() > deadline:
                return False
            self.look()
            time.sleep(LOOK_S)
        return True

    def look(self) -> None:
        self.daemon.check()
        self.cameras.check()
        self.metrics = self.daemon.scrape() or self.metrics
        readings = {sensor: self.read(sensor) for sensor in self.sensors}
        for sensor, reading in readings.items():
            self._tell_changes(sensor, reading)
        self._sample(readings)
        self.display.update([self._view(sensor, reading) for sensor, reading in readings.items()])

    def read(self, sensor: str) -> Reading:
        return self.ledger.read(sensor, self.monotonic())

    def superseded(self, sensor: str) -> int:
        """Frames that gave way to a newer one before they were looked at."""
        return int(self.metrics.total("recald_frames_dropped_total", sensor=sensor, reason="superseded"))

    def swap_pause(self, sensor: str) -> float | None:
        """Seconds that a swap kept the frames waiting, on average."""
        name = "recald_swap_pause_seconds"
        swaps = self.metrics.total(f"{name}_count", sensor=sensor)
        return self.metrics.total(f"{name}_sum", sensor=sensor) / swaps if swaps else None

    def _tell_changes(self, sensor: str, reading: Reading) -> None:
        alarmed = self.metrics.total("recald_drift_alarm", sensor=sensor) > 0
        if self._changed(sensor, "alarm", alarmed, False):
            self.display.event(f"{sensor}: drift alarm" if alarmed else f"{sensor}: the drift alarm is over")
        state = self.metrics.state(sensor)
        if self._changed(sensor, "state", state, FACTORY) and state in STATES:
            self.display.event(f"{sensor}: {STATES[state]}")
        if self._changed(sensor, "version", reading.version, FACTORY):
            lost = reading.swaps[-1].lost
            self.display.event(f"{sensor}: answers by homogenizer {short(reading.version)}, {lost} frames lost")

    def _changed(self, sensor: str, what: str, value: object, at_first: object) -> bool:
        before = self._last.get((sensor, what), at_first)
        self._last[sensor, what] = value
        return value != before

    def _sample(self, readings: dict[str, Reading]) -> None:
        if self.monotonic() < self._next_sample:
            return
        self._next_sample += SAMPLE_S
        for sensor, reading in readings.items():
            if reading.rolling is not None:
                self._history[sensor].append(reading.rolling)

    def _view(self, sensor: str, reading: Reading) -> SensorView:
        return SensorView(
            sensor=sensor,
            drifted=sensor in self.cameras.drifts,
            rate=reading.rate,
            accuracy=reading.rolling,
            history=tuple(self._history[sensor]),
            drift_score=reading.header.get("drift_score"),
            threshold=self.threshold,
            state=self.metrics.state(sensor),
            progress=self.metrics.total("recald_calibration_progress_ratio", sensor=sensor),
            homogenizer=reading.version,
            swaps=len(reading.swaps),
        )
