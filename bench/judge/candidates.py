"""Candidates for the judge: fits as they should be, fits as they should not be, sabotaged ones and adversaries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bench.judge.sabotage import sabotaged
from bench.judge.scenes import Scene
from bench.judge.state import State
from calibrate import FitConfig, fit, tap
from calibrate.homogenizer import Homogenizer
from calibrate.search.descent import Coordinates, descend
from calibrate.search.objective import Objective
from calibrate.search.starts import negative_start
from calibrate.source.training import read_crop, shape_of
from calibrate.validation import MIN_FRAMES

GOOD, BAD_FIT, SABOTAGED, ADVERSARY = "fit", "bad fit", "sabotaged", "adversary"
FIT, OTHER = "384 frames", "of another drift"  # names of the candidates that serve as active ones too
FEW_FRAMES, MIXED = 96, 128  # frames of the bad fits: they need not be as good as can be
EARLY = FitConfig(stages=((32, 2),))
EVALUATIONS, ATTACKED = 14, 96  # of an adversary's objective, and the frames it knows
WEIGHT = 1.0  # of the cross-entropy that an adversary adds to the objective


class Candidate(NamedTuple):
    kind: str
    name: str
    homogenizer: nn.Module


def candidates(scene: Scene, neighbour: Scene, state: State) -> Iterator[Candidate]:
    """All that the judge is asked about behind this camera; `neighbour` is another camera before the same network."""
    good = fitted(scene, state)
    yield Candidate(GOOD, FIT, good)
    yield Candidate(BAD_FIT, OTHER, fitted(neighbour, state))
    for name, make in bad_fits(scene).items():
        yield Candidate(BAD_FIT, name, state.homogenizer(f"{scene.name}, {name}", make))
    for name, broken in sabotaged(good, scene.subject.limits, scene.seed).items():
        yield Candidate(SABOTAGED, name, broken)
    for name, make in adversaries(scene, good).items():
        yield Candidate(ADVERSARY, name, state.homogenizer(f"{scene.name}, {name}", make))


def fitted(scene: Scene, state: State) -> Homogenizer:
    """What the daemon would fit."""
    return state.homogenizer(f"{scene.name}, {FIT}", lambda: _fit(scene, scene.film(scene.fitted_to())))


def bad_fits(scene: Scene) -> dict[str, Callable[[], Homogenizer]]:
    rows = scene.fitted_to()
    return {
        f"{scene.few} of the classes": lambda: _fit(scene, scene.film(scene.of_classes(scene.few, FEW_FRAMES, 2))),
        f"{MIN_FRAMES} frames": lambda: _fit(scene, scene.film(rows[:MIN_FRAMES])),
        f"{_clean_share(scene):.0%} clean frames": lambda: _fit(scene, _mixed(scene, rows[:MIXED])),
        "stopped early": lambda: _fit(scene, scene.film(rows[:64]), EARLY),
    }


def _clean_share(scene: Scene) -> float:
    return (0.25, 0.75)[scene.seed % 2]


def _mixed(scene: Scene, rows: np.ndarray) -> Tensor:
    """Frames of a camera that drifts while they are collected."""
    clean = round(_clean_share(scene) * len(rows))
    return torch.cat([scene.film(rows[:clean], clean=True), scene.film(rows[clean:])])


def _fit(scene: Scene, frames: Tensor, config: FitConfig | None = None) -> Homogenizer:
    subject = scene.subject
    return fit(subject.network, frames, limits=subject.limits, seed=scene.seed, config=config).homogenizer.eval()


def adversaries(scene: Scene, good: Homogenizer) -> dict[str, Callable[[], Homogenizer]]:
    """Descents that please what the judge looks at: statistics, and how sure the network is; `good`: one that is right.

    From the negative with colours exchanged, by the statistics alone. From the identity, by the statistics and the
    network's own answers to the drifted frames, many of them wrong, which it is to be sure of. From the right one, by
    the statistics and one answer to everything.
    """
    frames = scene.film(scene.fitted_to()[:ATTACKED])
    identity = Homogenizer(*shape_of(frames)).requires_grad_(False)
    with torch.no_grad():
        own = scene.subject.network(frames).argmax(1)
    return {
        "statistics from a wrong start": lambda: _descended(scene, frames, _wrong_start(scene, identity), None),
        "sure of what the drift shows": lambda: _descended(scene, frames, identity, own),
        "one answer to all": lambda: _descended(scene, frames, good, own.mode().values.expand(len(frames))),
    }


def _wrong_start(scene: Scene, identity: Homogenizer) -> Homogenizer:
    limits = scene.subject.limits
    negative = negative_start(identity, limits.black + limits.white).requires_grad_(False)
    negative.kernel.copy_(negative.kernel.flip(0))
    return negative


def _descended(scene: Scene, frames: Tensor, start: Homogenizer, labels: Tensor | None) -> Homogenizer:
    """The objective of a fit is what the drift score follows, and has a gradient."""
    subject, taps = scene.subject, tap(scene.subject.network)
    crop = read_crop(taps, shape_of(frames), subject.limits.black)
    objective = Objective(taps, taps.reference, crop, 0.0 if labels is None else WEIGHT, subject.limits)
    coordinates = Coordinates(start, frames, torch.Generator().manual_seed(scene.seed))
    descend(objective, coordinates, frames, labels, EVALUATIONS, 0.0, lambda _: None)
    return coordinates.homogenizer()
