"""Learn at commissioning how accuracy can be told without labels: by what simulated drifts do to labelled frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from calibrate import FitError
from calibrate.estimate.estimator import AccuracyEstimator
from calibrate.estimate.learning import MIN_LABELLED, SeenDrift, learn_estimator
from calibrate.estimate.signs import SIGN_WINDOW
from calibrate.scoring.agreement import agreement
from calibrate.scoring.scorer import Scorer
from daemon.simulation.drifts import Drift
from daemon.simulation.random_drifts import STRENGTHS, film, random_drifts

# Behind 22 cameras of three networks the mean error before a fit was 4.0 points with 3 drifts of each kind, 3.2 with 5,
# 2.7 with 7, 3.0 with 10; with 256 frames instead of 512 it was 4.1.
DRIFTS_OF_KIND = 7
MAX_FRAMES = 512
SEED = 0  # of the drifts and the order of frames, so that the same frames always lead to the same estimate

Normalise = Callable[[np.ndarray], np.ndarray]  # images (N, h, w, C) to the model's input (N, C, h, w) float32


def learn_accuracy(
    scorer: Scorer,
    normalise: Normalise,
    images: np.ndarray,
    labels: np.ndarray,
    report: Callable[[str], None],
) -> AccuracyEstimator:
    """Learn from images (N, h, w, C) of the model's input size and their classes (N,), at most MAX_FRAMES of them.

    report: is told the progress. Raises FitError for too few images, and for a network that is no classifier or names
    the classes no better than by chance.
    """
    if len(images) < MIN_LABELLED:
        raise FitError(f"{len(images)} labelled frames are too few: at least {MIN_LABELLED} are needed")
    # In random order: windows of a folder that is sorted by class would show one class each.
    whole_windows = min(len(images), MAX_FRAMES) // SIGN_WINDOW * SIGN_WINDOW
    chosen = np.random.default_rng(SEED).permutation(len(images))[:whole_windows]
    known = torch.from_numpy(labels[chosen].astype(np.int64))
    seen: list[SeenDrift] = []
    for drift in see_drifts(scorer, normalise, images[chosen]):
        seen.append(drift)
        report(f"simulated drift {len(seen)} of {DRIFTS_OF_KIND * len(STRENGTHS)} at most")
        if len(seen) == 1:
            _check_labels(drift.logits, known)
    return learn_estimator(seen, known)


def see_drifts(scorer: Scorer, normalise: Normalise, images: np.ndarray) -> Iterator[SeenDrift]:
    """Yield what the network makes of images (N, h, w, C) without a drift, then behind DRIFTS_OF_KIND of each kind."""
    _, height, width, channels = images.shape
    yield _see(scorer, normalise, images, Drift({}))
    for drift in random_drifts(DRIFTS_OF_KIND, min(height, width), channels == 1, SEED):
        yield _see(scorer, normalise, images, drift)


def _see(scorer: Scorer, normalise: Normalise, images: np.ndarray, drift: Drift) -> SeenDrift:
    logits = scorer.logits(torch.from_numpy(normalise(film(drift, images))))
    if logits is None:
        raise FitError("the network is no classifier, so that its frames have no classes: leave --labels out")
    return SeenDrift(frozenset(drift.strengths), logits.float())


def _check_labels(logits: Tensor, labels: Tensor) -> None:
    """Raise FitError where the labels are not those of the frames, which would make a useless estimate."""
    named = logits.argmax(1)
    if agreement(named, labels) <= 0:
        right = float((named == labels).float().mean())
        raise FitError(
            f"the network names {right:.1%} of the classes right, no more than by chance: check that the labels belong "
            "to these pictures, and that they show more than one class"
        )
