"""Measure frames against a frozen network: their drift score, and what the outputs say of accuracy.

Shipped statistics are those of frames as training augmented them. Where that was a crop
(calibrate.source.augmentation), frames are scored cropped likewise; where clean frames were measured, as they are.
What is left between clean frames and the statistics is so much less then that mild drifts show. The accuracy
proxies are of the frames as served.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from calibrate.features.statistics import ImageMoments
from calibrate.features.taps import Tapped, Taps
from calibrate.scoring.accuracy import AccuracyProxy, Answers, accuracy_proxy, answers
from calibrate.scoring.drift import LIKE_FRAMES_TOLERANCE, TOLERANCE, DriftScore, drift_score
from calibrate.scoring.label_shift import has_label_shift
from calibrate.source.augmentation import PaddedCrop
from calibrate.source.commissioned import CleanData
from calibrate.source.training import Limits, Shape, read_crop

CHUNK = 64  # frames the network sees at once


class Measurement(NamedTuple):
    """proxy, answers: None where the network is no classifier."""

    drift: DriftScore
    proxy: AccuracyProxy | None
    answers: Answers | None

    @property
    def label_shift(self) -> bool:
        return has_label_shift(self.drift, self.proxy)


@dataclass(frozen=True)
class Scorer:
    """clean: measured on clean frames, to be used instead of what the network carries.
    crop: what training did to the frames whose statistics it carries, where that is known.
    """

    taps: Taps
    crop: PaddedCrop | None = None
    clean: CleanData | None = None

    @classmethod
    def of(cls, taps: Taps, shape: Shape, limits: Limits, clean: CleanData | None = None) -> Scorer:
        """The finest there is: clean frames as measured, or the crop that the statistics show of frames (C, H, W)."""
        return cls(taps, clean=clean) if clean else cls(taps, read_crop(taps, shape, limits.black))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the layers that are scored."""
        return self.taps.names

    def measure(self, frames: Tensor, homogenizer: nn.Module | None = None) -> Measurement:
        """Score and proxy of homogenizer(frames), (N, C, H, W) normalised; None is the factory homogenizer.

        Raises ValueError where there are too few frames for a score.
        """
        moments, outputs = [], []
        with torch.no_grad():
            for first, chunk in zip(range(0, len(frames), CHUNK), frames.split(CHUNK), strict=True):
                features, output = self._run(homogenizer(chunk) if homogenizer else chunk, first)
                assert output is not None  # the pass was not cut short
                moments.append(ImageMoments.of(features))
                outputs.append(output)
        joined = torch.cat(outputs)
        return Measurement(self._score(ImageMoments.join(moments)), accuracy_proxy(joined), answers(joined))

    def _score(self, moments: ImageMoments) -> DriftScore:
        if self.clean:
            return drift_score(moments, self.clean.statistics, LIKE_FRAMES_TOLERANCE, self.clean.frames)
        return drift_score(moments, self.taps.reference, LIKE_FRAMES_TOLERANCE if self.crop else TOLERANCE)

    def _run(self, frames: Tensor, first: int) -> Tapped:
        if self.crop is None:
            return self.taps(frames)
        output = self.taps(frames).output  # the features of this pass need not stay
        return Tapped(self.taps(self.crop(frames, first)).features, output)
