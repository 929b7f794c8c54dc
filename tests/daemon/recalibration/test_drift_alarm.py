"""A baseline decides on the alarm where there is one; the drift score does everywhere else."""

import math

import pytest

from calibrate.baseline.baseline import SensorState
from daemon.config import DriftConfig
from daemon.recalibration.drift_alarm import FAR_DRIFT, DriftAlarm

CLEAN, ABOVE = 1.0, 9.0  # drift scores
HEALTHY, DRIFTED = SensorState(0.0, 0.5, True), SensorState(12.0, 0.5, True)
UNKNOWN_CONTENT = SensorState(12.0, 3.0, known=False)


@pytest.fixture
def alarm() -> DriftAlarm:
    return DriftAlarm(DriftConfig())


def observe(alarm: DriftAlarm, score: float, camera: SensorState | None, seconds: int, start: int = 0) -> list[bool]:
    """One check a second, each with a window of new frames."""
    return [alarm.observe(score, camera, True, float(now)) for now in range(start, start + seconds)]


def test_without_a_baseline_the_drift_score_decides(alarm):
    assert observe(alarm, ABOVE, None, 20).index(True) == 10
    assert alarm.evidence == 1 and not alarm.has_baseline


def test_with_a_baseline_a_scene_that_scores_high_is_no_drift(alarm):
    assert not any(observe(alarm, ABOVE, HEALTHY, 60)) and alarm.over


def test_with_a_baseline_a_drift_that_scores_low_is_one(alarm):
    assert observe(alarm, CLEAN, DRIFTED, 3) == [False, True, True]
    assert alarm.evidence == 1 and alarm.has_baseline and not alarm.over


def test_frames_that_were_counted_before_do_not_count_again(alarm):
    assert alarm.observe(CLEAN, DRIFTED, True, 0.0) is False
    assert not any(alarm.observe(CLEAN, DRIFTED, False, float(now)) for now in range(1, 60))
    assert alarm.observe(CLEAN, DRIFTED, True, 60.0)


@pytest.mark.parametrize("score", [CLEAN, ABOVE])
def test_content_that_no_healthy_frame_showed_raises_no_alarm(alarm, score):
    assert not any(observe(alarm, score, UNKNOWN_CONTENT, 60))


@pytest.mark.parametrize("drift", [FAR_DRIFT, math.nan])
def test_frames_far_from_all_healthy_ones_do_whatever_they_show(alarm, drift):
    assert observe(alarm, CLEAN, SensorState(drift, 3.0, known=False), 2)[-1]


def test_windows_of_a_still_scene_are_little_evidence(alarm):
    assert not any(observe(alarm, CLEAN, DRIFTED._replace(weight=0.01), 20)) and 0 < alarm.evidence < 0.2


def test_a_baseline_that_was_just_learned_starts_without_evidence(alarm):
    observe(alarm, CLEAN, DRIFTED, 1)
    observe(alarm, CLEAN, None, 5, start=1)
    assert observe(alarm, CLEAN, DRIFTED, 2, start=6) == [False, True]


def test_another_homogenizer_starts_without_alarm_and_evidence(alarm):
    observe(alarm, ABOVE, DRIFTED, 60)
    alarm.reset()
    assert alarm.over and not alarm.has_baseline and not alarm.alarm


def test_frames_that_are_not_finite_raise_the_alarm(alarm):
    assert observe(alarm, math.nan, SensorState(math.nan, math.nan, True), 2)[-1]


@pytest.mark.parametrize(("rate", "interval"), [("1 per 60s", 3600.0), ("1000 per 1000d", 3600.0)])
def test_a_rate_that_the_checks_cannot_reach_leaves_a_test_that_works(rate, interval):
    alarm = DriftAlarm(DriftConfig(false_alarms=rate, interval=interval))
    assert not any(observe(alarm, CLEAN, HEALTHY, 50))
    assert observe(alarm, CLEAN, DRIFTED, 2)[-1]


def test_a_drift_that_makes_the_network_name_unknown_classes_now_and_then_keeps_its_alarm(alarm):
    observe(alarm, CLEAN, DRIFTED, 2)
    in_turn = [alarm.observe(CLEAN, (UNKNOWN_CONTENT, DRIFTED)[n % 2], True, 2.0 + n) for n in range(20)]
    assert all(in_turn) and alarm.evidence > 0


def test_an_alarm_ends_slowly_where_content_stays_unknown(alarm):
    observe(alarm, CLEAN, DRIFTED, 2)
    ended = observe(alarm, CLEAN, UNKNOWN_CONTENT, 30, start=2)
    assert ended[1] and not ended[-1]


def test_evidence_is_that_of_what_raised_the_alarm(alarm):
    observe(alarm, ABOVE, UNKNOWN_CONTENT, 30)
    assert not alarm.alarm and alarm.evidence == 0, "the drift score has no say here"
    observe(alarm, ABOVE, None, 30, start=30)
    assert alarm.alarm and alarm.evidence == 1
