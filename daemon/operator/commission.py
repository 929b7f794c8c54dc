"""`recald commission`: measure clean frames once, so that drift is told from what this camera delivers when new."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console

from calibrate import FitError, Limits, measure_clean, tap
from calibrate.scoring.scorer import Scorer
from calibrate.source.commissioned import MIN_CLEAN_FRAMES
from daemon.config import DriftConfig
from daemon.images import load_images
from daemon.model.preprocess import Preprocessor
from deploy.model.commissioned import remove_clean, save_clean
from deploy.model.frozen import FrozenModel, load_frozen

BAND = DriftConfig().threshold
RESTART = "restart recald where it serves this model"  # or its fits go by the new card, its alarms by the old one


def remove(model: Path) -> None:
    """Undo: the card names no measurements any more."""
    remove_clean(load_frozen(model))
    print(f"{model}: drift is told from the statistics shipped in the model again; {RESTART}")


def commission(model: Path, pictures: Path, count: int) -> None:
    """Measure at most `count` pictures, evenly from all in a folder or .npz file, and name the result in the card."""
    if count < MIN_CLEAN_FRAMES:
        raise FitError(f"--count {count}: too few, at least {MIN_CLEAN_FRAMES} clean frames are needed")
    frozen = load_frozen(model)
    preprocessor = Preprocessor(frozen.card)
    with Console(stderr=True).status("measuring clean frames"):
        images, _ = load_images(pictures, at_most=count, convert=preprocessor.to_input_image)
        frames = torch.from_numpy(preprocessor.normalise(images))
        clean = measure_clean(tap(frozen.module), frames)
        score = _shipped_scorer(frozen).measure(frames).drift.score
    save_clean(frozen, clean.tensors(), len(images))
    print(f"{model}: commissioned on {len(images)} frames; the model is unchanged, sha256 {frozen.digest}")
    print(f"their drift score by the statistics shipped in the model is {score:.2f}: look at them if above {BAND}")
    print(RESTART)


def _shipped_scorer(frozen: FrozenModel) -> Scorer:
    limits = Limits.of(frozen.card.normalisation.mean, frozen.card.normalisation.std)
    return Scorer.of(tap(frozen.module), frozen.card.input.shape, limits)
