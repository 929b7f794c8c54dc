"""The accuracy proxies and the accuracy estimate of a drift check's frames."""

from __future__ import annotations

import math

import torch

from calibrate.estimate.estimator import AccuracyEstimator, Estimate
from calibrate.estimate.signs import SIGN_WINDOW, signs_of
from calibrate.scoring.scorer import Measurement


def proxies(raw: Measurement, served: Measurement, estimator: AccuracyEstimator | None) -> dict[str, float]:
    """Return what is known of the accuracy of the frames as served without labels, by name, 0 to 1 each.

    agreement: share of the frames that get the same class with the homogenizer as without, NaN where none serves. {}
    for a network that is no classifier.
    """
    if served.proxy is None or served.logits is None:
        return {}
    agreement = math.nan if served is raw else float((raw.answers == served.answers).float().mean())
    found = {"confidence": served.proxy.confidence, "certainty": served.proxy.certainty, "agreement": agreement}
    return found | (estimator.calibration.proxies(served.logits.float()) if estimator else {})


def estimate_accuracy(estimator: AccuracyEstimator | None, measured: Measurement) -> Estimate | None:
    """Estimate the accuracy on the frames of a measurement.

    None where nothing was learned at commissioning, for few frames, and under a label shift: few classes in view look
    like a network that prefers them.
    """
    logits = measured.logits
    if estimator is None or logits is None or len(logits) < SIGN_WINDOW or measured.label_shift:
        return None
    window = torch.linspace(0, len(logits) - 1, SIGN_WINDOW).long()  # the signs of more frames are others
    return estimator.estimate(signs_of(logits[window].float(), estimator.calibration))
