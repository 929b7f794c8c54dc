"""Dead pixels: those that never change any more, although they did in the healthy period."""

from __future__ import annotations

import torch
from torch import Tensor

from calibrate.readouts.moments import mean_picture, variance_picture
from calibrate.readouts.picture_statistics import PictureStatistics

LIVE_VARIANCE, DEAD_VARIANCE = 4.0, 1e-2  # squared grey levels: clearly above and below what rounding does
CERTAIN = 100.0  # grey levels of the mean: more than a fixed pattern adds to a pixel that never changes
FAR = 8.0  # grey levels from all neighbours: else a whole region went to black or white


def dead_pixels(healthy: PictureStatistics, recent: PictureStatistics) -> Tensor:
    """Return which pixels (h, w) are dead; one that a scene leaves black anyway cannot be told from a dead one."""
    still = (variance_picture(recent) < DEAD_VARIANCE).all(0)
    now, once = (mean_picture(statistics).mean(0) for statistics in (recent, healthy))
    return still & (could_die(healthy) | ((now - once).abs() > CERTAIN)) & _stands_out(now)


def could_die(healthy: PictureStatistics) -> Tensor:
    """Return the pixels (h, w) whose death could be seen: neither dark nor still in any block of the healthy period."""
    blocks = [healthy.only(block) for block in range(len(healthy.frames))]
    moving = torch.stack([(variance_picture(block) > LIVE_VARIANCE).all(0) for block in blocks]).all(0)
    return moving & (mean_picture(healthy).mean(0) > FAR)


def _stands_out(picture: Tensor) -> Tensor:
    """Return where a picture (h, w) is far from the median of the pixels around it."""
    padded = torch.nn.functional.pad(picture[None, None], (2, 2, 2, 2), mode="replicate")
    around = torch.nn.functional.unfold(padded, 5).view(25, *picture.shape).median(0).values
    return (picture - around).abs() > FAR
