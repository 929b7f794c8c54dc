"""Find out whether single pixels are defective, and by how much they stand out of their neighbours."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from calibrate.defects import replace_defects_of_many
from calibrate.source.description import Limits

# Shares of the range from black to white, the smaller first. Behind impulse noise and dead pixels, on CIFAR-10, digits
# and X-rays, 0.2 and 0.3 are best or nearly so; 0.15 takes fine detail for defects, 0.4 spares some of them. They lie
# between two of the 256 levels of a camera: whether a pixel is replaced must not depend on rounding.
DEFECT_STEPS = (51.5 / 255, 102.5 / 255)
# Largest objective behind the replacement, relative to the one without it, for a descent to try it. On CIFAR-10,
# digits, traffic signs and X-rays impulse noise and 2 % of dead pixels had 0.00 to 0.55, behind vignetting up to 0.7;
# other drifts 0.58 to 8.
DEFECTS_MAX_LOSS_RATIO = 0.75


def find_defect_step(loss_of: Callable[[Tensor], float], frames: Tensor, limits: Limits) -> Tensor | None:
    """Return the step (C,) in normalised input units above which values are defects; None if there are hardly any.

    loss_of: the objective in nats that the best simple start reaches on frames like these, (N, C, H, W).
    """
    if min(frames.shape[2:]) < 2:  # a pixel has no neighbours to differ from
        return None
    steps = [share * (limits.white - limits.black) for share in DEFECT_STEPS]
    losses = [loss_of(replace_defects_of_many(frames, step)) for step in steps]
    best = min(range(len(steps)), key=losses.__getitem__)
    return steps[best] if losses[best] < DEFECTS_MAX_LOSS_RATIO * loss_of(frames) else None
