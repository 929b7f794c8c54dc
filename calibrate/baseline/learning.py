"""Learn from healthy frames in which directions content moves the statistics, and how far windows stray from them."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from calibrate.baseline.baseline import MAX_UNSEEN_SHARE, MIN_SPREAD, Baseline, is_table
from calibrate.baseline.directions import main_directions
from calibrate.baseline.frames import FrameStatistics
from calibrate.baseline.scenes import MIXED, draw_scenes, draw_still_scenes
from calibrate.errors import RecaldError

MIN_HEALTHY_FRAMES = 512  # with fewer, what a scene happens to show is taken for the camera
# Of the content. On X-rays with 2048 frames, 60 directions hid a haze that costs 4 points; 20 show it.
DIRECTIONS = 20
MAX_DIRECTIONS_SHARE = 1 / 8  # of all statistics: a small network's camera must not be taken for content
SCENES = 300  # of each kind of scene that the directions are learned from
FOLDS = 4  # a part of the frames is compared with a baseline of the others, as new frames will be
SCENES_OF_FOLD = 100  # of each kind of scene
STILL_SCENES_OF_FOLD = 25  # for each number of different frames
CONTENT_QUANTILE = 0.995
# Beyond which a statistic of one frame counts no further, in standard deviations of healthy frames. One odd X-ray
# raised its window by 1.7 standard deviations of windows, with this limit by 0.9, and drifts show as well as without.
MAX_DEVIATIONS = 3.0
# Least variance between frames, as a share of that between the pixels of the training data, in the median channel. Five
# networks have 0.03 to 0.08; the frames of a camera that stands still have next to none.
MIN_FRAME_VARIANCE = 0.003
TOO_MUCH_ALIKE = "the frames are all alike, as of a camera that stands still: no baseline is learned"
BINS = 6  # groups of windows of like content, each with what is expected of it
MIN_SD_SHARE = 0.5  # of the average spread of the groups that one of them may have
SCENES_SEED = 0  # of the windows, so that the same frames always lead to the same baseline


class BaselineError(RecaldError):
    """Frames that no baseline can be learned from; the message says what to do."""


def learn_baseline(frames: FrameStatistics, size: int, classes: int) -> Baseline:
    """Learn a baseline for windows of `size` frames from N healthy frames, of a network with K classes (0: none).

    Content moves the statistics of windows along few directions: the main ones of windows that show few classes, one
    light, or frames that look alike (principal component analysis). What is left of a window beside them is compared
    with what was left of healthy frames that the directions were not learned from (cross-validation, Stone 1974). The
    fewer different frames a window shows, the more is left.
    Raises BaselineError for fewer frames than `frames_needed`, and for frames all alike.
    """
    needed = frames_needed(size)
    if len(frames) < needed:
        raise BaselineError(f"{len(frames)} healthy frames are too few for a baseline: at least {needed} are needed")
    if not float(frames.first.var(0).median()) >= MIN_FRAME_VARIANCE:
        raise BaselineError(TOO_MUCH_ALIKE)
    limits, variance = _limits(frames), frames.first.var(0) + MIN_SPREAD**2
    generator = torch.Generator().manual_seed(SCENES_SEED)
    baseline = _learn_directions(frames.clamp(limits), size, classes, SCENES, generator)
    baseline = replace(baseline, limits=limits, variance=variance)
    new = _compare_new_frames(frames, baseline, generator)
    baseline = replace(
        baseline,
        content_limit=new.scenes[MIXED][:, 0].quantile(CONTENT_QUANTILE),
        expected=_expected(*torch.cat(list(new.scenes.values())).log().T),
        unseen_limit=_unseen_limit(baseline, frames.labels, generator),
    )
    baseline = replace(baseline, alike=_expected_of_still(baseline, new.still))
    if not (is_table(baseline.expected) and is_table(baseline.alike)):
        raise BaselineError(TOO_MUCH_ALIKE)
    return baseline


def frames_needed(size: int) -> int:
    """Return how many frames a baseline of windows of `size` frames is learned from, at least."""
    return max(MIN_HEALTHY_FRAMES, FOLDS * size)


def _limits(frames: FrameStatistics) -> Tensor:
    """Return between what statistics of single frames count, (4, C), as FrameStatistics.clamp takes it."""
    rows = []
    for statistic in (frames.first, frames.second):
        centre, reach = statistic.mean(0), MAX_DEVIATIONS * statistic.std(0)
        rows += [centre - reach, centre + reach]
    return torch.stack(rows)


def _unseen_limit(baseline: Baseline, labels: Tensor, generator: Generator) -> Tensor:
    """Return the share of frames of hardly seen classes that healthy windows have at most; MAX_UNSEEN_SHARE or more."""
    windows = labels[torch.randint(len(labels), (SCENES, int(baseline.size)), generator=generator)]
    shares = baseline.unseen(windows).float().mean(1)
    return shares.quantile(CONTENT_QUANTILE).clamp_min(MAX_UNSEEN_SHARE)


def _learn_directions(frames: FrameStatistics, size: int, classes: int, windows: int, generator: Generator) -> Baseline:
    scenes = draw_scenes(frames, windows, size, generator)
    mixed = frames.windows(scenes.pop(MIXED))
    drawn = torch.cat([mixed, *(frames.windows(rows) for rows in scenes.values())])
    centre = drawn.mean(0)
    count = max(1, min(DIRECTIONS, int(MAX_DIRECTIONS_SHARE * len(centre))))
    directions = main_directions(drawn - centre, count, generator)
    beside = drawn - centre
    beside = beside - (beside @ directions.T) @ directions
    along = (mixed - centre) @ directions.T
    one, table = torch.ones(()), torch.tensor([[0.0, 0.0, 1.0]])
    channels = len(centre) // 2
    return Baseline(
        limits=torch.tensor([-torch.inf, torch.inf, -torch.inf, torch.inf])[:, None].expand(4, channels),
        variance=torch.ones(channels),
        centre=centre,
        directions=directions,
        spread=beside.std(0) + MIN_SPREAD,
        content_spread=along.std(0) + MIN_SPREAD,
        content_limit=one,
        expected=table,
        alike=table,
        unseen_limit=one,
        classes=frames.labels[frames.labels >= 0].bincount(minlength=classes).float(),
        size=one * size,
        frames=one * len(frames),
    )


class NewFrames(NamedTuple):
    """Windows of healthy frames, compared with a baseline of other frames.

    scenes: by kind the distances along the content's directions and beside them, (W, 2). still: for windows that show
    few different frames these two, and how many are different, (W, 3), by how many were drawn.
    """

    scenes: dict[str, Tensor]
    still: dict[int, Tensor]


def _compare_new_frames(frames: FrameStatistics, baseline: Baseline, generator: Generator) -> NewFrames:
    kept, size, classes = frames.clamp(baseline.limits), int(baseline.size), len(baseline.classes)
    fold = torch.randperm(len(frames), generator=generator) % FOLDS
    scenes: dict[str, list[Tensor]] = {}
    still: dict[int, list[Tensor]] = {}
    for number in range(FOLDS):
        learned = _learn_directions(kept[fold != number], size, classes, SCENES_OF_FOLD, generator)
        new, first = kept[fold == number], frames.first[fold == number]
        for kind, rows in draw_scenes(new, SCENES_OF_FOLD, size, generator).items():
            scenes.setdefault(kind, []).append(torch.stack(learned.distances(new.windows(rows)), 1))
        for drawn, rows in draw_still_scenes(len(new), STILL_SCENES_OF_FOLD, size, generator).items():
            found = torch.stack([*learned.distances(new.windows(rows)), baseline.different(first[rows])], 1)
            still.setdefault(drawn, []).append(found)
    return NewFrames({k: torch.cat(parts) for k, parts in scenes.items()}, {k: torch.cat(p) for k, p in still.items()})


def _expected(content: Tensor, distance: Tensor) -> Tensor:
    """Return for BINS groups of windows of like content: its logarithm, level and spread of log distances, (BINS, 3).

    content, distance: (W,) logarithms.
    """
    groups = content.argsort().chunk(BINS)
    spreads = torch.stack([distance[group].std() for group in groups])
    spreads = spreads.clamp_min(float(MIN_SD_SHARE * spreads.mean()))
    places, levels = (torch.stack([values[group].mean() for group in groups]) for values in (content, distance))
    return torch.stack([places, levels, spreads], 1)


def _expected_of_still(baseline: Baseline, still: dict[int, Tensor]) -> Tensor:
    """Return for windows that show few different frames: the logarithm of how many, level and spread of the excess.

    The last row is that of windows whose frames are all different: `expected` leaves nothing over.
    """
    rows = []
    for _, windows in sorted(still.items()):
        excess = torch.tensor([baseline.excess(content, distance) for content, distance, _ in windows.tolist()])
        rows.append((windows[:, 2].log().mean(), excess.mean().clamp_min(0), excess.std().clamp_min(1)))
    rows.append((baseline.size.log(), torch.zeros(()), torch.ones(())))
    return torch.stack([torch.stack(row) for row in rows])
