"""The daemon's decisions about a candidate: the judge on held-out frames, then the shadow on new frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bench.judge.cameras import SHADOW_FRAMES
from calibrate.judge import Evidence, judge_evidence, needs_no_fit, needs_no_homogenizer, objections_to
from daemon.config import DriftConfig, RecalibrateConfig
from daemon.recalibration.decisions import Commit, Discard, Facts
from daemon.recalibration.state_machine import StateMachine

BAND = DriftConfig().threshold  # drift score up to which frames count as clean
FRAME_RATE = 30  # frames a second in the shadow

Examine = Callable[[str, int], Evidence]  # the evidence for a homogenizer, by its name, on a part of a window
FACTORY = "factory"


@dataclass(frozen=True)
class Decision:
    """The daemon's decision about one candidate.

    judged: unneeded, factory, accepted or rejected, the worker's words. served: it passed the shadow, too.
    """

    judged: str
    reason: str
    served: bool


def answer_without_fit(examine: Examine, active: str | None) -> str | None:
    """Return the worker's answer where it fits nothing, unneeded or factory; None where it fits."""
    against = _champions(examine, active, 0)
    if needs_no_fit(against, BAND):
        return "unneeded"
    return "factory" if needs_no_homogenizer(against, BAND) else None


def decide(examine: Examine, candidate: str, active: str | None) -> Decision:
    """Decide about a candidate while `active`, or the factory homogenizer, serves.

    Part 0 of a window is for the judge, parts 1, 2 and so on for the shadow.
    """
    answer = answer_without_fit(examine, active)
    if answer is not None:
        return Decision(answer, "", False)
    verdict = judge_evidence(examine(candidate, 0), _champions(examine, active, 0), BAND)
    if not verdict.accepted:
        return Decision("rejected", verdict.reason, False)
    reasons: list[str] = []

    def is_better(part: int) -> bool:
        evidence = examine(candidate, part)
        found: list[str] = []
        for name, champion in _champions(examine, active, part).items():
            found += objections_to(evidence, champion, name)
        reasons.extend(found)
        return not found

    served = passes_shadow(is_better)
    return Decision("accepted", "; ".join(reasons), served)


def passes_shadow(is_better: Callable[[int], bool]) -> bool:
    """Tell whether the daemon's own state machine lets a judged candidate serve.

    is_better: compares the candidate on part 1, 2 and so on with what serves.
    """
    config = RecalibrateConfig(collect=0.0)
    state_machine = StateMachine(config, now=0.0)
    state_machine.request()
    for _ in ("collect", "fit"):
        state_machine.step(0.0, Facts(collected=config.frames))
    state_machine.candidate_ready(0.0)
    part, decision = 0, None
    while not isinstance(decision, Commit | Discard):
        part += 1
        state_machine.compared(is_better(part))
        decision = state_machine.step(part * SHADOW_FRAMES / FRAME_RATE, Facts())
    return isinstance(decision, Commit)


def _champions(examine: Examine, active: str | None, part: int) -> Mapping[str, Evidence]:
    champions = {"factory": examine(FACTORY, part)}
    return champions if active is None else champions | {"active": examine(active, part)}
