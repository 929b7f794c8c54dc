"""When to collect, to fit and to wait, for one sensor: plain values and the time in, decisions out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from daemon.config import RecalibrateConfig

MAX_BACKOFF_DOUBLINGS = 6


class State(str, Enum):
    """Values of recald_calibration_state."""

    FACTORY = "factory"  # at rest, the identity serves
    COLLECTING = "collecting"
    FITTING = "fitting"
    JUDGING = "judging"
    COMPILING = "compiling"
    ACTIVE = "active"  # at rest, a fitted homogenizer serves
    FAILED = "failed"  # at rest after a fit that broke, until the back-off is over


AT_REST = (State.FACTORY, State.ACTIVE, State.FAILED)
IN_WORK = (State.FITTING, State.JUDGING, State.COMPILING)


@dataclass(frozen=True)
class Collect:
    """Begin to collect; `afresh`: the frames held so far show another camera."""

    afresh: bool


@dataclass(frozen=True)
class Fit:
    """Enough is collected: fit now."""

    trigger: str  # "drift", "timer" or "operator"


Decision = Collect | Fit


class Recalibrator:
    """The state machine of one sensor. Every method takes or gives plain values; nothing is done in here."""

    def __init__(self, config: RecalibrateConfig, now: float, serving: bool = False):
        self._config = config
        self.state = State.ACTIVE if serving else State.FACTORY
        self.progress = 0.0
        self.trigger = ""
        self._serving = serving
        self._next_timer = now + config.every
        self._not_before = now
        self._failures = 0
        self._requested = False

    def request(self) -> None:
        """The operator wants a fit; back-off does not hold it up."""
        self._requested = True

    def step(self, now: float, *, alarm: bool, collected: int, fitter_free: bool) -> Decision | None:
        """What to do now, if anything. `collected`: frames held since collecting began."""
        if self.state in AT_REST:
            return self._begin(now, alarm)
        if self.state is State.COLLECTING:
            self.progress = min(1.0, collected / self._config.frames)
            if self.progress == 1.0 and fitter_free:
                self._enter(State.FITTING)
                return Fit(self.trigger)
        return None

    def progressed(self, stage: State, ratio: float) -> None:
        """The worker reports where it is."""
        if self.state in IN_WORK and stage in IN_WORK:
            self.state, self.progress = stage, ratio

    def finished(self, result: str, now: float) -> None:
        """A fit ended: accepted (its homogenizer serves now), factory (none serves any more), rejected, unneeded,
        failed or timeout."""
        self._next_timer = now + self._config.every
        if result in ("accepted", "factory", "unneeded"):
            self._failures = 0
            self._not_before = now
        else:
            self._not_before = now + self._backoff()
            self._failures += 1
        self._serving = {"accepted": True, "factory": False}.get(result, self._serving)
        self._enter(State.FAILED if result in ("failed", "timeout") else self._rest())

    def rolled_back(self, serving: bool, now: float) -> None:
        """The homogenizer was taken back; whether a fitted one still serves."""
        self._serving = serving
        self._not_before = max(self._not_before, now + self._config.backoff)
        if self.state in AT_REST:
            self._enter(self._rest())

    def _begin(self, now: float, alarm: bool) -> Decision | None:
        waiting = now < self._not_before
        if self._requested:
            self.trigger = "operator"
        elif alarm and not waiting:
            self.trigger = "drift"
        elif now >= self._next_timer and not waiting:
            self.trigger = "timer"
        else:
            if self.state is State.FAILED and not waiting:
                self._enter(self._rest())
            return None
        self._requested = False
        self._enter(State.COLLECTING)
        return Collect(afresh=alarm)

    def _backoff(self) -> float:
        return min(
            self._config.backoff * 2 ** min(self._failures, MAX_BACKOFF_DOUBLINGS),
            max(self._config.every, self._config.backoff),
        )

    def _rest(self) -> State:
        return State.ACTIVE if self._serving else State.FACTORY

    def _enter(self, state: State) -> None:
        self.state, self.progress = state, 0.0
