"""An operator's hold and the day's budget, as a restart must know them: the audit log tells, nothing else does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

from daemon.config import DAY, RecalibrateConfig
from deploy.audit.chain import Record
from deploy.audit.log import AuditLog
from deploy.store.artefacts import FACTORY

CLOCK_SET_S = 1_577_836_800.0  # 2020-01-01; a device that tells an earlier time has not yet learnt the date
BY_OPERATOR = "the operator holds swaps"
BY_DAMAGE = "the audit log was damaged, and an operator's hold may be lost with it"


@dataclass(frozen=True)
class RestartState:
    """`hold`: why nothing may be swapped, "" where it may. Ages (s) of the last day's fits and swaps, oldest first."""

    sensor: str
    hold: str
    fits: list[float]
    swaps: list[float]


def restart_state(audit: AuditLog, sensor: str, budget: RecalibrateConfig, now: float) -> RestartState:
    """What `audit` tells of a sensor at `now`, s since the epoch."""
    fits = audit.newest(sensor, "fit begun", budget.fits_a_day)
    swaps = [swap for swap in audit.newest(sensor, "swap", 2 * budget.swaps_a_day) if _counts(swap)]
    hold = _hold(audit.newest(sensor, "order"), damaged=bool(audit.damaged_before()))
    return RestartState(sensor, hold, _last_day(fits, now), _last_day(swaps, now))


def _hold(orders: list[Record], damaged: bool) -> str:
    """A hold lasts until it is released; where that cannot be told, nothing is swapped."""
    for record in reversed(orders):
        content = record.content()
        if not record.holds() or not isinstance(content, dict):
            return BY_DAMAGE
        if content.get("order") == "release":
            return ""
        if content.get("order") == "hold":
            return str(content.get("reason", BY_OPERATOR))
    return BY_DAMAGE if damaged else ""


def _counts(swap: Record) -> bool:
    """The way to the factory homogenizer, at most every second swap, is open whatever is spent."""
    content = swap.content()
    return not (isinstance(content, dict) and content.get("to") == FACTORY)


def _last_day(records: list[Record], now: float) -> list[float]:
    return [age for age in ages([record.time() for record in records], now) if age < DAY]


def ages(times: Sequence[float | None], now: float) -> list[float]:
    """How long ago (s) records were written, in their order; `times` are what a clock that may have jumped said then.

    None was written later than the one after it, or than now. Where a time tells nothing, the one after it stands in.
    """
    latest = after = now if _told(now) else next(filter(_told, reversed(times)), now)
    found = []
    for time in reversed(times):
        after = min(time, after) if _told(time) else after
        found.append(latest - after)
    return found[::-1]


def _told(time: float | None) -> TypeGuard[float]:
    return time is not None and time >= CLOCK_SET_S
