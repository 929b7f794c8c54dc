"""Measure frames with a frozen network: their drift score, and accuracy estimates from the network's outputs.

Shipped statistics describe frames as training augmented them. If training cropped the frames
(calibrate.source.augmentation), frames are scored with the same crop. If clean frames were measured, frames are scored
as they are. Clean frames then differ less from the statistics, and mild drifts become visible. The accuracy estimates
are always those of the frames as they are served.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from calibrate.features.statistics import ImageMoments
from calibrate.features.taps import Taps
from calibrate.scoring.accuracy import AccuracyProxy, ScoredOutput, accuracy_proxy, logits_of
from calibrate.scoring.agreement import answers_of
from calibrate.scoring.drift import MATCHED_TOLERANCE, SHIPPED_TOLERANCE, DriftScore, drift_score
from calibrate.scoring.label_shift import has_label_shift
from calibrate.source.augmentation import PaddedCrop
from calibrate.source.commissioned import CleanData
from calibrate.source.description import Limits, Shape
from calibrate.source.training import detect_crop

SCORE_CHUNK_FRAMES = 64  # frames that go through the network at once; bounds memory


class Measurement(NamedTuple):
    """What was measured on frames.

    proxy, logits (N, K): None if the network is no classifier. answers: of the network, by frame
    (calibrate.scoring.agreement). moments: of the features of the frames as they are served.
    """

    drift: DriftScore
    proxy: AccuracyProxy | None
    answers: Tensor
    logits: Tensor | None
    moments: ImageMoments

    @property
    def label_shift(self) -> bool:
        """Whether the frames show few classes, rather than a drift."""
        return has_label_shift(self.drift, self.proxy)


@dataclass(frozen=True)
class Scorer:
    """A frozen network and the statistics that frames are scored against.

    taps: of the network, with its shipped statistics.
    crop: the crop of the training frames behind the shipped statistics, if it is known.
    clean: measured on clean frames. It replaces the shipped statistics.
    output: what the network's output is.
    """

    taps: Taps
    crop: PaddedCrop | None = None
    clean: CleanData | None = None
    output: ScoredOutput = "logits"

    @classmethod
    def of(
        cls,
        taps: Taps,
        shape: Shape,
        limits: Limits,
        clean: CleanData | None = None,
        output: ScoredOutput = "logits",
    ) -> Scorer:
        """Use commissioned statistics if given, else the detected training crop. shape: (C, H, W) of the frames."""
        return cls(taps, None if clean else detect_crop(taps, shape, limits.black), clean, output)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the layers that are scored."""
        return self.taps.names

    def measure(self, frames: Tensor, homogenizer: nn.Module | None = None) -> Measurement:
        """Measure homogenizer(frames). None is the factory homogenizer, which changes nothing.

        frames: (N, C, H, W) in normalised input units.
        Raises ValueError for too few frames (drift.MIN_SCORE_IMAGES).
        """
        scored, served, outputs = [], [], []
        chunks = frames.split(SCORE_CHUNK_FRAMES)
        with torch.no_grad():
            for first, chunk in zip(range(0, len(frames), SCORE_CHUNK_FRAMES), chunks, strict=True):
                homogenized = homogenizer(chunk) if homogenizer else chunk
                features, output = self.taps(homogenized)
                assert output is not None  # the pass runs to its end
                outputs.append(output)
                served.append(ImageMoments.of(features))
                del features  # they are freed before the next pass
                if self.crop is not None:
                    scored.append(ImageMoments.of(self.taps(self.crop(homogenized, first)).features))
        joined = torch.cat(outputs)
        logits = logits_of(joined, self.output)
        proxy = None if logits is None else accuracy_proxy(logits)
        moments = ImageMoments.join(served)
        drift = self._score(ImageMoments.join(scored) if scored else moments)
        return Measurement(drift, proxy, answers_of(joined, self.output), logits, moments)

    def answers(self, frames: Tensor, homogenizer: nn.Module | None = None) -> Tensor:
        """Return what the network says of homogenizer(frames), frame by frame (calibrate.scoring.agreement).

        frames: as for `measure`, one or more.
        """
        return answers_of(self.outputs(frames, homogenizer), self.output)

    def logits(self, frames: Tensor) -> Tensor | None:
        """Return the logits (N, K) for frames as for `answers`; None if the network is no classifier."""
        return logits_of(self.outputs(frames), self.output)

    def outputs(self, frames: Tensor, homogenizer: nn.Module | None = None) -> Tensor:
        """Return what the network returns for homogenizer(frames), as for `answers`."""
        parts = []
        with torch.no_grad():
            for chunk in frames.split(SCORE_CHUNK_FRAMES):
                output = self.taps(homogenizer(chunk) if homogenizer else chunk).output
                assert output is not None  # the pass runs to its end
                parts.append(output)
        return torch.cat(parts)

    def _score(self, moments: ImageMoments) -> DriftScore:
        if self.clean:
            return drift_score(moments, self.clean.statistics, MATCHED_TOLERANCE, self.clean.frames)
        return drift_score(moments, self.taps.reference, MATCHED_TOLERANCE if self.crop else SHIPPED_TOLERANCE)
