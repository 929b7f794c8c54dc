"""Is a candidate better than what serves now? Decided on frames the fit has not seen, with no labels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from calibrate.proxy import AccuracyProxy, Answers
from calibrate.yardstick import Measured, Yardstick

MARGIN = 0.2  # the score must fall by this share: well above its spread between windows of clean frames (0.1)
LESS_SURE = 1.75  # standard errors; 18 of 24 looks at harmful candidates were below it, none of 176 at helpful ones
SURER = 0.05  # nats of the odds, mean over all frames: 0 let 4 times as many bad ones pass, 0.1 lost more good ones
CONCENTRATION = 0.1  # the commonest predicted class may take this much more of the frames than before
ERRORS = 2.0  # standard errors by which confidence may lie below the incumbent's


@dataclass(frozen=True)
class Evidence:
    """What is held for or against one homogenizer on the held-out frames."""

    score: float
    proxy: AccuracyProxy | None
    answers: Answers | None = None

    @classmethod
    def of(cls, seen: Measured) -> Evidence:
        return cls(seen.drift.score, seen.proxy, seen.answers)


@dataclass(frozen=True)
class Verdict:
    """accepted, or why not; evidence by name: factory, active (where one serves), candidate."""

    accepted: bool
    reason: str
    evidence: dict[str, Evidence]

    def as_dict(self) -> dict[str, Any]:
        """Fit for JSON: None for what is not finite."""
        evidence = {
            name: _plain({"score": e.score, "proxy": e.proxy and asdict(e.proxy)}) for name, e in self.evidence.items()
        }
        return {"accepted": self.accepted, "reason": self.reason, "evidence": evidence}


def examine(yardstick: Yardstick, homogenizer: nn.Module | None, frames: Tensor) -> Evidence:
    """Score and proxy of Φ on homogenizer(frames); None is the factory homogenizer."""
    return Evidence.of(yardstick.measure(frames, homogenizer))


def incumbents(yardstick: Yardstick, active: nn.Module | None, frames: Tensor) -> dict[str, Evidence]:
    """Evidence for what a candidate has to beat: always the factory homogenizer, and the active one if any."""
    evidence = {"factory": examine(yardstick, None, frames)}
    if active is not None:
        evidence["active"] = examine(yardstick, active, frames)
    return evidence


def needs_no_fit(evidence: Mapping[str, Evidence], band: float) -> bool:
    """The frames look clean as they are served now: there is nothing to repair."""
    return evidence.get("active", evidence["factory"]).score <= band


def needs_no_homogenizer(evidence: Mapping[str, Evidence], band: float) -> bool:
    """The frames look clean without any homogenizer: the camera is back to what it was."""
    return evidence["factory"].score <= band


def judge(
    yardstick: Yardstick, candidate: nn.Module, frames: Tensor, against: Mapping[str, Evidence], band: float
) -> Verdict:
    """Compare a candidate with every incumbent on held-out frames (N, C, H, W).

    band: the highest drift score that counts as clean.
    """
    return weigh(examine(yardstick, candidate, frames), against, band)


def weigh(candidate: Evidence, against: Mapping[str, Evidence], band: float) -> Verdict:
    """The verdict on a candidate: better than every incumbent by a margin, and within the clean band."""
    problems = [p for name, incumbent in against.items() for p in objections(candidate, incumbent, name)]
    if not candidate.score <= band:
        problems.append(f"score {candidate.score:.2f} stays outside the clean band of {band:.2f}")
    evidence = dict(against) | {"candidate": candidate}
    return Verdict(not problems, "; ".join(problems) or "better than every incumbent", evidence)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def objections(candidate: Evidence, incumbent: Evidence, name: str) -> Iterator[str]:
    """What speaks against calling the candidate better than the incumbent of this name."""
    if candidate.score > (1 - MARGIN) * incumbent.score:  # a candidate's NaN is outside any band
        yield f"score {candidate.score:.2f} is no better than {name}'s {incumbent.score:.2f}"
    if candidate.proxy and incumbent.proxy:
        yield from _less_confident(candidate.proxy, incumbent.proxy, name)
    if candidate.answers and incumbent.answers:
        yield from _less_sure(candidate.answers, incumbent.answers, name)
        yield from _no_surer(candidate.answers, incumbent.answers, name)


def _less_confident(candidate: AccuracyProxy, incumbent: AccuracyProxy, name: str) -> Iterator[str]:
    if candidate.confidence < incumbent.confidence - ERRORS * (candidate.confidence_error + incumbent.confidence_error):
        yield f"confidence {candidate.confidence:.2f} is below {name}'s {incumbent.confidence:.2f}"
    if candidate.top_share > incumbent.top_share + CONCENTRATION:
        yield f"one class takes {candidate.top_share:.0%} of the predictions, {name}: {incumbent.top_share:.0%}"


def _less_sure(candidate: Answers, incumbent: Answers, name: str) -> Iterator[str]:
    errors = candidate.surer_than(incumbent)
    if not errors >= -LESS_SURE:  # also where the candidate's outputs are not finite
        yield f"it is {-errors:.1f} standard errors less sure than {name} of the frames that both name alike"


def _no_surer(candidate: Answers, incumbent: Answers, name: str) -> Iterator[str]:
    """Statistics alone can be met in a wrong place: where nothing is read more easily, nothing was repaired."""
    gain = candidate.gain_over(incumbent)
    if not gain >= SURER:
        yield f"it is no surer than {name} of the frames ({gain:+.2f} nats)"
