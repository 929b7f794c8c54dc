"""Refine a homogenizer by gradients of the objective, in coordinates that suit it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from calibrate.homogenizer import Homogenizer
from calibrate.search.objective import Objective

TRAINED_KERNEL = 9  # taps that gradients move; the wider rim of the closed form stays as it is
WHITENING_RIDGE = 1e-2  # of the mean patch variance: bounds how much a weak direction is amplified
OFFSET_SCALE = 0.1  # what a unit step moves the offset map by: its closed form is good, and thousands of values overfit
CURVE_SCALE = 0.25
MEMORY = 20  # past steps from which L-BFGS knows the curvature
PATCHES = 30_000  # from which the whitener is estimated


class Coordinates(nn.Module):
    """A homogenizer in coordinates in which every direction changes the output by a like amount; zero at the start.

    The kernel's taps are strongly correlated on natural images: one step on raw taps moves the mean gain far more
    than any detail. `kernel` (C, C*k*k) acts on whitened patches instead, so that
    kernel of the homogenizer = that of the start + kernel @ whitener.
    """

    def __init__(self, start: Homogenizer, frames: Tensor, generator: torch.Generator):
        super().__init__()
        self._start = start.requires_grad_(False)
        self._size = min(TRAINED_KERNEL, start.kernel.shape[-1])
        with torch.no_grad():
            self._whitener = patch_whitener(start.tone(frames) + start.offset, self._size, generator)
        self.kernel = nn.Parameter(torch.zeros(frames.shape[1], len(self._whitener)))
        self.bias = nn.Parameter(torch.zeros_like(start.bias))
        # Refined where the start found a fixed pattern: elsewhere thousands of values would fit sampling noise.
        self.offset = nn.Parameter(torch.zeros_like(start.offset), requires_grad=bool(start.offset.any()))
        self.curve = nn.Parameter(torch.zeros_like(start.curve))

    def forward(self, frames: Tensor) -> Tensor:
        return functional_call(self._start, self._values(), (frames,))

    def homogenizer(self) -> Homogenizer:
        """The homogenizer at these coordinates, in evaluation mode, without gradients."""
        found = Homogenizer(**self._start.architecture()).requires_grad_(False)
        found.load_state_dict({name: value.detach() for name, value in self._values().items()})
        return found.eval()

    def _values(self) -> dict[str, Tensor]:
        start, channels = self._start, len(self.bias)
        rim = (start.kernel.shape[-1] - self._size) // 2
        change = (self.kernel @ self._whitener).view(channels, channels, self._size, self._size)
        return {
            "kernel": start.kernel + F.pad(change, (rim,) * 4),
            "bias": start.bias + self.bias,
            "offset": start.offset + OFFSET_SCALE * self.offset,
            "curve": start.curve + CURVE_SCALE * self.curve,
        }


class _GoalReached(Exception):
    """Ends a descent, at the coordinates that were just evaluated; never seen by a caller."""


def descend(
    objective: Objective,
    coordinates: Coordinates,
    frames: Tensor,
    labels: Tensor | None,
    evaluations: int,
    goal: float,
    evaluated: Callable[[float], None],
) -> None:
    """Move the coordinates downhill by L-BFGS (Nocedal 1980) on these frames, until the objective is at `goal`.

    `evaluated` is told every value of the objective, about as many as `evaluations`: a line search is ended whole.
    It may raise, which ends the descent.
    """
    optimizer = torch.optim.LBFGS(
        [p for p in coordinates.parameters() if p.requires_grad],
        max_iter=evaluations,
        max_eval=evaluations,
        tolerance_grad=0,
        tolerance_change=0,
        history_size=MEMORY,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        optimizer.zero_grad()
        loss = float(objective.backpropagate(coordinates, frames, labels))
        evaluated(loss)
        if loss <= goal:
            raise _GoalReached
        return loss

    with suppress(_GoalReached):
        optimizer.step(closure)


def patch_whitener(frames: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Inverse square root of the covariance of size x size patches, (C*size*size, C*size*size)."""
    height, width = frames.shape[-2:]
    draw = (PATCHES,)
    image = torch.randint(len(frames), draw, generator=generator)
    row = torch.randint(height - size + 1, draw, generator=generator)
    column = torch.randint(width - size + 1, draw, generator=generator)
    taps = torch.arange(size)
    patches = frames[  # (PATCHES, size, size, C)
        image[:, None, None], :, row[:, None, None] + taps[:, None], column[:, None, None] + taps[None, :]
    ]
    patches = patches.permute(0, 3, 1, 2).flatten(1)
    values, vectors = torch.linalg.eigh(torch.cov(patches.T).reshape(patches.shape[1], patches.shape[1]))
    scale = (values.clamp_min(0) + WHITENING_RIDGE * values.mean()).rsqrt()
    return (vectors * scale) @ vectors.T
