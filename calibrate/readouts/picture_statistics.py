"""Additive statistics of pictures, in blocks of time: all that the read-outs know of frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache, reduce
from itertools import accumulate

import torch
from torch import Tensor

BLOCKS = 8  # of time, that standard errors are estimated from
HISTOGRAM_LEVELS = 256
# Sides of the squares of pixels that are averaged before a histogram is taken: those of a blurred picture are nearly
# the same as those of a blurred one of 0, 0.5, 1.1 and 2.3 px sigma, at a tenth of its cost.
SQUARES = (1, 2, 4, 8)
RINGS = 6  # around the middle, of as many pixels each: scenes have other content in the middle than in the corners
COLOUR_SQUARE = 2  # index in SQUARES: colour covariance is of squares this large, which blur and noise hardly change
MIN_SIDE, CHANNELS = 16, (1, 3)  # of pictures: smaller ones have too few squares and frequencies


@dataclass(frozen=True)
class PictureStatistics:
    """Sums over the pictures of each of B blocks of time, 1 to BLOCKS, the oldest first. Grey levels 0..255.

    frames: (B,), number of pictures. histograms: (B, len(SQUARES), C, HISTOGRAM_LEVELS), counts of squares of pixels.
    rings: (B, RINGS, C, HISTOGRAM_LEVELS), counts of pixels in rings around the middle, the inmost first.
    totals, squares: (B, C, h, w), sum of each pixel and of its square. products: (B, C, C), of the colours of squares.
    spectrum: (B, h // 2 + 1, w // 2 + 1), power of the middle colour behind a Hann window, by |frequency|.
    """

    frames: Tensor
    histograms: Tensor
    rings: Tensor
    totals: Tensor
    squares: Tensor
    products: Tensor
    spectrum: Tensor

    @staticmethod
    def of(images: Tensor) -> PictureStatistics:
        """Measure pictures (N, h, w, C) in order of time, uint8 or float, grey levels 0..255, C 1 or 3.

        Raises ValueError for another shape or type, for sides below MIN_SIDE, and for values that are not finite.
        """
        _validate(images)
        blocks = [_measure(block) for block in images.tensor_split(min(BLOCKS, len(images)))]
        return PictureStatistics(*map(torch.stack, zip(*blocks, strict=True)))

    def __add__(self, later: PictureStatistics) -> PictureStatistics:
        """Return the statistics of these pictures and later ones. Raises ValueError for pictures of another shape."""
        if self.totals.shape[1:] != later.totals.shape[1:]:
            raise ValueError(f"pictures of {_shape(self)} and of {_shape(later)} have no common statistics")
        groups = _neighbours(torch.cat([self.frames, later.frames]).tolist())
        parts = zip(self._parts(), later._parts(), strict=True)
        return PictureStatistics(*(_sum_groups([*a, *b], groups) for a, b in parts))

    def without(self, block: int) -> PictureStatistics:
        """Leave out a block."""
        kept = torch.arange(len(self.frames)) != block
        return PictureStatistics(*(part[kept] for part in self._parts()))

    def only(self, block: int) -> PictureStatistics:
        """Return one block."""
        return PictureStatistics(*(part[block : block + 1] for part in self._parts()))

    def tensors(self) -> dict[str, Tensor]:
        """Return the statistics by the names under which a file stores them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @staticmethod
    def of_tensors(tensors: Mapping[str, Tensor]) -> PictureStatistics:
        """Rebuild statistics. Raises ValueError for tensors that are missing, misshapen, not finite or negative."""
        names = [field.name for field in fields(PictureStatistics)]
        missing = [name for name in names if name not in tensors]
        if missing:
            raise ValueError(f"picture statistics: {', '.join(missing)} missing; measure the pictures again")
        found = PictureStatistics(*(tensors[name] for name in names))
        _validate_parts(found)
        return found

    def _parts(self) -> list[Tensor]:
        return [getattr(self, field.name) for field in fields(self)]


def windowed(pictures: Tensor) -> Tensor:
    """Return pictures (..., h, w) behind a Hann window of unit power (Welch 1967): borders are no edges then."""
    return pictures * _window(*pictures.shape[-2:]).to(pictures.dtype)


@lru_cache(maxsize=4)
def _window(height: int, width: int) -> Tensor:
    window = torch.outer(*(torch.hann_window(side, dtype=torch.float64) for side in (height, width)))
    return window / window.square().mean().sqrt()


def folded_power(pictures: Tensor) -> Tensor:
    """Return the power of pictures (n, h, w), summed over them: (h // 2 + 1, w // 2 + 1), by |frequency|.

    Its mean over all frequencies of the plane is the mean square of a picture.
    """
    height, width = pictures.shape[-2:]
    spectrum = torch.view_as_real(torch.fft.rfft2(windowed(pictures)))
    power = spectrum.square().sum((0, -1)).double() / (height * width)
    return (power + power.roll(-1, 0).flip(0))[: height // 2 + 1] / 2


def middle(channels: int) -> int:
    """Return the number of the colour that sharpness and noise are measured in: green, or grey."""
    return channels // 2


def _neighbours(frames: Sequence[float]) -> list[list[int]]:
    """Return the numbers of the blocks to merge: each time the two neighbours that have the fewest frames together."""
    groups, sizes = [[number] for number in range(len(frames))], list(frames)
    while len(groups) > BLOCKS:
        first = min(range(len(sizes) - 1), key=lambda i: sizes[i] + sizes[i + 1])
        groups[first] += groups.pop(first + 1)
        sizes[first] += sizes.pop(first + 1)
    return groups


def _sum_groups(blocks: Sequence[Tensor], groups: Sequence[Sequence[int]]) -> Tensor:
    return torch.stack([reduce(torch.add, (blocks[number] for number in group)) for group in groups])


def _measure(images: Tensor) -> tuple[Tensor, ...]:
    """Measure the pictures (n, h, w, C) of one block."""
    pictures = images.permute(0, 3, 1, 2).float().contiguous()
    pooled = list(accumulate(SQUARES[1:], lambda level, _: halved(level), initial=pictures))
    colours = pooled[COLOUR_SQUARE].transpose(0, 1).flatten(1)
    rings = _histogram_of_rings(pictures)
    return (
        torch.tensor(len(images), dtype=torch.float64),
        torch.stack([rings.sum(0), *map(_histogram, pooled[1:])]),
        rings,
        pictures.sum(0),
        pictures.square().sum(0),
        (colours @ colours.T).double(),
        folded_power(pictures[:, middle(pictures.shape[1])]),
    )


def halved(pictures: Tensor) -> Tensor:
    """Return the means of squares of 2x2 pixels; an odd row or column at the end is left out."""
    height, width = (side // 2 * 2 for side in pictures.shape[-2:])
    rows = pictures[..., 0:height:2, :width] + pictures[..., 1:height:2, :width]
    return (rows[..., 0::2] + rows[..., 1::2]) / 4


def squared_radius(height: int, width: int) -> Tensor:
    """Return the squared distance (h, w) from the middle, 1 in the corners."""
    row, column = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in (height, width))
    return 4 * (row[:, None] ** 2 + column**2) / ((height - 1) ** 2 + (width - 1) ** 2)


@lru_cache(maxsize=4)
def pixels_of_rings(height: int, width: int) -> tuple[Tensor, ...]:
    """Return the numbers of the pixels of each ring, of a picture as one row."""
    return squared_radius(height, width).flatten().argsort(stable=True).tensor_split(RINGS)


def _histogram(pictures: Tensor) -> Tensor:
    """Return the counts (C, HISTOGRAM_LEVELS) of values (n, C, h, w), rounded to whole levels."""
    return torch.stack([_counts(colour) for colour in _levels(pictures).transpose(0, 1)])


def _histogram_of_rings(pictures: Tensor) -> Tensor:
    """Return the counts (RINGS, C, HISTOGRAM_LEVELS) of values (n, C, h, w) in each ring."""
    levels = _levels(pictures).flatten(2)
    rings = (levels[:, :, pixels] for pixels in pixels_of_rings(*pictures.shape[-2:]))
    return torch.stack([torch.stack([_counts(colour) for colour in ring.transpose(0, 1)]) for ring in rings])


def _levels(pictures: Tensor) -> Tensor:
    return (pictures + 0.5).clamp_(0, HISTOGRAM_LEVELS - 1).to(torch.uint8)


def _counts(levels: Tensor) -> Tensor:
    return torch.bincount(levels.flatten(), minlength=HISTOGRAM_LEVELS).double()


def _shape(statistics: PictureStatistics) -> str:
    channels, height, width = statistics.totals.shape[1:]
    return f"{width}x{height} pixels in {channels} colours"


def _validate(images: Tensor) -> None:
    if images.dim() != 4 or images.shape[3] not in CHANNELS or len(images) == 0:
        raise ValueError(f"pictures must be (N, h, w, C), N 1 or more, C 1 or 3, not {tuple(images.shape)}")
    if min(images.shape[1:3]) < MIN_SIDE:
        raise ValueError(f"pictures must be {MIN_SIDE} pixels or more in height and width, not {images.shape[1:3]}")
    if images.dtype != torch.uint8 and not (images.is_floating_point() and torch.isfinite(images).all()):
        raise ValueError("pictures must be uint8, or float and finite")


def _validate_parts(found: PictureStatistics) -> None:
    if found.totals.dim() != 4:
        raise ValueError("picture statistics: totals is of another shape; measure the pictures again")
    blocks, channels, height, width = found.totals.shape
    if not (1 <= blocks <= BLOCKS and channels in CHANNELS and min(height, width) >= MIN_SIDE):
        raise ValueError("picture statistics: totals is of another shape; measure the pictures again")
    shapes = {
        "frames": (blocks,),
        "histograms": (blocks, len(SQUARES), channels, HISTOGRAM_LEVELS),
        "rings": (blocks, RINGS, channels, HISTOGRAM_LEVELS),
        "totals": (blocks, channels, height, width),
        "squares": (blocks, channels, height, width),
        "products": (blocks, channels, channels),
        "spectrum": (blocks, height // 2 + 1, width // 2 + 1),
    }
    for name, part in found.tensors().items():
        if part.shape != shapes[name]:
            raise ValueError(f"picture statistics: {name} is of another shape; measure the pictures again")
        if not (part.is_floating_point() and torch.isfinite(part).all() and (part >= 0).all()):
            raise ValueError(f"picture statistics: {name} has values that no pictures have; measure them again")
    if not (found.frames >= 1).all():
        raise ValueError("picture statistics: a block without pictures; measure the pictures again")
