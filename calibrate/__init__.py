"""The method: fit a homogenizer so that a frozen network sees the data it was trained on.

reference = reference_statistics(model)          # the BatchNorm statistics shipped in the model
result = fit(model, frames, reference)           # frames: (N, C, H, W) float32, normalised, no labels
restored = model(result.homogenizer(new_frames))
"""

from calibrate.features import Taps, UnsupportedModel, reference_statistics, tap
from calibrate.fit import FitConfig, FitError, FitResult, fit
from calibrate.homogenizer import Homogenizer
from calibrate.statistics import FeatureStatistics, ImageMoments

__all__ = [
    "FeatureStatistics",
    "FitConfig",
    "FitError",
    "FitResult",
    "Homogenizer",
    "ImageMoments",
    "Taps",
    "UnsupportedModel",
    "fit",
    "reference_statistics",
    "tap",
]
