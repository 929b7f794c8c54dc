"""Least squares with few parameters, each within limits: Levenberg-Marquardt with numerical derivatives."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

STEP = 1e-3  # of a derivative, as a share of a parameter's range
ITERATIONS = 25
DAMPING, MIN_DAMPING, MAX_DAMPING = 1e-3, 1e-9, 1e6
TOLERANCE = 1e-6  # relative gain below which nothing is left to win


def least_squares(residuals: Callable[[Tensor], Tensor], start: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return parameters (P,) within low and high that make the sum of the squares of `residuals` (R,) least.

    Levenberg (1944), Marquardt (1963); derivatives are differences.
    """
    found, damping = start.clamp(low, high), DAMPING
    values = residuals(found)
    for _ in range(ITERATIONS):
        slopes = _slopes(residuals, found, values, low, high)
        normal, gradient = slopes.T @ slopes, slopes.T @ values
        before = values.square().sum()
        while damping < MAX_DAMPING:
            damped = normal + damping * torch.diag(normal.diagonal() + 1e-12)
            trial = (found - torch.linalg.solve(damped, gradient)).clamp(low, high)
            tried = residuals(trial)
            if tried.square().sum() < before:
                break
            damping *= 10
        else:
            return found
        found, values, damping = trial, tried, max(damping / 10, MIN_DAMPING)
        if before - values.square().sum() < TOLERANCE * before:
            break
    return found


def _slopes(residuals: Callable[[Tensor], Tensor], at: Tensor, values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the derivatives (R, P), each towards the limit that is farther away."""
    steps = STEP * (high - low) * torch.where(at - low < high - at, 1.0, -1.0)
    return torch.stack([(residuals(at + shift) - values) / shift.sum() for shift in steps.diag()], 1)
