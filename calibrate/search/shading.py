"""Find out whether a lens darkens the corners, and how much."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from calibrate.shading import brighten, lens_gain
from calibrate.source.description import Limits

LOST_SHARES = (0.2, 0.4, 0.6, 0.8)  # of the light in the corners; the descent refines the best one
LOST_SHARE_STEP = 0.1  # half way between them
# Largest objective behind a gain, relative to the one without it, for a descent to try it. On CIFAR-10, digits,
# traffic signs and X-rays corners that lose half of their light had 0.01 to 0.5, alone and with other drifts; the
# perturbation of the paper, which no gain undoes, 0.3 to 1.
SHADING_MAX_LOSS_RATIO = 0.6


def find_gain(loss_of: Callable[[Tensor], float], frames: Tensor, limits: Limits) -> Tensor | None:
    """Return the gain (1, 1, H, W) that undoes the shading of frames (N, C, H, W); None if there is hardly any.

    loss_of: the objective in nats that the best simple start reaches on frames like these.
    """
    height, width = frames.shape[2:]

    def loss(lost: float) -> float:
        return loss_of(brighten(frames, lens_gain(lost, height, width).to(frames.device), limits.black))

    losses = {0.0: loss_of(frames)} | {lost: loss(lost) for lost in LOST_SHARES}
    best = min(losses, key=losses.__getitem__)
    if best == 0.0:
        return None
    losses |= {lost: loss(lost) for lost in (best - LOST_SHARE_STEP, best + LOST_SHARE_STEP)}
    best = min(losses, key=losses.__getitem__)
    found = losses[best] < SHADING_MAX_LOSS_RATIO * losses[0.0]
    return lens_gain(best, height, width).to(frames.device) if found else None
