"""Drifted cameras by seed, and the frames they show to fits, to the judge, to the shadow and to whoever tells truth."""

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
FIT_FRAMES, JUDGE_FRAMES, LOOKS, LOOK_FRAMES, TEST_IMAGES = 384, 128, 3, 64, 1024  # fit and judge share 512, as shipped
SEEN = JUDGE_FRAMES + LOOKS * LOOK_FRAMES
FEW = (1, 3)  # classes in view of a scene of few, by turns

# Kinds of camera by the last digit of the seed: the paper's perturbation, bench.fit's camera, and one or two kinds of
# bench.drifts at a random strength.
RECIPES = (
    *(("CIFAR-10", "paper"), ("CIFAR-10", "camera"), ("GTSRB", "drawn"), ("CIFAR-10", "drawn"), ("GTSRB", "drawn")),
    *(("CIFAR-10", "paper"), ("GTSRB", "drawn"), ("CIFAR-10", "drawn"), ("GTSRB", "drawn"), ("CIFAR-10", "camera")),
)

# Images (N, H, W, 3) uint8, and their numbers for noise of their own, to normalised (N, 3, H, W).
Drifting = Callable[[np.ndarray, np.ndarray], Tensor]


class Window(NamedTuple):
    """What the judge holds out and what the shadow looks at: one tensor each, (n, 3, H, W)."""

    parts: tuple[Tensor, ...]


@dataclass(frozen=True)
class Scene:
    """One drifted camera. `text`: its drift, in the words of `recald simulate --drift` where these can tell."""

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
        """The images that do not tell truth, shuffled: first those to fit to, then those of the i.i.d. window."""
        return TEST_IMAGES + np.random.default_rng(self.seed).permutation(len(self.subject.images) - TEST_IMAGES)

    @property
    def few(self) -> int:
        return FEW[self.seed % len(FEW)]

    def film(self, rows: np.ndarray, clean: bool = False) -> Tensor:
        """These images as the camera takes them."""
        images = self.subject.images[rows]
        return self.subject.normalise(images) if clean else self.drifting(images, rows)

    def fitted_to(self) -> np.ndarray:
        return self.order[:FIT_FRAMES]

    def of_classes(self, classes: int, count: int, stream: int) -> np.ndarray:
        """Rows of images of so many of the commonest classes, none of them in fit or i.i.d. window; some may return."""
        rest = self.order[FIT_FRAMES + SEEN :]
        labels = self.subject.labels.numpy()[rest]
        rng = np.random.default_rng([self.seed, stream])
        common = np.argsort(-np.bincount(labels), kind="stable")[:10]
        pool = rest[np.isin(labels, rng.choice(common, classes, replace=False))]
        return rng.choice(pool, count, replace=len(pool) < count)

    def window(self, view: str, clean: bool) -> Window:
        """What is held out and looked at: images of all classes, or of few."""
        few = view != "all classes"
        rows = self.of_classes(self.few, SEEN, 1) if few else self.order[FIT_FRAMES : FIT_FRAMES + SEEN]
        frames = self.film(rows, clean)
        return Window((frames[:JUDGE_FRAMES], *frames[JUDGE_FRAMES:].split(LOOK_FRAMES)))

    @property
    def views(self) -> tuple[str, ...]:
        return ("all classes", f"{self.few} of the classes")

    def test(self, clean: bool) -> Tensor:
        return self.film(np.arange(TEST_IMAGES), clean)


def scenes(seeds: range, data: Path) -> Iterator[Scene]:
    subject = lru_cache(lambda name: SUBJECTS[name](data))
    for seed in seeds:
        name, recipe = RECIPES[seed % len(RECIPES)]
        yield scene(name, recipe, seed, subject(name))


def scene(data: str, recipe: str, seed: int, subject: Subject) -> Scene:
    if recipe == "paper":
        perturbation = Perturbation(seed)
        return Scene(
            *(data, seed, "perturbation of the paper", subject),
            lambda images, rows: perturbation(subject.normalise(images)),
        )
    text = CAMERA if recipe == "camera" else drawn(seed)
    drift = parse_drift(text, seed)

    def drifting(images: np.ndarray, rows: np.ndarray) -> Tensor:
        return subject.normalise(np.stack([drift(image, int(i)) for image, i in zip(images, rows, strict=True)]))

    return Scene(data, seed, text, subject, drifting)


def drawn(seed: int) -> str:
    """One or two kinds of drift, each at one of its strengths."""
    rng = np.random.default_rng([seed, 7])
    kinds = [list(DRIFTS)[i] for i in rng.permutation(len(DRIFTS))[: rng.integers(1, 3)]]
    texts = [DRIFTS[kind][rng.integers(3)] for kind in kinds]
    return ",".join({text.partition("=")[0]: text for text in texts}.values())
