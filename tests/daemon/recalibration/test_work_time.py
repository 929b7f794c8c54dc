"""How long a recalibration runs, and when it will end."""

import pytest

from daemon.recalibration.work_time import WorkTime
from daemon.states import State


def test_at_rest_there_is_nothing_to_tell():
    timer = WorkTime()
    timer.update(State.COLLECTING, 0.5, 10.0)
    assert (timer.elapsed, timer.remaining) == (None, None)


def test_the_end_is_estimated_from_the_pace_since_the_first_report_and_comes_nearer():
    timer = WorkTime()
    timer.update(State.FITTING, 0.0, 50.0)
    assert (timer.elapsed, timer.remaining) == (0.0, None)
    timer.update(State.FITTING, 0.1, 100.0)
    assert (timer.elapsed, timer.remaining) == (50.0, None)
    timer.update(State.FITTING, 0.25, 115.0)
    assert timer.remaining == pytest.approx(75.0)
    timer.update(State.FITTING, 0.25, 120.0)
    assert (timer.elapsed, timer.remaining) == (70.0, pytest.approx(70.0))
    timer.update(State.FITTING, 0.6, 150.0)
    assert timer.remaining == pytest.approx(40.0)
    timer.update(State.FITTING, 0.6, 500.0)
    assert (timer.elapsed, timer.remaining) == (450.0, 0.0)


def test_each_step_has_its_own_estimate_and_the_next_recalibration_begins_anew():
    timer = WorkTime()
    timer.update(State.FITTING, 0.5, 10.0)
    timer.update(State.FITTING, 0.6, 12.0)
    timer.update(State.JUDGING, 0.0, 20.0)
    assert (timer.elapsed, timer.remaining) == (10.0, None)
    timer.update(State.SHADOW, 0.3, 30.0)
    assert (timer.elapsed, timer.remaining) == (None, None)
    timer.update(State.FITTING, 0.0, 50.0)
    assert (timer.elapsed, timer.remaining) == (0.0, None)
