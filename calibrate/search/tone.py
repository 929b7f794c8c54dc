"""Starts for another tone curve: gamma, a display's or an encoder's setting, to some extent an exposure that clips.

No linear map undoes them, and a descent that begins with one fits the statistics with whatever else it has: traffic
signs under gamma 2.2 were left at 81 % of 95.5 %, below the 86 % of doing nothing, and reach 94 % from here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from calibrate.homogenizer import Homogenizer, bend
from calibrate.search.starts import colour_start
from calibrate.source.training import Limits, Source

EXPONENTS = (0.45, 0.65, 1.5, 2.2)  # 1/2.2 and 2.2 are the gammas of displays, the others lie half way
LEVELS = 256  # quantiles of the frames' values, at which a curve is fitted
RIDGE = 1e-4  # keeps knots where no values are from running away
MOST_VALUES = 2**17  # of a channel; more say the same and take seconds to sort
ITERATIONS = 60  # of fitting a curve to the levels; it takes milliseconds


def tone_start(frames: Tensor, source: Source, limits: Limits, exponent: float) -> Homogenizer:
    """Undo v^(1/exponent), v from 0 for black to 1 for white, and then one colour map for the whole frame."""
    homogenizer = Homogenizer(*frames.shape[1:])
    levels = _levels(frames)
    gain, bias = _bend(homogenizer, levels, _power(levels, limits, exponent))
    with torch.no_grad():
        toned = homogenizer.tone(frames) * gain.view(-1, 1, 1) + bias.view(-1, 1, 1)
        colour = colour_start(toned, source, torch.zeros_like(frames[:1]))
        homogenizer.kernel.copy_(colour.kernel * gain.view(1, -1, 1, 1))
        homogenizer.bias.copy_(colour.bias + colour.kernel.sum((2, 3)) @ bias)
    return homogenizer


def _levels(frames: Tensor) -> Tensor:
    """(C, LEVELS): values that divide a channel's pixels into equal parts."""
    values = frames.transpose(0, 1).flatten(1)
    values = values[:, :: max(values.shape[1] // MOST_VALUES, 1)].sort(1).values
    return values[:, torch.linspace(0, values.shape[1] - 1, LEVELS).long()]


def _power(levels: Tensor, limits: Limits, exponent: float) -> Tensor:
    black, white = limits.black[:, None], limits.white[:, None]
    return black + (white - black) * ((levels - black) / (white - black)).clamp(0, 1) ** exponent


def _bend(homogenizer: Homogenizer, levels: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Give the homogenizer the tone curve nearest to `wanted` (C, LEVELS), up to the gain and bias (C,) returned."""
    stretch = torch.zeros_like(homogenizer.curve, requires_grad=True)  # logarithm of 1 + curve: all curves rise
    optimizer = torch.optim.LBFGS([stretch], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def misfit() -> tuple[Tensor, Tensor, Tensor]:
        bent = bend(levels[None, :, :, None], stretch.expm1())[0, :, :, 0]
        spread = bent - bent.mean(1, keepdim=True)
        centre = wanted.mean(1)
        gain = (spread * (wanted - centre[:, None])).mean(1) / spread.square().mean(1).clamp_min(1e-9)
        left = (spread * gain[:, None] + centre[:, None] - wanted).square().mean()
        return left + RIDGE * stretch.square().mean(), gain, centre - gain * bent.mean(1)

    def closure() -> float:
        optimizer.zero_grad()
        with torch.enable_grad():
            loss, _, _ = misfit()
            loss.backward()
        return float(loss.detach())

    optimizer.step(closure)
    with torch.no_grad():
        homogenizer.curve.copy_(stretch.expm1())
        _, gain, bias = misfit()
    return gain, bias
