"""Streams of hours as cameras deliver them: the classes in view, and the drift of the camera over time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from bench.material.cifar import Images
from daemon.simulation.drifts import Drift

RATE = 4  # frames a second
MINUTE = 60.0
NOISE = {"temporal-noise": (1.0,)}  # grey levels: no camera takes the same picture twice

SCENE_S = MINUTE  # with one mixture of classes
CONCENTRATION = 0.1  # of the Dirichlet distribution of mixtures: mostly one or two of ten classes
SINGLE_S = 16 * MINUTE  # with one class in view
IMBALANCE = 100.0  # ratio of the commonest class to the rarest under label shift

CAMERA = {"fixed-pattern": 12.0, "cross-talk": 0.25, "blur": 0.7, "exposure": -0.5}
HAZE = {"haze": 0.3, "blur": 0.8}
ABRUPT_AT_S = 16 * MINUTE
GRADUAL_S = (8 * MINUTE, 44 * MINUTE)  # from no drift to the whole drift
GRADUAL_STEP_S = 4 * MINUTE
RECURRING_S = 16 * MINUTE  # clean and drifted in turn

Mixture = Callable[[float], np.ndarray]  # a time (s) to the probabilities of the classes (K,)
DriftCourse = Callable[[float, int], dict[str, float]]  # time (s) and number of a frame to the strengths of its drift


class Stream(NamedTuple):
    """The name of the drift's course and of the view."""

    drift: str
    view: str

    def __str__(self) -> str:
        return f"{self.drift}, {self.view}"


class Tick(NamedTuple):
    """A few seconds of a stream, up to `time` (s): images (N, H, W, 3) uint8, labels (N,) and the drift."""

    time: float
    images: np.ndarray
    labels: np.ndarray
    strengths: dict[str, float]  # of the drift, at the last frame


def independent(classes: int, rng: np.random.Generator) -> Mixture:
    """Show every class equally often."""
    return lambda time: np.full(classes, 1 / classes)


def scenes(classes: int, rng: np.random.Generator) -> Mixture:
    """Show another mixture of classes every SCENE_S."""
    mixtures: list[np.ndarray] = []

    def mixture(time: float) -> np.ndarray:
        while len(mixtures) <= time // SCENE_S:
            mixtures.append(rng.dirichlet(np.full(classes, CONCENTRATION)))
        return mixtures[int(time // SCENE_S)]

    return mixture


def single_class(classes: int, rng: np.random.Generator) -> Mixture:
    """Show one class at a time, SINGLE_S each."""
    order = rng.permutation(classes)
    return lambda time: np.eye(classes)[order[int(time // SINGLE_S) % classes]]


def label_shift(classes: int, rng: np.random.Generator) -> Mixture:
    """Show some classes far more often than others, always with the same probabilities."""
    weights = IMBALANCE ** -(rng.permutation(classes) / (classes - 1))
    return lambda time: weights / weights.sum()


def none(time: float, frame: int) -> dict[str, float]:
    """Never drift."""
    return {}


def abrupt(time: float, frame: int) -> dict[str, float]:
    """Drift from ABRUPT_AT_S on."""
    return CAMERA if time >= ABRUPT_AT_S else {}


def gradual(time: float, frame: int) -> dict[str, float]:
    """Drift more with every step, from the first to the second time in GRADUAL_S."""
    begin, end = GRADUAL_S
    share = (min(time, end) - begin) // GRADUAL_STEP_S * GRADUAL_STEP_S / (end - begin)
    return {name: share * strength for name, strength in CAMERA.items()} if share > 0 else {}


def recurring(time: float, frame: int) -> dict[str, float]:
    """Drift in every second period of RECURRING_S."""
    return CAMERA if time // RECURRING_S % 2 else {}


def mixed(time: float, frame: int) -> dict[str, float]:
    """Alternate between two drifts, as with two lenses on one line."""
    if time < ABRUPT_AT_S:
        return {}
    return CAMERA if frame % 2 else HAZE


VIEWS = {"i.i.d.": independent, "scenes": scenes, "single class": single_class, "label shift": label_shift}
COURSES: dict[str, DriftCourse] = {"none": none, "abrupt": abrupt, "gradual": gradual, "recurring": recurring}
COURSES |= {"mixed": mixed}
STREAMS = tuple(Stream(drift, view) for drift in ("none", "abrupt") for view in VIEWS)
STREAMS += (Stream("gradual", "scenes"), Stream("recurring", "scenes"), Stream("mixed", "i.i.d."))


def play(stream: Stream, images: Images, seed: int, tick_s: float, hours: float) -> Iterator[Tick]:
    """Yield the stream in ticks; the same seed gives the same stream."""
    rng = np.random.default_rng(seed)
    labels = images.labels.numpy()
    members = [np.flatnonzero(labels == label) for label in range(labels.max() + 1)]
    mixture, course = VIEWS[stream.view](len(members), rng), COURSES[stream.drift]
    count = round(RATE * tick_s)
    for number in range(round(hours * 60 * MINUTE / tick_s)):
        time = number * tick_s
        classes = rng.choice(len(members), count, p=mixture(time))
        shown = np.array([rng.choice(members[label]) for label in classes])
        frames = range(number * count, (number + 1) * count)
        images_taken = [
            _take(images.pictures[i], course(time, frame), seed, frame) for i, frame in zip(shown, frames, strict=True)
        ]
        yield Tick(time + tick_s, np.stack(images_taken), labels[shown], course(time, frames[-1]))


def _take(picture: np.ndarray, strengths: dict[str, float], seed: int, frame: int) -> np.ndarray:
    values: dict[str, tuple[float, ...]] = {name: (value,) for name, value in strengths.items()}
    return Drift(values | NOISE, seed)(picture, frame)
