"""Is a candidate better than what serves now? Decided on frames the fit has not seen, with no labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from calibrate.proxy import AccuracyProxy
from calibrate.yardstick import Yardstick

MARGIN = 0.2  # the score must fall by this share: well above its spread between windows of clean frames (0.1)
CONCENTRATION = 0.1  # the commonest predicted class may take this much more of the frames than before
ERRORS = 2.0  # standard errors by which confidence may lie below the incumbent's


@dataclass(frozen=True)
class Evidence:
    """What is held for or against one homogenizer on the held-out frames."""

    score: float
    proxy: AccuracyProxy | None


@dataclass(frozen=True)
class Verdict:
    """accepted, or why not; evidence by name: factory, active (where one serves), candidate."""

    accepted: bool
    reason: str
    evidence: dict[str, Evidence]

    def as_dict(self) -> dict[str, Any]:
        """Fit for JSON: None for what is not finite."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain


def examine(yardstick: Yardstick, homogenizer: nn.Module | None, frames: Tensor) -> Evidence:
    """Score and proxy of Φ on homogenizer(frames); None is the factory homogenizer."""
    drift, proxy = yardstick.measure(frames, homogenizer)
    return Evidence(drift.score, proxy)


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
    evidence = dict(against) | {"candidate": examine(yardstick, candidate, frames)}
    problems = [p for name in against for p in _objections(evidence["candidate"], evidence[name], name)]
    if not evidence["candidate"].score <= band:
        problems.append(f"score {evidence['candidate'].score:.2f} stays outside the clean band of {band:.2f}")
    return Verdict(not problems, "; ".join(problems) or "better than every incumbent", evidence)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _objections(candidate: Evidence, incumbent: Evidence, name: str) -> list[str]:
    problems = []
    if candidate.score > (1 - MARGIN) * incumbent.score:  # a candidate's NaN is outside any band
        problems.append(f"score {candidate.score:.2f} is no better than {name}'s {incumbent.score:.2f}")
    if candidate.proxy is None or incumbent.proxy is None:
        return problems
    slack = ERRORS * (candidate.proxy.confidence_error + incumbent.proxy.confidence_error)
    if candidate.proxy.confidence < incumbent.proxy.confidence - slack:
        problems.append(
            f"confidence {candidate.proxy.confidence:.2f} is below {name}'s {incumbent.proxy.confidence:.2f}"
        )
    if candidate.proxy.top_share > incumbent.proxy.top_share + CONCENTRATION:
        problems.append(
            f"one class takes {candidate.proxy.top_share:.0%} of the predictions, {name}: "
            f"{incumbent.proxy.top_share:.0%}"
        )
    return problems
