"""Checks of everything that a fit is given. Each problem is reported in one line, before anything is computed."""

from __future__ import annotations

import torch
from torch import Tensor

from calibrate.errors import RecaldError
from calibrate.features.class_statistics import ClassStatistics, Target
from calibrate.features.feature_maps import FeatureMap

MIN_FIT_FRAMES = 32  # with fewer frames the statistics of deep layers are noise
MAX_ABS_VALUE = 1e4  # normalised frames stay near 3; with far larger values float32 covariances lose their digits
# Least standard deviation between frames of the pixel that varies most. Below it all frames are the same image.
MIN_PIXEL_STD = 1e-3


class FitError(RecaldError):
    """The frames cannot be fitted, or the fit failed. Nothing was changed."""


def validate_frames(frames: Tensor) -> None:
    """Check frames (N, C, H, W): float, N >= MIN_FIT_FRAMES, finite, within ±MAX_ABS_VALUE, not all the same image.

    Raises FitError.
    """
    if frames.dim() != 4 or not frames.is_floating_point():
        raise FitError(f"frames must be float (N, C, H, W), got {frames.dtype} {tuple(frames.shape)}")
    if 0 in frames.shape[1:]:
        raise FitError(f"frames of shape {tuple(frames.shape[1:])} have no pixels")
    if len(frames) < MIN_FIT_FRAMES:
        raise FitError(f"a fit needs at least {MIN_FIT_FRAMES} frames, got {len(frames)}")
    if not frames.abs().max() <= MAX_ABS_VALUE:  # also true for NaN
        raise FitError(f"frames hold values that are not finite or beyond {MAX_ABS_VALUE:g}: they must be normalised")
    if float(frames.std(0).max()) < MIN_PIXEL_STD:
        raise FitError("all frames are the same image: a covered or frozen camera cannot be fitted")


def validate_reference(features: FeatureMap, frames: Tensor, target: Target) -> int:
    """Check that the target is of these features and that the model takes frames (N, C, H, W).

    Returns the number of classes K of the logits (N, K), or 0 if the features come without logits.
    Raises FitError.
    """
    if target.names != features.names:
        raise FitError("the reference statistics are those of other layers than the model has: use this model's")
    try:
        with torch.no_grad():
            output = features(frames[:1]).output
    except RuntimeError as error:  # torch reports shapes and dtypes that do not fit in this way
        shape, reason = tuple(frames.shape[1:]), str(error).partition("\n")[0]
        raise FitError(f"the model cannot take {frames.dtype} frames of shape {shape}: {reason}") from error
    return output.shape[1] if output is not None and output.dim() == 2 else 0


def validate_labels(frames: Tensor, target: Target, labels: Tensor | None, criterion: float, classes: int) -> None:
    """Check that there are labels, (N,) int64 in range, if class-conditional statistics or the criterion need them.

    criterion: weight of the cross-entropy; 0 for none. classes: number of classes of the logits; 0 without logits.
    Raises FitError.
    """
    if criterion and not classes:
        raise FitError("the criterion needs features that come with logits: see with_logits")
    class_counts = [classes] if criterion else []
    if isinstance(target, ClassStatistics):
        class_counts.append(len(target))
    if not class_counts:
        return
    if labels is None:
        raise FitError("class-conditional statistics and the criterion need labels")
    if labels.shape != (len(frames),) or labels.dtype != torch.int64:
        raise FitError(f"{len(frames)} frames need as many int64 labels, got {labels.dtype} {tuple(labels.shape)}")
    highest = min(class_counts) - 1
    if not 0 <= int(labels.min()) <= int(labels.max()) <= highest:
        raise FitError(f"labels must be from 0 to {highest}, got {int(labels.min())} to {int(labels.max())}")
