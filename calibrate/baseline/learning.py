"""Learn from healthy frames in which directions content moves the statistics, and how far windows stray from them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Generator, Tensor

from calibrate.baseline.baseline import MIN_SPREAD, Baseline
from calibrate.baseline.directions import main_directions
from calibrate.baseline.frames import FrameStatistics
from calibrate.baseline.scenes import MIXED, draw_scenes
from calibrate.errors import RecaldError

MIN_HEALTHY_FRAMES = 512  # with fewer, what a scene happens to show is taken for the camera
# Of the content. On X-rays with 2048 frames, 60 directions hid a haze that costs 4 points; 20 show it.
DIRECTIONS = 20
MAX_DIRECTIONS_SHARE = 1 / 8  # of all statistics: a small network's camera must not be taken for content
SCENES = 300  # of each kind of scene that the directions are learned from
FOLDS = 4  # a part of the frames is compared with a baseline of the others, as new frames will be
SCENES_OF_FOLD = 100  # of each kind of scene
CONTENT_QUANTILE = 0.995
BINS = 6  # groups of windows of like content, each with what is expected of it
MIN_SD_SHARE = 0.5  # of the average spread of the groups that one of them may have
SCENES_SEED = 0  # of the windows, so that the same frames always lead to the same baseline


class BaselineError(RecaldError):
    """Frames that no baseline can be learned from; the message says what to do."""


def learn_baseline(frames: FrameStatistics, size: int, classes: int) -> Baseline:
    """Learn a baseline for windows of `size` frames from N healthy frames, of a network with K classes (0: none).

    Content moves the statistics of windows along few directions: the main ones of windows that show few classes, one
    light, or frames that look alike (principal component analysis). What is left of a window beside them is compared
    with what was left of healthy frames that the directions were not learned from (cross-validation, Stone 1974).
    Raises BaselineError for fewer frames than `frames_needed`, and for frames all the same.
    """
    needed = frames_needed(size)
    if len(frames) < needed:
        raise BaselineError(f"{len(frames)} healthy frames are too few for a baseline: at least {needed} are needed")
    generator = torch.Generator().manual_seed(SCENES_SEED)
    baseline = _learn_directions(frames, size, classes, SCENES, generator)
    contents, distances = _of_new_frames(frames, size, classes, generator)
    content, distance = torch.cat(list(contents.values())).log(), torch.cat(list(distances.values())).log()
    expected = _expected(content, distance)
    places, _, spreads = expected.T
    if not (torch.isfinite(expected).all() and (places.diff() > 0).all() and (spreads > 0).all()):
        raise BaselineError("the frames are all the same: no baseline can be learned from them")
    return replace(
        baseline,
        content_limit=contents[MIXED].quantile(CONTENT_QUANTILE),
        expected=expected,
    )


def frames_needed(size: int) -> int:
    """Return how many frames a baseline of windows of `size` frames is learned from, at least."""
    return max(MIN_HEALTHY_FRAMES, FOLDS * size)


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
    one = torch.ones(())
    return Baseline(
        centre=centre,
        directions=directions,
        spread=beside.std(0) + MIN_SPREAD,
        content_spread=along.std(0) + MIN_SPREAD,
        content_limit=one,
        expected=torch.tensor([[0.0, 0.0, 1.0]]),
        classes=frames.labels[frames.labels >= 0].bincount(minlength=classes).float(),
        size=one * size,
        frames=one * len(frames),
    )


def _of_new_frames(
    frames: FrameStatistics, size: int, classes: int, generator: Generator
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return both distances of windows by kind of scene, each compared with a baseline of other frames, (W,)."""
    fold = torch.randperm(len(frames), generator=generator) % FOLDS
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for number in range(FOLDS):
        learned = _learn_directions(frames[fold != number], size, classes, SCENES_OF_FOLD, generator)
        new = frames[fold == number]
        for kind, rows in draw_scenes(new, SCENES_OF_FOLD, size, generator).items():
            found.setdefault(kind, []).append(learned.distances(new.windows(rows)))
    contents, distances = ({kind: torch.cat([p[i] for p in parts]) for kind, parts in found.items()} for i in (0, 1))
    return contents, distances


def _expected(content: Tensor, distance: Tensor) -> Tensor:
    """Return for BINS groups of windows of like content: its logarithm, level and spread of log distances, (BINS, 3).

    content, distance: (W,) logarithms.
    """
    groups = content.argsort().chunk(BINS)
    spreads = torch.stack([distance[group].std() for group in groups])
    spreads = spreads.clamp_min(float(MIN_SD_SHARE * spreads.mean()))
    places, levels = (torch.stack([values[group].mean() for group in groups]) for values in (content, distance))
    return torch.stack([places, levels, spreads], 1)
