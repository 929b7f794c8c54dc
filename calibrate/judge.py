"""Is a candidate better than what serves now? Decided on frames the fit has not seen, with no labels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from calibrate.scoring.accuracy import AccuracyProxy, Answers
from calibrate.scoring.scorer import Measurement, Scorer

HELD_OUT_EVERY = 4  # every fourth frame judges and is not fitted to

MARGIN = 0.2  # the score must fall by this share: well above its spread between windows of clean frames (0.1)
LESS_SURE = 1.75  # standard errors; 18 of 24 looks at harmful candidates were below it, none of 176 at helpful ones
SURER = 0.05  # nats of the odds, mean over all frames: 0 let 4 times as many bad ones pass, 0.1 lost more good ones
GAIN = "gain"  # the criterion that a step back is spared
CONCENTRATION = 0.1  # the commonest predicted class may take this much more of the frames than before
ERRORS = 2.0  # standard errors by which confidence may lie below the champion's


@dataclass(frozen=True)
class Evidence:
    """What is held for or against one homogenizer on the held-out frames.

    layers: (L,) the score by layer. label_shift: the frames show few classes (calibrate.scoring.label_shift).
    """

    score: float
    proxy: AccuracyProxy | None
    answers: Answers | None = None
    layers: tuple[float, ...] = ()
    label_shift: bool = False

    @classmethod
    def of(cls, seen: Measurement) -> Evidence:
        return cls(seen.drift.score, seen.proxy, seen.answers, seen.drift.layers, seen.label_shift)

    def as_dict(self) -> dict[str, Any]:
        """Fit for JSON: None for what is not finite."""
        plain: dict[str, Any] = finite(
            {"score": self.score, "proxy": self.proxy and asdict(self.proxy), "layers": self.layers}
        )
        return plain


@dataclass(frozen=True)
class Criterion:
    """One thing that is asked of a candidate: that `value` lies on the right side of `limit`.

    against: the champion that sets the limit, or "band". objection: what speaks against the candidate if it is not
    met.
    """

    name: str
    against: str
    value: float
    limit: float
    met: bool
    objection: str

    def as_dict(self) -> dict[str, Any]:
        """Fit for JSON: None for what is not finite."""
        plain: dict[str, Any] = finite(asdict(self))
        return plain


@dataclass(frozen=True)
class Verdict:
    """accepted, or why not; evidence by name: factory, active (where one serves), candidate; all that was asked."""

    accepted: bool
    reason: str
    evidence: dict[str, Evidence]
    criteria: tuple[Criterion, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Fit for JSON: None for what is not finite."""
        return {
            "accepted": self.accepted,
            "reason": self.reason,
            "evidence": {name: evidence.as_dict() for name, evidence in self.evidence.items()},
            "criteria": [criterion.as_dict() for criterion in self.criteria],
        }


def examine(scorer: Scorer, homogenizer: nn.Module | None, frames: Tensor) -> Evidence:
    """Score and proxy of Φ on homogenizer(frames); None is the factory homogenizer."""
    return Evidence.of(scorer.measure(frames, homogenizer))


def champions(scorer: Scorer, active: nn.Module | None, frames: Tensor) -> dict[str, Evidence]:
    """Evidence for what a candidate has to beat: always the factory homogenizer, and the active one if any."""
    evidence = {"factory": examine(scorer, None, frames)}
    if active is not None:
        evidence["active"] = examine(scorer, active, frames)
    return evidence


def needs_no_fit(evidence: Mapping[str, Evidence], band: float) -> bool:
    """The frames look clean as they are served now: there is nothing to repair."""
    return evidence.get("active", evidence["factory"]).score <= band


def needs_no_homogenizer(evidence: Mapping[str, Evidence], band: float) -> bool:
    """The frames look clean without any homogenizer: the camera is back to what it was."""
    return evidence["factory"].score <= band


def judge(
    scorer: Scorer, candidate: nn.Module, frames: Tensor, against: Mapping[str, Evidence], band: float
) -> Verdict:
    """Compare a candidate with every champion on held-out frames (N, C, H, W).

    band: the highest drift score that counts as clean.
    """
    return weigh(examine(scorer, candidate, frames), against, band)


def weigh(candidate: Evidence, against: Mapping[str, Evidence], band: float) -> Verdict:
    """The verdict on a candidate: better than every champion by a margin, and within the clean band."""
    asked = [c for name, champion in against.items() for c in criteria(candidate, champion, name)]
    asked.append(_within_band(candidate, band))
    problems = [criterion.objection for criterion in asked if not criterion.met]
    evidence = dict(against) | {"candidate": candidate}
    return Verdict(not problems, "; ".join(problems) or "better than every champion", evidence, tuple(asked))


def objections(candidate: Evidence, champion: Evidence, name: str, *, back: bool = False) -> Iterator[str]:
    """What speaks against calling the candidate better than the champion of this name.

    back: it served before, and nothing has to be gained by a step back.
    """
    for criterion in criteria(candidate, champion, name):
        if not criterion.met and not (back and criterion.name == GAIN):
            yield criterion.objection


def criteria(candidate: Evidence, champion: Evidence, name: str) -> Iterator[Criterion]:
    """What is asked of a candidate beside the champion of this name; of the proxies where both have any."""
    yield _lower_score(candidate, champion, name)
    if candidate.proxy and champion.proxy:
        yield _as_confident(candidate.proxy, champion.proxy, name)
        yield _as_spread(candidate.proxy, champion.proxy, name)
    if candidate.answers and champion.answers:
        yield _as_sure(candidate.answers, champion.answers, name)
        yield _surer(candidate.answers, champion.answers, name)


def finite(value: Any) -> Any:
    """The same, of dicts, lists and plain values, with None for every number that is not finite: JSON has no other."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _within_band(candidate: Evidence, band: float) -> Criterion:
    said = f"score {candidate.score:.2f} stays outside the clean band of {band:.2f}"
    return Criterion("band", "band", candidate.score, band, candidate.score <= band, said)


def _lower_score(candidate: Evidence, champion: Evidence, name: str) -> Criterion:
    limit = (1 - MARGIN) * champion.score
    said = f"score {candidate.score:.2f} is no better than {name}'s {champion.score:.2f}"
    met = not candidate.score > limit  # a candidate's NaN is outside any band
    return Criterion("score", name, candidate.score, limit, met, said)


def _as_confident(candidate: AccuracyProxy, champion: AccuracyProxy, name: str) -> Criterion:
    limit = champion.confidence - ERRORS * (candidate.confidence_error + champion.confidence_error)
    said = f"confidence {candidate.confidence:.2f} is below {name}'s {champion.confidence:.2f}"
    return Criterion("confidence", name, candidate.confidence, limit, not candidate.confidence < limit, said)


def _as_spread(candidate: AccuracyProxy, champion: AccuracyProxy, name: str) -> Criterion:
    limit = champion.top_share + CONCENTRATION
    said = f"one class takes {candidate.top_share:.0%} of the predictions, {name}: {champion.top_share:.0%}"
    return Criterion("concentration", name, candidate.top_share, limit, not candidate.top_share > limit, said)


def _as_sure(candidate: Answers, champion: Answers, name: str) -> Criterion:
    errors = candidate.surer_than(champion)
    said = f"it is {-errors:.1f} standard errors less sure than {name} of the frames that both name alike"
    met = errors >= -LESS_SURE  # not where the candidate's outputs are not finite
    return Criterion("sureness", name, errors, -LESS_SURE, met, said)


def _surer(candidate: Answers, champion: Answers, name: str) -> Criterion:
    """Statistics alone can be met in a wrong place: where nothing is read more easily, nothing was repaired."""
    gain = candidate.gain_over(champion)
    said = f"it is no surer than {name} of the frames ({gain:+.2f} nats)"
    return Criterion(GAIN, name, gain, SURER, gain >= SURER, said)
