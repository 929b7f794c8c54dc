"""Durations, rates and ids as the configuration file writes them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from daemon import UNKNOWN_SENSOR

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0  # s
SECONDS_BY_UNIT = {"ms": 1e-3, "s": 1.0, "m": MINUTE, "h": HOUR, "d": DAY}
MAX_SHARE_ERROR = 0.02  # of a sum of shares: people round them
MIN_ALARM_INTERVAL_S = MINUTE  # between false alarms: more often, alarms mean nothing


@dataclass(frozen=True)
class AlarmRate:
    """At most `alarms` false ones per `text`, which is `seconds` long."""

    alarms: int
    seconds: float
    text: str

    def __str__(self) -> str:
        return f"{self.alarms} per {self.text}"

    @property
    def interval(self) -> float:
        """Return the mean time between two false alarms, s."""
        return self.seconds / self.alarms


def seconds_of(value: object) -> int | float:
    """Return a duration in s. Raises ValueError."""
    if not isinstance(value, str | int | float):
        raise ValueError("expected seconds or a duration such as 500ms, 30s, 15m or 1h")
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", value, re.ASCII)
    if match is None:
        raise ValueError(f"{value[:40]!r} is not a duration: write a number and ms, s, m, h or d, such as 30s")
    return float(match[1]) * SECONDS_BY_UNIT[match[2]]


def alarm_rate_of(value: object) -> AlarmRate:
    """Return a rate such as "1 per 90d". Raises ValueError."""
    if isinstance(value, AlarmRate):
        return value
    match = re.fullmatch(r"([1-9]\d{0,3}) per (\d{1,6}(?:\.\d{1,6})?[smhd])", str(value), re.ASCII)
    if match is None:
        raise ValueError(f"{str(value)[:40]!r} is no rate of alarms: write a number per duration, such as 1 per 90d")
    rate = AlarmRate(int(match[1]), seconds_of(match[2]), match[2])
    if rate.interval < MIN_ALARM_INTERVAL_S:
        raise ValueError(f"{rate} is more than one alarm a minute: write a lower rate, such as 1 per 90d")
    return rate


def class_mix_of(value: object) -> dict[str, float]:
    """Return the share of each class, by its name or number as text; they add up to 1. Raises ValueError."""
    if not isinstance(value, dict) or not value:
        raise ValueError("expected a share for each class, such as {cat: 0.7, dog: 0.3}")
    shares: dict[str, float] = {}
    for name, share in value.items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise ValueError(f"the share of {str(name)[:40]!r} must be a number from 0 to 1")
        shares[str(name)] = float(share)
    total = sum(shares.values())
    if abs(total - 1) > MAX_SHARE_ERROR:
        raise ValueError(f"the shares add up to {total:.3g}: they must add up to 1")
    return {name: share / total for name, share in shares.items()}


def sensor_id_of(name: str) -> str:
    """Return the id of a sensor: it becomes a folder in the state directory and a metric label. Raises ValueError."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", name) or name == UNKNOWN_SENSOR:
        raise ValueError(
            f"{name[:70]!r} is no sensor id: use 1 to 64 letters, digits, _ . or -; "
            f"do not start with . or -; do not use {UNKNOWN_SENSOR!r}"
        )
    return name
