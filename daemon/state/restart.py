"""What a restart reads from the audit log: an operator's hold, and the fits and swaps of the last day."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

from daemon.config import RecalibrateConfig
from daemon.settings.values import DAY
from deploy.audit.chain import AuditRecord
from deploy.audit.log import AuditLog
from deploy.store.artefacts import FACTORY

MIN_VALID_TIME_S = 1_577_836_800.0  # 2020-01-01; an earlier time is of a device whose clock was not yet set
HELD_BY_OPERATOR = "the operator holds swaps"
HELD_BY_DAMAGE = "the audit log was damaged, and an operator's hold may be lost with it"


@dataclass(frozen=True)
class RestartState:
    """What is known of a sensor from before the restart."""

    sensor: str
    hold: str  # why nothing may be swapped; "" where swaps are allowed
    fits: list[float]  # ages of the last day's fits, s, oldest first
    swaps: list[float]  # ages of the last day's swaps, s, oldest first


def restart_state(audit: AuditLog, sensor: str, budget: RecalibrateConfig, now: float) -> RestartState:
    """Read what the audit log holds of a sensor. now: s since the epoch. Raises AuditError."""
    fits = audit.newest(sensor, "fit begun", budget.fits_a_day)
    swaps = audit.newest(sensor, "swap", 2 * budget.swaps_a_day)  # at most every second one leads to factory
    counted = [swap for swap in swaps if not _leads_to_factory(swap)]
    hold = _hold(audit.newest(sensor, "order"), damaged=bool(audit.damaged_before()))
    return RestartState(sensor, hold, _last_day(fits, now), _last_day(counted, now))


def _leads_to_factory(swap: AuditRecord) -> bool:
    """Return whether this swap is free: the way back to the factory homogenizer does not count against the budget."""
    content = swap.content()
    return isinstance(content, dict) and content.get("to") == FACTORY


def _hold(orders: list[AuditRecord], damaged: bool) -> str:
    """Return the hold that lasts: one is ended by a release alone, and damage counts as a hold."""
    for record in reversed(orders):
        content = record.content()
        if not record.is_intact() or not isinstance(content, dict):
            return HELD_BY_DAMAGE
        if content.get("order") == "release":
            return ""
        if content.get("order") == "hold":
            return str(content.get("reason", HELD_BY_OPERATOR))
    return HELD_BY_DAMAGE if damaged else ""


def _last_day(records: list[AuditRecord], now: float) -> list[float]:
    return [age for age in ages([record.timestamp() for record in records], now) if age < DAY]


def ages(times: Sequence[float | None], now: float) -> list[float]:
    """Return ages in s, oldest first; clock jumps are clamped so that ages never rise.

    times: when the records were written, oldest first, s since the epoch; None where a record does not say it.
    now: s since the epoch. A time that is not valid is replaced by the time of the next record.
    """
    latest = after = now if _is_valid(now) else next(filter(_is_valid, reversed(times)), now)
    newest_first = []
    for time in reversed(times):
        after = min(time, after) if _is_valid(time) else after  # no record is later than the next one, or than now
        newest_first.append(latest - after)
    return newest_first[::-1]


def _is_valid(time: float | None) -> TypeGuard[float]:
    return time is not None and time >= MIN_VALID_TIME_S
