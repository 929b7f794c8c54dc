"""Renders handwritten digits as a colour camera sees them: coloured ink on a textured background."""

from typing import Any, NamedTuple

import cv2
import numpy as np

from calibrate.errors import RecaldError

DIGIT_IMAGE_PX = 32  # side of a rendered image
GLYPH_PX = 26  # side of the digit in it, the enlarged 8x8 original
MAX_GLYPH_SHIFT_PX = 3  # from the centre of the image
MAX_GRADIENT_LEVELS = 30.0  # change of the background from one edge to the other, grey levels
TEXTURE_STD_LEVELS = 10.0  # of the background's 1/f texture, grey levels
MIN_INK_DISTANCE_LEVELS = 95.0  # from ink to background in RGB; they may differ in colour only
HELD_OUT_DIGITS_RATIO = 0.25  # of the digits, which no training image shows


class DemoError(RecaldError):
    """The demo cannot run. The message says what to do."""


class Split(NamedTuple):
    """Images of one share of the digits: (N, 32, 32, 3) uint8 RGB; label and source of each, both (N,)."""

    images: np.ndarray
    labels: np.ndarray
    source: np.ndarray  # index of the digit in scikit-learn's set


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Load scikit-learn's handwritten digits: (1797, 8, 8) float in 0..1, and their labels. Raises DemoError."""
    try:
        from sklearn.datasets import load_digits as load
    except ImportError:
        raise DemoError("the demo's digits come with scikit-learn: pip install 'recald[demo]'") from None
    digits: Any = load()
    return (digits.images / 16.0).astype(np.float32), digits.target.astype(np.int64)


def make_splits(seed: int, *, train_renderings: int, test_renderings: int) -> tuple[Split, Split]:
    """Render training and held-out images: no digit is in both, and the same seed gives the same bytes."""
    glyphs, labels = load_digits()
    order = np.random.default_rng([seed, 0]).permutation(len(glyphs))
    held_out = int(len(glyphs) * HELD_OUT_DIGITS_RATIO)
    test, train = order[:held_out], order[held_out:]
    return (
        render_split(glyphs, labels, np.repeat(train, train_renderings), np.random.default_rng([seed, 1])),
        render_split(glyphs, labels, np.repeat(test, test_renderings), np.random.default_rng([seed, 2])),
    )


def render_split(glyphs: np.ndarray, labels: np.ndarray, source: np.ndarray, rng: np.random.Generator) -> Split:
    images = np.stack([render(glyphs[index], rng) for index in source])
    return Split(images, labels[source], source)


def render(glyph: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Render one image of an 8x8 glyph (0..1): (32, 32, 3) uint8 RGB."""
    ground_colour, ink_colour = choose_colours(rng)
    ground = ground_colour + gradient(rng) + texture(rng)[:, :, None]
    mask = place(glyph, rng)[:, :, None]
    image = ground + mask * (ink_colour - ground)
    return np.rint(image.clip(0, 255)).astype(np.uint8)


def choose_colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    ground = rng.uniform(50, 205, 3)
    while True:
        ink = rng.uniform(15, 240, 3)
        if np.linalg.norm(ink - ground) >= MIN_INK_DISTANCE_LEVELS:
            return ground, ink


def gradient(rng: np.random.Generator) -> np.ndarray:
    """Return a smooth change of colour across the image, in a random direction: (32, 32, 3) grey levels."""
    angle = rng.uniform(0, 2 * np.pi)
    axis = np.linspace(-0.5, 0.5, DIGIT_IMAGE_PX)
    ramp = np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None]
    return ramp[:, :, None] * rng.uniform(-MAX_GRADIENT_LEVELS, MAX_GRADIENT_LEVELS, 3)


def texture(rng: np.random.Generator) -> np.ndarray:
    """Return brightness noise whose amplitude falls as 1/f, the spectrum of natural scenes: (32, 32) grey levels."""
    size = DIGIT_IMAGE_PX
    fy, fx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :]
    amplitude = 1.0 / np.maximum(np.hypot(fy, fx), 1.0 / size)
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((size, size))) * amplitude, s=(size, size))
    return TEXTURE_STD_LEVELS * (field - field.mean()) / field.std()


def place(glyph: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Enlarge the glyph and put it near the centre: (32, 32) share of ink in 0..1."""
    large = cv2.resize(glyph, (GLYPH_PX, GLYPH_PX), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    margin = (DIGIT_IMAGE_PX - GLYPH_PX) // 2
    top, left = margin + rng.integers(-MAX_GLYPH_SHIFT_PX, MAX_GLYPH_SHIFT_PX + 1, 2)
    mask = np.zeros((DIGIT_IMAGE_PX, DIGIT_IMAGE_PX), np.float32)
    mask[top : top + GLYPH_PX, left : left + GLYPH_PX] = large
    return mask
