"""The fifteen corruptions of CIFAR-10-C at severity 5, after the descriptions and constants of its authors.

Hendrycks & Dietterich 2019, "Benchmarking neural network robustness to common corruptions and perturbations", with the
constants for images of 32x32. Random numbers are others, so single images differ. Frost needs photographs of frost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

Generator = np.random.Generator
Corrupt = Callable[[np.ndarray, Generator], np.ndarray]  # an image (H, W, 3) RGB float32, 0 to 1, to another one

FROST = "frost"
FROST_SCALE, FROST_LIGHT, FROST_WEIGHT = 0.2, 0.75, 0.45
BLACK_OUTSIDE, NEAREST_OUTSIDE, MIRRORED_OUTSIDE = cv2.BORDER_CONSTANT, cv2.BORDER_REPLICATE, cv2.BORDER_REFLECT_101


def gaussian_noise(image: np.ndarray, random: Generator) -> np.ndarray:
    """Add noise with a standard deviation of a tenth of white."""
    return image + random.normal(scale=0.1, size=image.shape)


def shot_noise(image: np.ndarray, random: Generator) -> np.ndarray:
    """Count photons, 50 of them where the image is white."""
    return random.poisson(image * 50) / 50


def impulse_noise(image: np.ndarray, random: Generator) -> np.ndarray:
    """Set 7 % of all values to black or white, each half of them."""
    hit, white = random.random(image.shape) < 0.07, random.random(image.shape) < 0.5
    return np.where(hit, white, image)


def defocus_blur(image: np.ndarray, random: Generator) -> np.ndarray:
    """Average over a disk of 1.5 pixels."""
    reach = np.arange(-2, 3)
    disk = (reach[:, None] ** 2 + reach**2 <= 1.5**2).astype(np.float32)
    return cv2.filter2D(image, -1, disk / disk.sum())


def glass_blur(image: np.ndarray, random: Generator) -> np.ndarray:
    """Blur, exchange each pixel with itself or a neighbour above or left of it, twice, and blur again.

    The authors' code exchanges views of an array, which copies one pixel over the other instead.
    """
    height, width = image.shape[:2]
    places = list(range(height * width))
    for shifts in random.choice([0, 1, width, width + 1], (2, height * width)).tolist():
        for row in range(height - 1, 0, -1):
            for here in range(row * width + width - 1, row * width, -1):
                there = here - shifts[here]
                places[here], places[there] = places[there], places[here]
    exchanged = _blur(image, 0.4).reshape(height * width, -1)[places].reshape(image.shape)
    return _blur(exchanged, 0.4)


def motion_blur(image: np.ndarray, random: Generator) -> np.ndarray:
    """Smear in one direction, up to 45 degrees from sideways, with a Gaussian of 2.5 pixels that has one side."""
    return _smear(image, 9, 2.5, random.uniform(-45, 45))


def zoom_blur(image: np.ndarray, random: Generator) -> np.ndarray:
    """Average over zooms from 1 to 1.25."""
    zoomed = [_zoomed(image, factor) for factor in np.arange(1, 1.26, 0.01)]
    return np.mean([image, *zoomed], 0)


def snow(image: np.ndarray, random: Generator) -> np.ndarray:
    """Pale the image, and add smeared flakes and the same turned around."""
    flakes = _zoomed(random.normal(0.3, 0.3, image.shape[:2]).astype(np.float32), 1.25)
    flakes = np.where(flakes < 0.65, 0, flakes).clip(0, 1).astype(np.float32)
    flakes = _smear(flakes, 14, 12, random.uniform(-135, -45))[..., None]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    pale = 0.8 * image + 0.2 * np.maximum(image, grey * 1.5 + 0.5)
    return pale + flakes + np.rot90(flakes, 2)


def fog(image: np.ndarray, random: Generator) -> np.ndarray:
    """Add a plasma fractal, 1.5 at most, and scale to the brightest value of before."""
    plasma = _plasma(32, 1.75, random)[: image.shape[0], : image.shape[1], None]
    brightest = image.max()
    return (image + 1.5 * plasma) * brightest / (brightest + 1.5)


def brightness(image: np.ndarray, random: Generator) -> np.ndarray:
    """Add 0.3 to the value of each colour, at the same hue and saturation."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 2] = (hsv[..., 2] + 0.3).clip(0, 1)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def contrast(image: np.ndarray, random: Generator) -> np.ndarray:
    """Shrink the distance from the mean colour of each image to 0.15 of it."""
    mean = image.mean((0, 1), keepdims=True)
    return (image - mean) * 0.15 + mean


def elastic_transform(image: np.ndarray, random: Generator) -> np.ndarray:
    """Move three points by up to 0.96 pixels, and all pixels by up to 3.2, smoothed with 0.96."""
    height, width = image.shape[:2]
    middle, reach = np.array([height, width], np.float32) // 2, min(height, width) // 3
    corners = np.array([middle + reach, [middle[0] + reach, middle[1] - reach], middle - reach], np.float32)
    moved = corners + random.uniform(-0.96, 0.96, corners.shape).astype(np.float32)
    matrix = cv2.getAffineTransform(corners, moved)
    sheared = cv2.warpAffine(image, matrix, (width, height), borderMode=MIRRORED_OUTSIDE)
    right, down = (_blur(random.uniform(-1, 1, (height, width)).astype(np.float32), 0.96) * 3.2 for _ in range(2))
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    return cv2.remap(sheared, columns + right, rows + down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def pixelate(image: np.ndarray, random: Generator) -> np.ndarray:
    """Reduce to 0.65 of the size by areas, and enlarge without interpolation."""
    height, width = image.shape[:2]
    small = cv2.resize(image, (int(width * 0.65), int(height * 0.65)), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def jpeg_compression(image: np.ndarray, random: Generator) -> np.ndarray:
    """Compress with quality 40."""
    levels = np.rint(image[..., ::-1].clip(0, 1) * 255).astype(np.uint8)
    _, data = cv2.imencode(".jpg", levels, [cv2.IMWRITE_JPEG_QUALITY, 40])
    read = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert read is not None
    return read[..., ::-1].astype(np.float32) / 255


def frost(pictures: Path) -> Corrupt:
    """Return the corruption that adds a piece of a photograph of frost, at random out of a folder."""
    photographs = [cv2.imread(str(path), cv2.IMREAD_COLOR) for path in sorted(pictures.iterdir())]
    small = [cv2.resize(p, None, fx=FROST_SCALE, fy=FROST_SCALE)[..., ::-1] / 255 for p in photographs if p is not None]
    if not small:
        raise FileNotFoundError(f"{pictures} holds no picture")

    def add(image: np.ndarray, random: Generator) -> np.ndarray:
        photograph = small[random.integers(len(small))]
        row, column = (random.integers(0, photograph.shape[side] - image.shape[side]) for side in (0, 1))
        piece = photograph[row : row + image.shape[0], column : column + image.shape[1]]
        return FROST_LIGHT * image + FROST_WEIGHT * piece

    return add


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), sigma, borderType=NEAREST_OUTSIDE)


def _zoomed(image: np.ndarray, factor: float) -> np.ndarray:
    """Enlarge around the middle, in the same frame."""
    height, width = image.shape[:2]
    middle = (width - 1) / 2, (height - 1) / 2
    matrix = cv2.getRotationMatrix2D(middle, 0, factor)
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=NEAREST_OUTSIDE)


def _smear(image: np.ndarray, radius: int, sigma: float, degrees: float) -> np.ndarray:
    """Average along a line that begins at each pixel, with the weights of half a Gaussian."""
    length = 2 * radius + 1
    steps, angle = np.arange(length), np.deg2rad(degrees)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    kernel = np.zeros((2 * length + 1,) * 2, np.float32)
    rows, columns = (np.ceil(steps * part - 0.5).astype(int) for part in (np.sin(angle), np.cos(angle)))
    np.add.at(kernel, (length + rows, length + columns), weights / weights.sum())
    return cv2.filter2D(image, -1, kernel, borderType=NEAREST_OUTSIDE)


def _plasma(size: int, decay: float, random: Generator) -> np.ndarray:
    """Return a height map (size, size) from 0 to 1 by the diamond-square algorithm; size is a power of two."""
    heights, step, roughness = np.zeros((size, size)), size, 100.0

    def rough(mean: np.ndarray) -> np.ndarray:
        return mean + roughness * random.uniform(-roughness, roughness, mean.shape)

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        below = corners + np.roll(corners, -1, 0)
        heights[half::step, half::step] = rough((below + np.roll(below, -1, 1)) / 4)
        centres = heights[half::step, half::step]
        beside = corners + np.roll(corners, -1, 1) + centres + np.roll(centres, 1, 0)
        heights[::step, half::step] = rough(beside / 4)
        above = corners + np.roll(corners, -1, 0) + centres + np.roll(centres, 1, 1)
        heights[half::step, ::step] = rough(above / 4)
        step, roughness = half, roughness / decay
    heights -= heights.min()
    return heights / heights.max()


CORRUPTIONS: dict[str, Corrupt | None] = {  # in the order of the benchmark; frost needs a folder
    "gaussian noise": gaussian_noise,
    "shot noise": shot_noise,
    "impulse noise": impulse_noise,
    "defocus blur": defocus_blur,
    "glass blur": glass_blur,
    "motion blur": motion_blur,
    "zoom blur": zoom_blur,
    "snow": snow,
    FROST: None,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "elastic transform": elastic_transform,
    "pixelate": pixelate,
    "jpeg": jpeg_compression,
}


@dataclass(frozen=True)
class Corruption:
    """One corruption of a camera, which `bench.drifts` can measure like a drift."""

    name: str
    corrupt: Corrupt
    seed: int

    def __call__(self, image: np.ndarray, frame: int) -> np.ndarray:
        """Return the image (H, W, 3) uint8 with the random numbers of this frame."""
        random = np.random.default_rng([self.seed, frame])
        corrupted = self.corrupt(image.astype(np.float32) / 255, random)
        return (np.clip(corrupted, 0, 1) * 255).astype(np.uint8)
