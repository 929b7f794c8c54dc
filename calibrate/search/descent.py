"""Refine a homogenizer by gradients of the objective, in well-scaled coordinates."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from calibrate.gpu import replayable
from calibrate.homogenizer import Homogenizer
from calibrate.search.objective import Objective
from calibrate.shading import radial_basis

TRAINED_KERNEL_SIZE = 9  # side in pixels of the part of the kernel that gradients change; the rim stays as it is
WHITENING_RIDGE = 1e-2  # added variance, relative to the mean patch variance; bounds the gain of weak directions
WHITENING_PATCHES = 30_000  # patches for the estimate of the whitener
CURVE_STEP = 0.25  # change of the tone curve for a unit step
SHADING_STEP = 0.25  # change of the gain in the corners for a unit step of one power of the radius
OFFSET_STEP = 0.1  # change of the offset map for a unit step; small, as thousands of values would overfit
LBFGS_HISTORY = 20  # past steps for the curvature estimate of L-BFGS


class Coordinates(nn.Module):
    """Coordinates of a homogenizer in which a step in any direction changes the output similarly. Zero is the start.

    The taps of a kernel are strongly correlated on natural images: a step on raw taps moves the mean gain far more
    than any detail. `kernel` (C, C * k * k) acts on whitened patches instead:
    kernel of the homogenizer = kernel of the start + kernel @ whitener. All coordinates are parts of one vector, so
    that a step is a few operations.

    start: the homogenizer at zero; it is frozen. frames: (N, C, H, W) that the patches are drawn from.
    """

    def __init__(self, start: Homogenizer, frames: Tensor, generator: torch.Generator):
        super().__init__()
        self._start = start.requires_grad_(False)
        self._size = min(TRAINED_KERNEL_SIZE, start.kernel.shape[-1])
        with torch.no_grad():
            self._whitener = patch_whitener(start.correct_levels(frames) + start.offset, self._size, generator)
        shapes = {"kernel": (frames.shape[1], len(self._whitener)), "bias": start.bias.shape}
        # Refined only if the start found a fixed pattern. Otherwise its thousands of values would fit sampling noise.
        shapes |= {"offset": start.offset.shape} if bool(start.offset.any()) else {}
        shapes |= {"curve": start.curve.shape}
        self._powers = radial_basis(*frames.shape[2:]).to(frames.device)
        shapes |= {"gain": self._powers.shape[:1]} if start.gain is not None else {}
        self._shapes = {name: torch.Size(shape) for name, shape in shapes.items()}
        values = sum(shape.numel() for shape in self._shapes.values())
        self.vector = nn.Parameter(torch.zeros(values, device=frames.device))

    def forward(self, frames: Tensor) -> Tensor:
        return functional_call(self._start, self._values(), (frames,))

    def homogenizer(self) -> Homogenizer:
        """Return the homogenizer at these coordinates, in evaluation mode and without gradients."""
        homogenizer = Homogenizer(**self._start.architecture()).to(self.vector.device).requires_grad_(False)
        homogenizer.load_state_dict({name: value.detach() for name, value in self._values().items()})
        return homogenizer.eval()

    def parts(self) -> dict[str, Tensor]:
        """Return the coordinates by name, as views of the vector; `offset` and `gain` only if the start has them."""
        parts = self.vector.split([shape.numel() for shape in self._shapes.values()])
        return {name: part.view(shape) for part, (name, shape) in zip(parts, self._shapes.items(), strict=True)}

    def _values(self) -> dict[str, Tensor]:
        """Return the homogenizer's parameters at these coordinates."""
        start, parts = self._start, self.parts()
        channels, rim = len(start.bias), (start.kernel.shape[-1] - self._size) // 2
        change = (parts["kernel"] @ self._whitener).view(channels, channels, self._size, self._size)
        values = {
            "kernel": start.kernel + F.pad(change, (rim,) * 4),
            "bias": start.bias + parts["bias"],
            "offset": start.offset + OFFSET_STEP * parts["offset"] if "offset" in parts else start.offset,
            "curve": start.curve + CURVE_STEP * parts["curve"],
        }
        if start.gain is not None and start.black is not None:
            gain = start.gain + SHADING_STEP * torch.tensordot(parts["gain"], self._powers, 1)
            values |= {"gain": gain, "black": start.black}
        return values


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
    # The optimizer works on the processor, where its hundred small sums a step take less time than on a GPU.
    position = nn.Parameter(coordinates.vector.detach().to("cpu", copy=True))
    optimizer = torch.optim.LBFGS(
        [position],
        max_iter=evaluations,
        max_eval=evaluations,
        tolerance_grad=0,
        tolerance_change=0,
        history_size=LBFGS_HISTORY,
        line_search_fn="strong_wolfe",
    )
    loss_and_gradient = _loss_and_gradient(objective, coordinates, frames, labels)

    def closure() -> float:
        coordinates.vector.data.copy_(position)
        found = loss_and_gradient().cpu()
        loss = float(found[0])
        on_evaluation(loss)
        if loss <= goal:
            raise _GoalReached
        position.grad = found[1:]
        return loss

    with suppress(_GoalReached):
        optimizer.step(closure)
    coordinates.vector.data.copy_(position)


def _loss_and_gradient(
    objective: Objective, coordinates: Coordinates, frames: Tensor, labels: Tensor | None
) -> Callable[[], Tensor]:
    """Return a function that computes the objective at the coordinates and its gradient, as one vector."""

    def compute() -> Tensor:
        loss, (gradient,) = objective.differentiate(coordinates, [coordinates.vector], frames, labels)
        return torch.cat([loss.view(1), gradient])

    return replayable(compute, objective.can_be_captured(frames, labels))


def patch_whitener(frames: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Return the inverse square root of the covariance of patches, (C * size², C * size²) (ZCA whitening).

    frames: (N, C, H, W). size: side of a patch in pixels, at most H and W. Source: Bell & Sejnowski 1997.
    """
    height, width = frames.shape[-2:]
    draw = (WHITENING_PATCHES,)
    image = torch.randint(len(frames), draw, generator=generator)
    row = torch.randint(height - size + 1, draw, generator=generator)
    column = torch.randint(width - size + 1, draw, generator=generator)
    image, row, column = (drawn.to(frames.device) for drawn in (image, row, column))
    taps = torch.arange(size, device=frames.device)
    patches = frames[  # (WHITENING_PATCHES, size, size, C)
        image[:, None, None], :, row[:, None, None] + taps[:, None], column[:, None, None] + taps[None, :]
    ]
    patches = patches.permute(0, 3, 1, 2).flatten(1)
    covariance = torch.cov(patches.T).reshape(patches.shape[1], patches.shape[1])
    values, vectors = torch.linalg.eigh(covariance.cpu())
    scale = (values.clamp_min(0) + WHITENING_RIDGE * values.mean()).rsqrt()
    return ((vectors * scale) @ vectors.T).to(frames.device)
