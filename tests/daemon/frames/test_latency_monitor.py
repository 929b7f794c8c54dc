"""A homogenizer that is slower than expected is detected; a busy device, or one slow frame, does not count."""

from __future__ import annotations

from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.frames.latency_monitor import (
    LATENCY_WINDOW_FRAMES,
    MAX_ADDED_LATENCY_S,
    MAX_LATENCY_RATIO,
    MIN_LATENCY_FRAMES,
    LatencyMonitor,
)

MS = 1e-3
DURATIONS = st.floats(0, 1)


def slower_after(before: list[float], after: list[float], added: float = 0.0) -> str:
    latency_monitor = LatencyMonitor()
    for seconds in before:
        latency_monitor.observe(seconds)
    latency_monitor.swapped(added)
    for seconds in after:
        latency_monitor.observe(seconds)
    return latency_monitor.slower


@pytest.mark.parametrize(
    ("before", "after", "added", "slower"),
    [
        (5.0, 9.9, 0.0, False),
        (5.0, 10.1, 0.0, True),
        (0.1, 2.0, 0.0, False),  # twenty times as long, and still nothing
        (0.1, 2.2, 0.0, True),
        (3.7, 7.9, 4.2, False),  # rho on a small network at 224 x 224: what it takes was known
        (3.7, 16.0, 4.2, True),
        (5.0, 9.9, -4.0, False),  # a cheaper one than before
    ],
)
def test_slower_means_above_twice_the_expected_time_and_two_milliseconds_more(before, after, added, slower):
    text = slower_after([before * MS] * MIN_LATENCY_FRAMES, [after * MS] * MIN_LATENCY_FRAMES, added * MS)
    expected = before + max(added, 0)
    assert text == (f"a frame takes {after:.1f} ms, {expected:.1f} were expected" if slower else "")


def test_less_than_half_of_the_frames_may_be_slow():
    assert not slower_after(
        [5 * MS] * MIN_LATENCY_FRAMES, [5 * MS] * (MIN_LATENCY_FRAMES // 2 + 1) + [1.0] * (MIN_LATENCY_FRAMES // 2 - 1)
    )
    assert not slower_after([5 * MS] * LATENCY_WINDOW_FRAMES, [7.65 * MS] * LATENCY_WINDOW_FRAMES), "as beside a fit"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (MIN_LATENCY_FRAMES - 1, MIN_LATENCY_FRAMES),
        (MIN_LATENCY_FRAMES, MIN_LATENCY_FRAMES - 1),
        (0, MIN_LATENCY_FRAMES),
    ],
)
def test_too_few_frames_give_no_comparison(before, after):
    assert not slower_after([5 * MS] * before, [50 * MS] * after)


def test_only_the_newest_frames_before_a_swap_count():
    assert slower_after(
        [50 * MS] * LATENCY_WINDOW_FRAMES + [5 * MS] * LATENCY_WINDOW_FRAMES, [20 * MS] * MIN_LATENCY_FRAMES
    )


def test_frames_beside_a_fit_do_not_count():
    latency_monitor = LatencyMonitor()
    for counting, took in ((False, 50 * MS), (True, 5 * MS), (False, 50 * MS)):
        latency_monitor.counting = counting
        for _ in range(MIN_LATENCY_FRAMES):
            latency_monitor.observe(took)
    latency_monitor.swapped(0.0)
    for _ in range(MIN_LATENCY_FRAMES):
        latency_monitor.observe(20 * MS)
    assert not latency_monitor.slower, "a fit goes on"
    latency_monitor.counting = True
    for _ in range(MIN_LATENCY_FRAMES):
        latency_monitor.observe(20 * MS)
    assert latency_monitor.slower


def test_each_swap_is_compared_with_the_frames_just_before_it():
    latency_monitor = LatencyMonitor()
    for took in (5 * MS, 20 * MS):
        for _ in range(LATENCY_WINDOW_FRAMES):
            latency_monitor.observe(took)
        latency_monitor.swapped(0.0)
    for _ in range(LATENCY_WINDOW_FRAMES):
        latency_monitor.observe(30 * MS)
    assert not latency_monitor.slower


@given(
    st.lists(DURATIONS, max_size=2 * MIN_LATENCY_FRAMES),
    st.lists(DURATIONS, max_size=2 * MIN_LATENCY_FRAMES),
    st.floats(-0.1, 0.1),
)
def test_two_medians_are_compared(before, after, added):
    if min(len(before), len(after)) < MIN_LATENCY_FRAMES:
        assert not slower_after(before, after, added)
    else:
        expected = median(before) + max(added, 0.0)
        assert bool(slower_after(before, after, added)) == (
            median(after) > max(MAX_LATENCY_RATIO * expected, expected + MAX_ADDED_LATENCY_S)
        )
