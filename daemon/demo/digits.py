"""Handwritten digits as a colour camera would see them: coloured ink on varied, natural-looking ground."""

from typing import Any, NamedTuple

import cv2
import numpy as np

from calibrate.errors import RecaldError

SIZE = 32  # pixels a side of a rendered image
GLYPH = 26  # pixels a side of the digit in it: the 8x8 original, enlarged
MAX_SHIFT = 3  # pixels a digit may lie off the centre
GRADIENT = 30.0  # grey levels a background changes from one edge to the other, at most
TEXTURE = 10.0  # standard deviation of the background's 1/f texture, grey levels
CONTRAST = 95.0  # least distance of ink and ground in RGB, grey levels: colour may be all that tells them apart
HELD_OUT = 0.25  # share of the digit images that no training picture shows


class DemoError(RecaldError):
    """The demo cannot run; the message says what to do."""


class Split(NamedTuple):
    """Pictures of one share of the digits: (N, 32, 32, 3) uint8 RGB; label and source of each, both (N,)."""

    images: np.ndarray
    labels: np.ndarray
    source: np.ndarray  # index of the digit in scikit-learn's set


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's handwritten digits: (1797, 8, 8) float in 0..1 and their labels."""
    try:
        from sklearn.datasets import load_digits as load
    except ImportError:
        raise DemoError("the demo's digits come with scikit-learn: pip install 'recald[demo]'") from None
    digits: Any = load()
    return (digits.images / 16.0).astype(np.float32), digits.target.astype(np.int64)


def make_splits(seed: int, *, train_renderings: int, test_renderings: int) -> tuple[Split, Split]:
    """Training and held-out pictures: no digit is in both, and the same seed gives the same bytes."""
    glyphs, labels = load_digits()
    order = np.random.default_rng([seed, 0]).permutation(len(glyphs))
    held_out = int(len(glyphs) * HELD_OUT)
    test, train = order[:held_out], order[held_out:]
    return (
        render_split(glyphs, labels, np.repeat(train, train_renderings), np.random.default_rng([seed, 1])),
        render_split(glyphs, labels, np.repeat(test, test_renderings), np.random.default_rng([seed, 2])),
    )


def render_split(glyphs: np.ndarray, labels: np.ndarray, source: np.ndarray, rng: np.random.Generator) -> Split:
    images = np.stack([render(glyphs[index], rng) for index in source])
    return Split(images, labels[source], source)


def render(glyph: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One picture of an 8x8 glyph (0..1): (32, 32, 3) uint8 RGB."""
    ground_colour, ink_colour = choose_colours(rng)
    ground = ground_colour + gradient(rng) + texture(rng)[:, :, None]
    mask = place(glyph, rng)[:, :, None]
    image = ground + mask * (ink_colour - ground)
    return np.rint(image.clip(0, 255)).astype(np.uint8)


def choose_colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    ground = rng.uniform(50, 205, 3)
    while True:
        ink = rng.uniform(15, 240, 3)
        if np.linalg.norm(ink - ground) >= CONTRAST:
            return ground, ink


def gradient(rng: np.random.Generator) -> np.ndarray:
    """A smooth change of colour across the picture, in a random direction: (32, 32, 3) grey levels."""
    angle = rng.uniform(0, 2 * np.pi)
    axis = np.linspace(-0.5, 0.5, SIZE)
    ramp = np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None]
    return ramp[:, :, None] * rng.uniform(-GRADIENT, GRADIENT, 3)


def texture(rng: np.random.Generator) -> np.ndarray:
    """Brightness noise whose amplitude falls as 1/f, the spectrum of natural scenes: (32, 32) grey levels."""
    fy, fx = np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE)[None, :]
    amplitude = 1.0 / np.maximum(np.hypot(fy, fx), 1.0 / SIZE)
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((SIZE, SIZE))) * amplitude, s=(SIZE, SIZE))
    return TEXTURE * (field - field.mean()) / field.std()


def place(glyph: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The glyph enlarged and put near the centre: (32, 32) share of ink in 0..1."""
    large = cv2.resize(glyph, (GLYPH, GLYPH), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    margin = (SIZE - GLYPH) // 2
    top, left = margin + rng.integers(-MAX_SHIFT, MAX_SHIFT + 1, 2)
    mask = np.zeros((SIZE, SIZE), np.float32)
    mask[top : top + GLYPH, left : left + GLYPH] = large
    return mask
