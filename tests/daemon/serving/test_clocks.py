"""A clock that is wrong is named, so that a person knows which one to set."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.serving.clocks import SECOND_NS as S
from daemon.serving.clocks import explain

NOW = 1_795_000_000 * S  # November 2026
UPTIME = 93_784 * S


@pytest.mark.parametrize(
    ("timestamp", "text"),
    [
        (NOW // S, "these are seconds since 1970"),
        (NOW // 10**6, "these are milliseconds since 1970"),
        (NOW // 1000, "these are microseconds since 1970"),
        (UPTIME - S, "the time since this device started (CLOCK_MONOTONIC)"),
        (0, "counts from a start"),
        (86_400 * S, "counts from a start"),
        (NOW + 37 * S, "37 s ahead is TAI, the clock of PTP"),
        (NOW + 18 * S, "18 s ahead is GPS time"),
        (NOW + 3600 * S, "+1 h is a time zone"),
        (NOW - 19_800 * S, "-5.5 h is a time zone"),
        (946_684_800 * S, "its clock says 2000-01-01 00:00: set it"),
        (4_102_444_800 * S, "its clock says 2100-01-01 00:00: set it"),
        (NOW + 2 * S, "synchronise the clocks (NTP or PTP)"),
        (NOW - 6 * S, "look for a queue"),
    ],
)
def test_the_clock_is_named(timestamp: int, text: str):
    assert text in explain(timestamp, NOW, lambda: UPTIME)


def test_a_device_whose_own_clock_was_never_set_says_so():
    assert explain(NOW, 200 * S, lambda: UPTIME) == "this device's own clock says 1970-01-01 00:03: set it"


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))
def test_every_stamp_has_one_line(timestamp: int, now: int):
    text = explain(timestamp, now)
    assert text and "\n" not in text
