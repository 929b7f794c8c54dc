"""Fit a homogenizer so that a frozen network sees frames like those it was trained on.

reference = reference_statistics(model)                # the BatchNorm statistics shipped in the model
limits = Limits.of(mean, std)                          # black and white, where frames are (value / 255 - mean) / std
result = fit(model, frames, reference, limits=limits)  # frames: (N, C, H, W) float32, normalised, no labels
restored = model(result.homogenizer(new_frames))

Each name below is imported when it is first used. `calibrate.errors` can then be used without the seconds that the
import of torch takes.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calibrate.errors import RecaldError
    from calibrate.features.class_statistics import ClassStatistics, collect_statistics
    from calibrate.features.feature_maps import all_layers, penultimate, random_network, random_projection, with_logits
    from calibrate.features.statistics import FeatureStatistics, ImageMoments
    from calibrate.features.taps import Taps, UnsupportedModel, reference_statistics, tap
    from calibrate.fitting import FitConfig, FitResult, fit
    from calibrate.homogenizer import Homogenizer
    from calibrate.paper import ReconstructionNetwork, fit_as_published
    from calibrate.source.augmentation import PaddedCrop
    from calibrate.source.commissioned import CleanData, measure_clean
    from calibrate.source.description import Limits, Source, measured_source
    from calibrate.validation import FitError

_NAMES_BY_MODULE = {
    "errors": ("RecaldError",),
    "features.class_statistics": ("ClassStatistics", "collect_statistics"),
    "features.feature_maps": ("all_layers", "penultimate", "random_network", "random_projection", "with_logits"),
    "features.statistics": ("FeatureStatistics", "ImageMoments"),
    "features.taps": ("Taps", "UnsupportedModel", "reference_statistics", "tap"),
    "fitting": ("FitConfig", "FitResult", "fit"),
    "homogenizer": ("Homogenizer",),
    "paper": ("ReconstructionNetwork", "fit_as_published"),
    "source.augmentation": ("PaddedCrop",),
    "source.commissioned": ("CleanData", "measure_clean"),
    "source.description": ("Limits", "Source", "measured_source"),
    "validation": ("FitError",),
}
_MODULE_BY_NAME = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_BY_NAME:
        raise AttributeError(f"module 'calibrate' has no attribute {name!r}")
    return getattr(import_module(f"calibrate.{_MODULE_BY_NAME[name]}"), name)


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
    "RecaldError",
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
