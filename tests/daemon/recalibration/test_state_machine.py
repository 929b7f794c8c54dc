"""When a sensor collects, fits, waits, serves and rolls back: plain values in, decisions out, and a fake clock."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from daemon.config import RecalibrateConfig
from daemon.recalibration.deadlines import MIN_COMPARISONS
from daemon.recalibration.decisions import (
    Abort,
    Collect,
    Commit,
    Discard,
    Facts,
    Fit,
    Recall,
    RollBack,
    ServeFactory,
)
from daemon.recalibration.state_machine import (
    CLEAN_REASON,
    HARMFUL_REASON,
    INVALID_AFTER_FAILURES,
    OrderRefused,
    StateMachine,
)
from daemon.settings.values import DAY
from daemon.states import AT_REST, IN_WORK, WITH_CANDIDATE, Result, State

TIMES = {"every": 1000.0, "frames": 128, "collect": 0.0, "backoff": 10.0, "shadow": 5.0, "probation": 60.0}
OTHER = {"fits_a_day": "swaps", "swaps_a_day": "fits"}
ENDS = ("rejected", "refused", "unneeded", "failed", "timeout", "outdated")  # of a recalibration without a candidate


def machine_in(mode: str = "autonomous", strict: bool = False, **settings: float) -> StateMachine:
    return StateMachine(RecalibrateConfig(mode=mode, **{**TIMES, **settings}), now=0.0, strict=strict)


@pytest.fixture
def machine() -> StateMachine:
    return machine_in()


def step(machine: StateMachine, now: float, **facts):
    return machine.step(now, Facts(**facts))


def begin_fit(machine: StateMachine, now: float) -> None:
    assert isinstance(step(machine, now, alarm=True), Collect)
    assert step(machine, now, alarm=True, collected=128) == Fit("drift")


def compare(machine: StateMachine, *results: bool) -> None:
    for challenger_better in results:
        machine.compared(challenger_better)


def shadowed(machine: StateMachine, now: float) -> None:
    """A candidate was fitted, and its shadow is over at `now`."""
    begin_fit(machine, now - 5)
    machine.candidate_ready(now - 5)
    compare(machine, True, True, True)


def on_probation(machine: StateMachine, now: float) -> None:
    shadowed(machine, now)
    assert step(machine, now) == Commit()
    machine.committed(True, now)
    assert machine.state is State.PROBATION


# ---- from a reason to a fit


def test_nothing_happens_without_a_reason(machine):
    assert step(machine, 1.0) is None
    assert machine.state is State.FACTORY


def test_a_fit_waits_for_frames_and_for_the_worker(machine):
    assert step(machine, 1.0, alarm=True) == Collect(forget=True)
    assert step(machine, 2.0, alarm=True, collected=64) is None
    assert (machine.progress, machine.reason) == (0.5, "64 of 128 frames")
    assert step(machine, 3.0, alarm=True, collected=128, worker_free=False) is None
    assert machine.state is State.COLLECTING
    assert step(machine, 4.0, alarm=True, collected=128) == Fit("drift")
    assert machine.state is State.FITTING


def test_frames_must_come_from_more_than_a_moment():
    machine = machine_in(collect=120.0)
    step(machine, 10.0, alarm=True)
    assert step(machine, 40.0, alarm=True, collected=128) is None
    assert (machine.progress, machine.reason) == (0.25, "128 of 128 frames, 30 of 120 s")
    assert step(machine, 130.0, alarm=True, collected=128) == Fit("drift")


def test_a_drift_that_is_over_needs_no_fit(machine):
    step(machine, 1.0, alarm=True)
    assert step(machine, 2.0, collected=128) is None
    assert machine.state is State.FACTORY and "over" in machine.reason
    assert step(machine, 3.0, alarm=True) == Collect(forget=True), "and nothing holds up the next"


def test_a_label_shift_is_no_drift(machine):
    assert step(machine, 1.0, alarm=True, label_shift=True) is None
    assert step(machine, 1000.0, alarm=True, label_shift=True) is None, "nor is the clock a reason"
    assert machine.state is State.FACTORY and "few classes" in machine.reason
    assert step(machine, 1001.0, alarm=True) == Collect(forget=True)


def test_a_label_shift_delays_a_fit_unless_an_operator_ordered_it(machine):
    step(machine, 1.0, alarm=True)
    assert step(machine, 2.0, alarm=True, label_shift=True, collected=128) is None
    assert machine.state is State.COLLECTING and "few classes" in machine.reason
    machine.request()
    assert step(machine, 3.0, alarm=True, label_shift=True, collected=128) == Fit("operator")


def test_earlier_homogenizers_are_tried_at_once_and_every_minute_while_collecting(machine):
    on_probation(machine, 10.0)
    compare(machine, False, False, False)
    step(machine, 70.0)
    assert step(machine, 100.0, alarm=True) == Collect(forget=True)
    assert step(machine, 101.0, alarm=True, worker_free=False) is None
    assert step(machine, 102.0, alarm=True) == Recall()
    assert step(machine, 161.0, alarm=True, collected=127) is None
    assert step(machine, 162.0, alarm=True, collected=127) == Recall()
    assert step(machine, 163.0, alarm=True, collected=128) == Fit("drift")


def test_without_an_earlier_homogenizer_nothing_is_recalled(machine):
    step(machine, 1.0, alarm=True)
    assert step(machine, 2.0, alarm=True) is None


def test_an_operators_order_is_a_fit_and_no_recall(machine):
    on_probation(machine, 10.0)
    compare(machine, False, False, False)
    step(machine, 70.0)
    machine.request()
    step(machine, 71.0)
    assert step(machine, 72.0) is None


def test_frames_of_one_lasting_drift_add_up_over_tries(machine):
    begin_fit(machine, 0.0)
    machine.finished(Result.REJECTED, 0.0)
    assert step(machine, 10.0, alarm=True) == Collect(forget=False)
    machine.finished(Result.REJECTED, 10.0)
    assert step(machine, 100.0) is None, "the alarm is over"
    assert step(machine, 101.0, alarm=True) == Collect(forget=True)


def test_frames_are_forgotten_when_newer_ones_contradict_them(machine):
    begin_fit(machine, 0.0)
    machine.candidate_ready(0.0)
    compare(machine, False, False)
    assert isinstance(step(machine, 1.0), Discard)
    machine.finished(Result.REJECTED, 1.0, "not better in 2 of 2 comparisons on new frames")
    assert step(machine, 11.0, alarm=True) == Collect(forget=True)
    step(machine, 12.0, alarm=True, collected=128)
    machine.finished(Result.REJECTED, 12.0, "out of the band")
    assert step(machine, 32.0, alarm=True) == Collect(forget=False)


@pytest.mark.parametrize("state", ["at rest", "collecting", "on probation"])
def test_a_homogenizer_that_harms_clean_frames_gives_way_to_the_factory_one(machine, state):
    on_probation(machine, 10.0)
    if state != "on probation":
        compare(machine, False, False, False)
        step(machine, 70.0)
    if state == "collecting":
        step(machine, 71.0, alarm=True)
    assert step(machine, 73.0, alarm=True, raw_clean=True, hold_reason="why") == ServeFactory(CLEAN_REASON)
    machine.committed(False, 73.0)
    assert step(machine, 74.0, alarm=True, raw_clean=True) is None, "it serves"


def test_a_switch_to_factory_that_was_rolled_back_waits_for_the_back_off(machine):
    on_probation(machine, 10.0)
    compare(machine, False, False, False)
    step(machine, 70.0)
    assert step(machine, 80.0, alarm=True, raw_clean=True) == ServeFactory(CLEAN_REASON)
    machine.committed(False, 80.0)
    compare(machine, True, True)
    assert step(machine, 81.0) == RollBack("regress")
    machine.rolled_back(True, 81.0, "rolled back: regress")
    assert step(machine, 90.0, alarm=True, raw_clean=True) is None
    assert step(machine, 91.0, alarm=True, raw_clean=True) == ServeFactory(CLEAN_REASON)


def test_a_switch_to_factory_needs_and_costs_no_budget():
    machine = machine_in(swaps_a_day=2, every=DAY)
    on_probation(machine, 10.0)
    compare(machine, False, False, False)
    step(machine, 70.0)
    assert step(machine, 80.0, alarm=True, raw_clean=True) == ServeFactory(CLEAN_REASON)
    machine.committed(False, 80.0)
    compare(machine, False, False, False)
    step(machine, 140.0)
    assert step(machine, 150.0, alarm=True) == Collect(forget=True), "one of two swaps is left"


def test_during_a_hold_factory_does_not_give_way_to_a_fitted_homogenizer(machine):
    on_probation(machine, 10.0)
    machine.committed(False, 20.0)
    compare(machine, True, True, True)
    assert step(machine, 500.0, hold_reason="why") is None
    assert machine.state is State.PROBATION
    assert step(machine, 501.0) == RollBack("regress")


def test_no_hold_delays_the_factory_homogenizer(machine):
    begin_fit(machine, 0.0)
    machine.candidate_ready(0.0, factory=True)
    compare(machine, True, True, True)
    assert step(machine, 10.0, hold_reason="why") == Commit()


def test_failures_are_counted_for_one_drift(machine):
    for _ in range(INVALID_AFTER_FAILURES):
        machine.finished(Result.REJECTED, 0.0)
    assert step(machine, 500.0) is None, "the drift is over"
    assert step(machine, 501.0, alarm=True, label_shift=True) is None
    assert machine.state is State.FACTORY and "few classes" in machine.reason
    assert step(machine, 502.0) is None
    assert machine.reason == "", "and what passed is not told any more"


def test_locked_changes_nothing_even_when_raw_frames_are_clean():
    machine = StateMachine(RecalibrateConfig(mode="locked", **TIMES), now=0.0, serving=True)
    assert step(machine, 5000.0, alarm=True, raw_clean=True) is None


def at_rest_with_a_homogenizer(machine: StateMachine, now: float) -> None:
    on_probation(machine, now - 60)
    compare(machine, False, False, False)
    step(machine, now)
    assert machine.state is State.ACTIVE


def test_a_homogenizer_that_makes_a_drift_worse_gives_way_while_frames_for_the_next_are_collected(machine):
    at_rest_with_a_homogenizer(machine, 100.0)
    assert step(machine, 101.0, harmful=True) is None, "no alarm yet"
    assert step(machine, 102.0, alarm=True, harmful=True) == Collect(forget=True)
    assert step(machine, 103.0, alarm=True, harmful=True) == ServeFactory(HARMFUL_REASON, keep_work=True)
    machine.committed(False, 103.0, keep_work=True)
    assert machine.state is State.COLLECTING
    assert step(machine, 104.0, alarm=True, harmful=True, collected=128) == Recall(), "factory is never harmful"


@pytest.mark.parametrize("stage", IN_WORK)
@pytest.mark.parametrize(("facts", "why"), [({"harmful": True}, HARMFUL_REASON), ({"raw_clean": True}, CLEAN_REASON)])
def test_a_fit_under_way_keeps_no_harmful_homogenizer_in_place_and_goes_on(machine, stage, facts, why):
    at_rest_with_a_homogenizer(machine, 100.0)
    begin_fit_with_earlier(machine, 101.0)
    machine.progressed(stage, 0.5)
    assert step(machine, 105.0, alarm=True, **facts) == ServeFactory(why, keep_work=True)
    machine.committed(False, 105.0, keep_work=True)
    assert machine.state is stage


def begin_fit_with_earlier(machine: StateMachine, now: float) -> None:
    assert step(machine, now, alarm=True) == Collect(forget=True)
    assert step(machine, now, alarm=True, collected=128) == Recall()
    assert step(machine, now, alarm=True, collected=128) == Fit("drift")


def test_a_candidate_outlives_the_way_to_factory_and_is_compared_anew(machine):
    at_rest_with_a_homogenizer(machine, 100.0)
    begin_fit_with_earlier(machine, 101.0)
    machine.candidate_ready(102.0)
    compare(machine, True, True, True)
    assert step(machine, 103.0, alarm=True, harmful=True) == ServeFactory(HARMFUL_REASON, keep_work=True)
    machine.committed(False, 103.0, keep_work=True)
    assert machine.state is State.SHADOW
    assert step(machine, 110.0, alarm=True) is None, "the comparisons were with the homogenizer before"
    compare(machine, True, True, True)
    assert step(machine, 111.0, alarm=True) == Commit()


def test_a_factory_candidate_ends_with_the_way_to_factory(machine):
    at_rest_with_a_homogenizer(machine, 100.0)
    begin_fit_with_earlier(machine, 101.0)
    machine.candidate_ready(102.0, factory=True)
    assert step(machine, 103.0, alarm=True, harmful=True) == ServeFactory(HARMFUL_REASON, keep_work=False)
    machine.committed(False, 103.0)
    assert machine.state is State.PROBATION


def test_without_a_refit_in_sight_a_harmful_homogenizer_gives_way_at_once():
    machine = machine_in(fits_a_day=1)
    at_rest_with_a_homogenizer(machine, 100.0)
    assert step(machine, 101.0, alarm=True, harmful=True) == ServeFactory(HARMFUL_REASON)


@pytest.mark.parametrize("trigger", ["timer", "operator"])
def test_a_drift_that_comes_while_frames_are_collected_makes_those_before_it_go(trigger):
    machine = machine_in(collect=120.0)
    if trigger == "operator":
        machine.request()
    assert step(machine, 1000.0) == Collect(forget=False)
    assert step(machine, 1100.0, collected=128) is None
    assert step(machine, 1110.0, alarm=True, collected=128) == Collect(forget=True)
    assert step(machine, 1130.0, alarm=True, collected=128) is None, "two minutes of the drifted camera"
    assert step(machine, 1230.0, alarm=True, collected=128) == Fit("drift" if trigger == "timer" else trigger)


def test_a_drift_that_ends_while_an_ordered_fit_collects_makes_its_frames_go(machine):
    machine.request()
    assert step(machine, 1.0, alarm=True) == Collect(forget=True)
    assert step(machine, 2.0, collected=128) == Collect(forget=True)
    assert step(machine, 3.0, collected=128) == Fit("operator")


def test_frames_that_a_drift_makes_go_again_and_again_do_not_outlast_the_deadline(machine):
    machine.request()
    step(machine, 1.0)
    decisions = [step(machine, 2.0 + 10 * i, alarm=bool(i % 2)) for i in range(500)]
    assert Collect(forget=True) in decisions and any(isinstance(d, Abort) for d in decisions)


def test_the_timer_fires_once_in_its_period(machine):
    assert step(machine, 999.0) is None
    assert step(machine, 1000.0) == Collect(forget=False)
    assert step(machine, 1000.0, collected=128) == Fit("timer")
    machine.finished(Result.UNNEEDED, 1001.0)
    assert step(machine, 2000.0) is None
    assert step(machine, 2001.0) == Collect(forget=False)


@pytest.mark.parametrize(
    ("result", "state"),
    [
        ("unneeded", State.FACTORY),
        ("rejected", State.FACTORY),
        ("outdated", State.FACTORY),
        ("failed", State.FAILED),
        ("timeout", State.FAILED),
    ],
)
def test_how_a_fit_without_a_candidate_ends(machine, result, state):
    begin_fit(machine, 1.0)
    machine.finished(result, 2.0, "because")
    assert (machine.state, machine.reason) == (state, "because")


def test_back_off_doubles_and_an_operator_bypasses_it(machine):
    begin_fit(machine, 0.0)
    machine.finished(Result.REJECTED, 0.0)
    assert step(machine, 9.0, alarm=True) is None
    begin_fit(machine, 10.0)
    machine.finished(Result.FAILED, 10.0)
    assert step(machine, 29.0, alarm=True) is None
    assert machine.state is State.FAILED
    machine.request()
    assert step(machine, 29.0) == Collect(forget=False)
    assert step(machine, 29.0, collected=128) == Fit("operator")


def test_back_off_stops_growing_after_six_doublings(machine):
    for _ in range(40):
        machine.finished(Result.FAILED, 0.0)
    assert step(machine, 639.0, alarm=True) is None
    assert step(machine, 640.0, alarm=True) == Collect(forget=False)


def test_a_drift_that_nothing_helps_against_is_invalid_and_says_what_to_do(machine):
    now = 0.0
    for _ in range(INVALID_AFTER_FAILURES):
        begin_fit(machine, now)
        machine.finished(Result.REJECTED, now, "score 9 stays outside the clean band")
        assert step(machine, now + 1, alarm=True) is None
        now += 1000.0
    assert machine.state is State.INVALID
    assert "3 tries in a row" in machine.reason and "score 9" in machine.reason and "check the lens" in machine.reason
    assert step(machine, now, alarm=True) == Collect(forget=False), "it goes on trying"


def test_an_invalid_sensor_is_at_rest_when_the_drift_is_over(machine):
    for _ in range(INVALID_AFTER_FAILURES):
        machine.finished(Result.REJECTED, 0.0)
    step(machine, 1.0, alarm=True)
    assert machine.state is State.INVALID
    assert step(machine, 500.0) is None
    assert machine.state is State.FACTORY


@pytest.mark.parametrize("budget", ["fits_a_day", "swaps_a_day"])
def test_only_an_operator_exceeds_the_budget(budget):
    machine = machine_in(**{budget: 1}, every=DAY)
    on_probation(machine, 10.0)
    compare(machine, False, False, False)
    assert step(machine, 70.0) is None
    assert machine.state is State.ACTIVE
    assert step(machine, DAY - 1, alarm=True) is None
    machine.request()
    assert step(machine, DAY - 1) == Collect(forget=False)
    machine.finished(Result.UNNEEDED, DAY - 1)
    assert step(machine, DAY + 11, alarm=True) == Collect(forget=True)


@pytest.mark.parametrize("budget", ["fits_a_day", "swaps_a_day"])
def test_an_order_waits_where_a_strict_budget_is_spent(budget):
    machine = machine_in(strict=True, **{budget: 1}, every=10 * DAY)
    on_probation(machine, 10.0)
    compare(machine, False, False, False)
    assert step(machine, 70.0) is None
    machine.request()
    assert step(machine, DAY - 1) is None and machine.state is State.ACTIVE
    assert "the envelope lets no order exceed it; the order waits" in machine.reason
    assert step(machine, DAY + 11) == Collect(forget=False)


def test_no_order_waits_for_a_strict_budget_that_is_not_spent():
    machine = machine_in(strict=True)
    machine.request()
    assert step(machine, 1.0) == Collect(forget=False)


@pytest.mark.parametrize("budget", ["fits_a_day", "swaps_a_day"])
def test_the_budget_continues_after_a_restart(budget):
    """The monotonic clock may have begun anew: what was spent an hour ago is of a time before 0."""
    machine = machine_in(**{budget: 2}, every=DAY)
    machine.budget.restore(**{budget.removesuffix("_a_day"): [-7200.0, -3600.0]}, **{OTHER[budget]: []})
    assert step(machine, 1.0, alarm=True) is None and "budget" in machine.reason
    assert step(machine, DAY - 7201.0, alarm=True) is None
    on_probation(machine, DAY - 7200.0 + 5)
    compare(machine, False, False, False)
    step(machine, DAY - 7200.0 + 65)
    assert step(machine, DAY - 3601.0, alarm=True) is None, "the one of an hour ago and the new one"
    assert step(machine, DAY - 3600.0, alarm=True) == Collect(forget=True)


def test_a_lasting_alarm_that_needs_no_fit_backs_off(machine):
    """A long scene of one class looks like drift, and is none."""
    fits, now = 0, 0.0
    while now < 3600.0:
        now += 1.0
        decision = step(machine, now, alarm=True, collected=128)
        if isinstance(decision, Fit):
            fits += 1
            machine.finished(Result.UNNEEDED, now)
    assert 5 <= fits <= 12


def test_an_unneeded_timer_fit_does_not_delay_the_fit_of_a_drift(machine):
    step(machine, 1000.0)
    step(machine, 1000.0, collected=128)
    machine.finished(Result.UNNEEDED, 1000.0)
    assert step(machine, 1001.0, alarm=True) == Collect(forget=True)


def test_repeated_rollbacks_back_off_and_lead_to_invalid(machine):
    swaps, now = 0, 0.0
    while now < 3600.0:
        now += 5.0
        decision = step(machine, now, alarm=True, collected=128)
        if isinstance(decision, Fit):
            machine.candidate_ready(now)
            compare(machine, True, True, True)
        elif isinstance(decision, Commit):
            swaps += 1
            machine.committed(True, now)
            compare(machine, True, True)
        elif isinstance(decision, RollBack):
            machine.rolled_back(False, now, "rolled back: regress")
    assert swaps <= 12
    assert machine.state is State.INVALID


def test_a_spent_budget_is_explained():
    machine = machine_in(fits_a_day=1)
    begin_fit(machine, 0.0)
    machine.finished(Result.REJECTED, 0.0)
    assert step(machine, 500.0, alarm=True) is None
    assert "budget" in machine.reason and "`recald recalibrate` exceeds it" in machine.reason
    assert machine.waits_for == "budget"


def test_a_back_off_is_what_is_waited_for_while_the_alarm_lasts(machine):
    begin_fit(machine, 0.0)
    machine.finished(Result.REJECTED, 1.0, "not better")
    assert step(machine, 2.0, alarm=True) is None and machine.waits_for == "back_off"
    assert machine.reason == "not better"
    assert step(machine, 3.0) is None and machine.waits_for == "", "nothing is wanted without an alarm"
    assert step(machine, 500.0, alarm=True) == Collect(forget=False) and machine.waits_for == ""


def test_more_classes_are_waited_for_before_and_while_frames_are_collected(machine):
    assert step(machine, 1.0, alarm=True, label_shift=True) is None and machine.waits_for == "classes"
    step(machine, 2.0, alarm=True)
    assert machine.state is State.COLLECTING and machine.waits_for == ""
    assert step(machine, 3.0, alarm=True, label_shift=True) is None and machine.waits_for == "classes"
    assert step(machine, 4.0, alarm=True, collected=3) is None and machine.waits_for == ""


def test_an_order_while_collecting_makes_that_fit_the_operators(machine):
    step(machine, 1.0, alarm=True)
    machine.request()
    assert step(machine, 2.0, alarm=True, collected=128) == Fit("operator")
    machine.finished(Result.UNNEEDED, 3.0)
    assert step(machine, 4.0) is None


# ---- from a candidate to what serves


def test_a_candidate_serves_after_the_shadow(machine):
    begin_fit(machine, 0.0)
    machine.candidate_ready(1.0)
    assert machine.state is State.SHADOW
    compare(machine, True, True)
    assert step(machine, 6.0) is None, "two comparisons are too few"
    compare(machine, True)
    assert step(machine, 5.9) is None, "the shadow is not over"
    assert step(machine, 6.0) == Commit()


def test_a_candidate_may_lose_one_comparison_but_not_two(machine):
    begin_fit(machine, 0.0)
    machine.candidate_ready(0.0)
    compare(machine, False, True, True)
    assert step(machine, 5.0) == Commit()
    machine.candidate_ready(10.0)
    compare(machine, False, False)
    decision = step(machine, 10.1)
    assert decision == Discard(Result.REJECTED, "not better in 2 of 2 comparisons on new frames")


def test_a_hold_keeps_a_candidate_waiting(machine):
    shadowed(machine, 10.0)
    assert step(machine, 10.0, hold_reason="why") is None
    assert machine.state is State.SHADOW and machine.reason == "the candidate waits: why"
    assert machine.waits_for == "hold"
    assert step(machine, 11.0) == Commit()


def test_the_shadow_mode_lets_nothing_serve():
    machine = machine_in("shadow")
    shadowed(machine, 10.0)
    assert isinstance(decision := step(machine, 10.0), Discard) and decision.result == "shadowed"
    machine.finished(decision.result, 10.0, decision.reason)
    assert machine.state is State.FACTORY


def test_supervised_waits_for_approval():
    machine = machine_in("supervised")
    shadowed(machine, 10.0)
    assert step(machine, 10.0) is None
    assert machine.state is State.AWAITING_APPROVAL and "recald approve" in machine.reason
    assert step(machine, 5000.0) is None and machine.waits_for == "approval"
    machine.approve()
    assert step(machine, 5000.0, hold_reason="why") is None and machine.waits_for == "hold"
    assert step(machine, 5000.0) == Commit()


def test_a_refused_candidate_is_dropped():
    machine = machine_in("supervised")
    shadowed(machine, 10.0)
    step(machine, 10.0)
    machine.reject()
    assert step(machine, 11.0) == Discard(Result.REFUSED, "refused by the operator")


def test_a_candidate_that_is_no_longer_better_does_not_wait_for_approval():
    machine = machine_in("supervised")
    shadowed(machine, 10.0)
    step(machine, 10.0)
    compare(machine, *[False] * 12)
    assert isinstance(step(machine, 11.0), Discard)


def test_locked_fits_nothing():
    machine = machine_in("locked")
    assert step(machine, 5000.0, alarm=True) is None
    with pytest.raises(OrderRefused, match="locked"):
        machine.request()
    assert step(machine, 5001.0, alarm=True) is None


@pytest.mark.parametrize("order", ["approve", "reject"])
def test_an_answer_without_a_candidate_is_refused(machine, order):
    with pytest.raises(OrderRefused, match="no candidate waits for approval: factory"):
        getattr(machine, order)()


# ---- on probation


def test_a_good_homogenizer_is_active_after_its_probation(machine):
    on_probation(machine, 10.0)
    compare(machine, False, True, False)
    assert step(machine, 69.0) is None
    assert machine.state is State.PROBATION
    assert step(machine, 70.0) is None
    assert machine.state is State.ACTIVE


def test_a_worse_homogenizer_is_rolled_back(machine):
    on_probation(machine, 10.0)
    compare(machine, True, False, True)
    assert step(machine, 20.0) is None, "not twice in a row"
    compare(machine, True)
    assert step(machine, 21.0) == RollBack("regress")
    machine.rolled_back(False, 21.0, "rolled back: regress")
    assert (machine.state, machine.reason) == (State.ROLLED_BACK, "rolled back: regress")
    assert step(machine, 30.0, alarm=True) is None, "not before the back-off is over"
    assert step(machine, 31.0, alarm=True) == Collect(forget=True)


def test_a_hold_delays_no_rollback(machine):
    on_probation(machine, 10.0)
    compare(machine, True, True)
    assert step(machine, 20.0, hold_reason="why") == RollBack("regress")


def test_a_slow_homogenizer_is_rolled_back(machine):
    on_probation(machine, 10.0)
    compare(machine, False, False, False)
    assert step(machine, 20.0, hold_reason="why", latency_problem="9 ms") == RollBack("latency", "9 ms")


def test_latency_counts_only_on_probation(machine):
    on_probation(machine, 10.0)
    compare(machine, False, False, False)
    step(machine, 70.0)
    assert step(machine, 71.0, latency_problem="9 ms") is None


def test_a_probation_that_a_restart_cut_short_begins_anew():
    machine = StateMachine(RecalibrateConfig(**TIMES), now=0.0, serving=True, on_probation=True)
    compare(machine, True, True)
    assert step(machine, 1.0) == RollBack("regress")


def test_locked_begins_no_probation_after_a_restart():
    machine = StateMachine(RecalibrateConfig(mode="locked", **TIMES), now=0.0, serving=True, on_probation=True)
    compare(machine, True, True, True)
    assert step(machine, 1.0, latency_problem="9 ms") is None
    assert machine.state is State.ACTIVE


def test_probation_does_not_end_without_comparisons(machine):
    on_probation(machine, 10.0)
    assert step(machine, 500.0) is None
    assert machine.state is State.PROBATION


def test_the_factory_homogenizer_is_at_rest_after_its_probation(machine):
    on_probation(machine, 10.0)
    machine.committed(False, 20.0)
    compare(machine, False, False, False)
    step(machine, 80.0)
    assert machine.state is State.FACTORY


def test_a_rollback_does_not_stop_a_fit(machine):
    begin_fit(machine, 1.0)
    machine.rolled_back(False, 2.0, "rolled back: operator")
    assert machine.state is State.FITTING


@pytest.mark.parametrize("mode", ["locked", "shadow"])
def test_nothing_is_brought_back_where_nothing_new_may_serve(mode):
    with pytest.raises(OrderRefused, match=f"recalibrate.mode is {mode}"):
        machine_in(mode).begin_restore(1.0)


def test_a_strict_budget_bounds_what_is_brought_back():
    machine = machine_in(strict=True, swaps_a_day=1, every=10 * DAY)
    at_rest_with_a_homogenizer(machine, 100.0)
    with pytest.raises(OrderRefused, match="budget"):
        machine.begin_restore(101.0)
    machine.begin_restore(100.0 + DAY)
    assert machine.state is State.COMPILING


# ---- deadlines, and drift checks that fail

BLIND = {"unwatched": "no drift check for 40 s", "missed_comparisons": MIN_COMPARISONS}


def test_collecting_ends_as_a_failure_when_too_few_frames_come(machine):
    step(machine, 1.0, alarm=True)
    assert step(machine, 3601.0, alarm=True, collected=3) is None
    assert step(machine, 3602.0, alarm=True, collected=3) == Abort("3 of 128 frames came in 60 min")
    machine.finished(Result.TIMEOUT, 3602.0, "3 of 128 frames came in 60 min")
    assert machine.state is State.FAILED
    assert step(machine, 3612.0, alarm=True) == Collect(forget=False), "the frames add up"


def test_collecting_ends_without_a_failure_when_few_classes_stay_in_view(machine):
    step(machine, 1.0, alarm=True)
    assert step(machine, 3602.0, alarm=True, collected=128, label_shift=True) is None
    assert machine.state is State.FACTORY and "few classes" in machine.reason
    assert step(machine, 3603.0, alarm=True) == Collect(forget=True), "no back-off"


def test_the_time_in_which_a_fit_waits_for_its_turn_does_not_count(machine):
    step(machine, 1.0, alarm=True)
    step(machine, 2.0, alarm=True, collected=128, worker_free=False)
    for hours in range(1, 5):
        assert step(machine, 3600.0 * hours, alarm=True, collected=128, worker_free=False) is None
    assert machine.reason == "128 frames are collected; the fit waits for its turn" and machine.waits_for == "turn"
    assert step(machine, 14_401.0, alarm=True, collected=128) == Fit("drift")


def test_a_worker_that_is_busy_excuses_no_frames_that_do_not_come(machine):
    step(machine, 1.0, alarm=True)
    step(machine, 2.0, alarm=True, collected=3, worker_free=False)
    overdue = step(machine, 3602.0, alarm=True, collected=3, worker_free=False)
    assert overdue == Abort("3 of 128 frames came in 60 min")


@pytest.mark.parametrize("stage", IN_WORK)
def test_a_job_whose_thread_hangs_is_given_up(stage):
    machine = machine_in(timeout=100.0)
    begin_fit(machine, 0.0)
    machine.progressed(stage, 0.5)
    assert step(machine, 700.0) is None
    assert isinstance(step(machine, 701.0), Abort)


def test_a_candidate_that_nothing_compares_is_dropped(machine):
    begin_fit(machine, 0.0)
    machine.candidate_ready(0.0)
    compare(machine, True)
    assert step(machine, 600.0, **BLIND) is None
    dropped = step(machine, 601.0, **BLIND)
    assert dropped == Discard(Result.TIMEOUT, "no comparison on new frames for 10 min")


def test_a_candidate_waits_for_frames_of_a_slow_camera(machine):
    begin_fit(machine, 0.0)
    machine.candidate_ready(0.0)
    assert step(machine, 5000.0, missed_comparisons=MIN_COMPARISONS - 1) is None


def test_nobody_needs_to_answer_for_ever():
    machine = machine_in("supervised")
    shadowed(machine, 10.0)
    step(machine, 10.0)
    assert step(machine, 7 * DAY) is None
    assert step(machine, 7 * DAY + 11) == Discard(Result.TIMEOUT, "nobody approved it for 7 days")


def test_a_probation_without_comparisons_goes_one_step_back(machine):
    on_probation(machine, 10.0)
    compare(machine, False)
    assert step(machine, 609.0, **BLIND) is None
    assert step(machine, 611.0, **BLIND) == RollBack("unproven", "no comparison on new frames for 10 min")


@pytest.mark.parametrize("world", [BLIND, {"missed_comparisons": MIN_COMPARISONS}], ids=["no scores", "scores"])
def test_the_factory_homogenizer_needs_no_proof(machine, world):
    on_probation(machine, 10.0)
    machine.committed(False, 20.0)
    assert step(machine, 609.0, **world) is None and machine.state is State.PROBATION
    assert step(machine, 611.0, **world) is None
    assert machine.state is State.FACTORY and machine.reason == "no comparison on new frames for 10 min"


def test_slow_drift_checks_have_the_time_that_comparisons_take(machine):
    slow = {"missed_comparisons": MIN_COMPARISONS, "check_period": 600.0}
    on_probation(machine, 10.0)
    assert step(machine, 2400.0, **slow) is None
    assert step(machine, 2411.0, **slow) == RollBack("unproven", "no comparison on new frames for 40 min")


def test_the_time_of_a_stopped_camera_does_not_count(machine):
    on_probation(machine, 10.0)
    assert step(machine, 9000.0, silent=True, **BLIND) is None
    assert step(machine, 9500.0, **BLIND) is None
    assert isinstance(step(machine, 9700.0, **BLIND), RollBack)


def test_nothing_starts_by_itself_while_drift_checks_fail(machine):
    assert step(machine, 5000.0, alarm=True, raw_clean=True, unwatched="why") is None, "neither drift nor timer"
    machine.request()
    assert step(machine, 5001.0, unwatched="why") == Collect(forget=False)


def test_an_unknown_alarm_ends_no_collecting_and_no_invalid_state(machine):
    step(machine, 1.0, alarm=True)
    assert step(machine, 2.0, unwatched="why") is None and machine.state is State.COLLECTING
    for _ in range(INVALID_AFTER_FAILURES):
        machine.finished(Result.REJECTED, 3.0)
    step(machine, 4.0, alarm=True)
    assert step(machine, 900.0, unwatched="why") is None and machine.state is State.INVALID


# ---- whatever happens


class Life(RuleBasedStateMachine):
    """A sensor's life in any order of events that a daemon can produce."""

    @initialize(
        mode=st.sampled_from(["locked", "shadow", "supervised", "autonomous"]),
        budget=st.tuples(st.integers(1, 3), st.integers(1, 3)),
        served=st.booleans(),
        spent=st.tuples(*[st.lists(st.floats(-1.5 * DAY, 0), max_size=3).map(sorted)] * 2),
    )
    def begin(self, mode, budget, served, spent):
        self.mode, self.now = mode, 0.0
        config = RecalibrateConfig(mode=mode, fits_a_day=budget[0], swaps_a_day=budget[1], **TIMES)
        self.machine = StateMachine(config, 0.0, serving=served, on_probation=served)
        self.machine.budget.restore(*spent)
        self.budget, self.spent = budget, tuple(map(list, spent))
        self.approved, self.serving = False, served

    @rule()
    def some_hours_pass(self):
        self.now += 8 * 3600.0

    def overdrawn(self) -> bool:
        """Whether the day's budget is used up, counted anew."""
        days = [sum(time > self.now - DAY for time in times) for times in self.spent]
        return any(count >= most for count, most in zip(days, self.budget, strict=True))

    @rule(
        alarm=st.booleans(),
        label_shift=st.booleans(),
        clean=st.booleans(),
        collected=st.integers(0, 200),
        free=st.booleans(),
        held=st.sampled_from(["", "why"]),
        slower=st.sampled_from(["", "", "9 ms"]),
        unwatched=st.sampled_from(["", "", "no check"]),
        silent=st.booleans(),
        missed=st.integers(0, 5),
        harmful=st.booleans(),
    )
    def step(self, alarm, label_shift, clean, collected, free, held, slower, unwatched, silent, missed, harmful):
        self.now += 3.0
        before = self.machine.state
        facts = Facts(alarm, label_shift, clean, harmful, collected, free, held, slower, unwatched, silent, missed)
        decision = self.machine.step(self.now, facts)
        if isinstance(decision, Collect):
            assert self.mode != "locked" and (self.machine.trigger == "operator" or not self.overdrawn())
        elif isinstance(decision, Fit):
            assert free and collected >= 128 and before is State.COLLECTING and self.mode != "locked"
            self.spent[0].append(self.now)
        elif isinstance(decision, Abort):
            assert before is State.COLLECTING or before in IN_WORK
            self.machine.finished(Result.TIMEOUT, self.now, decision.reason)
        elif isinstance(decision, Recall):
            assert free and before is self.machine.state is State.COLLECTING
        elif isinstance(decision, ServeFactory):
            assert alarm and (clean or harmful) and not unwatched and self.serving and self.mode != "locked"
            assert decision.keep_work or before not in IN_WORK
            self.serving = False
            self.machine.committed(False, self.now, decision.keep_work)
            assert not decision.keep_work or self.machine.state is before
        elif isinstance(decision, Commit):
            assert not held and before in WITH_CANDIDATE
            assert self.mode == "autonomous" or (self.mode == "supervised" and self.approved)
            self.serving = True
            self.machine.committed(True, self.now)
            self.spent[1].append(self.now)
        elif isinstance(decision, Discard):
            assert before in WITH_CANDIDATE
            self.machine.finished(decision.result, self.now, decision.reason)
        elif isinstance(decision, RollBack):
            assert before is State.PROBATION and (self.serving or not held)
            self.serving = False
            assert (decision.reason == "latency") == (bool(slower) and decision.detail == slower)
            self.machine.rolled_back(False, self.now, "regress")
        if self.machine.state not in WITH_CANDIDATE:
            self.approved = False

    @precondition(lambda self: self.machine.state in IN_WORK)
    @rule(stage=st.sampled_from(IN_WORK))
    def progress(self, stage):
        self.machine.progressed(stage, 0.5)

    @precondition(lambda self: self.machine.state in IN_WORK)
    @rule(end=st.sampled_from((*ENDS, "proven")))
    def end(self, end):
        if end == "proven":
            self.machine.candidate_ready(self.now)
        else:
            self.machine.finished(end, self.now)

    @rule(challenger_better=st.booleans())
    def compare(self, challenger_better):
        self.machine.compared(challenger_better)

    @rule(order=st.sampled_from(["request", "approve", "reject"]))
    def order(self, order):
        try:
            getattr(self.machine, order)()
        except OrderRefused as refused:
            assert "\n" not in str(refused)
        else:
            self.approved = order == "approve"

    @rule()
    def roll_back(self):
        self.serving = False
        self.machine.rolled_back(False, self.now, "operator")

    @invariant()
    def is_sound(self):
        assert 0 <= self.machine.progress <= 1
        assert self.mode != "locked" or self.machine.state in AT_REST

    def teardown(self):
        """From any state it finds its way to rest, by itself but for what an operator must answer."""
        if not hasattr(self, "machine"):
            return
        if self.machine.state is State.COLLECTING:
            self.machine.request()
            step(self.machine, self.now, collected=128)  # if there was an alarm, it collects anew
            if isinstance(step(self.machine, self.now, collected=128), Abort):  # it has collected for too long
                self.machine.finished(Result.TIMEOUT, self.now)
        if self.machine.state in IN_WORK:
            self.machine.finished(Result.REJECTED, self.now)
        if self.machine.state in WITH_CANDIDATE:
            self.machine.reject()
            self.now += 1000
            decision = step(self.machine, self.now)
            self.machine.finished(decision.result, self.now)
        if self.machine.state is State.PROBATION:
            compare(self.machine, *[False] * MIN_COMPARISONS)
            step(self.machine, self.now + 1000)
        assert self.machine.state in AT_REST


Life.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestLife = Life.TestCase


@given(st.sampled_from(State))
def test_every_state_has_a_name_for_the_metric(state):
    assert state.value == state.value.lower() and " " not in state.value
