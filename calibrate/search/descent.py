"""Refine a homogenizer by gradients of the objective, in well-scaled coordinates."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from calibrate.homogenizer import Homogenizer
from calibrate.search.objective import Objective

TRAINED_KERNEL_SIZE = 9  # side in pixels of the part of the kernel that gradients change; the rim stays as it is
WHITENING_RIDGE = 1e-2  # added variance, relative to the mean patch variance; bounds the gain of weak directions
WHITENING_PATCHES = 30_000  # patches for the estimate of the whitener
CURVE_STEP = 0.25  # change of the tone curve for a unit step
OFFSET_STEP = 0.1  # change of the offset map for a unit step; small, as thousands of values would overfit
LBFGS_HISTORY = 20  # past steps for the curvature estimate of L-BFGS


class Coordinates(nn.Module):
    """Coordinates of a homogenizer in which a step in any direction changes the output similarly. Zero is the start.

    The taps of a kernel are strongly correlated on natural images: a step on raw taps moves the mean gain far more
    than any detail. `kernel` (C, C * k * k) acts on whitened patches instead:
    kernel of the homogenizer = kernel of the start + kernel @ whitener.

    start: the homogenizer at zero; it is frozen. frames: (N, C, H, W) that the patches are drawn from.
    """

    def __init__(self, start: Homogenizer, frames: Tensor, generator: torch.Generator):
        super().__init__()
        self._start = start.requires_grad_(False)
        self._size = min(TRAINED_KERNEL_SIZE, start.kernel.shape[-1])
        with torch.no_grad():
            self._whitener = patch_whitener(start.tone(frames) + start.offset, self._size, generator)
        self.kernel = nn.Parameter(torch.zeros(frames.shape[1], len(self._whitener)))
        self.bias = nn.Parameter(torch.zeros_like(start.bias))
        # Refined only if the start found a fixed pattern. Otherwise its thousands of values would fit sampling noise.
        self.offset = nn.Parameter(torch.zeros_like(start.offset), requires_grad=bool(start.offset.any()))
        self.curve = nn.Parameter(torch.zeros_like(start.curve))

    def forward(self, frames: Tensor) -> Tensor:
        return functional_call(self._start, self._values(), (frames,))

    def homogenizer(self) -> Homogenizer:
        """Return the homogenizer at these coordinates, in evaluation mode and without gradients."""
        homogenizer = Homogenizer(**self._start.architecture()).requires_grad_(False)
        homogenizer.load_state_dict({name: value.detach() for name, value in self._values().items()})
        return homogenizer.eval()

    def _values(self) -> dict[str, Tensor]:
        """Return the homogenizer's parameters at these coordinates."""
        start, channels = self._start, len(self.bias)
        rim = (start.kernel.shape[-1] - self._size) // 2
        change = (self.kernel @ self._whitener).view(channels, channels, self._size, self._size)
        return {
            "kernel": start.kernel + F.pad(change, (rim,) * 4),
            "bias": start.bias + self.bias,
            "offset": start.offset + OFFSET_STEP * self.offset,
            "curve": start.curve + CURVE_STEP * self.curve,
        }


class _GoalReached(Exception):
    """Ends a descent at the coordinates that were just evaluated; no caller sees it."""


def descend(
    objective: Objective,
    coordinates: Coordinates,
    frames: Tensor,
    labels: Tensor | None,
    evaluations: int,
    goal: float,
    on_evaluation: Callable[[float], None],
) -> None:
    """Minimise the objective over the coordinates by L-BFGS (Nocedal 1980) with a strong-Wolfe line search.

    frames: (N, C, H, W). labels: (N,) int64 or None, as the objective needs them.
    evaluations: of the objective, about: a line search that has begun is finished.
    goal: the descent ends once the objective is not above it, in nats.
    on_evaluation: called with every value of the objective. An exception from it ends the descent and is raised.
    """
    optimizer = torch.optim.LBFGS(
        [p for p in coordinates.parameters() if p.requires_grad],
        max_iter=evaluations,
        max_eval=evaluations,
        tolerance_grad=0,
        tolerance_change=0,
        history_size=LBFGS_HISTORY,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        optimizer.zero_grad()
        loss = float(objective.backpropagate(coordinates, frames, labels))
        on_evaluation(loss)
        if loss <= goal:
            raise _GoalReached
        return loss

    with suppress(_GoalReached):
        optimizer.step(closure)


def patch_whitener(frames: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Return the inverse square root of the covariance of patches, (C * size², C * size²) (ZCA whitening).

    frames: (N, C, H, W). size: side of a patch in pixels, at most H and W. Source: Bell & Sejnowski 1997.
    """
    height, width = frames.shape[-2:]
    draw = (WHITENING_PATCHES,)
    image = torch.randint(len(frames), draw, generator=generator)
    row = torch.randint(height - size + 1, draw, generator=generator)
    column = torch.randint(width - size + 1, draw, generator=generator)
    taps = torch.arange(size)
    patches = frames[  # (WHITENING_PATCHES, size, size, C)
        image[:, None, None], :, row[:, None, None] + taps[:, None], column[:, None, None] + taps[None, :]
    ]
    patches = patches.permute(0, 3, 1, 2).flatten(1)
    values, vectors = torch.linalg.eigh(torch.cov(patches.T).reshape(patches.shape[1], patches.shape[1]))
    scale = (values.clamp_min(0) + WHITENING_RIDGE * values.mean()).rsqrt()
    return (vectors * scale) @ vectors.T
