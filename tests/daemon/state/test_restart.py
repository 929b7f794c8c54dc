"""What a restart knows of holds and of the day's budget, from audit logs as they are, were changed or are gone."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.config import RecalibrateConfig
from daemon.settings.values import DAY, HOUR
from daemon.state.restart import HELD_BY_DAMAGE, HELD_BY_OPERATOR, MIN_VALID_TIME_S, RestartState, ages, restart_state
from deploy.audit.log import AuditLog

NOW = MIN_VALID_TIME_S + 1000 * DAY
Ask = Callable[..., RestartState]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.sqlite"


@pytest.fixture
def tell(path: Path) -> Iterator[Callable[..., None]]:
    """Write a record of "front", `ago` seconds before NOW."""

    def append(event: str, ago: float = 0.0, **details: object) -> None:
        with closing(AuditLog(path)) as audit:
            audit.append("front", event, details, NOW - ago)

    return append


@pytest.fixture
def ask(path: Path) -> Ask:
    def read(sensor: str = "front", now: float = NOW, **budget: int) -> RestartState:
        with closing(AuditLog(path)) as audit:
            return restart_state(audit, sensor, RecalibrateConfig(**budget), now)

    return read


# ---- the hold


def test_a_fresh_device_holds_nothing(ask: Ask):
    assert ask() == RestartState("front", "", [], [])


def test_a_hold_lasts_until_it_is_released(tell, ask: Ask):
    tell("order", order="hold", by="anna")
    tell("order", order="recalibrate", by="anna")
    assert ask().hold == HELD_BY_OPERATOR and ask("rear").hold == ""
    tell("order", order="release", by="anna")
    assert ask().hold == ""


def test_what_a_restart_has_written_of_a_hold_keeps_its_reason(tell, ask: Ask):
    tell("order", order="hold", by="recald", reason="why")
    assert ask().hold == "why"


def test_where_the_log_was_damaged_every_sensor_is_held_until_it_is_released(path: Path, tell, ask: Ask):
    path.write_bytes(b"no database")
    assert ask().hold == ask("rear").hold == HELD_BY_DAMAGE
    tell("order", order="release", by="anna")
    assert (ask().hold, ask("rear").hold) == ("", HELD_BY_DAMAGE)


@pytest.mark.parametrize(
    "change", ["at = '2030'", """details = '{"by":"anna","order":"recalibrate"}'""", "details = '7'"]
)
def test_an_order_that_was_changed_may_have_been_a_hold(path: Path, tell, ask: Ask, change: str):
    tell("order", order="hold", by="anna")
    tell("swap")  # the newest record holds, or the log would be set aside
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"UPDATE record SET {change} WHERE event = 'order'")
    assert ask().hold == HELD_BY_DAMAGE


# ---- the budget


def test_fits_and_swaps_of_the_last_day_count(tell, ask: Ask):
    for ago in (DAY + 1, DAY - 1, HOUR):
        tell("fit begun", ago)
        tell("fit", ago)
    tell("swap", 10.0, to="a" * 64)
    tell("swap", 5.0, to="factory")  # the way that is always open
    past = ask()
    assert past.fits == pytest.approx([DAY - 1, HOUR], abs=0.01)
    assert past.swaps == pytest.approx([10.0], abs=0.01)
    assert ask("rear").fits == []
    assert ask(swaps_a_day=1).swaps == pytest.approx([10.0], abs=0.01)
    assert ask(fits_a_day=1).fits == pytest.approx([HOUR], abs=0.01), "the newest are enough to spend it"


def test_a_time_that_was_changed_is_as_old_as_the_one_after_it(path: Path, tell, ask: Ask):
    tell("swap", HOUR)
    tell("swap", 60.0)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE record SET at = 'x' WHERE number = 2")
    assert ask().swaps == pytest.approx([60.0, 60.0], abs=0.01)


@pytest.mark.parametrize(
    ("times", "now", "expected"),
    [
        ([NOW + HOUR, NOW + 2 * HOUR], NOW, [0.0, 0.0]),  # the clock was set back
        ([NOW - HOUR, NOW + HOUR, NOW - 60], NOW, [HOUR, 60.0, 60.0]),  # it had been wrong for a while
        ([NOW - HOUR, 5.0, NOW - 60], NOW, [HOUR, 60.0, 60.0]),  # it had not yet learnt the date
        ([NOW - HOUR, NOW - 60], 5.0, [HOUR - 60, 0.0]),  # nor has it now: the newest record is as good as now
        ([5.0, None], 9.0, [0.0, 0.0]),
        ([], NOW, []),
    ],
)
def test_a_clock_that_jumps_makes_nothing_older_than_it_may_be(times, now, expected):
    assert ages(times, now) == pytest.approx(expected)


TIMES = st.one_of(st.none(), st.floats(-1e9, 5e9))


@given(st.lists(TIMES), st.floats(0, 5e9))
def test_whatever_the_clock_said_ages_are_in_order_and_not_below_zero(times, now):
    found = ages(times, now)
    assert len(found) == len(times)
    assert found == sorted(found, reverse=True) and all(age >= 0 for age in found)


@given(st.lists(st.floats(0, 10 * DAY)).map(sorted))
def test_a_clock_that_is_right_is_believed(past):
    assert ages([NOW - age for age in reversed(past)], NOW) == pytest.approx(past[::-1], abs=1e-3)
