"""`recald commission`: measure clean frames once, so that drift is told from what this camera delivers when new."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from calibrate import CleanData, Limits, Taps, measure_clean, tap
from calibrate.yardstick import Yardstick
from daemon.config import DriftConfig
from daemon.images import load_images
from daemon.preprocess import Preprocessor
from deploy.clean import AGAIN, load_clean, remove_clean, save_clean
from deploy.frozen import FrozenModel, ModelError, load_frozen

BAND = DriftConfig().threshold


def remove(model: Path) -> None:
    """Undo: the card names no measurements any more."""
    remove_clean(load_frozen(model))
    print(f"{model}: drift is measured from the statistics shipped in the model again")


def commission(model: Path, pictures: Path, count: int) -> None:
    """Measure at most `count` pictures, evenly from all in a folder or .npz file, and name the result in the card."""
    frozen = load_frozen(model)
    images, _ = load_images(pictures, at_most=count)
    with Console(stderr=True).status(f"measuring {len(images)} frames"):
        frames = _frames(frozen, images)
        clean = measure_clean(tap(frozen.module), frames)
        score = _shipped_yardstick(frozen).measure(frames).drift.score
    save_clean(frozen, clean.tensors(), len(images))
    print(f"{model}: commissioned on {len(images)} frames; the model is unchanged, sha256 {frozen.digest}")
    print(
        f"by the statistics shipped in the model their drift score is {score:.2f}; look at them if it is above {BAND}"
    )


def commissioned(frozen: FrozenModel, taps: Taps) -> CleanData | None:
    """What was measured on clean frames, where it was; ModelError where it is damaged or of another model."""
    tensors = load_clean(frozen)
    try:
        return None if tensors is None else CleanData.of_tensors(tensors, taps.names)
    except ValueError as error:
        raise ModelError(
            f"{frozen.path}: the clean frames were measured on another model ({error}): {AGAIN}"
        ) from error


def _frames(frozen: FrozenModel, images: np.ndarray) -> Tensor:
    preprocessor = Preprocessor(frozen.card)
    return torch.from_numpy(preprocessor.normalise(np.stack([preprocessor.to_input_image(i) for i in images])))


def _shipped_yardstick(frozen: FrozenModel) -> Yardstick:
    limits = Limits.of(frozen.card.normalisation.mean, frozen.card.normalisation.std)
    return Yardstick.of(tap(frozen.module), frozen.card.input.shape, limits)
