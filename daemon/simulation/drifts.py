"""What happens to cameras: drifts in physical units, along the way the light takes through one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from calibrate.errors import RecaldError

# Images here are float32 (H, W, 3) RGB, and grey levels 0..255 count as proportional to light, as in a camera
# with gamma 1. No function clips: that is the converter's part, `quantise`, at the end of the chain.

AIRLIGHT = 220  # grey level of fog in daylight: bright, not white

# What is random comes from (seed, frame, stream), so that no two kinds share their numbers. What stays the same
# in each frame has frame 0.
PATTERN, NOISE, ROWS, COLUMNS, DEAD = range(5)


class SimulationError(RecaldError):
    """A drift that cannot be used; the message says what to do."""


def haze(image: np.ndarray, fraction: float) -> np.ndarray:
    """Let the air replace a fraction of the scene's light by its own, a light grey."""
    return image * np.float32(1 - fraction) + np.float32(fraction * AIRLIGHT)


def motion_blur(image: np.ndarray, length: float) -> np.ndarray:
    """Smear by a sideways movement of `length` pixels during the exposure; up to one pixel does not show."""
    if length <= 1:
        return image
    reach = np.arange(np.ceil((length - 1) / 2) + 1)
    half = ((length + 1) / 2 - reach).clip(0, 1)  # how much of each pixel lies within length / 2
    kernel = np.concatenate([half[:0:-1], half]) / length
    return cv2.sepFilter2D(image, -1, kernel, np.ones(1), borderType=cv2.BORDER_REFLECT)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Defocus by a Gaussian of sigma pixels."""
    if sigma == 0:
        return image
    return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)


def vignetting(image: np.ndarray, fraction: float) -> np.ndarray:
    """Lose a fraction of the light in the corners, less towards the middle: the cos^4 law of a plain lens."""
    (row, height), (column, width) = ((np.arange(n) - (n - 1) / 2, n - 1) for n in image.shape[:2])
    radius = 4 * (row[:, None] ** 2 + column**2) / max(height**2 + width**2, 1)  # squared; 1 in the corners
    corner = (1 - fraction) ** -0.5 - 1  # squared tangent of the angle at which light comes into them
    return image * ((1 + corner * radius) ** -2).astype(np.float32)[..., None]


def exposure(image: np.ndarray, stops: float) -> np.ndarray:
    """Gather 2**stops times the light."""
    return image * np.float32(2.0**stops)


def cross_talk(image: np.ndarray, fraction: float) -> np.ndarray:
    """Let each colour lose a fraction of its light to the two others, in equal parts; grey stays grey."""
    mix = np.full((3, 3), fraction / 2, np.float32)
    np.fill_diagonal(mix, 1 - fraction)
    return image @ mix


def fixed_pattern(image: np.ndarray, sd: float, seed: int) -> np.ndarray:
    """Add an offset to every pixel and channel, the same in each frame."""
    return image + np.float32(sd) * _pattern(image.shape, seed, PATTERN)


def temporal_noise(image: np.ndarray, sd: float, seed: int, frame: int) -> np.ndarray:
    """Add noise that is new in each frame, and the same again for the same seed and frame number."""
    noise = np.random.default_rng([seed, frame, NOISE]).standard_normal(image.shape, np.float32)
    return image + np.float32(sd) * noise


def dead_pixels(image: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Make a fraction of the pixels stick, one half at black and the other at white, the same in each frame."""
    fate = _fate(image.shape[:2], seed)
    image = np.where(fate[..., None] < fraction / 2, np.float32(0), image)
    return np.where(fate[..., None] > 1 - fraction / 2, np.float32(255), image)


def row_banding(image: np.ndarray, sd: float, seed: int) -> np.ndarray:
    """Add a grey offset to every row, the same in each frame."""
    return image + np.float32(sd) * _pattern((image.shape[0], 1, 1), seed, ROWS)


def column_banding(image: np.ndarray, sd: float, seed: int) -> np.ndarray:
    """Add a grey offset to every column, the same in each frame."""
    return image + np.float32(sd) * _pattern((1, image.shape[1], 1), seed, COLUMNS)


def black_level(image: np.ndarray, red: float, green: float, blue: float) -> np.ndarray:
    """Shift every grey level by as many levels."""
    return image + np.array([red, green, blue], np.float32)


def gain(image: np.ndarray, red: float, green: float, blue: float) -> np.ndarray:
    """Amplify the colours by a factor each: sensitivity where they are equal, white balance where not."""
    return image * np.array([red, green, blue], np.float32)


def gamma(image: np.ndarray, exponent: float) -> np.ndarray:
    """Bend the tone curve: black and white stay, and an exponent over 1 darkens what lies between."""
    return 255 * (image.clip(0, 255) / 255) ** np.float32(exponent)


def jpeg(image: np.ndarray, quality: float) -> np.ndarray:
    """Convert to whole grey levels, compress and read again, at a quality of 1 to 100, rounded."""
    bgr = cv2.cvtColor(quantise(image), cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, round(quality)])
    read = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert read is not None
    return cv2.cvtColor(read, cv2.COLOR_BGR2RGB).astype(np.float32)


def quantise(image: np.ndarray) -> np.ndarray:
    """What the converter makes of it: whole grey levels, and nothing below black or above white."""
    return np.rint(image.clip(0, 255)).astype(np.uint8)


@lru_cache(maxsize=8)
def _pattern(shape: tuple[int, ...], seed: int, stream: int) -> np.ndarray:
    return np.random.default_rng([seed, 0, stream]).standard_normal(shape, np.float32)


@lru_cache(maxsize=8)
def _fate(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng([seed, 0, DEAD]).random(shape)


class Kind(NamedTuple):
    """A drift as it is written: what it does to (image, strengths, seed, frame), its unit and its range."""

    apply: Callable[[np.ndarray, tuple[float, ...], int, int], np.ndarray]
    unit: str
    low: float
    high: float
    per_channel: bool = False  # one value for all colours, or red:green:blue


# In the order in which light becomes a picture: air, lens, colour filters, pixels, readout, amplifier, tone curve, and
# the file.
KINDS = {
    "haze": Kind(lambda x, s, *_: haze(x, *s), "fraction", 0, 1),
    "motion-blur": Kind(lambda x, s, *_: motion_blur(x, *s), "pixels", 0, 100),
    "blur": Kind(lambda x, s, *_: blur(x, *s), "pixels sigma", 0, 20),
    "vignetting": Kind(lambda x, s, *_: vignetting(x, *s), "fraction lost in the corners", 0, 0.99),
    "exposure": Kind(lambda x, s, *_: exposure(x, *s), "stops", -8, 8),
    # at 2/3 the three colours are one, and what they told apart is gone
    "cross-talk": Kind(lambda x, s, *_: cross_talk(x, *s), "fraction", 0, 0.65),
    "fixed-pattern": Kind(lambda x, s, seed, _: fixed_pattern(x, s[0], seed), "grey levels sd", 0, 128),
    "temporal-noise": Kind(lambda x, s, *at: temporal_noise(x, s[0], *at), "grey levels sd", 0, 128),
    "dead-pixels": Kind(lambda x, s, seed, _: dead_pixels(x, s[0], seed), "fraction", 0, 1),
    "row-banding": Kind(lambda x, s, seed, _: row_banding(x, s[0], seed), "grey levels sd", 0, 128),
    "column-banding": Kind(lambda x, s, seed, _: column_banding(x, s[0], seed), "grey levels sd", 0, 128),
    "black-level": Kind(lambda x, s, *_: black_level(x, *s), "grey levels", -255, 255, per_channel=True),
    "gain": Kind(lambda x, s, *_: gain(x, *s), "factor", 0.01, 100, per_channel=True),
    "gamma": Kind(lambda x, s, *_: gamma(x, *s), "exponent", 0.1, 10),
    "jpeg": Kind(lambda x, s, *_: jpeg(x, *s), "quality", 1, 100),
}


@dataclass(frozen=True)
class Drift:
    """What has happened to a camera: strengths by name. Applied in the order of KINDS, however written."""

    strengths: dict[str, tuple[float, ...]]
    seed: int = 0

    def __call__(self, image: np.ndarray, frame: int = 0) -> np.ndarray:
        """Return the picture that the drifted camera takes of this one; both (H, W, 3) uint8 RGB."""
        light = image.astype(np.float32)
        for name, kind in KINDS.items():
            if name in self.strengths:
                light = kind.apply(light, self.strengths[name], self.seed, frame)
        return quantise(light)

    def __str__(self) -> str:
        return ",".join(f"{name}={':'.join(map(_plain, values))}" for name, values in self.strengths.items())


def _plain(value: float) -> str:
    return repr(value).removesuffix(".0")


def parse_drift(text: str, seed: int = 0) -> Drift:
    """Read "fixed-pattern=12,blur=0.7,gain=1.1:1:0.9"; an empty text is a camera without drift."""
    strengths: dict[str, tuple[float, ...]] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (side.strip() for side in part.partition("="))
        if name not in KINDS:
            raise SimulationError(f"drift {name!r} is not known; choose from {', '.join(KINDS)}")
        if name in strengths:
            raise SimulationError(f"drift {name} is given twice; keep one")
        strengths[name] = _parse_strengths(name, KINDS[name], value)
    return Drift(strengths, seed)


def _parse_strengths(name: str, kind: Kind, text: str) -> tuple[float, ...]:
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
