"""The sequential test raises false alarms as rarely as asked for, and real ones after two windows."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calibrate.baseline.run_length import ALLOWANCE, MIN_WINDOWS, RunLengthTest

A_QUARTER_YEAR = 90 * 86_400.0  # windows, one a second


def alarms(test: RunLengthTest, drifts) -> list[bool]:
    return [test.observe(float(drift)) for drift in drifts]


@pytest.mark.parametrize("windows", [1e3, A_QUARTER_YEAR])
def test_a_clear_drift_is_told_after_two_windows(windows):
    assert alarms(RunLengthTest(windows), [12.0, 12.0]) == [False, True]


def test_one_wild_window_is_no_alarm_whatever_comes_between():
    test = RunLengthTest(A_QUARTER_YEAR)
    assert not any(alarms(test, [math.nan, 0, 0, 1e9, 0, 0, 0, math.nan, 0]))
    assert alarms(test, [math.nan, math.nan])[-1], "frames that have no finite statistics have drifted"


def test_a_drift_just_above_the_allowance_takes_longer_and_the_alarm_ends_when_it_is_over():
    test = RunLengthTest(A_QUARTER_YEAR)
    found = alarms(test, [ALLOWANCE + 0.5] * 20)
    assert not found[3] and found[-1]
    assert test.evidence == 1.0
    over = alarms(test, [0.0] * 3)
    assert over == [True, False, False] and test.evidence == 0


def test_false_alarms_are_rarer_than_asked_for():
    """Healthy windows of a scene with a bias of its own, which stays for hours."""
    generator = torch.Generator().manual_seed(3)
    windows, asked = 100_000, 1_000.0
    for bias in (0.0, 0.9):
        test, count, before = RunLengthTest(asked), 0, False
        for alarm in alarms(test, torch.randn(windows, generator=generator) + bias):
            count += alarm and not before
            before = alarm
        assert count <= windows / asked


@given(st.lists(st.floats(-50, 50) | st.just(math.nan), max_size=40), st.floats(10, 1e9))
def test_the_evidence_stays_within_its_bounds_and_no_alarm_comes_before_its_windows(drifts, windows):
    test, above = RunLengthTest(windows), 0
    for drift in drifts:
        above += not drift <= ALLOWANCE
        assert not test.observe(drift) or above >= MIN_WINDOWS
        assert 0 <= test.evidence <= 1
    test.reset()
    assert test.evidence == 0 and not test.alarm


def test_a_window_of_less_weight_is_less_evidence():
    test = RunLengthTest(A_QUARTER_YEAR)
    assert not any(test.observe(12.0, 0.1) for _ in range(10)) and 0.4 < test.evidence < 0.6
    assert any(test.observe(12.0, 0.1) for _ in range(20))
