"""Drifted cameras by seed, and their frames: to fit to, for the judge, for the shadow and for the ground truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from bench.drifts import DRIFTS, SUBJECTS, Subject
from bench.fit import CAMERA
from bench.material.perturbation import Perturbation
from daemon.simulation.drifts import parse_drift

CHOOSING, REPORTED = range(0, 10), range(10, 20)
FIT_FRAMES, JUDGE_FRAMES = 384, 128  # of 512 together, as shipped
SHADOW_WINDOWS, SHADOW_FRAMES = 3, 64
WINDOW_FRAMES = JUDGE_FRAMES + SHADOW_WINDOWS * SHADOW_FRAMES
TEST_IMAGES = 1024
FEW = (1, 3)  # classes in a view of few classes, alternating with the seed
ALL_CLASSES = "all classes"

# Data set and kind of camera by the last digit of the seed: the paper's perturbation, bench.fit's camera, or one or
# two kinds of bench.drifts at a random strength.
RECIPES = (
    *(("CIFAR-10", "paper"), ("CIFAR-10", "camera"), ("GTSRB", "drawn"), ("CIFAR-10", "drawn"), ("GTSRB", "drawn")),
    *(("CIFAR-10", "paper"), ("GTSRB", "drawn"), ("CIFAR-10", "drawn"), ("GTSRB", "drawn"), ("CIFAR-10", "camera")),
)

# Images (N, H, W, 3) uint8 and their numbers, which select the noise of each, to normalised frames (N, 3, H, W).
Drifting = Callable[[np.ndarray, np.ndarray], Tensor]


class Window(NamedTuple):
    """Frames that are not fitted to, (n, 3, H, W) each: part 0 for the judge, the others for the shadow."""

    parts: tuple[Tensor, ...]


@dataclass(frozen=True)
class DriftedCamera:
    """One drifted camera. `text` is its drift, as for `recald simulate --drift` where that is possible."""

    data: str
    seed: int
    text: str
    subject: Subject
    drifting: Drifting

    @property
    def name(self) -> str:
        return f"{self.data}, seed {self.seed}"

    @cached_property
    def order(self) -> np.ndarray:
        """The images that are not for the ground truth, shuffled: first those to fit to, then the i.i.d. window."""
        return TEST_IMAGES + np.random.default_rng(self.seed).permutation(len(self.subject.images) - TEST_IMAGES)

    @property
    def few(self) -> int:
        """The number of classes in this camera's view of few classes."""
        return FEW[self.seed % len(FEW)]

    @property
    def views(self) -> tuple[str, ...]:
        return (ALL_CLASSES, f"{self.few} of the classes")

    def film(self, rows: np.ndarray, clean: bool = False) -> Tensor:
        """Return these images as the camera takes them, with its drift unless `clean`."""
        images = self.subject.images[rows]
        return self.subject.normalise(images) if clean else self.drifting(images, rows)

    def fit_rows(self) -> np.ndarray:
        """Return the images that are fitted to."""
        return self.order[:FIT_FRAMES]

    def rows_of_classes(self, classes: int, count: int, stream: int) -> np.ndarray:
        """Return images of so many of the commonest classes; an image may come twice.

        None of them is fitted to or in the i.i.d. window. `stream` selects the random numbers.
        """
        rest = self.order[FIT_FRAMES + WINDOW_FRAMES :]
        labels = self.subject.labels.numpy()[rest]
        rng = np.random.default_rng([self.seed, stream])
        common = np.argsort(-np.bincount(labels), kind="stable")[:10]
        pool = rest[np.isin(labels, rng.choice(common, classes, replace=False))]
        return rng.choice(pool, count, replace=len(pool) < count)

    def window(self, view: str, clean: bool) -> Window:
        """Return the frames for the judge and for the shadow, of all classes or of few."""
        if view == ALL_CLASSES:
            rows = self.order[FIT_FRAMES : FIT_FRAMES + WINDOW_FRAMES]
        else:
            rows = self.rows_of_classes(self.few, WINDOW_FRAMES, 1)
        frames = self.film(rows, clean)
        return Window((frames[:JUDGE_FRAMES], *frames[JUDGE_FRAMES:].split(SHADOW_FRAMES)))

    def test(self, clean: bool) -> Tensor:
        """Return the frames of the ground truth."""
        return self.film(np.arange(TEST_IMAGES), clean)


def drifted_cameras(seeds: range, data: Path) -> Iterator[DriftedCamera]:
    """Yield one camera for each seed, with images and networks from the folder `data`."""
    subject = lru_cache(lambda name: SUBJECTS[name](data))
    for seed in seeds:
        name, recipe = RECIPES[seed % len(RECIPES)]
        yield drifted_camera(name, recipe, seed, subject(name))


def drifted_camera(data: str, recipe: str, seed: int, subject: Subject) -> DriftedCamera:
    """Make the camera of a recipe: paper, camera or drawn."""
    if recipe == "paper":
        perturbation = Perturbation(seed)
        return DriftedCamera(
            *(data, seed, "perturbation of the paper", subject),
            lambda images, rows: perturbation(subject.normalise(images)),
        )
    text = CAMERA if recipe == "camera" else random_drift(seed)
    drift = parse_drift(text, seed)

    def drifting(images: np.ndarray, rows: np.ndarray) -> Tensor:
        return subject.normalise(np.stack([drift(image, int(i)) for image, i in zip(images, rows, strict=True)]))

    return DriftedCamera(data, seed, text, subject, drifting)


def random_drift(seed: int) -> str:
    """Return the text of one or two kinds of drift, each at one of its strengths."""
    rng = np.random.default_rng([seed, 7])
    kinds = [list(DRIFTS)[i] for i in rng.permutation(len(DRIFTS))[: rng.integers(1, 3)]]
    texts = [DRIFTS[kind][rng.integers(3)] for kind in kinds]
    return ",".join({text.partition("=")[0]: text for text in texts}.values())
