"""Learn the estimate of accuracy at commissioning: from clean frames of known classes, behind simulated drifts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from calibrate.estimate.estimator import AccuracyEstimator, ScaledSigns, nearest_mean
from calibrate.estimate.outputs import OutputCalibration
from calibrate.estimate.signs import SIGN_WINDOW, signs_of

MIN_LABELLED = 4 * SIGN_WINDOW  # two windows for each half


class SeenDrift(NamedTuple):
    """What a network made of N frames behind one drift.

    kinds: of the drift; none if the frames are clean. logits: (N, K).
    """

    kinds: frozenset[str]
    logits: Tensor


class Example(NamedTuple):
    """A window: its signs (2,), and the accuracy on all frames of its half behind this drift."""

    kinds: frozenset[str]
    signs: Tensor
    accuracy: Tensor


def learn_estimator(seen: Sequence[SeenDrift], labels: Tensor) -> AccuracyEstimator:
    """Learn from drifts of the same frames with the classes `labels`, (N,) int64; the first of them is none.

    The frames are in random order, at least MIN_LABELLED. The outputs are calibrated on one half of them for the
    examples of the other: outputs are better calibrated on frames that they were calibrated on.
    """
    windows = len(labels) // SIGN_WINDOW
    halves = range(windows // 2), range(windows // 2, windows)
    examples = [example for half in halves for example in _examples(seen, labels, half)]
    signs = torch.stack([example.signs for example in examples])
    accuracies = torch.stack([example.accuracy for example in examples])
    errors = _errors([example.kinds for example in examples], signs, accuracies)
    calibration = OutputCalibration.of(seen[0].logits, labels)
    return AccuracyEstimator(calibration, signs, accuracies, errors, torch.tensor(float(len(labels))))


def _examples(seen: Sequence[SeenDrift], labels: Tensor, windows: range) -> Iterator[Example]:
    """Yield the windows with these numbers behind each drift, with the outputs calibrated on all other frames."""
    inside = torch.zeros(len(labels), dtype=torch.bool)
    inside[windows.start * SIGN_WINDOW : windows.stop * SIGN_WINDOW] = True
    calibration = OutputCalibration.of(seen[0].logits[~inside], labels[~inside])
    for drift in seen:
        accuracy = (drift.logits.argmax(1) == labels)[inside].float().mean()
        for window in windows:
            logits = drift.logits[window * SIGN_WINDOW : (window + 1) * SIGN_WINDOW]
            yield Example(drift.kinds, signs_of(logits, calibration), accuracy)


def _errors(kinds: Sequence[frozenset[str]], signs: Tensor, accuracies: Tensor) -> Tensor:
    """Return what the estimate would be off for each example by those that share no kind of drift with it, (M,).

    A drift in the field is of a kind that nobody simulated.
    """
    distances = ScaledSigns(signs).distances(signs)
    errors = torch.zeros(len(kinds))
    for own in set(kinds):
        rows = torch.tensor([other == own for other in kinds])
        others = torch.tensor([other != own and not own & other for other in kinds])
        estimates = nearest_mean(distances[rows][:, others], accuracies[others])
        errors[rows] = estimates - accuracies[rows]
    return errors
