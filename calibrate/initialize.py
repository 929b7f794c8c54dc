"""Closed-form starts: what the source frames looked like, read from the first BatchNorm layer alone, and the
linear maps that give the target frames the same second-order statistics.

The first layer of a convolutional network is linear, so its running mean and variance are linear in the mean
colour and in the channel covariance of the frames the network was trained on. Probing that layer with constant
and with 1/f noise images gives the equations, without looking at its weights.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from calibrate.features import Taps
from calibrate.homogenizer import Homogenizer

SPECTRAL_EXPONENTS = (1.0, 1.5, 2.0, 2.5, 3.0)  # power ~ 1/f^e; natural images are near 2 (Field 1987)
PROBES = 64  # noise images a probe averages over: variances to about 2 %
COLOUR_CORRELATION = 0.9  # of neighbouring channels in natural images; a weak prior where a layer cannot tell
PRIOR_WEIGHT = 0.01
SMOOTH_SIGMA = 3.0  # px; a mean natural image has no finer structure, a fixed pattern has
RIDGE = 1e-3  # of the mean power: frequencies below it are noise and are not amplified


class SourceMoments(NamedTuple):
    """Second-order description of the frames a network was trained on."""

    mean: Tensor  # (C,)
    covariance: Tensor  # (C, C)
    exponent: float  # power spectrum ~ 1/f^exponent
    residual: float  # rms error of the log variances explained at the first BatchNorm layer


def source_moments(taps: Taps, shape: tuple[int, int, int], seed: int = 0) -> SourceMoments | None:
    """Mean colour, channel covariance and spectral exponent of the source, or None if the first layer is not linear.

    shape: (C, H, W) of the network's input.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        if not _is_linear(taps, torch.randn(2, *shape, generator=generator)):
            return None
        mean = _mean_colour(taps, shape)
        fits = [_fit_covariance(taps, shape, mean, e, generator) for e in SPECTRAL_EXPONENTS]
    covariance, exponent, residual = min(fits, key=lambda fit: fit[2])
    return SourceMoments(mean, covariance, exponent, residual)


def first_layer(taps: Taps, frames: Tensor) -> Tensor:
    return taps(frames, depth=1).features[0]


def _is_linear(taps: Taps, frames: Tensor) -> bool:
    """Affine, to be exact: the response to the midpoint is the midpoint of the responses."""
    one, two = first_layer(taps, frames).unbind(0)
    middle = first_layer(taps, frames.mean(0, keepdim=True))[0]
    return bool(torch.allclose(middle, (one + two) / 2, rtol=1e-3, atol=1e-4 * float(one.abs().max())))


def _mean_colour(taps: Taps, shape: tuple[int, int, int]) -> Tensor:
    """Solve response(constant colour) = running mean for the colour, least squares weighted by the variance."""
    channels = shape[0]
    colours = torch.cat([torch.zeros(1, channels), torch.eye(channels)])
    images = colours[:, :, None, None].expand(-1, *shape)
    responses = first_layer(taps, images).flatten(2).mean(2)  # (1 + C, C_1)
    weight = taps.reference.variances[0].clamp_min(1e-6).rsqrt()
    equations = (responses[1:] - responses[0]).T * weight[:, None]
    return torch.linalg.lstsq(equations, ((taps.reference.means[0] - responses[0]) * weight)[:, None]).solution[:, 0]


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


def _fit_covariance(
    taps: Taps, shape: tuple[int, int, int], mean: Tensor, exponent: float, generator: torch.Generator
) -> tuple[Tensor, float, float]:
    """The channel covariance S that best explains the running variances v_j = <S, Q_j>, in log terms."""
    quadratic = _response_covariances(taps, shape, exponent, generator)  # (C_1, C, C)
    observed = taps.reference.variances[0].clamp_min(1e-6)
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
    return root @ root.T, exponent, float(misfit().sqrt())


def _response_covariances(
    taps: Taps, shape: tuple[int, int, int], exponent: float, generator: torch.Generator
) -> Tensor:
    """Q (C_1, C, C): covariance at each output of the responses to the same noise in channel c and c'."""
    noise = pink_noise(PROBES, shape[1:], exponent, generator)
    zero = first_layer(taps, torch.zeros(1, *shape))
    responses = []
    for channel in range(shape[0]):
        images = torch.zeros(PROBES, *shape)
        images[:, channel] = noise
        response = (first_layer(taps, images) - zero).transpose(0, 1).flatten(1)  # (C_1, PROBES * positions)
        responses.append(response - response.mean(1, keepdim=True))
    stacked = torch.stack(responses, 1)  # (C_1, C, P)
    return stacked @ stacked.transpose(1, 2) / stacked.shape[2]


def smooth(image: Tensor) -> Tensor:
    """Gaussian low-pass of (1, C, H, W), borders normalised."""
    radius = min(int(2 * SMOOTH_SIGMA), min(image.shape[-2:]) - 1)
    x = torch.arange(-radius, radius + 1, dtype=image.dtype)
    line = torch.exp(-x.square() / (2 * SMOOTH_SIGMA**2))
    kernel = (line[:, None] * line[None, :]).expand(image.shape[1], 1, -1, -1)
    weight = F.conv2d(torch.ones_like(image), kernel, padding=radius, groups=image.shape[1])
    return F.conv2d(image, kernel, padding=radius, groups=image.shape[1]) / weight


def offset_map(frames: Tensor) -> Tensor:
    """(1, C, H, W): what flattens the fixed pattern, the fine structure of the mean frame."""
    mean = frames.mean(0, keepdim=True)
    return smooth(mean) - mean


def cross_spectra(frames: Tensor) -> Tensor:
    """Hann-windowed cross-spectra (H, W, C, C), complex Hermitian; their mean over frequencies is the covariance."""
    height, width = frames.shape[-2:]
    window = torch.hann_window(height)[:, None] * torch.hann_window(width)[None, :]
    window = window / window.square().mean().sqrt()
    mean = frames.mean((0, 2, 3), keepdim=True)
    total = torch.zeros(1)
    for chunk in frames.split(64):  # bounds memory at large frames
        spectrum = torch.fft.fft2((chunk - mean) * window)  # (n, C, H, W)
        total = total + torch.einsum("nchw,ndhw->hwcd", spectrum, spectrum.conj())
    return total / (len(frames) * height * width)


def _root(matrix: Tensor, power: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    floor = values[..., -1:].clamp_min(1e-12) * 1e-6
    scaled = torch.maximum(values, floor).pow(power)
    return (vectors * scaled.unsqueeze(-2)) @ vectors.mH


def monge_map(target: Tensor, source: Tensor) -> Tensor:
    """The linear map of least change from covariance `target` to `source` (Pitie & Kokaram 2007); (..., C, C)."""
    half, inverse = _root(target, 0.5), _root(target, -0.5)
    return inverse @ _root(half @ source @ half, 0.5) @ inverse


@torch.no_grad()
def colour_start(frames: Tensor, source: SourceMoments) -> Homogenizer:
    """Offset map and one colour map for the whole frame."""
    homogenizer = Homogenizer(*frames.shape[1:])
    homogenizer.offset.copy_(offset_map(frames))
    pixels = (frames + homogenizer.offset).transpose(0, 1).flatten(1)
    target = torch.cov(pixels).reshape(len(pixels), len(pixels))
    colour = monge_map(target + RIDGE * target.trace() * torch.eye(len(target)), source.covariance)
    centre = homogenizer.kernel.shape[-1] // 2
    homogenizer.kernel.zero_()
    homogenizer.kernel[:, :, centre, centre] = colour
    homogenizer.bias.copy_(source.mean - colour @ pixels.mean(1))
    return homogenizer


@torch.no_grad()
def spectral_start(frames: Tensor, source: SourceMoments, seed: int = 0) -> Homogenizer:
    """Offset map and one colour map for each spatial frequency, which together make a Wiener-like kernel."""
    homogenizer = Homogenizer(*frames.shape[1:])
    homogenizer.offset.copy_(offset_map(frames))
    flat = frames + homogenizer.offset
    target = _with_ridge(cross_spectra(flat))
    noise = pink_noise(
        4 * PROBES, (frames.shape[2], frames.shape[3]), source.exponent, torch.Generator().manual_seed(seed)
    )
    power = cross_spectra(noise[:, None])  # (H, W, 1, 1), the window's leakage included
    maps = monge_map(target, _with_ridge(power * source.covariance))  # (H, W, C, C)
    response = torch.fft.fftshift(torch.fft.ifft2(maps.permute(2, 3, 0, 1)).real, dim=(-2, -1))
    kernel = _centre(response, homogenizer.kernel.shape[-1]).flip(-2, -1)  # conv2d correlates
    homogenizer.kernel.copy_(kernel)
    homogenizer.bias.copy_(source.mean - kernel.sum((2, 3)) @ flat.mean((0, 2, 3)))
    return homogenizer


def _with_ridge(spectra: Tensor) -> Tensor:
    power = spectra.diagonal(dim1=-2, dim2=-1).real.mean()
    return spectra + RIDGE * power * torch.eye(spectra.shape[-1])


def _centre(response: Tensor, size: int) -> Tensor:
    """The central size x size taps of (C, C, H, W)."""
    row, column, half = response.shape[-2] // 2, response.shape[-1] // 2, size // 2
    return response[..., row - half : row + half + 1, column - half : column + half + 1]
