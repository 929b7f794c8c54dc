"""Read from a network what its training frames looked like: mean colour, channel covariance, spectrum and crop.

The first layer of a convolutional network is linear. Its running mean is therefore linear in the mean colour of the
training frames, and its running variance linear in their channel covariance. The response of the layer to images of
one colour and to 1/f noise images gives the equations; the weights are not needed. The means also show borders: a
network that was trained on random crops of padded frames has the borders in its statistics, and no other
image content makes the filters respond as the edge of a border does.

Images go through the layer where the network is, which may be a GPU. The equations are small and are solved on the
processor: there each step takes microseconds. All random numbers are drawn on the processor, the same for every device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from calibrate.features.statistics import VARIANCE_FLOOR
from calibrate.features.taps import Taps
from calibrate.source.augmentation import PaddedCrop, augment
from calibrate.source.description import Shape, Source
from calibrate.source.spectra import cross_spectra, radial_profile

NOISE_EXPONENTS = (1.0, 1.5, 2.0, 2.5, 3.0)  # power ~ 1/f^exponent; natural images are near 2 (Field 1987)
PROBE_IMAGES = 64  # noise images in a probe; its variances are then exact to about 2 %
PRIOR_COLOUR_CORRELATION = 0.9  # between channels of natural images; used if the first layer does not determine it
COVARIANCE_PRIOR_WEIGHT = 0.01  # weight of the squared relative distance from the prior; the misfit has weight 1
MIN_FRAME_VARIANCE_SHARE = 0.05  # least share of a running variance that is not attributed to the borders
FRAME_SIDES_PER_PADDING = 8  # the padding is 1/8 of the shorter side, 4 pixels of 32, as in He et al. (2016)
CROP_MAX_MISFIT_RATIO = 0.5  # largest misfit of the first layer's means with a crop, relative to that without it


class CovarianceFit(NamedTuple):
    """A channel covariance (C, C) fitted to the first layer's variances for one noise exponent.

    residual: root mean square of the logarithm of predicted by observed variances.
    """

    covariance: Tensor
    exponent: float
    residual: float


def shipped_source(taps: Taps, shape: Shape, seed: int = 0, crop: PaddedCrop | None = None) -> Source | None:
    """Describe the training frames from the first BatchNorm layer alone; None if the input of that layer is not linear.

    shape: (C, H, W) of the network's input. seed: of the noise images.
    crop: the crop in the training. The description is that of the frames before it.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        if not _is_affine(taps, shape):
            return None
        mean, _ = _mean_colour(taps, shape, crop)
        observed = _frame_variance(taps, shape, mean, crop)
        fits = [_fit_covariance(taps, shape, observed, e, generator, crop) for e in NOISE_EXPONENTS]
        best = min(fits, key=lambda fit: fit.residual)
        noise = pink_noise(4 * PROBE_IMAGES, shape[1:], best.exponent, generator, _device(taps))
        power = cross_spectra(noise[:, None]).cpu()  # (H, W, 1, 1), with the leakage of the window
    return Source(mean, best.covariance, radial_profile(power * best.covariance))


def detect_crop(taps: Taps, shape: Shape, black: Tensor) -> PaddedCrop | None:
    """Detect from the first layer's running means that training cropped black-padded frames; None if it did not.

    shape: (C, H, W) of the network's input. black: (C,) in normalised input units.
    No other image content makes the filters respond as the edge between a frame and its border does. If training had
    borders, one mean colour explains the means of all filters only together with the borders.
    None also for frames below FRAME_SIDES_PER_PADDING pixels, for a first layer that is not linear, and for one with
    no more filters than channels, as the colour could then explain any means.
    """
    channels, padding = shape[0], min(shape[1:]) // FRAME_SIDES_PER_PADDING
    if padding < 1 or len(taps.reference.means[0]) <= channels:
        return None
    crop = PaddedCrop(padding, tuple(black.tolist()))
    with torch.no_grad():
        if not _is_affine(taps, shape):
            return None
        _, whole_misfit = _mean_colour(taps, shape, None)
        _, cropped_misfit = _mean_colour(taps, shape, crop)
    return crop if cropped_misfit < CROP_MAX_MISFIT_RATIO * whole_misfit else None


def pink_noise(
    count: int,
    shape: tuple[int, int],
    exponent: float,
    generator: torch.Generator,
    device: torch.device | None = None,
) -> Tensor:
    """Draw noise images (count, H, W) of zero mean and unit variance whose power falls as 1/f^exponent.

    device: of the images. The generator is one of the processor.
    """
    height, width = shape
    size = 2 * max(height, width)  # cut from a larger field, so that opposite borders do not match
    fy, fx = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None, :]
    radius = (fy.square() + fx.square()).sqrt().clamp_min(0.5 / size)
    noise = torch.fft.rfft2(torch.randn(count, size, size, generator=generator).to(device))
    field = torch.fft.irfft2(noise * radius.pow(-exponent / 2).to(device), s=(size, size))[:, :height, :width]
    field = field - field.mean()
    return field / field.std()


def _first_layer(taps: Taps, frames: Tensor, crop: PaddedCrop | None = None) -> Tensor:
    """Return the input of the first BatchNorm layer (N, C_1, ...) for frames (N, C, H, W)."""
    return taps(augment(crop, frames.to(_device(taps))), depth=1).features[0]


def _device(taps: Taps) -> torch.device:
    return taps.reference.means[0].device


def _reference(taps: Taps) -> tuple[Tensor, Tensor]:
    """Return mean and variance (C_1,) of the first layer, on the processor; variances are VARIANCE_FLOOR at least."""
    return taps.reference.means[0].cpu(), taps.reference.variances[0].cpu().clamp_min(VARIANCE_FLOOR)


def _by_channel(features: Tensor) -> Tensor:
    """Return features (N, C_1, ...) as (C_1, images * positions)."""
    return features.transpose(0, 1).flatten(1)


def _is_affine(taps: Taps, shape: Shape) -> bool:
    """Test the first layer: the response to a midpoint must be the midpoint of the responses."""
    frames = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    one, two = _first_layer(taps, frames).unbind(0)
    middle = _first_layer(taps, frames.mean(0, keepdim=True))[0]
    return bool(torch.allclose(middle, (one + two) / 2, rtol=1e-3, atol=1e-4 * float(one.abs().max())))


def _uniform_frames(colour: Tensor, shape: Shape, crop: PaddedCrop | None) -> Tensor:
    """Return images (n, C, H, W) of one colour (C,): one, or with a crop enough for all places of the crop."""
    return colour.view(1, -1, 1, 1).expand(1 if crop is None else PROBE_IMAGES, *shape)


def _mean_colour(taps: Taps, shape: Shape, crop: PaddedCrop | None) -> tuple[Tensor, float]:
    """Find the colour (C,) whose mean response is nearest to the running mean, by weighted least squares.

    Also returns the rms misfit, in standard deviations of the layer and for each remaining degree of freedom.
    """

    def respond(colour: Tensor) -> Tensor:
        return _by_channel(_first_layer(taps, _uniform_frames(colour, shape, crop), crop)).mean(1).cpu()

    mean, variance = _reference(taps)
    base = respond(torch.zeros(shape[0]))
    columns = torch.stack([respond(unit) - base for unit in torch.eye(shape[0])], 1)  # (C_1, C)
    weight = variance.rsqrt()
    equations, wanted = columns * weight[:, None], (mean - base) * weight
    # By singular values: the default driver reads memory that PyTorch has not set, and gives other last bits each time.
    solution = torch.linalg.lstsq(equations, wanted[:, None], driver="gelsd").solution[:, 0]
    freedom = max(len(wanted) - shape[0], 1)
    return solution, float(((equations @ solution - wanted).square().sum() / freedom).sqrt())


def _frame_variance(taps: Taps, shape: Shape, mean: Tensor, crop: PaddedCrop | None) -> Tensor:
    """Return the running variances (C_1,) without the part that borders around frames of the mean colour cause."""
    borders = _by_channel(_first_layer(taps, _uniform_frames(mean, shape, crop), crop)).var(1, unbiased=False)
    _, running = _reference(taps)
    return torch.maximum(running - borders.cpu(), MIN_FRAME_VARIANCE_SHARE * running)


def _fit_covariance(
    taps: Taps,
    shape: Shape,
    observed: Tensor,
    exponent: float,
    generator: torch.Generator,
    crop: PaddedCrop | None,
) -> CovarianceFit:
    """Fit the channel covariance S whose variances <S, Q_j> are nearest to `observed` (C_1,) in logarithms."""
    quadratic = _response_covariances(taps, shape, exponent, generator, crop)  # Q, (C_1, C, C)
    ones, identity = torch.ones(shape[0], shape[0]), torch.eye(shape[0])
    prior = PRIOR_COLOUR_CORRELATION * ones + (1 - PRIOR_COLOUR_CORRELATION) * identity
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
            loss = misfit() + COVARIANCE_PRIOR_WEIGHT * (root - start).square().sum() / start.square().sum()
            loss.backward()
        return float(loss.detach())

    optimizer.step(closure)
    root = root.detach()
    return CovarianceFit(root @ root.T, exponent, float(misfit().sqrt()))


def _response_covariances(
    taps: Taps,
    shape: Shape,
    exponent: float,
    generator: torch.Generator,
    crop: PaddedCrop | None,
) -> Tensor:
    """Return Q (C_1, C, C): at each output the covariance of its responses to the same noise in channels c and c'."""
    device = _device(taps)
    noise = pink_noise(PROBE_IMAGES, shape[1:], exponent, generator, device)
    zero = _first_layer(taps, torch.zeros(PROBE_IMAGES, *shape, device=device), crop)
    responses = []
    for channel in range(shape[0]):
        images = torch.zeros(PROBE_IMAGES, *shape, device=device)
        images[:, channel] = noise
        response = _by_channel(_first_layer(taps, images, crop) - zero)  # (C_1, images * positions)
        responses.append(response - response.mean(1, keepdim=True))
    stacked = torch.stack(responses, 1)  # (C_1, C, P)
    return (stacked @ stacked.transpose(1, 2) / stacked.shape[2]).cpu()
