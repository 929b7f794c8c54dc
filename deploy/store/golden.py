"""Golden frames: what a homogenizer is proven on, at its acceptance and again at each restart.

The camera's own frames may show people, and recald keeps no picture unless it is asked to. A manifest therefore holds
the levels of these frames alone: how bright, in each channel, the darkest pixel is, the next one, and so on. Patterns
that have the same levels are as bright and as rich in contrast as the frames were.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from deploy.store.artefacts import StoreError

Frames = TypeVar("Frames", np.ndarray, list[np.ndarray])
PROOF_FRAMES = 4  # of the collected frames
LEVELS = 33  # of one channel, from its darkest to its brightest pixel
GOLDEN_RATIO = 0.6180339887498949  # steps of it fill an interval evenly and never repeat
GOLDEN_NOISE_FRAMES = 2


def pick_golden(frames: Frames) -> Frames:
    """Choose PROOF_FRAMES of the collected frames (N, ...), evenly spread."""
    return frames[:: max(1, len(frames) // PROOF_FRAMES)][:PROOF_FRAMES]


def golden_noise(shape: tuple[int, int, int]) -> np.ndarray:
    """Return frames (GOLDEN_NOISE_FRAMES, C, H, W) float32 of Gaussian noise, the same at every call."""
    return np.random.default_rng(0).standard_normal((GOLDEN_NOISE_FRAMES, *shape), np.float32)


def describe_golden(frames: np.ndarray) -> dict[str, Any]:
    """Return what a manifest holds of golden frames (N, C, H, W): their levels in each channel."""
    ranks = np.linspace(0, 1, LEVELS)
    return {"levels": [np.quantile(channel, ranks).tolist() for channel in frames.swapaxes(0, 1)]}


def golden_of(manifest: Mapping[str, Any], shape: tuple[int, int, int]) -> np.ndarray | None:
    """Return the golden frames (4, C, H, W) float32 that a manifest describes; None if it describes none.

    Raises StoreError for a description that cannot be used.
    """
    if "golden" not in manifest:  # written before manifests had one
        return None
    try:
        levels = np.asarray(manifest["golden"]["levels"], np.float32)  # (C, LEVELS)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise StoreError(f"the manifest of homogenizer {_version(manifest)}: golden: not levels") from error
    if levels.shape != (shape[0], LEVELS) or not np.isfinite(levels).all():
        raise StoreError(f"the manifest of homogenizer {_version(manifest)}: golden: not {LEVELS} levels a channel")
    ranks, patterns = np.linspace(0, 1, LEVELS), _patterns(*shape[1:])
    frames = [[np.interp(pattern, ranks, channel) for channel in levels] for pattern in patterns]
    return np.asarray(frames, np.float32)


def _patterns(height: int, width: int) -> list[np.ndarray]:
    """Draw four patterns (height, width) of values from 0 to 1: two ramps, a chessboard and a fine texture."""
    y, x = np.mgrid[:height, :width].astype(float)
    texture = (x * GOLDEN_RATIO + y * GOLDEN_RATIO**2 * width) % 1.0
    return [x / max(1, width - 1), y / max(1, height - 1), (x + y) % 2, texture]


def _version(manifest: Mapping[str, Any]) -> str:
    return str(manifest.get("version"))[:12]
