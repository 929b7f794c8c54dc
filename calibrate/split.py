"""Two homogenizers behind one sensor that delivers the frames of two cameras in turn: each frame chooses by itself.

Two lenses on one line have two drifts, and one ρ cannot undo both. Their frames differ in brightness, contrast,
sharpness and noise more than any two contents do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from calibrate.homogenizer import Homogenizer, homogenize

STATISTICS_PER_CHANNEL = 4
# Added to mean squares before their logarithm, normalised input units squared: a hundredth of a grey level's.
STATISTICS_FLOOR = 1e-4
BRANCHES = 2


class SplitHomogenizer(nn.Module):
    """Map frames like `Homogenizer`, each by one of two: the frame's own statistics choose.

    All parameters are those of both homogenizers, (2, ...) each. If only one of them replaces defective pixels or
    undoes a shading, that part of the other changes nothing.
    rule: (1 + D,), a limit and D weights. The second homogenizer takes a frame if the weighted sum of its
    `frame_statistics` is above the limit. A new one takes none.
    Arguments and errors are those of `Homogenizer`. Both map every frame, so it takes twice the time of one.
    """

    def __init__(self, channels: int, height: int, width: int, kernel_size: int | None = None, **parts: bool):
        super().__init__()
        new = Homogenizer(channels, height, width, kernel_size, **parts)
        self._architecture = new.architecture()
        self._parameters_of_both = [name for name, _ in new.named_parameters()]
        for name, parameter in new.named_parameters():
            self.register_parameter(name, nn.Parameter(torch.stack([parameter.detach()] * BRANCHES)))
        self.rule = nn.Parameter(torch.zeros(1 + STATISTICS_PER_CHANNEL * channels))

    @classmethod
    def of(cls, rule: Tensor, first: Homogenizer, second: Homogenizer) -> SplitHomogenizer:
        """Join two homogenizers of one shape by a rule (1 + D,); in evaluation mode and without gradients."""
        first, second = first.with_parts(**second.optional_parts), second.with_parts(**first.optional_parts)
        split = cls(**first.architecture()).requires_grad_(False)
        split.rule.copy_(rule)
        for name, parameter in first.named_parameters():
            getattr(split, name).copy_(torch.stack([parameter, second.get_parameter(name)]))
        return split.eval()

    def architecture(self) -> dict[str, Any]:
        """Return the arguments of the constructor and the number of branches, for the manifest of an artefact."""
        return self._architecture | {"branches": BRANCHES}

    @property
    def branches(self) -> tuple[Homogenizer, ...]:
        """Copies of both homogenizers, in evaluation mode and without gradients."""
        return tuple(self._branch(number) for number in range(BRANCHES))

    def takes_second(self, frames: Tensor) -> Tensor:
        """Return which of the frames (N, C, H, W) the second homogenizer takes, (N,) bool."""
        return frame_statistics(frames) @ self.rule[1:] > self.rule[0]

    def forward(self, frames: Tensor) -> Tensor:
        both = {name: getattr(self, name) for name in self._parameters_of_both}
        first, second = (
            homogenize(frames, **{name: parameter[number] for name, parameter in both.items()})
            for number in range(BRANCHES)
        )
        return torch.where(self.takes_second(frames).view(-1, 1, 1, 1), second, first)

    def _branch(self, number: int) -> Homogenizer:
        branch = Homogenizer(**self._architecture).requires_grad_(False)
        for name, parameter in branch.named_parameters():
            parameter.copy_(self.get_parameter(name)[number])
        return branch.eval()


AnyHomogenizer = Homogenizer | SplitHomogenizer


def rebuild(architecture: dict[str, Any]) -> AnyHomogenizer:
    """Make a new homogenizer of this architecture. Raises TypeError or ValueError for one that there is not."""
    arguments = dict(architecture)
    branches = arguments.pop("branches", 1)
    if branches not in (1, BRANCHES):
        raise ValueError(f"this release has homogenizers of 1 or {BRANCHES} branches, not of {branches}")
    return SplitHomogenizer(**arguments) if branches == BRANCHES else Homogenizer(**arguments)


def frame_statistics(frames: Tensor) -> Tensor:
    """Return what tells cameras apart, and contents hardly, of frames (N, C, H, W): (N, 4C).

    Of each channel: the mean, and the logarithms of the mean squares of the contrast, of the slopes from pixel to
    pixel, and of a Laplacian that hardly sees edges (Immerkær 1996, "Fast noise variance estimation"). NaN for frames
    of fewer than 3 pixels in a direction.
    """
    mean = frames.mean((2, 3))
    across, down = frames[..., 1:] - frames[..., :-1], frames[..., 1:, :] - frames[..., :-1, :]
    bent = across[..., 1:] - across[..., :-1]
    laplacian = (bent[..., 2:, :] - bent[..., 1:-1, :]) - (bent[..., 1:-1, :] - bent[..., :-2, :])
    slopes = _mean_square(across) + _mean_square(down)
    squares = (_mean_square(frames - mean[..., None, None]), slopes, _mean_square(laplacian))
    return torch.cat([mean, *((square + STATISTICS_FLOOR).log() for square in squares)], 1)


def _mean_square(values: Tensor) -> Tensor:
    return values.square().mean((2, 3))
