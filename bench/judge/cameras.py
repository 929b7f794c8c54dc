"""Drifted cameras by seed, and their frames: to fit to, for the judge, for the shadow and for the ground truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor

from bench.drifts import COLOUR_DRIFTS, DRIFTS
from bench.fit import CAMERA
from bench.material.perturbation import KAPPA, Perturbation
from bench.material.subjects import SUBJECTS, Subject
from daemon.simulation.drifts import Drift, parse_drift

CHOOSING, REPORTED = range(0, 10), range(10, 20)
# Of these networks the cameras 10 to 19 showed what the limits of a label shift lacked, so others are reported.
# A camera in front of CIFAR-10 takes six minutes.
REPORTED_OF = {"MNIST": range(20, 30), "X-rays": range(20, 30), "CIFAR-10": range(10, 16)}
FITTED, REPLICATED, HELD_OUT = 256, 128, 128  # of 512 together, as shipped
LOOKS, LOOK_FRAMES = 3, 64  # of the shadow
WINDOW_FRAMES = FITTED + REPLICATED + HELD_OUT + LOOKS * LOOK_FRAMES
CLEAN_FRAMES = 512  # to commission with, where there are as many; calibrate.source.commissioned asks for 256
ALL_CLASSES = "all classes"
FEW = (1, 3)  # classes in a view of few classes, alternating with the seed
MIN_POOL = 176  # images of such a view; where there are fewer than WINDOW_FRAMES, an image comes again in its part
COMMONEST = 10  # classes that such a view chooses from

# Kind of camera by the last digit of the seed: the paper's perturbation, bench.fit's camera, or one or two kinds of
# bench.drifts at a random strength.
RECIPES = ("paper", "camera", *("drawn",) * 3, "paper", *("drawn",) * 4)
KAPPAS = {3: KAPPA, 1: 0.3}  # the paper's strength by the number of channels
GREY_CAMERA = "fixed-pattern=12,blur=0.7,exposure=-0.5"
TEST_NOISE = 100_000  # added to the number of a test image, which selects its noise

# Images (N, H, W[, 3]) uint8 and their numbers, which select the noise of each, to normalised frames (N, C, H, W).
Drifting = Callable[[np.ndarray, np.ndarray], Tensor]


def reported_seeds(data: str) -> range:
    """Return the seeds that are reported of a network, by its name."""
    return REPORTED_OF.get(data, REPORTED)


@dataclass(frozen=True)
class View:
    """Numbers of the images that one collection of frames shows, a part for each purpose."""

    name: str
    fitted: np.ndarray
    replicated: np.ndarray
    held_out: np.ndarray
    looks: tuple[np.ndarray, ...]

    @staticmethod
    def of(name: str, rows: np.ndarray) -> View:
        """Divide WINDOW_FRAMES numbers."""
        fitted, replicated, held_out, looks = np.split(rows, np.cumsum((FITTED, REPLICATED, HELD_OUT)))
        return View(name, fitted, replicated, held_out, tuple(np.split(looks, LOOKS)))


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
        return f"{self.data}, seed {self.seed}{'' if self.text else ', clean'}"

    @cached_property
    def clean(self) -> DriftedCamera:
        """The same camera, in front of the same scene, without its drift."""
        return replace(self, text="", drifting=lambda images, _: self.subject.normalise(images))

    @cached_property
    def order(self) -> np.ndarray:
        """The images of the scene, shuffled: first those of the view of all classes, then the clean ones."""
        return np.random.default_rng(self.seed).permutation(len(self.subject.scene.labels))

    @cached_property
    def whole(self) -> View:
        """The view of all classes."""
        return View.of(ALL_CLASSES, self.order[:WINDOW_FRAMES])

    @cached_property
    def narrow(self) -> View | None:
        """A view of few classes; None where the scene has too few images of them."""
        pool, rng = self._pool_of_classes(self.few_classes)
        return (
            View.of(f"{self.few_classes} of the classes", parts_of_a_pool(pool, rng)) if len(pool) >= MIN_POOL else None
        )

    @property
    def few_classes(self) -> int:
        """The number of classes in this camera's view of few classes; at least one class is missing."""
        return min(FEW[self.seed % len(FEW)], len(self.subject.scene.labels.unique()) - 1)

    def film(self, rows: np.ndarray) -> Tensor:
        """Return images of the scene as the camera takes them."""
        return self.drifting(self.subject.scene.images[rows], rows)

    @cached_property
    def test(self) -> Tensor:
        """The frames of the ground truth."""
        images = self.subject.test.images
        return self.drifting(images, TEST_NOISE + np.arange(len(images)))

    def clean_rows(self) -> np.ndarray:
        """Return the images to commission it on; none of them is in the view of all classes."""
        return self.order[WINDOW_FRAMES:][:CLEAN_FRAMES]

    def _pool_of_classes(self, classes: int) -> tuple[np.ndarray, np.random.Generator]:
        """Return images of so many of the commonest classes that are not in the view of all, and the generator."""
        rest = self.order[WINDOW_FRAMES:]
        labels = self.subject.scene.labels.numpy()[rest]
        rng = np.random.default_rng([self.seed, 1])
        common = np.argsort(-np.bincount(labels), kind="stable")[:COMMONEST]
        return rest[np.isin(labels, rng.choice(common, classes, replace=False))], rng


def parts_of_a_pool(pool: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return WINDOW_FRAMES of the pool: each part of a view has its own share of it, in which images may come again."""
    sizes = (FITTED, REPLICATED, HELD_OUT, *(LOOK_FRAMES,) * LOOKS)
    ends = np.round(np.cumsum(sizes) * min(1.0, len(pool) / WINDOW_FRAMES)).astype(int)
    shares = np.split(rng.permutation(pool)[: ends[-1]], ends[:-1])
    return np.concatenate([np.resize(share, size) for share, size in zip(shares, sizes, strict=True)])


def drifted_cameras(data: str, seeds: Sequence[int], folder: Path) -> Iterator[DriftedCamera]:
    """Yield one camera for each seed, with images and networks from a folder."""
    subject = SUBJECTS[data](folder)
    for seed in seeds:
        yield drifted_camera(data, seed, subject)


def drifted_camera(data: str, seed: int, subject: Subject) -> DriftedCamera:
    """Make the camera of a seed."""
    recipe = RECIPES[seed % len(RECIPES)]
    if recipe == "paper":
        height, width = subject.scene.images.shape[1:3]
        perturbation = Perturbation(seed, KAPPAS[subject.channels], (subject.channels, height, width))
        return DriftedCamera(
            *(data, seed, "perturbation of the paper", subject),
            lambda images, rows: perturbation(subject.normalise(images)),
        )
    grey = subject.channels == 1
    text = random_drift(data, seed, grey) if recipe == "drawn" else GREY_CAMERA if grey else CAMERA
    drift = parse_drift(text, seed)

    def drifting(images: np.ndarray, rows: np.ndarray) -> Tensor:
        return subject.normalise(np.stack([_filmed(drift, i, n) for i, n in zip(images, rows, strict=True)]))

    return DriftedCamera(data, seed, text, subject, drifting)


def _filmed(drift: Drift, image: np.ndarray, number: int) -> np.ndarray:
    """Return one image (H, W[, 3]) as the camera takes it; a grey camera is one of the colours of a colour camera."""
    if image.ndim == 3:
        return drift(image, int(number))
    return drift(np.repeat(image[..., None], 3, axis=2), int(number))[..., 0]


def random_drift(data: str, seed: int, grey: bool) -> str:
    """Return the text of one or two kinds of drift, each at one of its strengths."""
    rng = np.random.default_rng([seed, 7, list(SUBJECTS).index(data)])
    possible = [kind for kind in DRIFTS if not (grey and kind in COLOUR_DRIFTS)]
    kinds = [possible[i] for i in rng.permutation(len(possible))[: rng.integers(1, 3)]]
    texts = [DRIFTS[kind][rng.integers(3)] for kind in kinds]
    return ",".join({text.partition("=")[0]: text for text in texts}.values())
