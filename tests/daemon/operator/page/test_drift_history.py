"""The drift of an hour is kept in bounded points: the mean of each 5 s, beside the line that decides."""

from __future__ import annotations

import math

import pytest
from statuses import sensor_status

from calibrate.baseline.run_length import ALLOWANCE
from daemon.operator.page.drift_history import HISTORY_S, MAX_POINTS, POINT_S, DriftHistory, DriftPoint, reading
from daemon.recalibration.drift_alarm import UNKNOWN_DRIFT

THRESHOLD = 1.6
CAMERA = {"drift": 1.5, "content": 0.4, "known": True}


@pytest.fixture
def history() -> DriftHistory:
    return DriftHistory()


def test_a_point_is_the_mean_of_5_s(history):
    for second, ratio in enumerate([1.0, 2.0, 3.0, 2.0, 2.0, 9.0]):
        history.add(ratio, ratio / 2, second == 1, 100.0 + second)
    assert history.points == (DriftPoint(20, 2.0, 1.0, True), DriftPoint(21, 9.0, 4.5, False))


def test_an_hour_is_kept_and_no_more(history):
    for number in range(2 * MAX_POINTS):
        history.add(1.0, 1.0, False, number * POINT_S)
    assert len(history.points) == MAX_POINTS == HISTORY_S / POINT_S
    assert (history.points[0].number, history.points[-1].number) == (MAX_POINTS, 2 * MAX_POINTS - 1)


def test_what_is_not_known_is_a_gap(history):
    history.add(None, None, False, 0.0)
    assert history.points == ()
    history.add(None, 2.0, False, 5.0)
    history.add(math.nan, math.inf, True, 10.0)
    assert history.points == (DriftPoint(1, None, 2.0, False), DriftPoint(2, None, None, True))


def test_what_was_given_away_never_changes(history):
    history.add(1.0, 1.0, False, 0.0)
    before = history.points
    history.add(3.0, 3.0, False, 1.0)
    assert before == (DriftPoint(0, 1.0, 1.0, False),) and history.points == (DriftPoint(0, 2.0, 2.0, False),)
    same = history.points
    history.add(2.0, 2.0, False, 2.0)
    assert history.points is same


def test_without_a_baseline_the_score_decides():
    found = reading(sensor_status(drift_score=3.2, raw_drift_score=4.8), "homogenized", THRESHOLD)
    assert (found.what, found.value, found.line, found.ratio) == ("score", 3.2, THRESHOLD, 2.0)
    assert reading(sensor_status(raw_drift_score=4.8), "raw", THRESHOLD).value == 4.8
    assert reading(sensor_status(drift_score=None), "homogenized", THRESHOLD) is None


def test_with_a_baseline_the_deviation_decides_as_the_alarm_counts_it():
    known = sensor_status(camera={"homogenized": CAMERA, "raw": CAMERA | {"drift": 2 * ALLOWANCE}})
    assert reading(known, "homogenized", THRESHOLD)[:] == ("camera", 1.5, ALLOWANCE)
    assert reading(known, "raw", THRESHOLD).ratio == 2.0
    for drift, counted in ((1.5, 1.5), (9.0, UNKNOWN_DRIFT), (20.0, 20.0)):
        unknown = sensor_status(camera={"homogenized": CAMERA | {"known": False, "drift": drift}})
        assert reading(unknown, "homogenized", THRESHOLD)[:] == ("camera", counted, ALLOWANCE)
    infinite = sensor_status(camera={"homogenized": CAMERA | {"drift": None}})
    assert reading(infinite, "homogenized", THRESHOLD).what == "score"


def test_a_deviation_below_that_of_healthy_frames_is_no_drift():
    found = reading(sensor_status(camera={"homogenized": CAMERA | {"drift": -2.0}}), "homogenized", THRESHOLD)
    assert (found.value, found.ratio) == (-2.0, 0.0)
