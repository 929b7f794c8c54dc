"""Group the rows of a layer's features by frame, where a network folds parts of frames into its batch.

A network may cut frames into patches, tokens or scales and hand them to a BatchNorm layer as rows of a larger batch.
Each row then still belongs to one frame. Statistics over frames need to know to which.
"""

from __future__ import annotations

from torch import Tensor

MAX_LAYOUT_ERROR = 1e-2  # largest difference relative to the largest feature; bfloat16 rounds to 4e-3


def group_by_frame(feature: Tensor, frames: int, rows_in_sequence: int) -> Tensor:
    """Return features (rows, C, ...) as (N, C, rows / N, ...).

    rows_in_sequence: how many rows of one frame follow each other, before those of the next.
    """
    parts = feature.unflatten(0, (-1, frames, rows_in_sequence))  # (repeats, N, rows in sequence, C, ...)
    return parts.transpose(0, 1).flatten(1, 2).transpose(1, 2)


def find_rows_in_sequence(feature: Tensor, swapped: Tensor) -> int | None:
    """Return how many rows of one frame follow each other; None if rows do not belong to one frame each.

    feature, swapped: the features (rows, C, ...) of two different frames, and of the same frames in the other order.
    """
    rows = len(feature) // 2
    for count in (n for n in range(rows, 0, -1) if rows % n == 0):
        as_given, as_swapped = (group_by_frame(f, 2, count) for f in (feature, swapped))
        error = (as_given - as_swapped.flip(0)).abs().max()
        if error <= MAX_LAYOUT_ERROR * feature.abs().max():
            return count
    return None
