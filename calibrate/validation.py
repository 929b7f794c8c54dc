"""What cannot be fitted, said in one line before anything is computed."""

from __future__ import annotations

import torch
from torch import Tensor

from calibrate.errors import RecaldError
from calibrate.features.class_statistics import ClassStatistics, Target
from calibrate.features.feature_maps import FeatureMap

MIN_FRAMES = 32  # below it the statistics of deep layers are noise
MAX_VALUE = 1e4  # normalised frames stay near 3; far beyond it float32 loses the covariances


class FitError(RecaldError):
    """The frames cannot be fitted, or the fit broke; nothing was changed."""


def validate_frames(frames: Tensor) -> None:
    if frames.dim() != 4 or not frames.is_floating_point():
        raise FitError(f"frames must be float (N, C, H, W), got {frames.dtype} {tuple(frames.shape)}")
    if 0 in frames.shape[1:]:
        raise FitError(f"frames of shape {tuple(frames.shape[1:])} have no pixels")
    if len(frames) < MIN_FRAMES:
        raise FitError(f"a fit needs at least {MIN_FRAMES} frames, got {len(frames)}")
    if not frames.abs().max() <= MAX_VALUE:  # also true for NaN
        raise FitError(f"frames hold values that are not finite or beyond {MAX_VALUE:g}: they must be normalised")
    if float(frames.std(0).max()) < 1e-3:
        raise FitError("all frames are the same image: a covered or frozen camera cannot be fitted")


def validate_reference(features: FeatureMap, frames: Tensor, target: Target) -> int:
    """The number of classes that the features' logits tell apart, 0 without logits."""
    if target.names != features.names:
        raise FitError("the reference statistics are those of other layers than the model has")
    try:
        with torch.no_grad():
            output = features(frames[:1]).output
    except RuntimeError as error:  # how torch says that shapes or dtypes do not fit, with both of them
        shape, reason = tuple(frames.shape[1:]), str(error).partition("\n")[0]
        raise FitError(f"the model cannot take {frames.dtype} frames of shape {shape}: {reason}") from error
    return output.shape[1] if output is not None and output.dim() == 2 else 0


def validate_labels(frames: Tensor, target: Target, labels: Tensor | None, criterion: float, classes: int) -> None:
    if criterion and not classes:
        raise FitError("the criterion needs features that come with logits: see with_logits")
    known = [classes] if criterion else []
    if isinstance(target, ClassStatistics):
        known.append(len(target))
    if not known:
        return
    if labels is None:
        raise FitError("class-conditional statistics and the criterion need labels")
    if labels.shape != (len(frames),) or labels.dtype != torch.int64:
        raise FitError(f"{len(frames)} frames need as many int64 labels, got {labels.dtype} {tuple(labels.shape)}")
    if not 0 <= int(labels.min()) <= int(labels.max()) < min(known):
        raise FitError(f"labels must be from 0 to {min(known) - 1}, got {int(labels.min())} to {int(labels.max())}")
