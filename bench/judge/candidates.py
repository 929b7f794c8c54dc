"""Candidates for the judge: proper fits, bad fits, sabotaged homogenizers and adversaries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bench.judge.cameras import DriftedCamera, View, drifted_camera
from bench.judge.sabotage import sabotaged
from bench.judge.state import State
from calibrate import CleanData, FitConfig, fit, tap
from calibrate.homogenizer import Homogenizer
from calibrate.search.descent import Coordinates, descend
from calibrate.search.objective import Objective
from calibrate.search.starts import negative_start
from calibrate.source.description import frame_shape
from calibrate.source.training import detect_crop
from calibrate.validation import MIN_FIT_FRAMES

OTHER_CAMERA = 1000  # added to a camera's seed: the camera whose fit serves although the drift is another one
GOOD, BAD_FIT, SABOTAGED, ADVERSARY = "fit", "bad fit", "sabotaged", "adversary"
FIT, REPLICATE, OTHER = "fit", "replicate", "of another drift"
MIXED_FRAMES, EARLY_FRAMES = 128, 64  # of bad fits: these need not be the best possible
EARLY = FitConfig(stages=((32, 2),))
CLEAN_SHARES = (0.25, 0.75)  # of the frames of a mixed fit, alternating with the seed
ADVERSARY_EVALUATIONS, ADVERSARY_FRAMES = 14, 96
ADVERSARY_CRITERION = 1.0  # weight of the cross-entropy in an adversary's objective


class Candidate(NamedTuple):
    kind: str
    name: str
    homogenizer: nn.Module


class Fits:
    """The fits behind one camera. With `clean` they are fits to commissioned statistics."""

    def __init__(self, camera: DriftedCamera, state: State, clean: CleanData | None = None):
        self._camera, self._state, self._clean = camera, state, clean

    def fit(self, view: View) -> Homogenizer:
        """Return the fit that the daemon would make of this view."""
        return self._kept(view, FIT, view.fitted, self._camera.seed)

    def replicate(self, view: View) -> Homogenizer:
        """Return the second fit that the daemon would make of this view."""
        return self._kept(view, REPLICATE, view.replicated, self._camera.seed + 1)

    def _kept(self, view: View, name: str, rows: np.ndarray, seed: int) -> Homogenizer:
        key = f"{self._camera.name}, {view.name}, {name}{', commissioned' if self._clean else ''}"
        return self._state.homogenizer(key, lambda: self._fit(self._camera.film(rows), seed))

    def _fit(self, frames: Tensor, seed: int) -> Homogenizer:
        return fitted(self._camera, frames, seed, clean=self._clean)


def fitted(
    camera: DriftedCamera,
    frames: Tensor,
    seed: int,
    clean: CleanData | None = None,
    config: FitConfig | None = None,
) -> Homogenizer:
    """Fit to frames (N, C, H, W) of this camera, to commissioned statistics where `clean` is given."""
    subject, reference, source = camera.subject, clean and clean.statistics, clean and clean.source
    result = fit(subject.network, frames, reference, source=source, limits=subject.limits, config=config, seed=seed)
    return result.homogenizer.eval()


def fit_of_another_camera(camera: DriftedCamera, state: State) -> Homogenizer:
    """Return the fit to the drift of another camera of the same network."""
    other = drifted_camera(camera.data, camera.seed + OTHER_CAMERA, camera.subject)
    return Fits(other, state).fit(other.whole)


def bad_candidates(camera: DriftedCamera, other: Candidate, good: Homogenizer, state: State) -> Iterator[Candidate]:
    """Yield all candidates but the proper fit `good`. other: the fit behind another camera of the same network."""
    yield other
    for name, make in bad_fits(camera).items():
        yield Candidate(BAD_FIT, name, state.homogenizer(f"{camera.name}, {name}", make))
    for name, broken in sabotaged(good, camera.subject.limits, camera.seed).items():
        yield Candidate(SABOTAGED, name, broken)
    for name, make in adversaries(camera, good).items():
        yield Candidate(ADVERSARY, name, state.homogenizer(f"{camera.name}, {name}", make))


def bad_fits(camera: DriftedCamera) -> dict[str, Callable[[], Homogenizer]]:
    """Return functions that make bad fits, by name."""
    rows, seed = camera.whole.fitted, camera.seed
    share = CLEAN_SHARES[seed % len(CLEAN_SHARES)]
    return {
        f"{MIN_FIT_FRAMES} frames": lambda: fitted(camera, camera.film(rows[:MIN_FIT_FRAMES]), seed),
        f"{share:.0%} clean frames": lambda: fitted(camera, _mixed(camera, rows[:MIXED_FRAMES], share), seed),
        "stopped early": lambda: fitted(camera, camera.film(rows[:EARLY_FRAMES]), seed, config=EARLY),
    }


def _mixed(camera: DriftedCamera, rows: np.ndarray, share: float) -> Tensor:
    """Return the frames of a camera that begins to drift while they are collected."""
    clean = round(share * len(rows))
    return torch.cat([camera.clean.film(rows[:clean]), camera.film(rows[clean:])])


def adversaries(camera: DriftedCamera, good: Homogenizer) -> dict[str, Callable[[], Homogenizer]]:
    """Return functions that make homogenizers to deceive the judge, by name.

    Each descends on the statistics that the drift score measures. The first starts from the negative with colours
    exchanged and follows the statistics alone. The second starts from the identity and adds the network's own answers
    to the drifted frames, many of them wrong. The third starts from `good`, a proper fit, and adds one answer for all
    frames.
    """
    frames = camera.film(camera.whole.fitted[:ADVERSARY_FRAMES])
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
