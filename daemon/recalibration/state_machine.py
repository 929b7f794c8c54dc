"""Decides for one sensor when to collect, fit, wait, serve and roll back. No I/O in here; the time is an argument."""

from __future__ import annotations

import math
from collections import deque

from calibrate.errors import RecaldError
from daemon.config import RecalibrateConfig
from daemon.recalibration.budget import Budget
from daemon.recalibration.deadlines import MIN_COMPARISONS, Deadlines
from daemon.recalibration.decisions import (
    Abort,
    Collect,
    Commit,
    Decision,
    Discard,
    Facts,
    Fit,
    Recall,
    RollBack,
    ServeFactory,
)
from daemon.states import AT_REST, IN_WORK, WITH_CANDIDATE, Result, State

RESULT_EXPECTED = (State.COLLECTING, *IN_WORK)  # in every other state the result of a recalibration comes too late
MAX_BACKOFF_DOUBLINGS = 6
RECALL_INTERVAL_S = 60.0  # between two attempts to recall an earlier homogenizer; a fit takes longer
MAX_COMPARISONS = 30  # the newest that count: a candidate may wait for approval for days
MAX_LOST_RATIO = 1 / 3  # of its comparisons a candidate may lose this share: windows are small, chance loses some
ROLLBACK_COMPARISONS = 2  # in a row that find the previous homogenizer better: a single one may be chance
INVALID_AFTER_FAILURES = 3  # in a row, while the drift lasts
CLEAN_REASON = "the frames are clean without a homogenizer"
HARMFUL_REASON = "the frames are clearly worse with the homogenizer than without"
ON_PROBATION = "the new homogenizer serves on probation"
LABEL_SHIFT_REASON = "few classes are in view, and the model is sure of them: this is no drift"


class OrderRefused(RecaldError):
    """An operator's order that is not possible now. The message says why, and what is possible."""


class StateMachine:
    """The recalibration state of one sensor.

    Orders (`request`, `approve`, `reject`) and events (`progressed`, `candidate_ready`, `finished`, `compared`,
    `committed`, `rolled_back`) come in; `step` returns the next decision. Times are seconds of one monotonic clock.
    """

    def __init__(
        self,
        config: RecalibrateConfig,
        now: float,
        serving: bool = False,
        on_probation: bool = False,
        strict: bool = False,
    ):
        """Start at rest, or on probation after a restart.

        serving: a fitted homogenizer serves. strict: an operator's order may not exceed the budget of fits and swaps.
        """
        self.budget = Budget(config)
        self._config = config
        self._strict = strict
        on_probation &= config.mode != "locked"  # a locked sensor never changes by itself: what serves stays
        self.state = State.PROBATION if on_probation else State.ACTIVE if serving else State.FACTORY
        self.progress = 0.0  # of this state, 0 to 1
        self.reason = ""  # why it is in this state, and what an operator can do
        self.waits_for = ""  # of WAIT_REASONS; "" while nothing is wanted, or all goes on
        self.trigger = ""  # of the running recalibration
        self._serving = serving  # a fitted homogenizer serves
        self._has_earlier = serving  # there is an earlier homogenizer that may be recalled
        self._state_since = now
        self._timer_due = now + config.every
        self._backoff_until = now  # nothing starts by itself before
        self._backoffs = 0  # in a row, each twice as long as the one before
        self._failures = 0  # in a row; a successful probation ends the row
        self._last_failure = ""
        self._factory_allowed_from = now  # a switch to factory that was rolled back waits for the back-off
        self._explained = False  # the reason explains why nothing happens, and goes away with the cause
        self._requested = False  # by the operator
        self._last_recall = -math.inf
        self._collecting_drift = False  # the frames that are collected are those of an alarm
        self._frames_outdated = False  # newer frames have contradicted a fit to the collected ones
        self._approval: bool | None = None
        self._candidate_is_factory = False
        self._comparisons: deque[bool] = deque(maxlen=MAX_COMPARISONS)  # whether each found the challenger better
        self._deadlines = Deadlines(config, now)

    # ---- orders of an operator

    def request(self) -> None:
        """Order a fit as soon as the sensor is at rest, without back-off; only a strict budget delays it.

        Raises OrderRefused when locked, or while a recalibration runs.
        """
        if self._config.mode == "locked":
            raise OrderRefused("recalibrate.mode is locked: nothing is fitted")
        if self.state in (*IN_WORK, *WITH_CANDIDATE):
            raise OrderRefused(f"a recalibration is already running: {self.state.value}")
        if self.state is State.COLLECTING:
            self.trigger = "operator"
        else:
            self._requested = True

    def begin_restore(self, now: float) -> None:
        """Enter the work of bringing a stored homogenizer back: it is loaded and proven, and then a candidate.

        Raises OrderRefused when locked or in the mode shadow, on probation, while a recalibration runs, and when a
        strict budget is spent.
        """
        if self._config.mode in ("locked", "shadow"):
            raise OrderRefused(f"recalibrate.mode is {self._config.mode}: nothing new comes to serve")
        if self.state not in (*AT_REST, State.COLLECTING):
            raise OrderRefused(f"the sensor is in the state {self.state.value}: wait until that is over")
        if self._strict and self.budget.is_spent(now):
            raise OrderRefused("the envelope lets no order exceed the budget of fits and swaps, and it is spent")
        self.trigger = "operator"
        self._enter(State.COMPILING, now, "a stored homogenizer is loaded and proven")

    def approve(self) -> None:
        """Let the waiting candidate serve. Raises OrderRefused when none waits for approval."""
        self._set_approval(True)

    def reject(self) -> None:
        """Drop the candidate, also in the shadow. Raises OrderRefused when there is none."""
        self._set_approval(False)

    # ---- events

    def progressed(self, stage: State, ratio: float) -> None:
        """Note the stage that the worker reports, and the share of it that is done."""
        if self.state in IN_WORK and stage in IN_WORK:
            self.state, self.progress = stage, ratio

    def candidate_ready(self, now: float, factory: bool = False) -> None:
        """Note that a candidate is proven and may serve. factory: it is none, so that no hold is to delay it."""
        self._candidate_is_factory = factory
        self._enter(State.SHADOW, now, "a candidate runs beside the active homogenizer")

    def finished(self, result: Result, now: float, reason: str = "") -> None:
        """Note that a recalibration ended without a swap."""
        self._timer_due = now + self._config.every
        self._frames_outdated |= self.state in WITH_CANDIDATE
        if result in (Result.UNNEEDED, Result.SHADOWED):
            self._failures = 0
        else:
            self._count_failure(reason)
        if self.trigger == "drift" or self._failures:  # else a lasting alarm would start the same fit at once
            self._back_off(now)
        failed = result in (Result.FAILED, Result.TIMEOUT)
        self._enter(State.FAILED if failed else self._resting_state(), now, reason)

    def compared(self, challenger_better: bool) -> None:
        """Note one comparison on new frames: of the candidate in the shadow, or of the previous one on probation."""
        if self.state in (*WITH_CANDIDATE, State.PROBATION):
            self._comparisons.append(challenger_better)
            self._deadlines.compared()

    def committed(self, serving: bool, now: float, keep_work: bool = False) -> None:
        """Note a swap. serving: to a fitted homogenizer, not to the factory one. keep_work: this state goes on."""
        self._serving = serving
        self._has_earlier |= serving
        self._timer_due = now + self._config.every
        if serving:  # a switch to factory costs no budget: it is always possible
            self.budget.count_swap(now)
        if keep_work:
            self._comparisons.clear()  # they were with the homogenizer before
        else:
            self._enter(State.PROBATION, now, ON_PROBATION)

    def rolled_back(self, serving: bool, now: float, reason: str) -> None:
        """Note a rollback. serving: a fitted homogenizer still serves. A running fit goes on."""
        self._serving, self._frames_outdated = serving, True
        self._count_failure(reason)
        self._back_off(now)
        self._factory_allowed_from = self._backoff_until
        if self.state not in (*IN_WORK, State.COLLECTING):
            self._enter(State.ROLLED_BACK, now, reason)

    # ---- decisions

    def step(self, now: float, facts: Facts) -> Decision | None:
        """Return what to do now, or None."""
        waits = self.state is State.COLLECTING and self.progress == 1.0 and not facts.worker_free
        self._deadlines.count_time(now, facts.silent or waits)
        if (to_factory := self._serve_factory(now, facts)) is not None:
            return to_factory
        if (overdue := self._pass_deadline(now, facts)) is not None:
            return overdue
        if self.state in AT_REST:
            return self._step_at_rest(now, facts)
        if self.state is State.COLLECTING:
            return self._step_collecting(now, facts)
        if self.state in WITH_CANDIDATE:
            return self._step_candidate(now, facts.hold_reason)
        if self.state is State.PROBATION:
            return self._step_probation(now, facts)
        return None

    def _serve_factory(self, now: float, facts: Facts) -> ServeFactory | None:
        """Return the way to factory where the active homogenizer causes the alarm, or makes a drift clearly worse."""
        if (
            self._config.mode == "locked"
            or not self._serving
            or not _alarmed(facts)
            or now < self._factory_allowed_from
        ):
            return None
        if facts.raw_clean:
            return ServeFactory(CLEAN_REASON, keep_work=self.state in IN_WORK)
        if not facts.harmful or (self.state in AT_REST and self._find_trigger(now, facts)):
            return None  # collecting begins first; it goes on when factory serves
        other_candidate = self.state in WITH_CANDIDATE and not self._candidate_is_factory
        return ServeFactory(HARMFUL_REASON, keep_work=self.state in RESULT_EXPECTED or other_candidate)

    def _pass_deadline(self, now: float, facts: Facts) -> Decision | None:
        """Return what ends a state that has lasted too long, or None."""
        why = self._deadlines.passed(self.state, now, facts)
        if not why:
            return None
        if self.state in WITH_CANDIDATE:
            return Discard(Result.TIMEOUT, why)
        if self.state is State.PROBATION:
            return RollBack("unproven", why) if self._serving else None
        if self.state is State.COLLECTING and facts.label_shift:  # no failure: the view waits for more classes
            self._enter(self._resting_state(), now, LABEL_SHIFT_REASON)
            return None
        return Abort(why)

    def _step_at_rest(self, now: float, facts: Facts) -> Decision | None:
        trigger = self._find_trigger(now, facts)
        if trigger is None:
            if not facts.unwatched:
                self._update_resting_state(now, facts.alarm)
            self._explain_waiting(now, facts)
            return None
        # Frames of one lasting drift add up over several tries, unless newer frames showed that the drift has changed.
        forget = facts.alarm and (not self._backoffs or self._frames_outdated)
        self.trigger, self._requested = trigger, False
        self._last_recall, self._frames_outdated, self._collecting_drift = -math.inf, False, facts.alarm
        self._enter(State.COLLECTING, now)
        return Collect(forget)

    def _find_trigger(self, now: float, facts: Facts) -> str | None:
        if self._requested and not (self._strict and self.budget.is_spent(now)):
            return "operator"
        if self._config.mode == "locked" or facts.label_shift or facts.unwatched:  # no candidate could be compared
            return None
        if now < self._backoff_until or self.budget.is_spent(now):
            return None
        if facts.alarm:
            return "drift"
        return "timer" if now >= self._timer_due else None

    def _update_resting_state(self, now: float, alarm: bool) -> None:
        """Enter INVALID when repeated tries did not help; leave FAILED, ROLLED_BACK and INVALID when they are over."""
        if alarm and self._failures >= INVALID_AFTER_FAILURES:
            if self.state is not State.INVALID:
                advice = "check the lens, the exposure and the scene; `recald recalibrate` tries again at once"
                failures = f"{self._failures} tries in a row failed and the frames still drift ({self._last_failure})"
                self._enter(State.INVALID, now, f"{failures}: {advice}")
        elif now >= self._backoff_until:
            if not alarm:
                self._backoffs = self._failures = 0
            if self.state not in (State.ACTIVE, State.FACTORY):
                self._enter(self._resting_state(), now)

    def _explain_waiting(self, now: float, facts: Facts) -> None:
        """Set the reason why an alarm or an order starts nothing, and clear it when the cause is gone."""
        reason, backs_off = "", facts.alarm and now < self._backoff_until
        self.waits_for = "back_off" if backs_off else ""
        if (facts.alarm or self._requested) and self.budget.is_spent(now):
            advice = "`recald recalibrate` exceeds it"
            if self._strict:
                advice = f"the envelope lets no order exceed it{'; the order waits' if self._requested else ''}"
            self.waits_for, reason = "budget", f"the budget of fits or swaps for 24 h is spent; {advice}"
        elif facts.alarm and facts.label_shift and self.state is not State.INVALID:
            self.waits_for, reason = "classes", LABEL_SHIFT_REASON
        if reason or self._explained:
            self.reason, self._explained = reason, bool(reason)

    def _step_collecting(self, now: float, facts: Facts) -> Decision | None:
        if self.trigger == "drift" and not facts.alarm and not facts.unwatched:
            self._enter(self._resting_state(), now, "the drift was over before enough frames were collected")
            return None
        if facts.alarm is not self._collecting_drift and not facts.unwatched:
            return self._collect_anew(now, facts.alarm)
        elapsed = now - self._state_since  # frames of one moment may all show one scene: that is no fair sample
        frames, collect = self._config.frames, self._config.collect
        self.progress = min(1.0, facts.collected / frames, _done_ratio(elapsed, collect))
        spent = f", {elapsed:.0f} of {collect:.0f} s" if collect else ""
        self.waits_for, self.reason = "", f"{facts.collected} of {frames} frames{spent}"
        if self._recall_due(now, facts):
            self._last_recall = now
            return Recall()
        if facts.label_shift and self.trigger != "operator":
            self.waits_for, self.reason = "classes", LABEL_SHIFT_REASON
            return None
        if self.progress < 1.0:
            return None
        if not facts.worker_free:
            self.waits_for, self.reason = "turn", f"{facts.collected} frames are collected; the fit waits for its turn"
            return None
        self.budget.count_fit(now)
        self._enter(State.FITTING, now)
        return Fit(self.trigger)

    def _collect_anew(self, now: float, alarm: bool) -> Collect:
        """Collect from the beginning: the frames so far show the camera before a drift that came, or that went."""
        self._collecting_drift, self._state_since = alarm, now
        if alarm and self.trigger == "timer":
            self.trigger = "drift"
        return Collect(forget=True)

    def _recall_due(self, now: float, facts: Facts) -> bool:
        possible = self._has_earlier and self.trigger == "drift" and facts.worker_free
        return possible and now - self._last_recall >= RECALL_INTERVAL_S

    def _step_candidate(self, now: float, hold_reason: str) -> Decision | None:
        """Decide about a candidate in the shadow, or one that waits for approval."""
        if self._approval is False:
            return Discard(Result.REFUSED, "refused by the operator")
        if self.state is State.SHADOW:
            self.progress = _done_ratio(now - self._state_since, self._config.shadow)
        compared, lost = len(self._comparisons), self._comparisons.count(False)
        if lost > MAX_LOST_RATIO * max(compared, MIN_COMPARISONS):
            return Discard(Result.REJECTED, f"not better in {lost} of {compared} comparisons on new frames")
        if self.state is State.SHADOW and (self.progress < 1.0 or compared < MIN_COMPARISONS):
            return None
        return self._accept_candidate(now, hold_reason)

    def _accept_candidate(self, now: float, hold_reason: str) -> Decision | None:
        """Let a good candidate serve, as far as the mode, the operator and a hold allow it."""
        if self._config.mode == "shadow":
            return Discard(Result.SHADOWED, "better than the active homogenizer, but recalibrate.mode is shadow")
        if self._config.mode == "supervised" and self._approval is None:
            if self.state is not State.AWAITING_APPROVAL:
                self.state, self.progress = State.AWAITING_APPROVAL, 0.0
                self._deadlines.restart(now)
                self.waits_for = "approval"
                self.reason = "`recald approve` lets the candidate serve, `recald reject` drops it"
            return None
        if hold_reason and not self._candidate_is_factory:
            self.waits_for, self.reason = "hold", f"the candidate waits: {hold_reason}"
            return None
        return Commit()

    def _step_probation(self, now: float, facts: Facts) -> Decision | None:
        if not self._serving and (why := self._deadlines.passed(self.state, now, facts)):
            self._enter(self._resting_state(), now, why)  # the factory homogenizer needs no proof
            return None
        self.progress = _done_ratio(now - self._state_since, self._config.probation)
        newest = list(self._comparisons)[-ROLLBACK_COMPARISONS:]
        previous_better = len(newest) == ROLLBACK_COMPARISONS and all(newest)
        if previous_better or facts.latency_problem:
            if facts.hold_reason and not self._serving:
                return None  # from factory to a fitted homogenizer is no way back: that waits
            return RollBack("regress") if previous_better else RollBack("latency", facts.latency_problem)
        if self.progress == 1.0 and len(self._comparisons) >= MIN_COMPARISONS:
            self._failures = self._backoffs = 0
            self._backoff_until = now
            self._enter(self._resting_state(), now)
        return None

    # ---- helpers

    def _set_approval(self, approval: bool) -> None:
        if self.state is not State.AWAITING_APPROVAL and (approval or self.state is not State.SHADOW):
            raise OrderRefused(f"no candidate waits for approval: {self.state.value}")
        self._approval = approval

    def _count_failure(self, reason: str) -> None:
        self._failures, self._last_failure = self._failures + 1, reason

    def _back_off(self, now: float) -> None:
        """Start nothing by itself for a while; the wait doubles until a homogenizer lasts or the alarm is over."""
        wait = self._config.backoff * 2 ** min(self._backoffs, MAX_BACKOFF_DOUBLINGS)
        wait = min(wait, max(self._config.every, self._config.backoff))
        self._backoff_until = max(self._backoff_until, now + wait)
        self._backoffs += 1

    def _resting_state(self) -> State:
        return State.ACTIVE if self._serving else State.FACTORY

    def _enter(self, state: State, now: float, reason: str = "") -> None:
        self.state, self.progress, self.reason, self._state_since = state, 0.0, reason, now
        self.waits_for = ""
        self._deadlines.restart(now)
        self._explained = False
        self._comparisons, self._approval = deque(maxlen=MAX_COMPARISONS), None


def _alarmed(facts: Facts) -> bool:
    return facts.alarm and not facts.unwatched


def _done_ratio(elapsed: float, duration: float) -> float:
    """Return the share of a duration that is over, 0 to 1."""
    return min(1.0, elapsed / duration) if duration else 1.0
