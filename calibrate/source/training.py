"""What the frames that a network was trained on looked like, read from the network itself.

The first layer of a convolutional network is linear, so its running mean and variance are linear in the mean
colour and in the channel covariance of those frames. Probing that layer with constant and with 1/f noise images
gives the equations, without looking at its weights. The same means tell of borders: a network trained on random
crops of padded frames has them in its statistics, and what the filters answer at an edge is like nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from calibrate.features.taps import Taps
from calibrate.source.augmentation import PaddedCrop, augment
from calibrate.source.spectra import Profile, cross_spectra, radial_profile

SPECTRAL_EXPONENTS = (1.0, 1.5, 2.0, 2.5, 3.0)  # power ~ 1/f^e; natural images are near 2 (Field 1987)
PROBES = 64  # images a probe averages over: variances to about 2 %
COLOUR_CORRELATION = 0.9  # of neighbouring channels in natural images; a weak prior where a layer cannot tell
PRIOR_WEIGHT = 0.01
LEAST_SHARE = 0.05  # of a running variance that is the frames' own; where borders make more the rest is noise
PADDED_SHARE = 8  # frames are padded by an eighth of their size, 4 pixels of 32: the recipe of He et al. (2016)
CLEARER = 0.5  # borders are believed in where they leave half of the first layer's means unexplained, or less

Shape = tuple[int, int, int]  # (C, H, W) of the network's input


def shape_of(frames: Tensor) -> Shape:
    _, channels, height, width = frames.shape
    return channels, height, width


class Source(NamedTuple):
    """Clean frames to second order: mean (C,), channel covariance (C, C), and how it spreads over frequencies."""

    mean: Tensor
    covariance: Tensor
    profile: Profile


class Explained(NamedTuple):
    """A covariance that explains the first layer's variances, for one spectral exponent, and how well (rms log)."""

    covariance: Tensor
    exponent: float
    residual: float


def measured_source(frames: Tensor) -> Source:
    """The description of frames (N, C, H, W) that are known to be clean; a few hundred are enough."""
    pixels = frames.transpose(0, 1).flatten(1)
    covariance = torch.cov(pixels).reshape(len(pixels), len(pixels))
    return Source(pixels.mean(1), covariance, radial_profile(cross_spectra(frames)))


def shipped_source(taps: Taps, shape: Shape, seed: int = 0, crop: PaddedCrop | None = None) -> Source | None:
    """The description read from the first BatchNorm layer alone, or None where its input is not linear.

    crop: what was done to the frames; the description is from before it.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        if not _is_linear(taps, shape):
            return None
        mean, _ = _mean_colour(taps, shape, crop)
        observed = _unexplained_variance(taps, shape, mean, crop)
        fits = [_explain(taps, shape, observed, e, generator, crop) for e in SPECTRAL_EXPONENTS]
        best = min(fits, key=lambda fit: fit.residual)
        noise = pink_noise(4 * PROBES, shape[1:], best.exponent, generator)
        power = cross_spectra(noise[:, None])  # (H, W, 1, 1), the window's leakage included
    return Source(mean, best.covariance, radial_profile(power * best.covariance))


def read_crop(taps: Taps, shape: Shape, black: Tensor) -> PaddedCrop | None:
    """The crop of black-padded frames that training made, as the first layer's running means show it; None without.

    black: (C,) in the network's input space. The filters answer to the edge between a frame and its border like to
    nothing else: with borders one mean colour explains the means of all filters, without them none does.
    """
    channels, padding = shape[0], min(shape[1:]) // PADDED_SHARE
    if padding < 1 or len(taps.reference.means[0]) <= channels:
        return None  # frames too small, or as many unknown colours as equations
    crop = PaddedCrop(padding, tuple(black.tolist()))
    with torch.no_grad():
        if not _is_linear(taps, shape):
            return None
        _, without = _mean_colour(taps, shape, None)
        _, left = _mean_colour(taps, shape, crop)
    return crop if left < CLEARER * without else None


def first_layer(taps: Taps, frames: Tensor, crop: PaddedCrop | None = None) -> Tensor:
    return taps(augment(crop, frames), depth=1).features[0]


def pink_noise(count: int, shape: tuple[int, int], exponent: float, generator: torch.Generator) -> Tensor:
    """Noise images (count, H, W) of unit variance and zero mean whose power falls as 1/f^exponent."""
    height, width = shape
    size = 2 * max(height, width)  # cut from a larger field, so that opposite borders do not match
    fy, fx = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None, :]
    radius = (fy.square() + fx.square()).sqrt().clamp_min(0.5 / size)
    noise = torch.fft.rfft2(torch.randn(count, size, size, generator=generator))
    field = torch.fft.irfft2(noise * radius.pow(-exponent / 2), s=(size, size))[:, :height, :width]
    field = field - field.mean()
    return field / field.std()


def _is_linear(taps: Taps, shape: Shape) -> bool:
    """Affine, to be exact: the response to the midpoint is the midpoint of the responses."""
    frames = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    one, two = first_layer(taps, frames).unbind(0)
    middle = first_layer(taps, frames.mean(0, keepdim=True))[0]
    return bool(torch.allclose(middle, (one + two) / 2, rtol=1e-3, atol=1e-4 * float(one.abs().max())))


def _plain(colour: Tensor, shape: Shape, crop: PaddedCrop | None) -> Tensor:
    """Images (n, C, H, W) of one colour (C,): as many as it takes to see every place of a crop."""
    return colour.view(1, -1, 1, 1).expand(1 if crop is None else PROBES, *shape)


def _mean_colour(taps: Taps, shape: Shape, crop: PaddedCrop | None) -> tuple[Tensor, float]:
    """The colour (C,) whose mean response is the running mean, least squares weighted by the variances.

    And the rms misfit, in standard deviations of the layer and for each degree of freedom left.
    """

    def respond(colour: Tensor) -> Tensor:
        return first_layer(taps, _plain(colour, shape, crop), crop).mean((0, 2, 3))

    base = respond(torch.zeros(shape[0]))
    columns = torch.stack([respond(one) - base for one in torch.eye(shape[0])], 1)  # (C_1, C)
    weight = taps.reference.variances[0].clamp_min(1e-6).rsqrt()
    equations, wanted = columns * weight[:, None], (taps.reference.means[0] - base) * weight
    solution = torch.linalg.lstsq(equations, wanted[:, None]).solution[:, 0]
    freedom = max(len(wanted) - shape[0], 1)
    return solution, float(((equations @ solution - wanted).square().sum() / freedom).sqrt())


def _unexplained_variance(taps: Taps, shape: Shape, mean: Tensor, crop: PaddedCrop | None) -> Tensor:
    """(C_1,) of the running variances what borders around frames of the mean colour do not make."""
    borders = first_layer(taps, _plain(mean, shape, crop), crop).var((0, 2, 3), unbiased=False)
    running = taps.reference.variances[0].clamp_min(1e-6)
    return torch.maximum(running - borders, LEAST_SHARE * running)


def _explain(
    taps: Taps,
    shape: Shape,
    observed: Tensor,
    exponent: float,
    generator: torch.Generator,
    crop: PaddedCrop | None,
) -> Explained:
    """The channel covariance S that best explains the variances v_j = <S, Q_j>, in log terms."""
    quadratic = _response_covariances(taps, shape, exponent, generator, crop)  # (C_1, C, C)
    channels = shape[0]
    prior = COLOUR_CORRELATION * torch.ones(channels, channels) + (1 - COLOUR_CORRELATION) * torch.eye(channels)
    scale = (observed / (quadratic * prior).sum((1, 2)).clamp_min(1e-9)).median()
    root = torch.linalg.cholesky(prior * scale).contiguous().requires_grad_()
    start = root.detach().clone()
    optimizer = torch.optim.LBFGS([root], lr=0.5, max_iter=60, line_search_fn="strong_wolfe")

    def misfit() -> Tensor:
        covariance = root @ root.T
        predicted = (quadratic * covariance).sum((1, 2)).clamp_min(1e-9)
        return (predicted / observed).log().square().mean()

    def closure() -> float:
        optimizer.zero_grad()
        with torch.enable_grad():
            loss = misfit() + PRIOR_WEIGHT * (root - start).square().sum() / start.square().sum()
            loss.backward()
        return float(loss.detach())

    optimizer.step(closure)
    root = root.detach()
    return Explained(root @ root.T, exponent, float(misfit().sqrt()))


def _response_covariances(
    taps: Taps,
    shape: Shape,
    exponent: float,
    generator: torch.Generator,
    crop: PaddedCrop | None,
) -> Tensor:
    """Q (C_1, C, C): covariance at each output of the responses to the same noise in channel c and c'."""
    noise = pink_noise(PROBES, shape[1:], exponent, generator)
    zero = first_layer(taps, torch.zeros(PROBES, *shape), crop)
    responses = []
    for channel in range(shape[0]):
        images = torch.zeros(PROBES, *shape)
        images[:, channel] = noise
        response = (first_layer(taps, images, crop) - zero).transpose(0, 1).flatten(1)  # (C_1, PROBES * positions)
        responses.append(response - response.mean(1, keepdim=True))
    stacked = torch.stack(responses, 1)  # (C_1, C, P)
    return stacked @ stacked.transpose(1, 2) / stacked.shape[2]


class Limits(NamedTuple):
    """The least and the greatest value, (C,), that an image can have: black and white, as the network sees them.

    Channel statistics hardly tell when the colours of large areas are turned; that some are darker than black does.
    """

    black: Tensor
    white: Tensor

    @staticmethod
    def of(mean: Sequence[float], std: Sequence[float]) -> Limits:
        """Those of images normalised as (value - mean) / std, values from 0 to 1."""
        return Limits(*((level - torch.tensor(mean)) / torch.tensor(std) for level in (0.0, 1.0)))

    def excess(self, frames: Tensor) -> Tensor:
        """Mean square (N,) of how far values of (N, C, H, W) lie outside."""
        black, white = self.black.view(-1, 1, 1), self.white.view(-1, 1, 1)
        return (frames - frames.clamp(black, white)).square().mean((1, 2, 3))
