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

RESTART_ADVICE = "restart recald where it serves this model"  # else its fits use the new card, its alarms the old one


def commission(model: Path, pictures: Path, count: int) -> None:
    """Measure at most `count` pictures, evenly spread over a folder or .npz file, and name the result in the card.

    Raises FitError for frames that cannot be measured, ModelError for a model that cannot be used.
    """
    if count < MIN_CLEAN_FRAMES:
        raise FitError(f"--count {count}: too few, at least {MIN_CLEAN_FRAMES} clean frames are needed")
    frozen = load_frozen(model)
    preprocessor, normalisation = Preprocessor(frozen.card), frozen.card.normalisation
    values = PixelValues(frozen.card.input.bits, frozen.card.input.inverted)

    def convert(image: np.ndarray) -> np.ndarray:
        return preprocessor.to_input_image(values.to_full_range(image))

    with Console(stderr=True).status("measuring clean frames"):
        images, _ = load_images(pictures, at_most=count, convert=convert)
        frames, taps = torch.from_numpy(preprocessor.normalise(images)), tap(frozen.module)
        clean = measure_clean(taps, frames)
        # Their score against the shipped statistics: a high one means that they are no clean frames of this model.
        scorer = Scorer.of(taps, frozen.card.input.shape, Limits.of(normalisation.mean, normalisation.std))
        score = scorer.measure(frames).drift.score
    save_clean_data(frozen, clean.tensors(), len(images))
    print(f"{model}: commissioned on {len(images)} frames; the model is unchanged, sha256 {frozen.digest}")
    limit = DriftConfig().threshold
    print(f"their drift score by the statistics shipped in the model is {score:.2f}: check the frames if above {limit}")
    print(RESTART_ADVICE)


def remove_commission(model: Path) -> None:
    """Remove the measurements from the card. Raises ModelError for a model that cannot be used."""
    remove_clean_data(load_frozen(model))
    print(f"{model}: drift is measured against the statistics shipped in the model again; {RESTART_ADVICE}")
