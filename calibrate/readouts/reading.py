"""Estimate what happened to a camera: `read_outs` of the statistics of healthy and of recent pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from calibrate.readouts.clipping import WHITE, noise_sd, pattern_sd
from calibrate.readouts.colour import cross_talk
from calibrate.readouts.dead_pixels import could_die, dead_pixels
from calibrate.readouts.jackknife import block_errors, standard_errors
from calibrate.readouts.moments import colour_moments, mean_picture, quantiles, variance_picture
from calibrate.readouts.pattern import pattern, unseen_share_error
from calibrate.readouts.picture_statistics import (
    HISTOGRAM_LEVELS,
    PictureStatistics,
    middle,
    pixels_of_rings,
    squared_radius,
)
from calibrate.readouts.read_out import ReadOut
from calibrate.readouts.shading import fall_off, vignetting
from calibrate.readouts.sharpness import BLUR, MOTION_BLUR, Sharpness, sharpness
from calibrate.readouts.tone import (
    FLOOR_LEVELS,
    GAIN,
    GAMMA,
    QUANTILES,
    Before,
    blurred_quantiles,
    choose_tone,
    fit_tone,
    mixed,
)

# Estimated from spectra, mean pictures and covariances, in this order.
OPTICAL = (
    "motion-blur",
    "blur",
    "vignetting",
    "cross-talk",
    "fixed-pattern",
    "temporal-noise",
    "row-banding",
    "column-banding",
)
MIN_BLOCKS = 3
CALMEST_SHARE = 0.02  # of the pixels: enough to average over


def read_outs(healthy: PictureStatistics, recent: PictureStatistics) -> tuple[ReadOut, ...]:
    """Estimate each kind of drift that recent pictures show beyond healthy ones of the same camera.

    Kinds of tone curve that are not needed to explain the recent one are left out, as is cross-talk of grey pictures.
    Raises ValueError for pictures of another shape, and for fewer than MIN_BLOCKS blocks of either.
    """
    _validate(healthy, recent)
    dead = dead_pixels(healthy, recent)
    optical = (_dead_share(healthy, recent, dead), *_optical(healthy, recent, dead))
    return (*optical, *_tone(healthy, recent, dead, {one.kind: one.value for one in optical if one.significant}))


def _validate(healthy: PictureStatistics, recent: PictureStatistics) -> None:
    if healthy.totals.shape[1:] != recent.totals.shape[1:]:
        raise ValueError("healthy and recent pictures have another size or other colours; measure both alike")
    if min(len(healthy.frames), len(recent.frames)) < MIN_BLOCKS:
        raise ValueError(f"read-outs need {MIN_BLOCKS} or more pictures of each period; wait for more")


def _dead_share(healthy: PictureStatistics, recent: PictureStatistics, dead: Tensor) -> ReadOut:
    """Return the share of dead pixels: white ones of all pixels, black ones of those whose death can be seen.

    Seen pixels are counted and not sampled, so that only the unseen ones make the share of black ones uncertain.
    """
    live = could_die(healthy)
    white = dead & (mean_picture(recent).mean(0) > WHITE / 2)
    count = int(live.sum())
    black = int((dead & ~white & live).sum()) / max(count, 1)
    error = (black * (1 - black) * (1 - count / live.numel()) / max(count, 1)) ** 0.5
    return ReadOut.of("dead-pixels", float(white.double().mean()) + black, error)


def _optical(healthy: PictureStatistics, recent: PictureStatistics, dead: Tensor) -> list[ReadOut]:
    near = sharpness(healthy, recent, float(dead.double().mean()))

    def estimate(before: PictureStatistics, after: PictureStatistics) -> Tensor:
        return _estimate_optical(before, after, dead, near)

    values = estimate(healthy, recent).tolist()
    errors = standard_errors(estimate, healthy, recent).tolist()
    for kind, error in _pattern_errors(healthy, recent).items():
        place = OPTICAL.index(kind)
        unseen = values[place] * unseen_share_error(dead.shape[kind == "column-banding"]) * (kind != "fixed-pattern")
        errors[place] = math.hypot(max(errors[place], error), unseen)
    kinds = zip(OPTICAL, values, errors, strict=True)
    return [ReadOut.of(*one) for one in kinds if one[0] != "cross-talk" or healthy.totals.shape[1] == 3]


def _pattern_errors(healthy: PictureStatistics, recent: PictureStatistics) -> dict[str, float]:
    """Return what is read of patterns from one block of the healthy period next to the others."""
    none = torch.zeros(healthy.totals.shape[-2:], dtype=torch.bool)
    errors = block_errors(lambda before, after: torch.tensor(pattern(before, after, none)), healthy, recent)
    return dict(zip(("fixed-pattern", "row-banding", "column-banding"), errors.tolist(), strict=True))


def _estimate_optical(healthy: PictureStatistics, recent: PictureStatistics, dead: Tensor, near: Sharpness) -> Tensor:
    """Return the values of OPTICAL. near: the fit to all pictures."""
    counts = healthy.histograms.sum(0)[0]
    seen = sharpness(healthy, recent, float(dead.double().mean()), near)
    noise = noise_sd(seen.noise, counts[middle(len(counts))])
    motion, blur = (seen.size if seen.lens == lens else 0.0 for lens in (MOTION_BLUR, BLUR))
    shade = vignetting(healthy, recent, dead, seen.noise)
    mixed_colours = cross_talk(healthy, recent) if len(counts) == 3 else 0.0
    pixels, rows, columns = (pattern_sd(sd, counts.sum(0)) for sd in pattern(healthy, recent, dead))
    values = [max(motion, 1.0), blur, shade, mixed_colours, pixels]
    return torch.tensor([*values, min(noise, _calm_noise(healthy, recent, dead)), rows, columns], dtype=torch.float64)


def _calm_noise(healthy: PictureStatistics, recent: PictureStatistics, dead: Tensor) -> float:
    """Return the most noise that there can be: the calmest pixels show no more, as noise is in all of them."""
    colour = middle(healthy.totals.shape[1])
    variance, level = (picture(healthy)[colour][~dead] for picture in (variance_picture, mean_picture))
    calmest = variance.argsort()[: max(int(CALMEST_SHARE * len(variance)), 1)]
    counts = torch.zeros(HISTOGRAM_LEVELS, dtype=torch.float64)
    counts[int(level[calmest].mean().round())] = 1
    return noise_sd(float(variance_picture(recent)[colour][~dead][calmest].mean().sqrt()), counts)


def _tone(
    healthy: PictureStatistics, recent: PictureStatistics, dead: Tensor, optical: Mapping[str, float]
) -> list[ReadOut]:
    """Estimate what bends the tone curve, behind what is known to have happened before it."""

    def curves(before: PictureStatistics, after: PictureStatistics) -> tuple[Before, Tensor]:
        return _before(before, optical, dead), _quantiles_of_live(after, dead)

    spread = standard_errors(
        lambda *parts: _quantiles_of_live(parts[1], dead) - _quantiles_of(parts[0]), healthy, recent
    )
    scale = (spread.square() + FLOOR_LEVELS**2).sqrt()
    kinds, found = choose_tone(*curves(healthy, recent), scale)
    if not kinds:
        return []
    errors = standard_errors(lambda *parts: fit_tone(*curves(*parts), scale, kinds, found)[0], healthy, recent)
    of_blocks = block_errors(
        lambda *parts: fit_tone(_before(parts[0], {}, dead), _quantiles_of(parts[1]), scale, kinds)[0], healthy, recent
    )
    return list(_tone_read_outs(kinds, found.tolist(), torch.maximum(errors, of_blocks).tolist()))


def _tone_read_outs(kinds: Sequence[str], values: Sequence[float], errors: Sequence[float]) -> Iterator[ReadOut]:
    names = [name for kind in kinds for name in ([(kind, "red"), (kind, "blue")] if kind == GAIN else [(kind, "")])]
    for (kind, colour), value, error in zip(names, values, errors, strict=True):
        if kind in (GAIN, GAMMA):  # whose parameters are logarithms
            value, error = math.exp(value), math.exp(value) * error
        yield ReadOut.of(kind, value, error, colour)


def _before(healthy: PictureStatistics, optical: Mapping[str, float], dead: Tensor) -> Before:
    """Return the values of healthy pictures behind the significant read-outs `optical`."""
    values = quantiles(healthy.rings.sum(0), QUANTILES) if "vignetting" in optical else _quantiles_of(healthy)[None]
    blur = optical.get("blur", 0.0) ** 2 + (optical.get("motion-blur", 1.0) ** 2 - 1) / 24  # of a box along one axis
    values = values + blurred_quantiles(healthy, blur, QUANTILES) - _quantiles_of(healthy)
    if "cross-talk" in optical:
        values = mixed(values, *colour_moments(healthy), optical["cross-talk"])
    radius = squared_radius(*dead.shape).flatten()
    rings = torch.stack([radius[pixels].mean() for pixels in pixels_of_rings(*dead.shape)])
    shade = fall_off(optical.get("vignetting", 0.0), rings)[: len(values)]  # of one part, it is 1
    added = ("fixed-pattern", "temporal-noise", "row-banding", "column-banding")
    return Before(values.movedim(0, 2), shade, math.hypot(*(optical.get(kind, 0.0) for kind in added)))


def _quantiles_of(statistics: PictureStatistics) -> Tensor:
    return quantiles(statistics.histograms.sum(0)[0], QUANTILES)


def _quantiles_of_live(statistics: PictureStatistics, dead: Tensor) -> Tensor:
    """Return the quantiles (C, QUANTILES) of all pixels but the dead ones."""
    counts = statistics.histograms.sum(0)[0]
    frames = statistics.frames.sum()
    levels = (statistics.totals.double().sum(0)[:, dead] / frames).round().long()  # (C, n): they never change
    gone = torch.zeros_like(counts).scatter_add_(1, levels, frames.expand(levels.shape))
    return quantiles((counts - gone).clamp_min(0), QUANTILES)
