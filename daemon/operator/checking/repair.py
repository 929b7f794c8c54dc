"""Find out whether a fit repairs pictures of a drifted camera, as a recalibration does; nothing is stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from calibrate import FitError, Homogenizer, Limits
from calibrate.judge import FIT_BAND_RATIO, Evidence, Verdict, judge_evidence, needs_no_fit, split_frames
from calibrate.scoring.scorer import Measurement, Scorer
from calibrate.validation import MIN_FIT_FRAMES
from daemon.operator.checking.check import CameraVerdict, Condition, finite
from daemon.operator.commissioning.commission import CLEAN_BAND
from daemon.worker.accuracy import estimate_accuracy
from daemon.worker.fit_device import fit_on_device
from deploy.backends.protocol import AUTO
from deploy.model.commissioned import load_estimator
from deploy.model.frozen import FrozenModel

MIN_REPAIR_PICTURES = 4 * MIN_FIT_FRAMES  # the second fit gets a quarter of them
FIT_SEED = 0
LOOK_ADVICE = (
    "look at the lens, the exposure and the scene, and give pictures of all that the camera usually shows; if it was "
    "changed on purpose, measure it anew with `recald commission`"
)
TOO_SMALL = f"the change is too small for a fit: drift score {{:.2f}}, clean is up to {CLEAN_BAND:g}"

Report = Callable[[str], None]


class RepairTrial:
    """Fits to half of the frames, judges on a quarter, and fits again to the last quarter, as daemon/worker/fit_job.py.

    Only the factory homogenizer serves, so that it is the one champion.
    """

    def __init__(self, frozen: FrozenModel, scorer: Scorer, frames: Tensor, report: Report):
        """frames: (N, C, H, W) in normalised input units, in their order, N at least MIN_REPAIR_PICTURES.

        report: is told the progress. Raises ModelError for an accuracy estimate that cannot be used.
        """
        self._frozen, self._scorer, self._frames, self._report = frozen, scorer, frames, report
        self._parts = split_frames(len(frames))
        self._held_out = frames[self._parts.held_out]
        self._estimator = load_estimator(frozen)

    def run(self) -> CameraVerdict:
        """Return whether the frames can be repaired."""
        raw = self._scorer.measure(self._held_out)
        if needs_no_fit({"factory": Evidence.of(raw)}, CLEAN_BAND):
            return _not_repairable(TOO_SMALL.format(raw.drift.score))
        try:
            first = self._fit(self._parts.fitted, FIT_SEED, "fitting")
            repaired = self._scorer.measure(self._held_out, first)
            verdict = self._judge(first, Evidence.of(raw), Evidence.of(repaired))
        except FitError as error:
            return _not_repairable(f"no fit is possible: {error}")
        if verdict.accepted:
            return self._repairable(raw, repaired)
        useless = verdict.finds_nothing_to_repair
        objection = "the network answers alike with a fit and without" if useless else "a fit does not help"
        return _not_repairable(f"{objection}: {verdict.reason}")

    def _judge(self, first: Homogenizer, factory: Evidence, candidate: Evidence) -> Verdict:
        """Judge the first fit by the drift score, and where it passes, by a second fit, too."""
        band = FIT_BAND_RATIO * CLEAN_BAND
        by_score = judge_evidence(candidate, {"factory": factory}, band)
        if not by_score.accepted:
            return by_score
        second = self._fit(self._parts.replicated, FIT_SEED + 1, "fitting again, to other pictures")
        self._report("judging")
        replicate = Evidence.of(self._scorer.measure(self._held_out, second))
        return judge_evidence(
            self._with_all_answers(candidate, first),
            {"factory": self._with_all_answers(factory, None)},
            band,
            self._with_all_answers(replicate, second),
        )

    def _with_all_answers(self, evidence: Evidence, homogenizer: Homogenizer | None) -> Evidence:
        return replace(evidence, answers=self._scorer.answers(self._frames, homogenizer))

    def _fit(self, part: Tensor, seed: int, doing: str) -> Homogenizer:
        """Fit to a part of the frames, (N,) bool. Raises FitError."""
        clean, normalisation = self._scorer.clean, self._frozen.card.normalisation
        fitted, _ = fit_on_device(
            AUTO,
            "eager",
            self._frozen.module,
            self._frames[part],
            reference=clean and clean.statistics,
            source=clean and clean.source,
            limits=Limits.of(normalisation.mean, normalisation.std),
            seed=seed,
            progress=lambda done, of, _: self._report(f"{doing}: {done / of:.0%}"),
        )
        return fitted.homogenizer.eval()

    def _repairable(self, raw: Measurement, repaired: Measurement) -> CameraVerdict:
        """Return the verdict with the expected gain, measured on frames that no fit has seen."""
        before, after = (estimate_accuracy(self._estimator, measured) for measured in (raw, repaired))
        if before is None or after is None:
            low, high = raw.drift.score, repaired.drift.score
            return _repairable(f"expected drift score {high:.2f} instead of {low:.2f}", "drift score", low, high)
        low, high = before.value, after.value
        doubt = "" if after.lower > before.upper else ", no sure difference"
        words = f"expected accuracy {high:.1%} instead of {low:.1%} (estimates{doubt})"
        return _repairable(words, "estimated accuracy", low, high)


def _repairable(words: str, quantity: str, without: float, fitted: float) -> CameraVerdict:
    gain: dict[str, Any] = {"quantity": quantity, "without": finite(without), "with": finite(fitted)}
    return CameraVerdict(Condition.REPAIRABLE, words, figures={"gain": gain})


def _not_repairable(summary: str) -> CameraVerdict:
    return CameraVerdict(Condition.NOT_REPAIRABLE, summary, (LOOK_ADVICE,))
