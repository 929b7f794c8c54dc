"""Sabotage: proper homogenizers that are broken as a failed fit, a bug or a saboteur could break them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibrate import Limits
from calibrate.homogenizer import Homogenizer

KERNEL_NOISE = 0.1  # sd of each tap; with 15x15 taps of three colours this is stronger than the picture
OFFSET_NOISE = 0.4  # sd of a wrong offset map, in standard deviations of the picture
SHIFT = 6  # pixels
PARAMETER_NOISE = (0.05, 0.2)  # shares of the root mean square of each parameter

Change = Callable[[Tensor], Tensor]


class ChangedOutput(nn.Module):
    """Applies a homogenizer, and then a change to its frames."""

    def __init__(self, homogenizer: nn.Module, change: Change):
        super().__init__()
        self._homogenizer = homogenizer
        self._change = change

    def forward(self, frames: Tensor) -> Tensor:
        return self._change(self._homogenizer(frames))


def sabotaged(good: Homogenizer, limits: Limits, seed: int) -> dict[str, nn.Module]:
    """Return broken forms of a proper homogenizer by name; each maps frames (N, 3, H, W) to the same shape."""
    generator = torch.Generator().manual_seed(seed)
    broken: dict[str, nn.Module] = {name: ChangedOutput(good, change) for name, change in changes(limits).items()}
    broken["noise in the kernel"] = noisy_kernel(good, generator)
    broken["another offset map"] = other_offset(good, generator)
    for share in PARAMETER_NOISE:
        broken[f"{share:.0%} noise in all parameters"] = noisy(good, share, generator)
    return broken


def changes(limits: Limits) -> dict[str, Change]:
    """Return changes of frames (N, 3, H, W) by name."""
    whole = (limits.black + limits.white).view(-1, 1, 1)
    colours: dict[str, Change] = {"colours swapped": lambda x: x.flip(1)} if len(limits.black) > 1 else {}
    return colours | {
        "negative": lambda x: whole - x,
        "constant": lambda x: 0 * x,
        "half the contrast": lambda x: 0.5 * x,
        "twice the contrast": lambda x: 2 * x,
        "blurred": lambda x: F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, 1),
        "shifted": lambda x: x.roll((SHIFT, SHIFT), (2, 3)),
        "mirrored": lambda x: x.flip(3),
        "upside down": lambda x: x.flip(2),
        "one tile four times": tiled,
        "quarters exchanged": lambda x: x.roll((x.shape[2] // 2, x.shape[3] // 2), (2, 3)),
    }


def tiled(frames: Tensor) -> Tensor:
    """Repeat the middle quarter of each frame four times."""
    height, width = frames.shape[2] // 2, frames.shape[3] // 2
    middle = frames[:, :, height // 2 : height // 2 + height, width // 2 : width // 2 + width]
    return middle.repeat(1, 1, 2, 2)


def noisy_kernel(good: Homogenizer, generator: torch.Generator) -> Homogenizer:
    """Add noise to the kernel."""
    broken = copy.deepcopy(good)
    broken.kernel.add_(KERNEL_NOISE * torch.randn(broken.kernel.shape, generator=generator))
    return broken


def other_offset(good: Homogenizer, generator: torch.Generator) -> Homogenizer:
    """Add the offset map of another sensor, whose fixed pattern then appears in the frames."""
    broken = copy.deepcopy(good)
    broken.offset.add_(OFFSET_NOISE * torch.randn(broken.offset.shape, generator=generator))
    return broken


def noisy(good: Homogenizer, share: float, generator: torch.Generator) -> Homogenizer:
    """Add noise to each parameter, with this share of its root mean square."""
    broken = copy.deepcopy(good)
    for parameter in broken.parameters():
        scale = share * parameter.square().mean().sqrt()
        parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return broken
