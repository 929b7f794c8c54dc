"""Find out whether frames come from two cameras in turn, without labels: two groups far apart in their statistics."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from calibrate.validation import MIN_FIT_FRAMES

# Distance between the means of the two groups, in standard deviations within a group. Windows of 512 frames of one
# camera, clean or drifted, had 5.6 at most, and any distance where they showed few pictures again; two cameras with
# the drifts of bench.streams in turn had 30 to 55, pairs of drifts drawn at random 3 to 20.
MIN_SEPARATION = 12.0
MIN_GROUP_SHARE = 0.25  # of the frames
EM_STEPS = 50
# Least variance of a direction, relative to the largest: of statistics that say the same there is no other direction.
MIN_DIRECTION_VARIANCE = 1e-4
MIN_WITHIN_VARIANCE = 1e-6  # of a group, relative to all frames: two groups without any spread are infinitely far apart


class _Groups(NamedTuple):
    """Two groups of whitened statistics. `direction` @ statistics is above `limit` for frames of the second."""

    direction: Tensor
    limit: float
    separation: float
    share: float  # of the second group


def find_split(statistics: Tensor) -> Tensor | None:
    """Return the rule of a SplitHomogenizer, (1 + 4C,) float32, that tells two cameras apart; None for one camera.

    statistics: (N, 4C) of `frame_statistics`, in any order. Each group has MIN_FIT_FRAMES at least.
    """
    statistics = statistics.double().cpu()
    if len(statistics) < 2 * MIN_FIT_FRAMES or not torch.isfinite(statistics).all():
        return None
    centre, whitener = statistics.mean(0), _whitener(statistics)
    whitened = (statistics - centre) @ whitener
    least_share = max(MIN_GROUP_SHARE, MIN_FIT_FRAMES / len(statistics))
    found = [_fit_groups(whitened, line > line.median()) for line in (*whitened.T, *statistics.T)]
    usable = [groups for groups in found if least_share <= groups.share <= 1 - least_share]
    best = max(usable, key=lambda groups: groups.separation, default=None)
    if best is None or best.separation < MIN_SEPARATION:
        return None
    weights = whitener @ best.direction
    rule = torch.cat([(best.limit + centre @ weights)[None], weights]).float()
    return rule if _group_sizes(statistics.float(), rule) >= MIN_FIT_FRAMES else None


def _whitener(statistics: Tensor) -> Tensor:
    """Return the matrix (D, d) that gives centred statistics (N, D) the covariance of the identity, d <= D."""
    variances, directions = torch.linalg.eigh(torch.cov(statistics.T, correction=0))
    kept = variances > MIN_DIRECTION_VARIANCE * variances[-1]
    return directions[:, kept] * variances[kept].rsqrt()


def _fit_groups(whitened: Tensor, in_second: Tensor) -> _Groups:
    """Fit two Gaussians of one covariance by expectation maximisation, from a first guess (N,) bool.

    All frames together have mean 0 and covariance 1. The covariance within the groups is 1 - p (1 - p) d d', with the
    distance d of their means and the share p of the second, and its inverse has d as an eigenvector.
    """
    belongs = in_second.double()
    groups = _groups_of(whitened, belongs)
    for _ in range(EM_STEPS):
        groups = _groups_of(whitened, torch.sigmoid(whitened @ groups.direction - groups.limit))
    return groups


def _groups_of(whitened: Tensor, belongs: Tensor) -> _Groups:
    """Return the groups of frames that belong to the second one with these probabilities, (N,)."""
    share = belongs.mean().clamp(1e-6, 1 - 1e-6)
    apart = (belongs @ whitened) / belongs.sum().clamp_min(1e-6) / (1 - share)
    within = (1 - share * (1 - share) * apart.square().sum()).clamp_min(MIN_WITHIN_VARIANCE)
    direction = apart / within
    limit = (0.5 - share) * (apart @ direction) - torch.logit(share)
    return _Groups(direction, float(limit), float((apart @ direction).sqrt()), float(share))


def _group_sizes(statistics: Tensor, rule: Tensor) -> int:
    """Return the number of frames in the smaller group."""
    second = int((statistics @ rule[1:] > rule[0]).sum())
    return min(second, len(statistics) - second)
