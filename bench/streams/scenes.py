"""Streams as cameras deliver them, for hours: what is in view, and how the camera drifts meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from bench.material.cifar import Images
from daemon.simulation.drifts import Drift

RATE = 4  # frames a second
MINUTE = 60.0
NOISE = {"temporal-noise": (1.0,)}  # no camera takes the same picture twice

SCENE_S = MINUTE  # of one mixture of classes ...
CONCENTRATION = 0.1  # ... drawn from a Dirichlet distribution: mostly one or two of ten classes
SINGLE_S = 16 * MINUTE  # of one class each
TAIL = 100.0  # how much commoner the first class is than the last under label shift

CAMERA = {"fixed-pattern": 12.0, "cross-talk": 0.25, "blur": 0.7, "exposure": -0.5}
HAZE = {"haze": 0.3, "blur": 0.8}
BEGINS = 16 * MINUTE  # of an abrupt drift
RAMP = (8 * MINUTE, 44 * MINUTE)  # of a gradual one: from nothing to all of it,
STEP = 4 * MINUTE  # in steps
PERIOD = 16 * MINUTE  # of a recurring one: clean and drifted in turn

Mixture = Callable[[float], np.ndarray]  # a time (s) to the probabilities of the classes (K,)
Course = Callable[[float, int], dict[str, float]]  # a time (s) and the number of a frame to the strengths of its drift


class Stream(NamedTuple):
    """The names of a course and of what is in view."""

    drift: str
    view: str

    def __str__(self) -> str:
        return f"{self.drift}, {self.view}"


class Tick(NamedTuple):
    """A few seconds of a stream, up to `time` (s): images (N, H, W, 3) uint8, labels (N,), and what has happened."""

    time: float
    images: np.ndarray
    labels: np.ndarray
    strengths: dict[str, float]  # of the last frame


def independent(classes: int, rng: np.random.Generator) -> Mixture:
    return lambda time: np.full(classes, 1 / classes)


def scenes(classes: int, rng: np.random.Generator) -> Mixture:
    mixtures: list[np.ndarray] = []

    def at(time: float) -> np.ndarray:
        while len(mixtures) <= time // SCENE_S:
            mixtures.append(rng.dirichlet(np.full(classes, CONCENTRATION)))
        return mixtures[int(time // SCENE_S)]

    return at


def single_class(classes: int, rng: np.random.Generator) -> Mixture:
    order = rng.permutation(classes)
    return lambda time: np.eye(classes)[order[int(time // SINGLE_S) % classes]]


def label_shift(classes: int, rng: np.random.Generator) -> Mixture:
    tail = TAIL ** -(rng.permutation(classes) / (classes - 1))
    return lambda time: tail / tail.sum()


def none(time: float, frame: int) -> dict[str, float]:
    return {}


def abrupt(time: float, frame: int) -> dict[str, float]:
    return CAMERA if time >= BEGINS else {}


def gradual(time: float, frame: int) -> dict[str, float]:
    begin, end = RAMP
    share = (min(time, end) - begin) // STEP * STEP / (end - begin)
    return {name: share * strength for name, strength in CAMERA.items()} if share > 0 else {}


def recurring(time: float, frame: int) -> dict[str, float]:
    return CAMERA if time // PERIOD % 2 else {}


def mixed(time: float, frame: int) -> dict[str, float]:
    """Two drifts at once, each in every second frame, as from two lenses on one line."""
    if time < BEGINS:
        return {}
    return CAMERA if frame % 2 else HAZE


VIEWS = {"i.i.d.": independent, "scenes": scenes, "single class": single_class, "label shift": label_shift}
COURSES: dict[str, Course] = {"none": none, "abrupt": abrupt, "gradual": gradual, "recurring": recurring}
COURSES |= {"mixed": mixed}
STREAMS = tuple(Stream(drift, view) for drift in ("none", "abrupt") for view in VIEWS)
STREAMS += (Stream("gradual", "scenes"), Stream("recurring", "scenes"), Stream("mixed", "i.i.d."))


def play(stream: Stream, images: Images, seed: int, tick_s: float, hours: float) -> Iterator[Tick]:
    """The stream in ticks; the same for the same seed."""
    rng = np.random.default_rng(seed)
    labels = images.labels.numpy()
    members = [np.flatnonzero(labels == name) for name in range(labels.max() + 1)]
    mixture, course = VIEWS[stream.view](len(members), rng), COURSES[stream.drift]
    count = round(RATE * tick_s)
    for number in range(round(hours * 60 * MINUTE / tick_s)):
        time = number * tick_s
        names = rng.choice(len(members), count, p=mixture(time))
        shown = np.array([rng.choice(members[name]) for name in names])
        frames = range(number * count, (number + 1) * count)
        taken = [
            _taken(images.pictures[i], course(time, frame), seed, frame) for i, frame in zip(shown, frames, strict=True)
        ]
        yield Tick(time + tick_s, np.stack(taken), labels[shown], course(time, frames[-1]))


def _taken(picture: np.ndarray, strengths: dict[str, float], seed: int, frame: int) -> np.ndarray:
    values: dict[str, tuple[float, ...]] = {name: (value,) for name, value in strengths.items()}
    return Drift(values | NOISE, seed)(picture, frame)
