"""Decide without labels whether a candidate is better than what serves now, on frames that the fit has not seen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from calibrate.scoring.accuracy import AccuracyProxy
from calibrate.scoring.agreement import agreement, standard_errors_nearer
from calibrate.scoring.scorer import Measurement, Scorer

# The frames of a fit, in the order of time, are so many periods, and each period is divided into equal blocks.
# F: fitted to; R: for the second fit, the replicate; H: held out for the judge. Neighbours in a video show nearly the
# same, so single frames would not be new to the fit.
PERIODS = 4
BLOCKS_OF_PERIOD = "FRFH"

MIN_SCORE_DROP_SHARE = 0.2  # of the champion's score; the spread between windows of clean frames is 0.1
# The same on a few new frames, for a candidate that was judged: their content hides a mild drift.
MIN_LOOK_DROP_SHARE = 0.05
# Agreement of a candidate with its replicate. Behind 25 cameras of four networks, kappa of fits that helped was 0.70 to
# 1.00 with all classes in view, and 0 to 0.95 with one or three; of fits that harmed it was 0.62 at most. Concordance
# on a U-Net: 0.96 to 1.00 for fits that helped or changed nothing behind seven drifts, 0.64 for one that harmed.
MIN_KAPPA, MIN_CONCORDANCE = 0.65, 0.9
# Standard errors by which a candidate must be nearer to its replicate than a champion is, over all 512 frames. Eight
# needless fits to clean cameras with a label shift had -2.3 to 1.9 (one more, in an hour of a simulated camera, had
# over 3); 19 fits that helped outside of the clean band had 3.1 to 20 with all classes in view. Frames of a video
# resemble each other, so that there are fewer of them than are counted.
MIN_NEARER_ERRORS = 2.5
# Of the clean band, up to which a candidate may score that a second fit has to repeat. Behind 20 cameras of four
# networks that lets 63 of 153 broken fits that help all the same pass instead of 51, and 5 of 144 that harm instead of
# 4; no proper fit that harmed was repeated.
FIT_BAND_RATIO = 1.25
# Share of the answers by which the frames of a split homogenizer's branches may differ. Two cameras in front of
# the same scene had 0.02 to 0.09 on CIFAR-10, digits and X-rays; two halves of the classes behind one camera 0.63 and
# more. By chance 256 frames each of 43 classes have 0.2.
MAX_VIEW_DIFFERENCE = 0.4
UNREPEATED = ", by the drift score alone: no second fit was there to compare with"  # added to the reason of a verdict


@dataclass(frozen=True)
class Evidence:
    """What was measured of one homogenizer on the held-out frames.

    score: drift score. layers: L drift scores, one for each layer.
    proxy: None if the network is no classifier.
    answers: of the network, by frame; None where nobody compares them. Beside a second fit, those for all frames.
    label_shift: the frames show few classes (calibrate.scoring.label_shift).
    """

    score: float
    proxy: AccuracyProxy | None
    answers: Tensor | None = None
    layers: tuple[float, ...] = ()
    label_shift: bool = False

    @classmethod
    def of(cls, measured: Measurement) -> Evidence:
        """Take the evidence from a measurement."""
        drift = measured.drift
        return cls(drift.score, measured.proxy, measured.answers, drift.layers, measured.label_shift)

    @property
    def middle(self) -> float:
        """Drift score of the median layer; NaN if that of any layer is."""
        return math.nan if any(map(math.isnan, self.layers)) else median(self.layers)

    def as_dict(self) -> dict[str, Any]:
        """Return score, proxy and layers for JSON, with None for numbers that are not finite."""
        plain: dict[str, Any] = json_values(
            {"score": self.score, "proxy": self.proxy and asdict(self.proxy), "layers": self.layers}
        )
        return plain


@dataclass(frozen=True)
class Criterion:
    """One requirement on a candidate: `value` must be on the right side of `limit`.

    name: score, band, repeatability or agreement.
    against: name of the champion that sets the limit, "band" or "replicate".
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

    reason: the objections, or why it was accepted. evidence: by name: factory, candidate, active if one serves, and
    replicate if a second fit was compared with.
    criteria: all requirements, met or not.
    """

    accepted: bool
    reason: str
    evidence: dict[str, Evidence]
    criteria: tuple[Criterion, ...] = ()

    @property
    def finds_nothing_to_repair(self) -> bool:
        """Whether the only objection is that a second fit agrees with what serves now as much as with the candidate."""
        unmet = [criterion for criterion in self.criteria if not criterion.met]
        serving = "active" if "active" in self.evidence else "factory"
        return {criterion.name for criterion in unmet} == {"agreement"} and serving in (c.against for c in unmet)

    def as_dict(self) -> dict[str, Any]:
        """Return all fields for JSON, with None for numbers that are not finite."""
        return {
            "accepted": self.accepted,
            "reason": self.reason,
            "evidence": {name: evidence.as_dict() for name, evidence in self.evidence.items()},
            "criteria": [criterion.as_dict() for criterion in self.criteria],
        }


class FrameParts(NamedTuple):
    """Which frames of a fit serve what, (count,) bool each."""

    fitted: Tensor
    replicated: Tensor
    held_out: Tensor


def split_frames(count: int) -> FrameParts:
    """Divide the frames of a fit, which are in the order of time, into blocks of equal length."""
    blocks = BLOCKS_OF_PERIOD * PERIODS
    block_of_frame = torch.arange(count) * len(blocks) // count
    return FrameParts(*(torch.tensor([letter == part for letter in blocks])[block_of_frame] for part in "FRH"))


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


def judge_evidence(
    candidate: Evidence,
    champions: Mapping[str, Evidence],
    band: float,
    replicate: Evidence | None = None,
    in_second: Tensor | None = None,
) -> Verdict:
    """Accept a candidate that meets every criterion beside every champion and whose score is within a band.

    replicate: of a second fit, to other frames. Without it the drift score decides alone.
    band: the highest drift score that it may have.
    in_second: of a split candidate, which of the frames with an answer its second branch takes, (N,) bool.
    """
    criteria = [_band_criterion(candidate, band)]
    criteria += [_score_criterion(candidate.score, champion.score, name) for name, champion in champions.items()]
    evidence = dict(champions) | {"candidate": candidate}
    if replicate is not None:
        criteria += _replicate_criteria(candidate, replicate, champions)
        evidence |= {"replicate": replicate}
    if in_second is not None:
        criteria.append(_view_criterion(candidate, in_second))
    objections = [criterion.objection for criterion in criteria if not criterion.met]
    better = "better than every champion" + (UNREPEATED if replicate is None else "")
    return Verdict(not objections, "; ".join(objections) or better, evidence, tuple(criteria))


def objection_to(candidate: Evidence, champion: Evidence, name: str, least_drop: float = MIN_SCORE_DROP_SHARE) -> str:
    """Return why the candidate is no better than the champion of this name on a few new frames; "" if it is better.

    The scores of the median layers are compared: the few classes of a moment change the last layers most. Behind
    drifted cameras that showed one to three classes, fits that helped were better in 94 % of the windows by the median
    layer, in 83 % by the drift score; those that harmed in 37 and 36 %.
    least_drop: share of the champion's score by which that of the candidate must be lower.
    """
    criterion = _score_criterion(candidate.middle, champion.middle, name, least_drop)
    return "" if criterion.met else criterion.objection


def _band_criterion(candidate: Evidence, band: float) -> Criterion:
    objection = f"score {candidate.score:.2f} stays above {band:.2f}"
    return Criterion("band", "band", candidate.score, band, candidate.score <= band, objection)


def _score_criterion(score: float, champion: float, name: str, least_drop: float = MIN_SCORE_DROP_SHARE) -> Criterion:
    limit = (1 - least_drop) * champion
    met = score <= limit or (math.isnan(champion) and not math.isnan(score))
    return Criterion("score", name, score, limit, met, f"score {score:.2f} is no better than {name}'s {champion:.2f}")


def _replicate_criteria(candidate: Evidence, replicate: Evidence, champions: Mapping[str, Evidence]) -> list[Criterion]:
    """Compare answers with those behind a second fit. A fit that met the statistics in a wrong place is not repeated.

    A champion whose answers are nearer to those of the second fit needs less repair than the candidate made.
    """
    found, least = _agreement(candidate, replicate), MIN_KAPPA if candidate.proxy else MIN_CONCORDANCE
    objection = f"a second fit, to other frames, gives other answers (agreement {found:.2f}, {least} is enough)"
    criteria = [Criterion("repeatability", "replicate", found, least, found >= least, objection)]
    for name, champion in champions.items():
        errors = _nearer(candidate, champion, replicate)
        objection = f"a second fit agrees with it no more than with {name} ({errors:+.1f} standard errors)"
        criteria.append(Criterion("agreement", name, errors, MIN_NEARER_ERRORS, errors > MIN_NEARER_ERRORS, objection))
    return criteria


def _view_criterion(candidate: Evidence, in_second: Tensor) -> Criterion:
    """Compare what the branches of a split candidate see: cameras in turn show the same classes, scenes others."""
    assert candidate.answers is not None and candidate.proxy is not None  # only a classifier's frames are split
    shares = [
        torch.bincount(candidate.answers[part].clamp_min(0), minlength=candidate.proxy.known) / part.sum()
        for part in (in_second, ~in_second)
    ]
    found = float((shares[0] - shares[1]).abs().sum() / 2)
    objection = f"the two kinds of frames show other classes ({found:.2f} of them, {MAX_VIEW_DIFFERENCE} is allowed)"
    return Criterion("view", "branches", found, MAX_VIEW_DIFFERENCE, found <= MAX_VIEW_DIFFERENCE, objection)


def _agreement(evidence: Evidence, replicate: Evidence) -> float:
    assert evidence.answers is not None and replicate.answers is not None  # collect_evidence measures them
    return agreement(evidence.answers, replicate.answers)


def _nearer(candidate: Evidence, champion: Evidence, replicate: Evidence) -> float:
    assert candidate.answers is not None and champion.answers is not None and replicate.answers is not None
    return standard_errors_nearer(candidate.answers, champion.answers, replicate.answers)


def json_values(value: Any) -> Any:
    """Copy dicts, lists, tuples and plain values, with None for every number that is not finite: JSON has none."""
    if isinstance(value, dict):
        return {name: json_values(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [json_values(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
