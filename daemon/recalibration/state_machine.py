"""When to collect, fit, wait, serve and go back, for one sensor: plain values and the time in, decisions out."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from calibrate.errors import RecaldError
from daemon.config import DAY, RecalibrateConfig
from daemon.states import AT_REST, IN_WORK, WITH_CANDIDATE, Result, State

MAX_BACKOFF_DOUBLINGS = 6
LOOKS = 3  # at the candidate in the shadow, and at what serves on probation, at least
MOST_LOOKS = 30  # that count: a candidate may wait for days
IN_DOUBT = 1 / 3  # the share of looks in the shadow that may speak against a candidate: frames of a window are few
REGRESSIONS = 2  # looks in a row that find the one before better: one may be chance
RECALL_S = 60.0  # between two looks whether what helped before helps the newest frames; a fit takes longer
LABEL_SHIFT = "few classes are in view, and the model is sure of them: that is no drift"
HOPELESS = 3  # tries in a row that led to nothing while the drift lasts


@dataclass(frozen=True)
class Facts:
    """What a decision depends on: the alarm, frames collected, whether a fit may begin, and why no swap may be made.

    label_shift: few classes are in view, and the model is sure of them. clean_without: frames look clean with no
    homogenizer at all. slower: how much longer than expected a frame takes, where it does.
    """

    alarm: bool = False
    label_shift: bool = False
    clean_without: bool = False
    collected: int = 0
    fitter_free: bool = True
    held: str = ""
    slower: str = ""


@dataclass(frozen=True)
class Collect:
    """Begin to collect; `afresh`: the frames held so far show another camera."""

    afresh: bool


@dataclass(frozen=True)
class Recall:
    """See whether a homogenizer of the past, or none, is right for the newest frames."""


@dataclass(frozen=True)
class Fit:
    """Enough is collected: fit now."""

    trigger: str  # "drift", "timer" or "operator"


@dataclass(frozen=True)
class Commit:
    """Let the candidate serve from the next frame on."""


@dataclass(frozen=True)
class Discard:
    """Drop the candidate."""

    result: Result  # SHADOWED, REJECTED or REFUSED
    reason: str


@dataclass(frozen=True)
class ServeFactory:
    """Let the factory homogenizer serve: the camera is what it was, and what serves spoils its frames."""


@dataclass(frozen=True)
class RollBack:
    """Let the homogenizer before the active one serve again."""

    reason: str  # "regress" or "latency"
    why: str = ""


Decision = Collect | Recall | Fit | Commit | Discard | ServeFactory | RollBack


class Refused(RecaldError):
    """An operator's order that makes no sense now; the message says why, and what would."""


class StateMachine:
    """The state machine of one sensor. Every method takes or gives plain values; nothing is done in here."""

    def __init__(
        self,
        config: RecalibrateConfig,
        now: float,
        serving: bool = False,
        on_probation: bool = False,
        strict: bool = False,
    ):
        """strict: no order may exceed the day's budget of fits and swaps."""
        self._config = config
        self._strict = strict
        on_probation &= config.mode != "locked"  # where nothing changes by itself, what serves stays
        self.state = State.PROBATION if on_probation else State.ACTIVE if serving else State.FACTORY
        self.progress = 0.0
        self.reason = ""  # why it is in this state, and what an operator can do
        self.trigger = ""
        self._serving = self._has_past = serving
        self._since = now
        self._next_timer = now + config.every
        self._not_before = now
        self._failures = 0  # in a row; a swap is none once its probation is over
        self._failure = ""  # why the last one was
        self._tries = 0  # in a row that changed nothing for good, by which the back-off grows
        self._factory_from = now  # not before: a way back that was taken back must not be taken again at once
        self._explained = False  # the reason is one of those that pass by themselves
        self._requested = False
        self._recalled = -math.inf  # when the past was last looked at
        self._outdated = False  # newer frames have spoken against a fit to those collected
        self._approval: bool | None = None
        # Whether each look spoke for the candidate, or on probation for the one before.
        self._looks: deque[bool] = deque(maxlen=MOST_LOOKS)
        self._fits: deque[float] = deque()
        self._swaps: deque[float] = deque()

    def spent(self, fits: Sequence[float], swaps: Sequence[float]) -> None:
        """Times, oldest first, of fits and swaps from before a restart: the day's budget goes on."""
        self._fits.extendleft(reversed(fits))
        self._swaps.extendleft(reversed(swaps))

    # ---- what an operator orders

    def request(self) -> None:
        """A fit, as soon as there is rest; no back-off holds it up, and no budget that is not strict."""
        if self._config.mode == "locked":
            raise Refused("recalibrate.mode is locked: nothing is fitted")
        if self.state in (*IN_WORK, *WITH_CANDIDATE):
            raise Refused(f"a recalibration is under way: {self.state.value}")
        if self.state is State.COLLECTING:
            self.trigger = "operator"
        else:
            self._requested = True

    def approve(self) -> None:
        """The candidate may serve."""
        self._answer(True)

    def reject(self) -> None:
        """The candidate shall be dropped; in the shadow too."""
        self._answer(False)

    # ---- what has happened

    def progressed(self, stage: State, ratio: float) -> None:
        """The worker reports where it is."""
        if self.state in IN_WORK and stage in IN_WORK:
            self.state, self.progress = stage, ratio

    def proven(self, now: float) -> None:
        """A candidate is ready to serve."""
        self._enter(State.SHADOW, now, "a candidate runs beside what serves")

    def finished(self, result: Result, now: float, reason: str = "") -> None:
        """A recalibration ended without a swap: unneeded, shadowed, rejected, refused, outdated, failed or timeout."""
        self._next_timer = now + self._config.every
        self._outdated |= self.state in WITH_CANDIDATE
        if result in (Result.UNNEEDED, Result.SHADOWED):
            self._failures = 0
        else:
            self._fail(reason)
        if self.trigger == "drift" or self._failures:  # else a lasting alarm would ask for the same again at once
            self._hold_off(now)
        self._enter(State.FAILED if result in (Result.FAILED, Result.TIMEOUT) else self._rest(), now, reason)

    def looked(self, for_challenger: bool) -> None:
        """The watch compared: in the shadow, whether all speaks for the candidate; on probation, for the one before."""
        if self.state in (*WITH_CANDIDATE, State.PROBATION):
            self._looks.append(for_challenger)

    def committed(self, serving: bool, now: float) -> None:
        """The candidate serves; `serving`: it is a fitted homogenizer."""
        self._serving = serving
        self._has_past |= serving
        self._next_timer = now + self._config.every
        if serving:  # the way to the factory homogenizer is open whatever is spent
            self._swaps.append(now)
        self._enter(State.PROBATION, now, "it serves on probation")

    def rolled_back(self, serving: bool, now: float, reason: str) -> None:
        """The homogenizer was taken back; whether a fitted one still serves. A fit under way goes on."""
        self._serving, self._outdated = serving, True
        self._fail(reason)
        self._hold_off(now)
        self._factory_from = self._not_before
        if self.state not in (*IN_WORK, State.COLLECTING):
            self._enter(State.ROLLED_BACK, now, reason)

    # ---- what to do

    def step(self, now: float, facts: Facts) -> Decision | None:
        """What to do now, if anything."""
        if now >= self._factory_from and self._spoils(facts):
            return ServeFactory()
        if self.state in AT_REST:
            return self._begin(now, facts)
        if self.state is State.COLLECTING:
            return self._collect(now, facts)
        if self.state in WITH_CANDIDATE:
            return self._weigh(now, facts.held)
        if self.state is State.PROBATION:
            return self._watch_over(now, facts)
        return None

    def _spoils(self, facts: Facts) -> bool:
        """Whether what serves is what makes the frames look drifted; the way to the factory one needs no proof."""
        busy = self.state in IN_WORK or bool(facts.held) or self._config.mode == "locked"
        return facts.alarm and facts.clean_without and self._serving and not busy

    def _begin(self, now: float, facts: Facts) -> Decision | None:
        trigger = self._trigger(now, facts)
        if trigger is None:
            self._settle(now, facts.alarm)
            self._explain(now, facts)
            return None
        # Later frames of one drift add to those before, as long as nothing tells that it has become another.
        afresh = facts.alarm and (not self._tries or self._outdated)
        self.trigger, self._requested, self._recalled, self._outdated = trigger, False, -math.inf, False
        self._enter(State.COLLECTING, now)
        return Collect(afresh)

    def _explain(self, now: float, facts: Facts) -> None:
        """Tell why an alarm, or an order, leads to nothing, as long as that is so."""
        why = ""
        if (facts.alarm or self._requested) and self._spent(now):
            why = f"the day's budget of fits or swaps is spent; {self._way_out()}"
        elif facts.alarm and facts.label_shift and self.state is not State.INVALID:
            why = LABEL_SHIFT
        if why or self._explained:
            self.reason, self._explained = why, bool(why)

    def _trigger(self, now: float, facts: Facts) -> str | None:
        if self._requested and not (self._strict and self._spent(now)):
            return "operator"
        if self._config.mode == "locked" or facts.label_shift or now < self._not_before or self._spent(now):
            return None
        if facts.alarm:
            return "drift"
        return "timer" if now >= self._next_timer else None

    def _spent(self, now: float) -> bool:
        """Whether the day's budget is used up."""
        for times in (self._fits, self._swaps):
            while times and times[0] <= now - DAY:
                times.popleft()
        return len(self._fits) >= self._config.fits_a_day or len(self._swaps) >= self._config.swaps_a_day

    def _way_out(self) -> str:
        if not self._strict:
            return "`recald recalibrate` exceeds it"
        return "the envelope lets no order exceed it" + (", which waits" if self._requested else "")

    def _settle(self, now: float, alarm: bool) -> None:
        """Leave a state that is over; tell one in which nothing helps."""
        if alarm and self._failures >= HOPELESS:
            if self.state is not State.INVALID:
                self._enter(State.INVALID, now, self._advice())
        elif now >= self._not_before:
            if not alarm:
                self._tries = self._failures = 0
            if self.state not in (State.ACTIVE, State.FACTORY):
                self._enter(self._rest(), now)

    def _advice(self) -> str:
        return (
            f"{self._failures} tries in a row led to nothing and the frames look drifted ({self._failure}): look at "
            "the lens, the exposure and the scene; `recald recalibrate` tries at once"
        )

    def _collect(self, now: float, facts: Facts) -> Decision | None:
        if self.trigger == "drift" and not facts.alarm:
            self._enter(self._rest(), now, "the drift was over before there were frames enough")
            return None
        seen = now - self._since  # the first frames that come may all show one scene, which is no sample of the world
        self.progress = min(1.0, facts.collected / self._config.frames, _share(seen, self._config.collect))
        self.reason = f"{facts.collected} of {self._config.frames} frames, {seen:.0f} of {self._config.collect:.0f} s"
        if self._may_recall(now, facts):
            self._recalled = now
            return Recall()
        if facts.label_shift and self.trigger != "operator":
            self.reason = LABEL_SHIFT
            return None
        if self.progress < 1.0 or not facts.fitter_free:
            return None
        self._fits.append(now)
        self._enter(State.FITTING, now)
        return Fit(self.trigger)

    def _may_recall(self, now: float, facts: Facts) -> bool:
        due = now - self._recalled >= RECALL_S
        return self._has_past and self.trigger == "drift" and facts.fitter_free and due

    def _weigh(self, now: float, held: str) -> Decision | None:
        """A candidate in the shadow, or one that waits for approval."""
        if self._approval is False:
            return Discard(Result.REFUSED, "refused by the operator")
        if self.state is State.SHADOW:
            self.progress = _share(now - self._since, self._config.shadow)
        if self._against() > IN_DOUBT * max(len(self._looks), LOOKS):
            return Discard(Result.REJECTED, f"no better in {self._against()} of {len(self._looks)} looks at new frames")
        if self.state is State.SHADOW and (self.progress < 1.0 or len(self._looks) < LOOKS):
            return None
        return self._let_serve(now, held)

    def _let_serve(self, now: float, held: str) -> Decision | None:
        if self._config.mode == "shadow":
            return Discard(Result.SHADOWED, "better than what serves, and recalibrate.mode is shadow")
        if self._config.mode == "supervised" and self._approval is None:
            if self.state is not State.AWAITING_APPROVAL:
                self.state, self.progress = State.AWAITING_APPROVAL, 0.0
                self.reason = "`recald approve` lets the candidate serve, `recald reject` drops it"
            return None
        if held:
            self.reason = f"the candidate waits: {held}"
            return None
        return Commit()

    def _watch_over(self, now: float, facts: Facts) -> Decision | None:
        self.progress = _share(now - self._since, self._config.probation)
        worse = len(self._looks) >= REGRESSIONS and all(list(self._looks)[-REGRESSIONS:])
        if worse or facts.slower:  # a hold keeps it in place, and on probation
            return None if facts.held else RollBack("regress") if worse else RollBack("latency", facts.slower)
        if self.progress == 1.0 and len(self._looks) >= LOOKS:
            self._failures = self._tries = 0
            self._not_before = now
            self._enter(self._rest(), now)
        return None

    def _against(self) -> int:
        return self._looks.count(False)

    def _answer(self, approval: bool) -> None:
        if self.state is not State.AWAITING_APPROVAL and (approval or self.state is not State.SHADOW):
            raise Refused(f"no candidate waits for approval: {self.state.value}")
        self._approval = approval

    def _fail(self, reason: str) -> None:
        self._failures, self._failure = self._failures + 1, reason

    def _hold_off(self, now: float) -> None:
        """Nothing by itself for a while, doubled each time until something lasts or the alarm is over."""
        wait = self._config.backoff * 2 ** min(self._tries, MAX_BACKOFF_DOUBLINGS)
        self._not_before = max(self._not_before, now + min(wait, max(self._config.every, self._config.backoff)))
        self._tries += 1

    def _rest(self) -> State:
        return State.ACTIVE if self._serving else State.FACTORY

    def _enter(self, state: State, now: float, reason: str = "") -> None:
        self.state, self.progress, self.reason, self._since = state, 0.0, reason, now
        self._explained = False
        self._looks, self._approval = deque(maxlen=MOST_LOOKS), None


def _share(passed: float, whole: float) -> float:
    """How much of a duration is over, 0 to 1."""
    return min(1.0, passed / whole) if whole else 1.0
