"""The estimated accuracy is the mean of the newest drift checks that share no frame."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.recalibration.accuracy_average import WINDOWS, AccuracyAverage

FRAMES = 64


def estimate(value: float) -> dict[str, tuple[float, float, float]]:
    return {"homogenized": (value, value - 0.1, value + 0.1)}


def test_without_a_check_there_is_none():
    average = AccuracyAverage()
    assert average.of("homogenized") is None and not average.ever_known


def test_checks_that_share_frames_count_once():
    average = AccuracyAverage()
    average.add(estimate(0.8), added=100, frames=FRAMES)
    average.add(estimate(0.2), added=163, frames=FRAMES)
    assert average.of("homogenized").value == 0.8
    average.add(estimate(0.6), added=164, frames=FRAMES)
    assert average.of("homogenized") == pytest.approx((0.7, 0.6, 0.8))
    assert average.of("raw") is None


def test_no_estimate_forgets_those_before_and_that_there_was_one_stays_known():
    average = AccuracyAverage()
    average.add(estimate(0.8), added=100, frames=FRAMES)
    average.add({}, added=200, frames=FRAMES)
    assert average.of("homogenized") is None and average.ever_known
    average.add(estimate(0.5), added=210, frames=FRAMES)
    assert average.of("homogenized").value == 0.5


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_it_is_the_mean_of_the_newest(values):
    average = AccuracyAverage()
    for number, value in enumerate(values):
        average.add(estimate(value), added=FRAMES * number, frames=FRAMES)
    newest = values[-WINDOWS:]
    assert average.of("homogenized").value == pytest.approx(sum(newest) / len(newest))
