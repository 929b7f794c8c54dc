"""What is measured once on clean frames, for networks whose shipped statistics do not say enough.

Shipped statistics are those of frames as training augmented them. Crops are recognised (calibrate.source), other
augmentations are not; statistics measured on a camera's own clean frames are of frames as they come.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from calibrate.class_statistics import collect_statistics
from calibrate.features import Taps
from calibrate.refusals import FitError, refuse_unusable
from calibrate.source import Source, measured_source
from calibrate.spectra import Profile
from calibrate.statistics import FeatureStatistics

MIN_CLEAN_FRAMES = 256  # with fewer their own sampling error is most of a mild drift


class CleanData(NamedTuple):
    """statistics: of the BatchNorm inputs. source: colours and spectrum."""

    statistics: FeatureStatistics
    source: Source

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, to be kept in a file."""
        names, means, variances = self.statistics.names, self.statistics.means, self.statistics.variances
        layers = {f"mean.{n}": m for n, m in zip(names, means, strict=True)}
        layers |= {f"variance.{n}": v for n, v in zip(names, variances, strict=True)}
        mean, covariance, (density,) = self.source
        return layers | {"source.mean": mean, "source.covariance": covariance, "source.density": density}

    @staticmethod
    def of_tensors(tensors: Mapping[str, Tensor], names: tuple[str, ...]) -> CleanData:
        """For a network with these layers. Raises ValueError where it is of another one."""
        try:
            means, variances = (tuple(tensors[f"{kind}.{name}"] for name in names) for kind in ("mean", "variance"))
            mean, covariance, density = (tensors[f"source.{part}"] for part in ("mean", "covariance", "density"))
        except KeyError as error:
            raise ValueError(f"{error} is missing") from error
        return CleanData(FeatureStatistics(names, means, variances), Source(mean, covariance, Profile(density)))


def measure_clean(taps: Taps, frames: Tensor) -> CleanData:
    """Describe clean frames (N, C, H, W), normalised, N >= MIN_CLEAN_FRAMES. Raises FitError for what is unusable."""
    if len(frames) < MIN_CLEAN_FRAMES:
        raise FitError(f"{len(frames)} clean frames are too few to measure: at least {MIN_CLEAN_FRAMES} are needed")
    refuse_unusable(frames)
    return CleanData(collect_statistics(taps, frames), measured_source(frames))
