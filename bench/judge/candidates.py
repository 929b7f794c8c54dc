"""Candidates for the judge: proper fits, bad fits, sabotaged homogenizers and adversaries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bench.judge.cameras import DriftedCamera
from bench.judge.sabotage import sabotaged
from bench.judge.state import State
from calibrate import FitConfig, fit, tap
from calibrate.homogenizer import Homogenizer
from calibrate.search.descent import Coordinates, descend
from calibrate.search.objective import Objective
from calibrate.search.starts import negative_start
from calibrate.source.description import frame_shape
from calibrate.source.training import detect_crop
from calibrate.validation import MIN_FIT_FRAMES

GOOD, BAD_FIT, SABOTAGED, ADVERSARY = "fit", "bad fit", "sabotaged", "adversary"
FIT, OTHER = "384 frames", "of another drift"  # candidates that also serve as the active homogenizer
FEW_CLASSES_FRAMES, MIXED_FRAMES, EARLY_FRAMES = 96, 128, 64  # of bad fits: these need not be the best possible
EARLY = FitConfig(stages=((32, 2),))
CLEAN_SHARES = (0.25, 0.75)  # of the frames of a mixed fit, alternating with the seed
ADVERSARY_EVALUATIONS, ADVERSARY_FRAMES = 14, 96
ADVERSARY_CRITERION = 1.0  # weight of the cross-entropy in an adversary's objective


class Candidate(NamedTuple):
    kind: str
    name: str
    homogenizer: nn.Module


def candidates(camera: DriftedCamera, neighbour: DriftedCamera, state: State) -> Iterator[Candidate]:
    """Yield all candidates behind this camera; `neighbour` is another camera in front of the same network."""
    good = fitted(camera, state)
    yield Candidate(GOOD, FIT, good)
    yield Candidate(BAD_FIT, OTHER, fitted(neighbour, state))
    for name, make in bad_fits(camera).items():
        yield Candidate(BAD_FIT, name, state.homogenizer(f"{camera.name}, {name}", make))
    for name, broken in sabotaged(good, camera.subject.limits, camera.seed).items():
        yield Candidate(SABOTAGED, name, broken)
    for name, make in adversaries(camera, good).items():
        yield Candidate(ADVERSARY, name, state.homogenizer(f"{camera.name}, {name}", make))


def fitted(camera: DriftedCamera, state: State) -> Homogenizer:
    """Return the fit that the daemon would make."""
    return state.homogenizer(f"{camera.name}, {FIT}", lambda: _fit(camera, camera.film(camera.fit_rows())))


def bad_fits(camera: DriftedCamera) -> dict[str, Callable[[], Homogenizer]]:
    """Return functions that make bad fits, by name."""
    rows, few = camera.fit_rows(), camera.rows_of_classes(camera.few, FEW_CLASSES_FRAMES, 2)
    return {
        f"{camera.few} of the classes": lambda: _fit(camera, camera.film(few)),
        f"{MIN_FIT_FRAMES} frames": lambda: _fit(camera, camera.film(rows[:MIN_FIT_FRAMES])),
        f"{_clean_share(camera):.0%} clean frames": lambda: _fit(camera, _mixed(camera, rows[:MIXED_FRAMES])),
        "stopped early": lambda: _fit(camera, camera.film(rows[:EARLY_FRAMES]), EARLY),
    }


def _clean_share(camera: DriftedCamera) -> float:
    return CLEAN_SHARES[camera.seed % len(CLEAN_SHARES)]


def _mixed(camera: DriftedCamera, rows: np.ndarray) -> Tensor:
    """Return the frames of a camera that begins to drift while they are collected."""
    clean = round(_clean_share(camera) * len(rows))
    return torch.cat([camera.film(rows[:clean], clean=True), camera.film(rows[clean:])])


def _fit(camera: DriftedCamera, frames: Tensor, config: FitConfig | None = None) -> Homogenizer:
    subject = camera.subject
    return fit(subject.network, frames, limits=subject.limits, seed=camera.seed, config=config).homogenizer.eval()


def adversaries(camera: DriftedCamera, good: Homogenizer) -> dict[str, Callable[[], Homogenizer]]:
    """Return functions that make homogenizers to deceive the judge, by name.

    Each descends on what the judge looks at: the statistics, and the confidence of the network. The first starts from
    the negative with colours exchanged and follows the statistics alone. The second starts from the identity and adds
    the network's own answers to the drifted frames, many of them wrong. The third starts from `good`, a proper fit,
    and adds one answer for all frames.
    """
    frames = camera.film(camera.fit_rows()[:ADVERSARY_FRAMES])
    identity = Homogenizer(*frame_shape(frames)).requires_grad_(False)
    with torch.no_grad():
        own = camera.subject.network(frames).argmax(1)
    return {
        "statistics from a wrong start": lambda: _descended(camera, frames, _wrong_start(camera, identity), None),
        "sure of what the drift shows": lambda: _descended(camera, frames, identity, own),
        "one answer to all": lambda: _descended(camera, frames, good, own.mode().values.expand(len(frames))),
    }


def _wrong_start(camera: DriftedCamera, identity: Homogenizer) -> Homogenizer:
    limits = camera.subject.limits
    negative = negative_start(identity, limits.black + limits.white).requires_grad_(False)
    negative.kernel.copy_(negative.kernel.flip(0))
    return negative


def _descended(camera: DriftedCamera, frames: Tensor, start: Homogenizer, labels: Tensor | None) -> Homogenizer:
    """Descend on the objective of a fit, which the drift score follows, plus cross-entropy to the labels if given."""
    subject, taps = camera.subject, tap(camera.subject.network)
    crop = detect_crop(taps, frame_shape(frames), subject.limits.black)
    objective = Objective(taps, taps.reference, crop, 0.0 if labels is None else ADVERSARY_CRITERION, subject.limits)
    coordinates = Coordinates(start, frames, torch.Generator().manual_seed(camera.seed))
    descend(objective, coordinates, frames, labels, ADVERSARY_EVALUATIONS, 0.0, lambda _: None)
    return coordinates.homogenizer()
