"""Drift checks that stop although frames come are noticed; a camera without new frames is no fault of theirs."""

from __future__ import annotations

from daemon.recalibration.check_watch import CHECK_PASS_TIMEOUT_S, MAX_FIRST_CHECK_S, MAX_MISSED_PERIODS, CheckWatch
from daemon.worker.client import WORKER_START_TIMEOUT_S


def test_a_check_is_overdue_only_while_there_are_frames_that_none_has_scored():
    watch = CheckWatch()
    assert watch.overdue(False, 0.0) == watch.overdue(False, 1000.0) == ""
    assert watch.overdue(True, 1001.0) == watch.overdue(True, 1001.0 + MAX_FIRST_CHECK_S) == ""
    assert watch.overdue(True, 1201.0) == "no drift check for 200 s: none has ended yet"
    assert watch.overdue(False, 1202.0) == watch.overdue(True, 1203.0) == "", "then the wait begins anew"


def test_the_first_check_has_the_time_to_start_a_worker_unless_it_has_failed():
    watch = CheckWatch()
    watch.overdue(True, 0.0)
    assert watch.overdue(True, WORKER_START_TIMEOUT_S + CHECK_PASS_TIMEOUT_S) == ""
    watch.failed("it died")
    assert watch.overdue(True, 31.0) == "no drift check for 31 s: it died"


def test_the_reason_is_that_of_the_last_failure_and_new_once():
    watch = CheckWatch()
    assert watch.failed("it died") and not watch.failed("it died") and watch.failed("it hangs")
    watch.overdue(True, 0.0)
    assert watch.overdue(True, 31.0) == "no drift check for 31 s: it hangs"
    watch.succeeded(1.0)
    assert watch.overdue(True, 32.0) == "" and watch.failed("it hangs")


def test_slow_checks_have_the_time_that_they_take():
    watch = CheckWatch()
    watch.succeeded(60.0)
    watch.overdue(True, 0.0)
    assert watch.overdue(True, 60.0 * MAX_MISSED_PERIODS) == ""
    assert watch.overdue(True, 60.0 * MAX_MISSED_PERIODS + 1)
