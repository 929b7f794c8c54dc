"""`recald commission`: measure clean frames once, so that drift is detected against this camera's own clean frames."""

from __future__ import annotations

import argparse
from collections import ChainMap
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from calibrate import FitError, Limits, measure_clean, tap
from calibrate.baseline.baseline import Baseline
from calibrate.baseline.frames import FrameStatistics
from calibrate.baseline.learning import MIN_HEALTHY_FRAMES, BaselineError, learn_baseline
from calibrate.errors import RecaldError
from calibrate.estimate.estimator import AccuracyEstimator
from calibrate.readouts.picture_statistics import PictureStatistics
from calibrate.scoring.scorer import Scorer
from calibrate.source.commissioned import MIN_CLEAN_FRAMES, CleanData
from daemon.config import DriftConfig
from daemon.images import Convert, load_images
from daemon.levels import PixelValues, to_levels
from daemon.model.labels import ClassNames
from daemon.model.preprocess import Preprocessor
from daemon.operator.commissioning.learn_accuracy import learn_accuracy
from daemon.operator.commissioning.picture_labels import read_picture_labels
from daemon.worker.picture_watch import can_be_read
from deploy.model.commissioned import picture_tensors, remove_clean_data, save_clean_data
from deploy.model.frozen import FrozenModel, load_frozen

CLEAN_BAND, DRIFT_WINDOW = DriftConfig().threshold, DriftConfig().window  # the configuration is not known here
MAX_WINDOWS = 8  # that are scored
NOT_CLEAN = (
    "their drift score by the statistics shipped in the model is {:.2f}, clean frames have up to "
    f"{CLEAN_BAND:g}: check the pictures, and mean and std of the card; --force takes them as clean"
)
BASELINE = "a baseline is learned from them: from the start, the alarm tells a changed camera from changed content"
NO_BASELINE = (
    f"no baseline is learned from fewer than {MIN_HEALTHY_FRAMES} frames, or from frames all the same: "
    "each sensor learns its own while it is healthy"
)
RESTART_ADVICE = "restart recald where it serves this model"  # else its fits use the new card, its alarms the old one


def run(args: argparse.Namespace) -> None:
    """Carry out the command. Raises what `commission` and `remove_commission` raise."""
    if args.remove and args.labels:
        raise RecaldError("--remove takes no --labels: what was learned from labels goes with the measurement")
    if args.remove:
        remove_commission(args.model)
    else:
        commission(args.model, args.frames, args.count, args.force, args.labels)


def commission(model: Path, pictures: Path, count: int, force: bool = False, labels: Path | None = None) -> None:
    """Measure at most `count` pictures, evenly spread over a folder or .npz file, and name the result in the card.

    force: take frames as clean that score as drifted. labels: file with the classes of the pictures, to learn from it
    how to estimate accuracy. Raises FitError for frames that cannot be measured or are not clean, ModelError for a
    model that cannot be used, RecaldError for labels that cannot be used.
    """
    if count < MIN_CLEAN_FRAMES:
        raise FitError(f"--count {count}: too few, at least {MIN_CLEAN_FRAMES} clean frames are needed")
    frozen = load_frozen(model)
    preprocessor = Preprocessor(frozen.card)
    estimator = None
    with Console(stderr=True, markup=False, emoji=False).status("measuring clean frames") as progress:
        images, stored = load_images(pictures, at_most=count, convert=conversion(frozen, preprocessor))
        known = None
        if labels is not None:
            classes = ClassNames(frozen.class_count, frozen.card.classes)
            known = read_picture_labels(labels, pictures, count, stored, classes.number)
        clean, score = _measure(frozen, torch.from_numpy(preprocessor.normalise(images)), known)
        if not score <= CLEAN_BAND and not force:
            raise FitError(f"{pictures}: {NOT_CLEAN.format(score)}")
        if known is not None:
            scorer = Scorer(tap(frozen.module), output=frozen.output)
            estimator = learn_accuracy(scorer, preprocessor.normalise, images, known, progress.update)
        baseline = _learn_baseline(frozen, torch.from_numpy(preprocessor.normalise(images)))
    learned = [part.tensors() for part in (clean, estimator, baseline) if part is not None]
    if baseline is not None and can_be_read(images):
        learned.append(picture_tensors(PictureStatistics.of(torch.from_numpy(to_levels(images)))))
    save_clean_data(frozen, dict(ChainMap(*learned)), len(images))
    print(f"{model}: commissioned on {len(images)} frames; the model is unchanged, sha256 {frozen.digest}")
    print(f"their drift score by the statistics shipped in the model is {score:.2f}; clean is up to {CLEAN_BAND:g}")
    if estimator:
        print(_describe(estimator))
    print(BASELINE if baseline else NO_BASELINE)
    print(RESTART_ADVICE)


def conversion(frozen: FrozenModel, preprocessor: Preprocessor) -> Convert:
    """Return what makes the model's input image of a picture, as of a frame of the camera."""
    values = PixelValues(frozen.card.input.bits, frozen.card.input.inverted)
    return lambda image: preprocessor.to_input_image(values.to_full_range(image))


def _measure(frozen: FrozenModel, frames: torch.Tensor, known: np.ndarray | None) -> tuple[CleanData, float]:
    """Measure frames (N, C, H, W); also return their drift score by the statistics shipped in the model.

    known: (N,) classes of the frames. Without them the network's own answers are taken, as the frames are clean.
    """
    taps, normalisation = tap(frozen.module), frozen.card.normalisation
    limits = Limits.of(normalisation.mean, normalisation.std)
    scorer = Scorer.of(taps, frozen.card.input.shape, limits, output=frozen.output)
    logits = scorer.logits(frames) if known is None else None
    labels = None if known is None else torch.from_numpy(known.astype(np.int64))
    labels = labels if logits is None else logits.argmax(1)
    return measure_clean(taps, frames, labels), window_score(scorer, frames)


def _learn_baseline(frozen: FrozenModel, frames: torch.Tensor) -> Baseline | None:
    """Learn what healthy frames (N, C, H, W) look like; None for too few of them."""
    if len(frames) < MIN_HEALTHY_FRAMES:
        return None
    taps = tap(frozen.module)
    measured = Scorer(taps, output=frozen.output).measure(frames)
    statistics = FrameStatistics.of(measured.moments, measured.logits, taps.reference)
    try:
        return learn_baseline(statistics, DRIFT_WINDOW, frozen.class_count or 0)
    except BaselineError:
        return None  # pictures all the same: they can be measured, but they show no content


def _describe(estimator: AccuracyEstimator) -> str:
    return (
        f"the network names {estimator.calibration.accuracy:.1%} of them right; estimates of its accuracy behind a "
        f"drift of a kind that was not simulated are off by {100 * estimator.typical_error:.1f} points on average"
    )


def window_score(scorer: Scorer, frames: torch.Tensor) -> float:
    """Return the median drift score of windows as a drift check takes them; NaN where one is not finite.

    A score of all frames at once would be another number: with more frames each error weighs more. Each window is
    spread over all frames, so that it does not show a single scene or class. frames: (N, C, H, W).
    """
    windows = max(1, min(MAX_WINDOWS, len(frames) // DRIFT_WINDOW))
    scores = [scorer.measure(frames[first::windows][:DRIFT_WINDOW]).drift.score for first in range(windows)]
    return float(np.median(scores))


def remove_commission(model: Path) -> None:
    """Remove the measurements from the card. Raises ModelError for a model that cannot be used."""
    remove_clean_data(load_frozen(model))
    print(f"{model}: drift is measured against the statistics shipped in the model again; {RESTART_ADVICE}")
