"""The six metrics of Willis & Oala (2021), in the definitions of their code.

Accuracy of the main network on the images a ρ was fitted to (acc) and on others (acc val), that of a second network
on those others (acc ver), PSNR, SSIM, and the l2 error of ρ∘δ as a map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

LUMINANCE = (0.2126, 0.7152, 0.0722)  # of linear RGB, Rec. 709
WINDOW, SIGMA = 11, 1.5  # px, of the SSIM (Wang et al. 2004)
C1, C2 = 0.01**2, 0.03**2  # its constants, for values from 0 to 1
LEAST_ERROR = 1e-10  # mean square; the PSNR of equal images is 100 dB
UNIT_IMAGES_AT_ONCE = 512

Transform = Callable[[Tensor], Tensor]


def luminance(images: Tensor) -> Tensor:
    """(N, C, H, W), C 1 or 3, each image scaled to the range 0 to 1 over all its channels; returns (N, 1, H, W)."""
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    scaled = (images - low) / (high - low).clamp_min(1e-12)
    if images.shape[1] == 1:
        return scaled
    return (scaled * scaled.new_tensor(LUMINANCE).view(1, -1, 1, 1)).sum(1, keepdim=True)


def psnr(clean: Tensor, restored: Tensor) -> float:
    """Mean over images (N, C, H, W) of -10 log10 of the mean square error in luminance, dB.

    Both are scaled image by image first, so that a gain or an offset of all channels together costs nothing.
    """
    error = (luminance(clean) - luminance(restored)).square().mean((1, 2, 3)).clamp_min(LEAST_ERROR)
    return float((-10 * error.log10()).mean())


def ssim(clean: Tensor, restored: Tensor) -> float:
    """Mean structural similarity of the luminances, (1 + s) / 2 in percent: 100 for equal images, H and W >= 11."""
    x, y = luminance(clean), luminance(restored)
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x, variance_y = _blur(x.square()) - mean_x.square(), _blur(y.square()) - mean_y.square()
    covariance = _blur(x * y) - mean_x * mean_y
    means = (2 * mean_x * mean_y + C1) / (mean_x.square() + mean_y.square() + C1)
    structure = (2 * covariance + C2) / (variance_x + variance_y + C2)
    return 50 * (1 + float((means * structure).mean()))


def _blur(images: Tensor) -> Tensor:
    """Gaussian window over (N, 1, H, W), where it lies inside the image."""
    offset = torch.arange(WINDOW, dtype=images.dtype) - WINDOW // 2
    window = torch.exp(-offset.square() / (2 * SIGMA**2))
    window = window / window.sum()
    return F.conv2d(F.conv2d(images, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))


def l2_error(transform: Transform, shape: Sequence[int]) -> float:
    """|T(I) - I| / |I|, Frobenius norms, I the unit images of `shape` (C, H, W) as a batch, T = ρ∘δ.

    T is not made linear first: what it does to a black image counts once for each of the unit images.
    """
    count, total = math.prod(shape), 0.0
    with torch.no_grad():
        for unit in torch.eye(count).view(count, *shape).split(UNIT_IMAGES_AT_ONCE):
            total += float((transform(unit) - unit).square().sum(dtype=torch.float64))
    return math.sqrt(total / count)
