"""What a candidate has to pass in the daemon: the judge on held-out frames, then looks at new frames in the shadow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bench.judge.scenes import LOOK_FRAMES
from calibrate.judge import Evidence, needs_no_fit, needs_no_homogenizer, objections, weigh
from daemon.config import DriftConfig, RecalibrateConfig
from daemon.recalibration.state_machine import Commit, Discard, Facts, StateMachine

BAND = DriftConfig().threshold  # the drift score up to which frames count as clean
FRAME_RATE = 30  # a second, at which the frames of a look come

Examine = Callable[[str, int], Evidence]  # of a homogenizer by its name, on one part of a window
FACTORY = "factory"


@dataclass(frozen=True)
class Passage:
    """judged: unneeded, factory, accepted or rejected, as the daemon's worker says. served: whether it came to that."""

    judged: str
    reason: str
    served: bool


def doorstep(examine: Examine, active: str | None) -> str | None:
    """What the worker answers before it fits, if anything."""
    against = _against(examine, active, 0)
    if needs_no_fit(against, BAND):
        return "unneeded"
    return "factory" if needs_no_homogenizer(against, BAND) else None


def passage(examine: Examine, candidate: str, active: str | None) -> Passage:
    """How far a candidate gets beside an active homogenizer, or None."""
    answered = doorstep(examine, active)
    if answered is not None:
        return Passage(answered, "", False)
    verdict = weigh(examine(candidate, 0), _against(examine, active, 0), BAND)
    if not verdict.accepted:
        return Passage("rejected", verdict.reason, False)
    heard: list[str] = []

    def look(part: int) -> bool:
        seen = examine(candidate, part)
        said = [s for name, one in _against(examine, active, part).items() for s in objections(seen, one, name)]
        heard.extend(said)
        return not said

    served = shadow(look)
    return Passage("accepted", "; ".join(heard), served)


def shadow(look: Callable[[int], bool]) -> bool:
    """Let the daemon's own state machine watch a judged candidate; whether it serves. look: at part 1, 2, ..."""
    config = RecalibrateConfig(collect=0.0)
    state_machine = StateMachine(config, now=0.0)
    state_machine.request()
    for _ in ("collect", "fit"):
        state_machine.step(0.0, Facts(collected=config.frames))
    state_machine.candidate_ready(0.0)
    part, decision = 0, None
    while not isinstance(decision, Commit | Discard):
        part += 1
        state_machine.compared(look(part))
        decision = state_machine.step(part * LOOK_FRAMES / FRAME_RATE, Facts())
    return isinstance(decision, Commit)


def _against(examine: Examine, active: str | None, part: int) -> Mapping[str, Evidence]:
    against = {"factory": examine(FACTORY, part)}
    return against if active is None else against | {"active": examine(active, part)}
