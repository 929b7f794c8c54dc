"""A camera counts as stopped after a gap that is long in itself and long for this camera."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.frames.stall_detector import MIN_STALL_RATIO, MIN_STALL_S, StallDetector


def fed(*times: float, since: float | None = None) -> StallDetector:
    stall_detector = StallDetector(since)
    for time in times:
        stall_detector.arrived(time)
    return stall_detector


def steadily(period: float, count: int = 100, begin: float = 0.0) -> list[float]:
    return [begin + period * number for number in range(count)]


def test_a_camera_that_never_sent_is_silent_since_the_start():
    assert fed(since=100.0).silence(104.0) == 0
    assert fed(since=100.0).silence(112.0) == 12.0


def test_the_newest_frame_is_told_from_the_start():
    assert fed(since=100.0).newest is None
    assert fed(101.0, 103.0, since=100.0).newest == 103.0


def test_without_a_start_time_there_is_no_silence_before_the_first_frame():
    assert fed().silence(1e9) == 0


@pytest.mark.parametrize(
    ("period", "patience"), [(1 / 30, MIN_STALL_S), (1.0, MIN_STALL_S), (60.0, MIN_STALL_RATIO * 60.0)]
)
def test_silence_is_a_gap_that_is_long_for_this_camera(period, patience):
    stall_detector = fed(*(times := steadily(period)))
    assert stall_detector.silence(times[-1] + 0.99 * patience) == 0
    assert stall_detector.silence(times[-1] + 1.01 * patience) == pytest.approx(1.01 * patience)


def test_the_usual_pause_between_bursts_is_no_silence():
    times = [20.0 * burst + number / 30 for burst in range(5) for number in range(10)]
    assert fed(*times).silence(times[-1] + 20) == 0


def test_one_outage_does_not_make_long_gaps_usual():
    times = steadily(0.1) + steadily(0.1, 5, begin=4000.0)
    assert fed(*times, since=-4000.0).silence(times[-1] + 6) == pytest.approx(6)


@given(st.lists(st.floats(0, 1e6)).map(sorted), st.floats(0, 1e6))
def test_silence_ends_with_a_frame_and_never_begins_within_seconds(times, passed):
    stall_detector = fed(*times, since=0.0)
    now = (times[-1] if times else 0.0) + passed
    silence = stall_detector.silence(now)
    assert silence == 0 or (silence == pytest.approx(passed, abs=1e-6) and silence > MIN_STALL_S)
    stall_detector.arrived(now)
    assert stall_detector.silence(now) == 0
