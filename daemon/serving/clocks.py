"""Tells in words which clock a time stamp may come from, when it is not the wall clock of the device."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timezone

SECOND_NS = 1_000_000_000
MIN_VALID_NS = 1_577_836_800 * SECOND_NS  # 2020: a device whose own clock shows less was never set
MAX_UPTIME_NS = 5 * 365 * 86_400 * SECOND_NS  # a stamp this close to 1970 counts from some start
UNITS = {"seconds": SECOND_NS, "milliseconds": SECOND_NS // 1000, "microseconds": SECOND_NS // 1_000_000}  # ns
MAX_UNIT_ERROR_NS = 86_400 * SECOND_NS  # of a stamp read in one of these units, to now
LEAPS = {37: "TAI, the clock of PTP", 18: "GPS time"}  # s ahead of UTC since 2017
MAX_LEAP_ERROR_S = 0.5
ZONE_STEP_S, MAX_ZONE_S, MAX_ZONE_ERROR_S = 900, 14 * 3600, 5
OLD_S = 30 * 86_400  # no queue between camera and device lasts so long


def explain(timestamp: int, now: int, monotonic_ns: Callable[[], int] = time.monotonic_ns) -> str:
    """Return what is likely wrong with a time stamp that is too old or in the future, and what to do.

    timestamp, now: ns since the epoch, by the camera and by this device.
    """
    if now < MIN_VALID_NS:
        return f"this device's own clock says {_date(now)}: set it"
    for unit, size in UNITS.items():
        if abs(timestamp * size - now) < MAX_UNIT_ERROR_NS:
            return f"these are {unit} since 1970: send nanoseconds"
    if timestamp < MAX_UPTIME_NS:
        return _since_a_start(timestamp, monotonic_ns())
    return _offset((timestamp - now) / SECOND_NS, timestamp)


def _since_a_start(timestamp: int, uptime: int) -> str:
    if abs(timestamp - uptime) < MAX_LEAP_ERROR_S * SECOND_NS * 20:
        return "this is the time since this device started (CLOCK_MONOTONIC): send the wall clock, CLOCK_REALTIME"
    return "it counts from a start, not from 1970: send the wall clock, or set the camera's clock"


def _offset(ahead_s: float, timestamp: int) -> str:
    for leap, clock in LEAPS.items():
        if abs(ahead_s - leap) < MAX_LEAP_ERROR_S:
            return f"{leap} s ahead is {clock}: convert it to UTC"
    zone = round(ahead_s / ZONE_STEP_S) * ZONE_STEP_S
    if zone and abs(zone) <= MAX_ZONE_S and abs(ahead_s - zone) < MAX_ZONE_ERROR_S:
        return f"{zone / 3600:+g} h is a time zone: send UTC, not local time"
    if abs(ahead_s) > OLD_S:
        return f"its clock says {_date(timestamp)}: set it"
    if ahead_s > 0:
        return "synchronise the clocks (NTP or PTP)"
    return "synchronise the clocks (NTP or PTP), or look for a queue between camera and device"


def _date(timestamp: int) -> str:
    return datetime.fromtimestamp(min(timestamp // SECOND_NS, 253_402_300_799), timezone.utc).strftime("%Y-%m-%d %H:%M")
