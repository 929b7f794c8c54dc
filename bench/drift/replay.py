"""Statistics of single frames, taken once, and streams of windows that replay them in any order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench.material.subjects import Subject
from calibrate import tap
from calibrate.baseline.frames import FrameStatistics
from calibrate.features.statistics import ImageMoments

WINDOW = 64
CHUNK = 128  # frames that go through the network at once
SCENE_WINDOWS = (5, 280)  # of 64 frames at 30 frames/s: 10 s to 10 min
CONCENTRATION = 0.1  # of the mixtures of classes in scenes: mostly one or two of ten
IMBALANCE = 100.0  # ratio of the commonest class to the rarest under a label shift
LIGHT_SHARE = 0.3  # of all frames, by their brightness, that one light shows
MAX_STILL_POWER = 4  # of 2: 16 of the 64 frames of a window are different
MIN_FRAMES_OF_CLASS = 16  # that a scene may show: fewer would be the same frames again and again, as no camera sends

Draw = Callable[[np.random.Generator], np.ndarray]  # the frames of one window


class Recorded(NamedTuple):
    """Frames as a network and a camera saw them, N of them.

    moments: of all channels. statistics: for baselines. logits: (N, K). labels: (N,). levels: (N, C) mean grey levels.
    """

    moments: ImageMoments
    statistics: FrameStatistics
    logits: Tensor
    labels: Tensor
    levels: Tensor

    def moments_of(self, rows: np.ndarray) -> ImageMoments:
        """Return the moments of one window."""
        chosen = torch.from_numpy(rows)
        return ImageMoments(tuple(f[chosen] for f in self.moments.first), tuple(s[chosen] for s in self.moments.second))


def record(subject: Subject, images: np.ndarray, labels: Tensor) -> Recorded:
    """Run the network once over images (N, H, W[, 3]) uint8."""
    taps = tap(subject.network)
    moments, outputs = [], []
    with torch.no_grad():
        for start in range(0, len(images), CHUNK):
            run = taps(subject.normalise(images[start : start + CHUNK]))
            assert run.output is not None  # the pass runs to its end
            moments.append(ImageMoments.of(run.features))
            outputs.append(run.output)
    joined, logits = ImageMoments.join(moments), torch.cat(outputs)
    levels = torch.from_numpy(images.reshape(len(images), -1, images.shape[3] if images.ndim == 4 else 1).mean(1))
    return Recorded(joined, FrameStatistics.of(joined, logits, taps.reference), logits, labels, levels)


def windows(frames: Recorded, view: str, count: int, seed: int) -> Iterator[np.ndarray]:
    """Yield the frames (WINDOW,) of so many windows in a row; the same seed gives the same stream."""
    rng, left = np.random.default_rng(seed), count
    while left > 0:
        draw = VIEWS[view](frames, rng)
        length = min(left, int(rng.integers(*SCENE_WINDOWS)))
        for _ in range(length):
            yield draw(rng)
        left -= length


def _mixture(frames: Recorded, weights: Callable[[int], np.ndarray]) -> Draw:
    labels = frames.labels.numpy()
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    members = [rows for rows in members if len(rows) >= MIN_FRAMES_OF_CLASS]
    shares = weights(len(members))

    def draw(rng: np.random.Generator) -> np.ndarray:
        counts = rng.multinomial(WINDOW, shares)
        drawn = [rng.choice(rows, count) for rows, count in zip(members, counts, strict=True)]
        return rng.permutation(np.concatenate(drawn))  # since the order tells how much alike neighbours are

    return draw


def _all(frames: Recorded, rng: np.random.Generator) -> Draw:
    return lambda rng: rng.choice(len(frames.labels), WINDOW)


def _scene(frames: Recorded, rng: np.random.Generator) -> Draw:
    return _mixture(frames, lambda classes: rng.dirichlet(np.full(classes, CONCENTRATION)))


def _one_class(frames: Recorded, rng: np.random.Generator) -> Draw:
    return _mixture(frames, lambda classes: np.eye(classes)[rng.integers(classes)])


def _label_shift(frames: Recorded, rng: np.random.Generator) -> Draw:
    """Show all classes, the first ones far more often, in every scene of the stream."""

    def weights(classes: int) -> np.ndarray:
        shares: np.ndarray = IMBALANCE ** -(np.arange(classes) / max(1, classes - 1))
        return shares / shares.sum()

    return _mixture(frames, weights)


def _one_light(frames: Recorded, rng: np.random.Generator) -> Draw:
    """Show pictures of one brightness out of those that there are, as by day and by night."""
    order = frames.levels.mean(1).argsort().numpy()
    size = round(LIGHT_SHARE * len(order))
    start = int(rng.integers(len(order) - size + 1))
    shown = order[start : start + size]
    return lambda rng: rng.choice(shown, WINDOW)


def _still(frames: Recorded, rng: np.random.Generator) -> Draw:
    """Show a picture all the time, or a few in each window, one after the other, as slow or no motion does."""
    different = 2 ** int(rng.integers(MAX_STILL_POWER + 1))
    pictures = rng.choice(len(frames.labels), different)

    def draw(rng: np.random.Generator) -> np.ndarray:
        shown = pictures if different == 1 else rng.choice(len(frames.labels), different)
        return np.repeat(shown, WINDOW // different)

    return draw


VIEWS: dict[str, Callable[[Recorded, np.random.Generator], Draw]] = {
    "all content": _all,
    "scenes of few classes": _scene,
    "scenes of one class": _one_class,
    "label shift": _label_shift,
    "scenes of one light": _one_light,
    "still and slow scenes": _still,
}
