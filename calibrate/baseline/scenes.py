"""Windows of frames as scenes show them: all kinds of content mixed, few classes, or frames that look alike."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from calibrate.baseline.directions import main_directions
from calibrate.baseline.frames import FrameStatistics

MIN_CLASS_FRAMES = 16  # of a class that a scene of one or two classes may show; fewer would come too often in it
CONCENTRATION = 0.3  # of the Dirichlet distribution of a mixture of classes: mostly one to three of ten
LIKENESS_AXES = 8  # main axes of the frames' statistics along which frames can look alike
ALIKE_SHARE = 0.2  # of all frames that a scene of frames that look alike chooses from
MIXED = "mixed"  # name of the windows of all kinds of content

DrawRows = Callable[[], Tensor]  # the frames of one window, (n,)


def draw_scenes(frames: FrameStatistics, windows: int, size: int, generator: Generator) -> dict[str, Tensor]:
    """Draw so many windows of each kind of scene; return the frames of each, (windows, size), by kind.

    Scenes of a class repeat frames where there are fewer than `size`. The same generator gives the same windows.
    """
    kinds = {MIXED: lambda: torch.randint(len(frames), (size,), generator=generator)}
    kinds |= _scenes_of_classes(frames.labels, size, generator) | _scenes_that_look_alike(frames, size, generator)
    return {kind: torch.stack([draw() for _ in range(windows)]) for kind, draw in kinds.items()}


def draw_still_scenes(frames: int, windows: int, size: int, generator: Generator) -> dict[int, Tensor]:
    """Draw so many windows that show 1, 4, 16 ... different ones of the frames, each for as long as the others.

    Return the frames of each, (windows, size), by how many are different: a quarter of them at most.
    """
    numbers = [4**power for power in range(size.bit_length()) if 4 * 4**power <= size]
    drawn = {number: torch.randint(frames, (windows, number), generator=generator) for number in numbers}
    shown = {number: torch.arange(size) * number // size for number in numbers}
    return {number: rows[:, shown[number]] for number, rows in drawn.items()}


def _scenes_of_classes(labels: Tensor, size: int, generator: Generator) -> dict[str, DrawRows]:
    classes, counts = labels[labels >= 0].unique(return_counts=True)
    members = [torch.nonzero(labels == label).flatten() for label in classes[counts >= MIN_CLASS_FRAMES]]
    if len(members) < 2:  # all windows would be the same mixture
        return {}

    def some_of(which: int, count: int) -> Tensor:
        return members[which][torch.randint(len(members[which]), (count,), generator=generator)]

    def one() -> Tensor:
        return some_of(int(torch.randint(len(members), (), generator=generator)), size)

    def two() -> Tensor:
        first, second = torch.randperm(len(members), generator=generator)[:2].tolist()
        share = int(torch.randint(1, size, (), generator=generator))
        return torch.cat([some_of(first, share), some_of(second, size - share)])

    def mixture() -> Tensor:
        weights = torch._sample_dirichlet(torch.full((len(members),), CONCENTRATION), generator)
        counts = torch.multinomial(weights, size, replacement=True, generator=generator).bincount(
            minlength=len(members)
        )
        return torch.cat([some_of(which, count) for which, count in enumerate(counts.tolist()) if count])

    return {"one class": one, "two classes": two, "mixture of classes": mixture}


def _scenes_that_look_alike(frames: FrameStatistics, size: int, generator: Generator) -> dict[str, DrawRows]:
    """Return scenes as of one light: frames from a part of one main axis, and frames around one frame."""
    axes = _main_axes(frames.first, generator)
    alike = min(len(frames), max(size, round(ALIKE_SHARE * len(frames))))
    orders = axes.argsort(0)

    def along_an_axis() -> Tensor:
        axis = int(torch.randint(axes.shape[1], (), generator=generator))
        start = int(torch.randint(len(frames) - alike + 1, (), generator=generator))
        return _some(orders[start : start + alike, axis], size, generator)

    def around_a_frame() -> Tensor:
        centre = axes[int(torch.randint(len(frames), (), generator=generator))]
        near = (axes - centre).square().sum(1).topk(alike, largest=False).indices
        return _some(near, size, generator)

    return {"one light": along_an_axis, "frames alike": around_a_frame}


def _some(rows: Tensor, size: int, generator: Generator) -> Tensor:
    if len(rows) < size:
        return rows[torch.randint(len(rows), (size,), generator=generator)]
    return rows[torch.randperm(len(rows), generator=generator)[:size]]


def _main_axes(first: Tensor, generator: Generator) -> Tensor:
    """Return the coordinates of N frames along their main axes, (N, LIKENESS_AXES) at most."""
    centred = (first - first.mean(0)) / first.std(0).clamp_min(1e-6)
    axes: Tensor = centred @ main_directions(centred, LIKENESS_AXES, generator).T
    return axes
