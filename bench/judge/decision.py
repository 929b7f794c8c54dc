"""The daemon's decisions about a candidate: the judge on held-out frames, then the shadow on new frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from bench.judge.cameras import LOOK_FRAMES, LOOKS
from calibrate.judge import (
    FIT_BAND_RATIO,
    MIN_LOOK_DROP_SHARE,
    Evidence,
    Verdict,
    judge_evidence,
    needs_no_fit,
    needs_no_homogenizer,
    objection_to,
)
from daemon.config import DriftConfig, RecalibrateConfig
from daemon.recalibration.decisions import Commit, Discard, Facts
from daemon.recalibration.state_machine import StateMachine

BAND = DriftConfig().threshold  # drift score up to which frames count as clean
FRAME_RATE = 30  # frames a second in the shadow

Examine = Callable[[str, int], Evidence]  # the evidence for a homogenizer, by its name, on a part of a window
Answers = Callable[[str], Tensor]  # what the network says of all frames of a fit behind a homogenizer
FACTORY = "factory"


@dataclass(frozen=True)
class Decision:
    """The daemon's decision about one candidate.

    judged: accepted or rejected, or why nothing was fitted. served: it passed the shadow, too.
    """

    judged: str
    reason: str
    served: bool


def answer_without_fit(examine: Examine, active: str | None) -> str | None:
    """Return why the daemon fits nothing: unneeded, factory or few classes; None where it fits."""
    against = _champions(examine, active, 0)
    if against.get("active", against["factory"]).label_shift:
        return "few classes"
    if needs_no_fit(against, BAND):
        return "unneeded"
    return "factory" if needs_no_homogenizer(against, BAND) else None


def decide(examine: Examine, answers: Answers, candidate: str, replicate: str, active: str | None) -> Decision:
    """Decide about a candidate while `active`, or the factory homogenizer, serves.

    Part 0 of a window is for the judge, parts 1, 2 and so on for the shadow.
    """
    answer = answer_without_fit(examine, active)
    if answer is not None:
        return Decision(answer, "", False)
    verdict = _judge(examine, answers, candidate, replicate, active)
    if not verdict.accepted:
        return Decision("rejected", verdict.reason, False)
    reasons: list[str] = []

    def is_better(part: int) -> bool | None:
        evidence = examine(candidate, part)
        champions = _champions(examine, active, part)
        found = [objection_to(evidence, c, name, MIN_LOOK_DROP_SHARE) for name, c in champions.items()]
        reasons.extend(filter(None, found))
        return None if any(found) and evidence.label_shift else not any(found)

    served = passes_shadow(is_better)
    return Decision("accepted", "; ".join(reasons), served)


def _judge(examine: Examine, answers: Answers, candidate: str, replicate: str, active: str | None) -> Verdict:
    """Judge as the daemon's worker does: by the drift score, and a candidate that passes by a second fit, too."""
    champions = _champions(examine, active, 0)
    by_score = judge_evidence(examine(candidate, 0), champions, FIT_BAND_RATIO * BAND)
    if not by_score.accepted:
        return by_score

    def with_all_answers(name: str) -> Evidence:
        return replace(examine(name, 0), answers=answers(name))

    names = {"factory": FACTORY} if active is None else {"factory": FACTORY, "active": active}
    champions = {role: with_all_answers(name) for role, name in names.items()}
    return judge_evidence(with_all_answers(candidate), champions, FIT_BAND_RATIO * BAND, with_all_answers(replicate))


def passes_shadow(is_better: Callable[[int], bool | None]) -> bool:
    """Tell whether the daemon's own state machine lets a judged candidate serve.

    is_better: compares the candidate on part 1, 2 and so on with what serves; None abstains. Where looks abstain, the
    same parts are looked at once more at most: then the candidate has waited in vain.
    """
    config = RecalibrateConfig(collect=0.0)
    state_machine = StateMachine(config, now=0.0)
    state_machine.request()
    for _ in ("collect", "fit"):
        state_machine.step(0.0, Facts(collected=config.frames))
    state_machine.candidate_ready(0.0)
    for look in range(2 * LOOKS):
        better = is_better(1 + look % LOOKS)
        if better is None:
            continue
        state_machine.compared(better)
        decision = state_machine.step((look + 1) * LOOK_FRAMES / FRAME_RATE, Facts())
        if isinstance(decision, Commit | Discard):
            return isinstance(decision, Commit)
    return False


def _champions(examine: Examine, active: str | None, part: int) -> Mapping[str, Evidence]:
    champions = {"factory": examine(FACTORY, part)}
    return champions if active is None else champions | {"active": examine(active, part)}
