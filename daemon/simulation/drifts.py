"""Simulated camera drifts in physical units, applied in the order in which light passes through a camera."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from calibrate.errors import RecaldError
from daemon.levels import MAX_LEVEL, to_depth, to_levels

# Images are float32 (H, W, 3) RGB. Grey levels 0..255 are proportional to light, as in a camera with gamma 1. No
# function clips: the analogue-to-digital converter at the end of the chain does that, `quantise`.

AIRLIGHT_LEVEL = 220  # grey level of fog in daylight: bright, not white

# Random numbers come from (seed, frame, stream), so that no two kinds of drift share them. What is the same in each
# frame uses frame 0.
PATTERN_STREAM, NOISE_STREAM, ROW_STREAM, COLUMN_STREAM, DEAD_PIXEL_STREAM = range(5)


class SimulationError(RecaldError):
    """A drift that cannot be used; the message says what to do."""


def haze(image: np.ndarray, fraction: float) -> np.ndarray:
    """Replace a fraction of the scene's light by the light grey of the air."""
    return image * np.float32(1 - fraction) + np.float32(fraction * AIRLIGHT_LEVEL)


def motion_blur(image: np.ndarray, length: float) -> np.ndarray:
    """Smear by a sideways movement of `length` pixels during the exposure; up to one pixel is not visible."""
    if length <= 1:
        return image
    reach = np.arange(np.ceil((length - 1) / 2) + 1)
    half = ((length + 1) / 2 - reach).clip(0, 1)  # share of each pixel that is within length / 2
    kernel = np.concatenate([half[:0:-1], half]) / length
    return cv2.sepFilter2D(image, -1, kernel, np.ones(1), borderType=cv2.BORDER_REFLECT)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Defocus by a Gaussian of sigma pixels."""
    if sigma == 0:
        return image
    return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)


def vignetting(image: np.ndarray, fraction: float) -> np.ndarray:
    """Darken the corners by a fraction of their light, and less towards the middle: the cos^4 law of a plain lens."""
    (row, height), (column, width) = ((np.arange(n) - (n - 1) / 2, n - 1) for n in image.shape[:2])
    radius = 4 * (row[:, None] ** 2 + column**2) / max(height**2 + width**2, 1)  # squared; 1 in the corners
    corner = (1 - fraction) ** -0.5 - 1  # squared tangent of the angle of light that falls into the corners
    return image * ((1 + corner * radius) ** -2).astype(np.float32)[..., None]


def exposure(image: np.ndarray, stops: float) -> np.ndarray:
    """Multiply the light by 2**stops."""
    return image * np.float32(2.0**stops)


def cross_talk(image: np.ndarray, fraction: float) -> np.ndarray:
    """Move a fraction of the light of each colour to the two others, in equal parts; grey stays grey."""
    mix = np.full((3, 3), fraction / 2, np.float32)
    np.fill_diagonal(mix, 1 - fraction)
    return image @ mix


def fixed_pattern(image: np.ndarray, sd: float, seed: int) -> np.ndarray:
    """Add an offset to every pixel and channel, the same in each frame."""
    return image + np.float32(sd) * _pattern(image.shape, seed, PATTERN_STREAM)


def temporal_noise(image: np.ndarray, sd: float, seed: int, frame: int) -> np.ndarray:
    """Add noise that differs in each frame; the same seed and frame number give the same noise."""
    noise = np.random.default_rng([seed, frame, NOISE_STREAM]).standard_normal(image.shape, np.float32)
    return image + np.float32(sd) * noise


def dead_pixels(image: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Set a fraction of the pixels to a constant, half of them to black and half to white, the same in each frame."""
    draws = _pixel_draws(image.shape[:2], seed)[..., None]
    image = np.where(draws < fraction / 2, np.float32(0), image)
    return np.where(draws > 1 - fraction / 2, np.float32(255), image)


def row_banding(image: np.ndarray, sd: float, seed: int) -> np.ndarray:
    """Add a grey offset to every row, the same in each frame."""
    return image + np.float32(sd) * _pattern((image.shape[0], 1, 1), seed, ROW_STREAM)


def column_banding(image: np.ndarray, sd: float, seed: int) -> np.ndarray:
    """Add a grey offset to every column, the same in each frame."""
    return image + np.float32(sd) * _pattern((1, image.shape[1], 1), seed, COLUMN_STREAM)


def black_level(image: np.ndarray, red: float, green: float, blue: float) -> np.ndarray:
    """Add a constant number of grey levels to each colour."""
    return image + np.array([red, green, blue], np.float32)


def gain(image: np.ndarray, red: float, green: float, blue: float) -> np.ndarray:
    """Multiply each colour by a factor: equal factors change the sensitivity, unequal ones the white balance."""
    return image * np.array([red, green, blue], np.float32)


def gamma(image: np.ndarray, exponent: float) -> np.ndarray:
    """Bend the tone curve: black and white stay; an exponent above 1 darkens the levels between them."""
    return 255 * (image.clip(0, 255) / 255) ** np.float32(exponent)


def jpeg(image: np.ndarray, quality: float) -> np.ndarray:
    """Quantise, compress as JPEG and decode again. quality: 1 to 100, rounded."""
    bgr = cv2.cvtColor(quantise(image), cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, round(quality)])
    read = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert read is not None
    return cv2.cvtColor(read, cv2.COLOR_BGR2RGB).astype(np.float32)


def quantise(image: np.ndarray) -> np.ndarray:
    """Return the image as uint8: rounded to whole grey levels, and clipped to 0..255."""
    return np.rint(image.clip(0, 255)).astype(np.uint8)


@lru_cache(maxsize=8)
def _pattern(shape: tuple[int, ...], seed: int, stream: int) -> np.ndarray:
    """Return standard normal numbers that are the same in each frame."""
    return np.random.default_rng([seed, 0, stream]).standard_normal(shape, np.float32)


@lru_cache(maxsize=8)
def _pixel_draws(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Return a uniform random number 0..1 for each pixel, the same in each frame."""
    return np.random.default_rng([seed, 0, DEAD_PIXEL_STREAM]).random(shape)


class DriftKind(NamedTuple):
    """A drift that can be named: its function of (image, strengths, seed, frame), its unit and its range."""

    apply: Callable[[np.ndarray, tuple[float, ...], int, int], np.ndarray]
    unit: str
    low: float
    high: float
    per_channel: bool = False  # one value for all colours, or red:green:blue


# In the order in which light becomes a picture: air, lens, colour filters, pixels, readout, amplifier, tone curve,
# file.
DRIFT_KINDS = {
    "haze": DriftKind(lambda x, s, *_: haze(x, *s), "fraction", 0, 1),
    "motion-blur": DriftKind(lambda x, s, *_: motion_blur(x, *s), "pixels", 0, 100),
    "blur": DriftKind(lambda x, s, *_: blur(x, *s), "pixels sigma", 0, 20),
    "vignetting": DriftKind(lambda x, s, *_: vignetting(x, *s), "fraction lost in the corners", 0, 0.99),
    "exposure": DriftKind(lambda x, s, *_: exposure(x, *s), "stops", -8, 8),
    # at 2/3 the three colours are equal, and colour is lost for good
    "cross-talk": DriftKind(lambda x, s, *_: cross_talk(x, *s), "fraction", 0, 0.65),
    "fixed-pattern": DriftKind(lambda x, s, seed, _: fixed_pattern(x, s[0], seed), "grey levels sd", 0, 128),
    "temporal-noise": DriftKind(lambda x, s, *at: temporal_noise(x, s[0], *at), "grey levels sd", 0, 128),
    "dead-pixels": DriftKind(lambda x, s, seed, _: dead_pixels(x, s[0], seed), "fraction", 0, 1),
    "row-banding": DriftKind(lambda x, s, seed, _: row_banding(x, s[0], seed), "grey levels sd", 0, 128),
    "column-banding": DriftKind(lambda x, s, seed, _: column_banding(x, s[0], seed), "grey levels sd", 0, 128),
    "black-level": DriftKind(lambda x, s, *_: black_level(x, *s), "grey levels", -255, 255, per_channel=True),
    "gain": DriftKind(lambda x, s, *_: gain(x, *s), "factor", 0.01, 100, per_channel=True),
    "gamma": DriftKind(lambda x, s, *_: gamma(x, *s), "exponent", 0.1, 10),
    "jpeg": DriftKind(lambda x, s, *_: jpeg(x, *s), "quality", 1, 100),
}


@dataclass(frozen=True)
class Drift:
    """The drift of one camera: strengths by name, always applied in the order of DRIFT_KINDS."""

    strengths: dict[str, tuple[float, ...]]
    seed: int = 0

    def __call__(self, image: np.ndarray, frame: int = 0) -> np.ndarray:
        """Return the picture (H, W, 3) RGB, uint8 or uint16, as the drifted camera would take it, in its depth."""
        light = to_levels(image)
        for name, kind in DRIFT_KINDS.items():
            if name in self.strengths:
                light = kind.apply(light, self.strengths[name], self.seed, frame)
        return to_depth(light.clip(0, MAX_LEVEL), image.dtype)

    def __str__(self) -> str:
        return ",".join(f"{name}={':'.join(map(_plain, values))}" for name, values in self.strengths.items())


def _plain(value: float) -> str:
    return repr(value).removesuffix(".0")


def parse_drift(text: str, seed: int = 0) -> Drift:
    """Parse a text such as "fixed-pattern=12,blur=0.7,gain=1.1:1:0.9"; an empty text is a camera without drift.

    Raises SimulationError.
    """
    strengths: dict[str, tuple[float, ...]] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (side.strip() for side in part.partition("="))
        if name not in DRIFT_KINDS:
            raise SimulationError(f"drift {name!r} is not known; choose from {', '.join(DRIFT_KINDS)}")
        if name in strengths:
            raise SimulationError(f"drift {name} is given twice; keep one")
        strengths[name] = _parse_strengths(name, DRIFT_KINDS[name], value)
    return Drift(strengths, seed)


def _parse_strengths(name: str, kind: DriftKind, text: str) -> tuple[float, ...]:
    wanted = f"write {name}=NUMBER{' or RED:GREEN:BLUE' * kind.per_channel} in {kind.unit}"
    try:
        values = tuple(float(part) for part in text.split(":"))
    except ValueError:
        raise SimulationError(f"drift {name}: {text!r} is not a number; {wanted}") from None
    if len(values) != 1 and not (kind.per_channel and len(values) == 3):
        raise SimulationError(f"drift {name}: {text!r} holds {len(values)} numbers; {wanted}")
    if not all(kind.low <= value <= kind.high for value in values):  # refuses nan too
        raise SimulationError(f"drift {name}: {text} is not within {kind.low:g} to {kind.high:g}; {wanted}")
    return values * 3 if kind.per_channel and len(values) == 1 else values
