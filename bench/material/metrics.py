"""PSNR, SSIM and l2 error as Willis & Oala (2021) define them in their code.

The other three of their six metrics are accuracies: of the main network on the images that ρ was fitted to (acc) and
on other images (acc val), and of a second network on these other images (acc ver).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

LUMINANCE = (0.2126, 0.7152, 0.0722)  # of linear RGB, Rec. 709
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5  # px (Wang et al. 2004)
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2  # for values from 0 to 1 (Wang et al. 2004)
MIN_SQUARE_ERROR = 1e-10  # the PSNR of equal images is 100 dB
UNIT_IMAGES_AT_ONCE = 512

Transform = Callable[[Tensor], Tensor]


def luminance(images: Tensor) -> Tensor:
    """Scale each image (N, C, H, W), C 1 or 3, to 0..1 over all its channels; return its luminance (N, 1, H, W)."""
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    scaled = (images - low) / (high - low).clamp_min(1e-12)
    if images.shape[1] == 1:
        return scaled
    return (scaled * scaled.new_tensor(LUMINANCE).view(1, -1, 1, 1)).sum(1, keepdim=True)


def psnr(clean: Tensor, restored: Tensor) -> float:
    """Return the mean over images (N, C, H, W) of -10 log10 of the mean square error in luminance, dB.

    Each image is scaled first, so that a gain or an offset of all channels together does not count as an error.
    """
    error = (luminance(clean) - luminance(restored)).square().mean((1, 2, 3)).clamp_min(MIN_SQUARE_ERROR)
    return float((-10 * error.log10()).mean())


def ssim(clean: Tensor, restored: Tensor) -> float:
    """Return the mean structural similarity s of the luminances as (1 + s) / 2 in percent; H and W at least 11.

    Equal images have 100 %.
    """
    x, y = luminance(clean), luminance(restored)
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x, variance_y = _blur(x.square()) - mean_x.square(), _blur(y.square()) - mean_y.square()
    covariance = _blur(x * y) - mean_x * mean_y
    means = (2 * mean_x * mean_y + SSIM_C1) / (mean_x.square() + mean_y.square() + SSIM_C1)
    structure = (2 * covariance + SSIM_C2) / (variance_x + variance_y + SSIM_C2)
    return 50 * (1 + float((means * structure).mean()))


def _blur(images: Tensor) -> Tensor:
    """Apply the Gaussian window to (N, 1, H, W), only where it lies inside the image."""
    offset = torch.arange(SSIM_WINDOW, dtype=images.dtype) - SSIM_WINDOW // 2
    window = torch.exp(-offset.square() / (2 * SSIM_SIGMA**2))
    window = window / window.sum()
    return F.conv2d(F.conv2d(images, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))


def l2_error(transform: Transform, shape: Sequence[int]) -> float:
    """Return |T(I) - I| / |I| in Frobenius norms; I is the batch of all unit images of `shape` (C, H, W), T = ρ∘δ.

    T is not linearised, so its output for a black image counts once for each unit image.
    """
    count, total = math.prod(shape), 0.0
    with torch.no_grad():
        for unit in torch.eye(count).view(count, *shape).split(UNIT_IMAGES_AT_ONCE):
            total += float((transform(unit) - unit).square().sum(dtype=torch.float64))
    return math.sqrt(total / count)
