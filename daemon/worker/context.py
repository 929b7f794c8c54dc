"""What all jobs of a worker share: the frozen model, its scorer, the backend, the stored homogenizers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from calibrate.baseline.frames import FrameStatistics
from calibrate.features.taps import tap
from calibrate.judge import Evidence, objection_to
from calibrate.scoring.scorer import Measurement, Scorer
from calibrate.source.class_mix import Shares
from calibrate.source.commissioned import CleanData
from calibrate.source.description import Limits
from calibrate.validation import FitError
from daemon import __version__
from daemon.model.preprocess import Preprocessor
from daemon.worker.baselines import Baselines
from daemon.worker.dossier_builder import digest_statistics
from daemon.worker.picture_watch import PICTURES_KEY, PictureWatch
from deploy.backends.protocol import AUTO, load_backend
from deploy.model.commissioned import load_baseline, load_clean_data, load_estimator, load_pictures
from deploy.model.frozen import FrozenModel
from deploy.store.artefacts import FACTORY, ArtefactStore
from deploy.store.baselines import BaselineStore
from deploy.store.dossier_archive import DossierArchive

# Of the drift scores with and without a homogenizer. On windows of 64 frames of CIFAR-10 (all classes, one, two, random
# mixtures) behind four drifts, a right homogenizer had at most 0.99 in 79 windows. With one fitted to another drift, 51
# of 453 windows of drifted cameras had 2 or more: 88 % right without it, 53 % with it; it never helped by 5 points.
MIN_HARM_RATIO = 2.0
MAX_LOADED_HOMOGENIZERS = 64  # in memory, each some hundred kB


class WorkerContext:
    """One frozen model and everything known about it."""

    def __init__(
        self,
        frozen: FrozenModel,
        backend: str,
        store: ArtefactStore,
        fit_device: str = AUTO,
        class_mixes: Mapping[str, Shares] = MappingProxyType({}),
    ):
        """Raises ModelError for commissioned statistics that cannot be used, FitError for a mix that was not measured.

        fit_device: as in the configuration. class_mixes: of the sensors for which a mix of classes is stated.
        """
        self.fit_device = fit_device
        self.faults: list[str] = []  # handled since the last answer: labels of recald_handled_faults_total
        self.frozen = frozen
        self.backend = load_backend(backend)
        self.store = store
        self.archive = DossierArchive(store.root)
        self.limits = Limits.of(frozen.card.normalisation.mean, frozen.card.normalisation.std)
        taps = tap(frozen.module)
        clean = load_clean_data(frozen, taps)
        self.estimator = load_estimator(frozen)
        self._class_mixes = class_mixes
        self.scorer = Scorer.of(taps, frozen.card.input.shape, self.limits, clean, frozen.output)
        self._scorers = {s: replace(self.scorer, clean=_in_mix(clean, mix)) for s, mix in class_mixes.items()}
        reading = f"{frozen.card.input!r} {frozen.card.normalisation!r}"
        kept = BaselineStore(store.root, frozen.digest, reading, (FACTORY, PICTURES_KEY))
        self.pictures = PictureWatch(kept, load_pictures(frozen), self.faults.append)
        self.baselines = Baselines(
            kept,
            channels=sum(map(len, taps.reference.means)),
            classes=frozen.class_count or 0,
            commissioned=load_baseline(frozen, taps),
            on_fault=self.faults.append,
        )
        self.versions = {
            "recald": __version__,
            "torch": str(torch.__version__),
            "backend": self.backend.version(),
        }
        self._normalise = Preprocessor(frozen.card).normalise
        self._homogenizers: dict[str, nn.Module] = {}  # by version

    def frames(self, images: np.ndarray) -> Tensor:
        """Convert images (N, h, w, C) to the model's normalised input, (N, C, h, w) float32."""
        return torch.from_numpy(self._normalise(images))

    def statistics(self, measured: Measurement) -> FrameStatistics:
        """Return the statistics of single frames that baselines are learned from and compared with."""
        return FrameStatistics.of(measured.moments, measured.logits, self.scorer.taps.reference)

    def scorer_of(self, sensor: str) -> Scorer:
        """Return what scores the frames of a sensor: against the mix of classes that is stated for it."""
        return self._scorers.get(sensor, self.scorer)

    def homogenizer(self, version: str) -> nn.Module | None:
        """Return the stored homogenizer, read once; None for the factory homogenizer. Raises StoreError."""
        if version == FACTORY:
            return None
        if version not in self._homogenizers:
            while len(self._homogenizers) >= MAX_LOADED_HOMOGENIZERS:
                del self._homogenizers[next(iter(self._homogenizers))]  # the one loaded first
            self._homogenizers[version] = self.store.get(version, self.frozen.digest).homogenizer
        return self._homogenizers[version]

    def provenance(self, sensor: str) -> dict[str, Any]:
        """Return what the dossiers of a sensor say of the model, the reference and the software, by their keys."""
        clean, taps = self.scorer_of(sensor).clean, self.scorer.taps
        source, statistics = ("commissioned", clean.statistics) if clean else ("shipped", taps.reference)
        mix = {str(number): share for number, share in self._class_mixes.get(sensor, {}).items()}
        return {
            "model": self.frozen.digest,
            "reference": {"source": source, "digest": digest_statistics(statistics), "class_mix": mix},
            "normalisation": self.frozen.card.normalisation,
            "layers": list(taps.names),
            "versions": self.versions,
        }


def _in_mix(clean: CleanData | None, mix: Shares) -> CleanData:
    if clean is None:
        raise FitError("a mix of classes is stated, and no clean frames were measured")
    return clean.in_mix(mix)


def clean_band(evidence: Evidence, band: float) -> float:
    """Return the highest drift score that counts as clean: `band`, or infinity under a label shift.

    Clean frames of one class score up to 4. A fit to such frames proves nothing, so there is none under a label shift;
    a homogenizer that was judged on other frames is only compared with the active one.
    """
    return math.inf if evidence.label_shift else band


def is_harmful(raw: Evidence, served: Evidence, band: float) -> bool:
    """Return whether frames are clearly worse as served than without a homogenizer."""
    return served.score > band and served.score >= MIN_HARM_RATIO * raw.score


def raw_frames_clean(raw: Evidence, served: Evidence, band: float) -> bool:
    """Return whether frames are clean without a homogenizer.

    They are when their score is within the band; under a label shift, when they score better than as served.
    """
    return raw.score <= band or (raw.label_shift and not objection_to(raw, served, "active"))
