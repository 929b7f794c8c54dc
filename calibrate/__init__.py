"""The method: fit a homogenizer so that a frozen network sees the data it was trained on.

reference = reference_statistics(model)                # the BatchNorm statistics shipped in the model
limits = Limits.of(mean, std)                          # black and white, where frames are (value / 255 - mean) / std
result = fit(model, frames, reference, limits=limits)  # frames: (N, C, H, W) float32, normalised, no labels
restored = model(result.homogenizer(new_frames))
"""

from calibrate.features.class_statistics import ClassStatistics, collect_statistics
from calibrate.features.feature_maps import all_layers, penultimate, random_network, random_projection, with_logits
from calibrate.features.statistics import FeatureStatistics, ImageMoments
from calibrate.features.taps import Taps, UnsupportedModel, reference_statistics, tap
from calibrate.fit import FitConfig, FitError, FitResult, fit
from calibrate.homogenizer import Homogenizer
from calibrate.paper import ReconstructionNetwork, fit_as_published
from calibrate.source.augmentation import PaddedCrop
from calibrate.source.commissioned import CleanData, measure_clean
from calibrate.source.training import Limits, Source, measured_source

__all__ = [
    "ClassStatistics",
    "CleanData",
    "FeatureStatistics",
    "FitConfig",
    "FitError",
    "FitResult",
    "Homogenizer",
    "ImageMoments",
    "Limits",
    "PaddedCrop",
    "ReconstructionNetwork",
    "Source",
    "Taps",
    "UnsupportedModel",
    "all_layers",
    "collect_statistics",
    "fit",
    "fit_as_published",
    "measure_clean",
    "measured_source",
    "penultimate",
    "random_network",
    "random_projection",
    "reference_statistics",
    "tap",
    "with_logits",
]
