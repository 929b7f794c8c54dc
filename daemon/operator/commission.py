"""`recald commission`: measure clean frames once, so that drift is detected against this camera's own clean frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from calibrate import FitError, Limits, measure_clean, tap
from calibrate.scoring.scorer import Scorer
from calibrate.source.commissioned import MIN_CLEAN_FRAMES
from daemon.config import DriftConfig
from daemon.images import load_images
from daemon.levels import PixelValues
from daemon.model.preprocess import Preprocessor
from deploy.model.commissioned import remove_clean_data, save_clean_data
from deploy.model.frozen import load_frozen

CLEAN_BAND, DRIFT_WINDOW = DriftConfig().threshold, DriftConfig().window  # the configuration is not known here
MAX_WINDOWS = 8  # that are scored
RESTART_ADVICE = "restart recald where it serves this model"  # else its fits use the new card, its alarms the old one


def commission(model: Path, pictures: Path, count: int, force: bool = False) -> None:
    """Measure at most `count` pictures, evenly spread over a folder or .npz file, and name the result in the card.

    force: take frames as clean that score as drifted. Raises FitError for frames that cannot be measured or are not
    clean, ModelError for a model that cannot be used.
    """
    if count < MIN_CLEAN_FRAMES:
        raise FitError(f"--count {count}: too few, at least {MIN_CLEAN_FRAMES} clean frames are needed")
    frozen = load_frozen(model)
    preprocessor, normalisation = Preprocessor(frozen.card), frozen.card.normalisation
    values = PixelValues(frozen.card.input.bits, frozen.card.input.inverted)

    def convert(image: np.ndarray) -> np.ndarray:
        return preprocessor.to_input_image(values.to_full_range(image))

    with Console(stderr=True, markup=False, emoji=False).status("measuring clean frames"):
        images, _ = load_images(pictures, at_most=count, convert=convert)
        frames, taps = torch.from_numpy(preprocessor.normalise(images)), tap(frozen.module)
        clean = measure_clean(taps, frames)
        scorer = Scorer.of(taps, frozen.card.input.shape, Limits.of(normalisation.mean, normalisation.std))
        score = window_score(scorer, frames)
    if not score <= CLEAN_BAND and not force:
        raise FitError(
            f"{pictures}: their drift score by the statistics shipped in the model is {score:.2f}, clean frames have "
            f"up to {CLEAN_BAND:g}: check the pictures, and mean and std of the card; --force takes them as clean"
        )
    save_clean_data(frozen, clean.tensors(), len(images))
    print(f"{model}: commissioned on {len(images)} frames; the model is unchanged, sha256 {frozen.digest}")
    print(f"their drift score by the statistics shipped in the model is {score:.2f}; clean is up to {CLEAN_BAND:g}")
    print(RESTART_ADVICE)


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
