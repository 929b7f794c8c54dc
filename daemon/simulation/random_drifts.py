"""Random drifts of a camera, from hardly visible to severe, to learn from what they do to a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import cv2
import numpy as np

from daemon.simulation.drifts import DRIFT_KINDS, Drift

SECOND_KIND_SHARE = 0.4  # of the drifts: many cameras have two faults at a time
REFERENCE_SIDE = 32  # pixels of a picture for which lengths are given; in larger pictures they are longer


class Strength(NamedTuple):
    """How strong a kind of drift is: a number `low` to `high`, as often in any octave, and the strengths it stands for.

    convert: the number and a random sign to the strengths of daemon.simulation.drifts. is_length: in pixels.
    """

    low: float
    high: float
    convert: Callable[[float, int], tuple[float, ...]] = lambda value, sign: (value,)
    is_length: bool = False


def _white_balance(factor: float, sign: int) -> tuple[float, ...]:
    return (1 + factor, 1.0, 1 / (1 + factor))[::sign]


# Between a drift that costs a small network for 32x32 pixels nothing and one that costs it most.
STRENGTHS = {
    "haze": Strength(0.05, 0.7),
    "motion-blur": Strength(1.5, 7, is_length=True),
    "blur": Strength(0.3, 2, is_length=True),
    "vignetting": Strength(0.15, 0.9),
    "exposure": Strength(0.2, 2.5, lambda stops, sign: (min(sign * stops, 1.5),)),  # brighter is clipped
    "cross-talk": Strength(0.05, 0.5),
    "fixed-pattern": Strength(3, 35),
    "temporal-noise": Strength(3, 30),
    "dead-pixels": Strength(0.002, 0.08),
    "row-banding": Strength(2, 30),
    "column-banding": Strength(2, 30),
    "black-level": Strength(4, 50, lambda level, sign: (level,) * 3),
    "gain": Strength(0.05, 0.7, _white_balance),
    "gamma": Strength(0.1, 1.0, lambda value, sign: (math.exp(sign * value),)),
    "jpeg": Strength(5, 70, lambda quality, sign: (float(round(quality)),)),
}
COLOUR_KINDS = ("cross-talk", "gain")  # that a grey camera cannot have


def random_drifts(count_of_kind: int, side: int, grey: bool, seed: int) -> Iterator[Drift]:
    """Yield so many drifts of each kind, some with a second kind. side: of the pictures in pixels."""
    rng = np.random.default_rng(seed)
    kinds = [kind for kind in STRENGTHS if not (grey and kind in COLOUR_KINDS)]
    for number in range(count_of_kind * len(kinds)):
        kind = kinds[number % len(kinds)]
        chosen = [kind]
        if rng.random() < SECOND_KIND_SHARE:
            chosen.append(str(rng.choice([other for other in kinds if other != kind])))
        yield Drift({name: _strength(name, side, rng) for name in chosen}, seed + number)


def _strength(name: str, side: int, rng: np.random.Generator) -> tuple[float, ...]:
    kind, highest = STRENGTHS[name], DRIFT_KINDS[name].high
    scale = max(1.0, side / REFERENCE_SIDE) if kind.is_length else 1.0
    value = float(np.exp(rng.uniform(np.log(kind.low), np.log(kind.high))))
    return kind.convert(min(value * scale, highest), int(rng.choice([-1, 1])))


def film(drift: Drift, images: np.ndarray) -> np.ndarray:
    """Return images (N, H, W, C) as the drifted camera takes them; a grey one is one colour of a colour camera."""
    if images.shape[3] == 3:
        return np.stack([drift(image, number) for number, image in enumerate(images)])
    colour = (cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) for image in images)
    return np.stack([drift(image, number)[..., :1] for number, image in enumerate(colour)])
