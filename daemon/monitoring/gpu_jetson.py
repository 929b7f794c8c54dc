"""Reads what the kernel of a Jetson tells of its GPU in /sys, since NVML tells nothing of it before JetPack 7.

The paths, and where they are described:

- `devices/gpu.0/load`, `devices/platform/gpu.0/load`, `class/devfreq/17000000.ga10b/device/load` and the like: the
  share of the time in which the GPU computed, in per mille. tegrastats shows the same as GR3D_FREQ ("Tegrastats
  Utility" of the Jetson Linux Developer Guide); jetson-stats and Glances read these files.
- `class/thermal/thermal_zone*/type` and `temp`: `GPU-therm` (JetPack 5), `gpu-thermal` (JetPack 6), in 1/1000 °C
  (Linux, Documentation/driver-api/thermal/sysfs-api.rst).
- `class/thermal/cooling_device*/type` and `cur_state`: `gpu-throttle-alert` is above 0 while heat slows the GPU down
  (Developer Guide, "Platform Power and Performance", thermal management).
- `class/hwmon/hwmon*/oc*_event_cnt`: how often too much current slowed the chip down since it started (the same page,
  "Electrical Management").
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from daemon.monitoring.gpu_state import GpuState

SYSFS = Path("/sys")
LOADS = (
    "devices/gpu.0/load",
    "devices/platform/gpu.0/load",
    *(f"class/devfreq/*.{chip}/device/load" for chip in ("gpu", "ga10b", "gv11b", "gp10b")),
)
GPU_ZONES = ("gpu-thermal", "gpu-therm")  # in small letters
HEAT_ALERT = "gpu-throttle-alert"
JETSON_GPU = "0"  # the only one
OVERCURRENT_TOLD_S = 30.0  # after it came: it lasts milliseconds, and Prometheus looks each 15 s


def open_jetson(root: Path = SYSFS, clock: Callable[[], float] = time.monotonic) -> JetsonSource | None:
    """Return the GPU of a Jetson; None on another machine. clock: monotonic, s."""
    loads = [path for pattern in LOADS for path in root.glob(pattern)]
    return JetsonSource(root, loads[0], clock) if loads else None


class JetsonSource:
    """The one GPU of a Jetson. Its memory is that of the device, so that it tells none of its own."""

    def __init__(self, root: Path, load: Path, clock: Callable[[], float]):
        self._load = load
        self._clock = clock
        self._temperature = next((file.parent / "temp" for file in _of_type(root, "thermal_zone", *GPU_ZONES)), None)
        self._alerts = [file.parent / "cur_state" for file in _of_type(root, "cooling_device", HEAT_ALERT)]
        self._overcurrents = sorted(root.glob("class/hwmon/hwmon*/oc*_event_cnt"))
        self._overcurrents_before = self._count_overcurrents()
        self._overcurrent_until = -math.inf  # when it is no longer told; s of the clock

    def read(self) -> dict[str, GpuState]:
        """Return the state of the GPU; {} where no file can be read."""
        load, heat = _number(self._load), _number(self._temperature)
        state = GpuState(
            utilization=None if load is None else load / 1000,
            temperature=None if heat is None else heat / 1000,
            throttled=self._throttled(),
        )
        return {JETSON_GPU: state} if state.is_known else {}

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def _throttled(self) -> frozenset[str] | None:
        """Return what slows it down now, or did within OVERCURRENT_TOLD_S; None where nothing tells it."""
        alerts, overcurrents = [_number(file) for file in self._alerts], self._count_overcurrents()
        before, self._overcurrents_before = self._overcurrents_before, overcurrents
        known = [alert for alert in alerts if alert is not None]
        if not known and overcurrents is None:
            return None
        if before is not None and (overcurrents or 0) > before:
            self._overcurrent_until = self._clock() + OVERCURRENT_TOLD_S
        heat = {"heat"} if any(known) else set()
        power = {"power"} if self._clock() < self._overcurrent_until else set()
        return frozenset(heat | power)

    def _count_overcurrents(self) -> int | None:
        counts = [count for count in map(_number, self._overcurrents) if count is not None]
        return sum(counts) if counts else None


def _of_type(root: Path, kind: str, *names: str) -> Iterator[Path]:
    """Yield the file `type` of each zone or cooling device that has one of these types."""
    for file in sorted(root.glob(f"class/thermal/{kind}*/type")):
        with suppress(OSError):
            if file.read_text().strip().lower() in names:
                yield file


def _number(file: Path | None) -> int | None:
    if file is None:
        return None
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # a part of the chip that sleeps refuses to be read
        return None
