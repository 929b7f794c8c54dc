"""Decide without labels whether a candidate is better than what serves now, on frames that the fit has not seen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from calibrate.scoring.accuracy import AccuracyProxy, Predictions
from calibrate.scoring.scorer import Measurement, Scorer

HELD_OUT_EVERY = 4  # 1 frame in so many of a fit is not fitted to: the judge gets it
HELD_OUT_BLOCKS = 4  # in time: neighbours in a video show nearly the same, so single frames would not be new to the fit

MIN_SCORE_DROP_SHARE = 0.2  # of the champion's score; the spread between windows of clean frames is 0.1
MAX_CONFIDENCE_DROP_ERRORS = 2.0  # in sums of the standard errors of both confidences
MAX_TOP_SHARE_RISE = 0.1  # rise of the share of frames in the most frequent predicted class
# Fall of the log odds on frames with the same label, in standard errors. 18 of 24 measurements of harmful candidates
# fell by more, and none of 176 of helpful ones.
MAX_LOG_ODDS_DROP_ERRORS = 1.75
# Mean rise of log odds over all frames. 0 accepted 4 times as many bad candidates, 0.1 rejected more good ones.
MIN_LOG_ODDS_GAIN_NATS = 0.05
SCORE_ALONE = ", by the drift score alone: the network is no classifier"  # added to the reason of a verdict
GAIN_CRITERION = "gain"  # name of the criterion that a homogenizer which served before need not meet


@dataclass(frozen=True)
class Evidence:
    """What was measured of one homogenizer on the held-out frames.

    score: drift score. layers: L drift scores, one for each layer.
    proxy, predictions: None if the network is no classifier.
    label_shift: the frames show few classes (calibrate.scoring.label_shift).
    """

    score: float
    proxy: AccuracyProxy | None
    predictions: Predictions | None = None
    layers: tuple[float, ...] = ()
    label_shift: bool = False

    @classmethod
    def of(cls, measured: Measurement) -> Evidence:
        """Take the evidence from a measurement."""
        drift = measured.drift
        return cls(drift.score, measured.proxy, measured.predictions, drift.layers, measured.label_shift)

    def as_dict(self) -> dict[str, Any]:
        """Return score, proxy and layers for JSON, with None for numbers that are not finite."""
        plain: dict[str, Any] = json_values(
            {"score": self.score, "proxy": self.proxy and asdict(self.proxy), "layers": self.layers}
        )
        return plain


@dataclass(frozen=True)
class Criterion:
    """One requirement on a candidate: `value` must be on the right side of `limit`.

    name: score, confidence, concentration, sureness, gain or band.
    against: name of the champion that sets the limit, or "band".
    objection: why the candidate is refused if the criterion is not met.
    """

    name: str
    against: str
    value: float
    limit: float
    met: bool
    objection: str

    def as_dict(self) -> dict[str, Any]:
        """Return all fields for JSON, with None for numbers that are not finite."""
        plain: dict[str, Any] = json_values(asdict(self))
        return plain


@dataclass(frozen=True)
class Verdict:
    """The decision on a candidate.

    reason: the objections, or why it was accepted. evidence: by name: factory, candidate, and active if one serves.
    criteria: all requirements, met or not.
    """

    accepted: bool
    reason: str
    evidence: dict[str, Evidence]
    criteria: tuple[Criterion, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return all fields for JSON, with None for numbers that are not finite."""
        return {
            "accepted": self.accepted,
            "reason": self.reason,
            "evidence": {name: evidence.as_dict() for name, evidence in self.evidence.items()},
            "criteria": [criterion.as_dict() for criterion in self.criteria],
        }


def held_out_blocks(count: int) -> Tensor:
    """Return which frames of a fit the judge gets, (count,) bool: ceil(count / HELD_OUT_EVERY), in blocks.

    The frames are in the order of time. A block lies in the middle of each of HELD_OUT_BLOCKS equal periods.
    """
    held = torch.zeros(count, dtype=torch.bool)
    total = math.ceil(count / HELD_OUT_EVERY)
    for block in range(HELD_OUT_BLOCKS):
        size = total // HELD_OUT_BLOCKS + (block < total % HELD_OUT_BLOCKS)
        start = round((block + 0.5) * count / HELD_OUT_BLOCKS - size / 2)
        held[start : start + size] = True
    return held


def collect_evidence(scorer: Scorer, homogenizer: nn.Module | None, frames: Tensor) -> Evidence:
    """Measure one homogenizer on frames (N, C, H, W) in normalised input units; None is the factory homogenizer.

    Raises ValueError for too few frames to score.
    """
    return Evidence.of(scorer.measure(frames, homogenizer))


def collect_champions(scorer: Scorer, active: nn.Module | None, frames: Tensor) -> dict[str, Evidence]:
    """Measure what a candidate must beat: the factory homogenizer, and the active one if there is one.

    Arguments and errors are those of `collect_evidence`.
    """
    champions = {"factory": collect_evidence(scorer, None, frames)}
    if active is not None:
        champions["active"] = collect_evidence(scorer, active, frames)
    return champions


def needs_no_fit(champions: Mapping[str, Evidence], band: float) -> bool:
    """Return whether the frames as served now are clean: there is nothing to repair. band: highest clean score."""
    return champions.get("active", champions["factory"]).score <= band


def needs_no_homogenizer(champions: Mapping[str, Evidence], band: float) -> bool:
    """Return whether the frames are clean without a homogenizer: the drift is over. band: highest clean score."""
    return champions["factory"].score <= band


def judge(
    scorer: Scorer, candidate: nn.Module, frames: Tensor, champions: Mapping[str, Evidence], band: float
) -> Verdict:
    """Compare a candidate with every champion on held-out frames (N, C, H, W) in normalised input units.

    band: the highest drift score that counts as clean.
    Raises ValueError for too few frames to score.
    """
    return judge_evidence(collect_evidence(scorer, candidate, frames), champions, band)


def judge_evidence(candidate: Evidence, champions: Mapping[str, Evidence], band: float) -> Verdict:
    """Accept a candidate that meets every criterion beside every champion and whose score is within the clean band."""
    criteria = [c for name, champion in champions.items() for c in compare(candidate, champion, name)]
    criteria.append(_band_criterion(candidate, band))
    objections = [criterion.objection for criterion in criteria if not criterion.met]
    evidence = dict(champions) | {"candidate": candidate}
    better = "better than every champion" + ("" if candidate.proxy else SCORE_ALONE)
    return Verdict(not objections, "; ".join(objections) or better, evidence, tuple(criteria))


def objections_to(candidate: Evidence, champion: Evidence, name: str, *, gain_required: bool = True) -> Iterator[str]:
    """Yield the objection of each criterion that the candidate does not meet beside the champion of this name.

    gain_required: False for a homogenizer that served before: a step back to it need not improve the log odds.
    """
    for criterion in compare(candidate, champion, name):
        if not criterion.met and (gain_required or criterion.name != GAIN_CRITERION):
            yield criterion.objection


def compare(candidate: Evidence, champion: Evidence, name: str) -> Iterator[Criterion]:
    """Yield all criteria of a candidate beside the champion of this name.

    Those on proxies and on predictions need them from both.
    """
    yield _score_criterion(candidate, champion, name)
    if candidate.proxy and champion.proxy:
        yield _confidence_criterion(candidate.proxy, champion.proxy, name)
        yield _concentration_criterion(candidate.proxy, champion.proxy, name)
    if candidate.predictions and champion.predictions:
        yield _sureness_criterion(candidate.predictions, champion.predictions, name)
        yield _gain_criterion(candidate.predictions, champion.predictions, name)


def _band_criterion(candidate: Evidence, band: float) -> Criterion:
    objection = f"score {candidate.score:.2f} stays outside the clean band of {band:.2f}"
    return Criterion("band", "band", candidate.score, band, candidate.score <= band, objection)


def _score_criterion(candidate: Evidence, champion: Evidence, name: str) -> Criterion:
    limit = (1 - MIN_SCORE_DROP_SHARE) * champion.score
    objection = f"score {candidate.score:.2f} is no better than {name}'s {champion.score:.2f}"
    met = not candidate.score > limit  # a NaN meets it here and fails the band
    return Criterion("score", name, candidate.score, limit, met, objection)


def _confidence_criterion(candidate: AccuracyProxy, champion: AccuracyProxy, name: str) -> Criterion:
    errors = candidate.confidence_error + champion.confidence_error
    limit = champion.confidence - MAX_CONFIDENCE_DROP_ERRORS * errors
    objection = f"confidence {candidate.confidence:.2f} is below {name}'s {champion.confidence:.2f}"
    return Criterion("confidence", name, candidate.confidence, limit, not candidate.confidence < limit, objection)


def _concentration_criterion(candidate: AccuracyProxy, champion: AccuracyProxy, name: str) -> Criterion:
    limit = champion.top_share + MAX_TOP_SHARE_RISE
    objection = f"one class takes {candidate.top_share:.0%} of the predictions, with {name} {champion.top_share:.0%}"
    return Criterion("concentration", name, candidate.top_share, limit, not candidate.top_share > limit, objection)


def _sureness_criterion(candidate: Predictions, champion: Predictions, name: str) -> Criterion:
    errors = candidate.standardised_gain_over(champion)
    objection = f"it is {-errors:.1f} standard errors less sure than {name} on frames that both give the same label"
    met = errors >= -MAX_LOG_ODDS_DROP_ERRORS  # a NaN, from outputs that are not finite, does not meet it
    return Criterion("sureness", name, errors, -MAX_LOG_ODDS_DROP_ERRORS, met, objection)


def _gain_criterion(candidate: Predictions, champion: Predictions, name: str) -> Criterion:
    """A fit can match the statistics with wrong colours. If log odds do not rise, it repaired nothing."""
    gain = candidate.mean_gain_over(champion)
    objection = f"it is no surer than {name} on these frames ({gain:+.2f} nats)"
    return Criterion(GAIN_CRITERION, name, gain, MIN_LOG_ODDS_GAIN_NATS, gain >= MIN_LOG_ODDS_GAIN_NATS, objection)


def json_values(value: Any) -> Any:
    """Copy dicts, lists, tuples and plain values, with None for every number that is not finite: JSON has none."""
    if isinstance(value, dict):
        return {name: json_values(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [json_values(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
