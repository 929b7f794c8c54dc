"""What all jobs of a worker share: the frozen model, its scorer, the backend, the stored homogenizers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from calibrate.baseline.frames import FrameStatistics
from calibrate.features.taps import Taps, tap
from calibrate.judge import Evidence, objection_to
from calibrate.scoring.scorer import Measurement, Scorer
from calibrate.source.description import Limits
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

    def __init__(self, frozen: FrozenModel, backend: str, store: ArtefactStore, fit_device: str = AUTO):
        """Raises ModelError for commissioned statistics that cannot be used. fit_device: as in the configuration."""
        self.fit_device = fit_device
        self.faults: list[str] = []  # handled since the last answer: labels of recald_handled_faults_total
        self.frozen = frozen
        self.backend = load_backend(backend)
        self.store = store
        self.archive = DossierArchive(store.root)
        self.limits = Limits.of(frozen.card.normalisation.mean, frozen.card.normalisation.std)
        taps = tap(frozen.module)
        self.commissioned = load_clean_data(frozen, taps)
        self.estimator = load_estimator(frozen)
        self.scorer = Scorer.of(taps, frozen.card.input.shape, self.limits, self.commissioned, frozen.output)
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
        self.provenance = self._provenance(taps)
        self._normalise = Preprocessor(frozen.card).normalise
        self._homogenizers: dict[str, nn.Module] = {}  # by version

    def frames(self, images: np.ndarray) -> Tensor:
        """Convert images (N, h, w, C) to the model's normalised input, (N, C, h, w) float32."""
        return torch.from_numpy(self._normalise(images))

    def statistics(self, measured: Measurement) -> FrameStatistics:
        """Return the statistics of single frames that baselines are learned from and compared with."""
        return FrameStatistics.of(measured.moments, measured.logits, self.scorer.taps.reference)

    def homogenizer(self, version: str) -> nn.Module | None:
        """Return the stored homogenizer, read once; None for the factory homogenizer. Raises StoreError."""
        if version == FACTORY:
            return None
        if version not in self._homogenizers:
            while len(self._homogenizers) >= MAX_LOADED_HOMOGENIZERS:
                del self._homogenizers[next(iter(self._homogenizers))]  # the one loaded first
            self._homogenizers[version] = self.store.get(version, self.frozen.digest).homogenizer
        return self._homogenizers[version]

    def _provenance(self, taps: Taps) -> dict[str, Any]:
        """Return what every dossier says about the model, the reference and the software, by the dossier's keys."""
        commissioned = self.commissioned
        source, statistics = ("commissioned", commissioned.statistics) if commissioned else ("shipped", taps.reference)
        return {
            "model": self.frozen.digest,
            "reference": {"source": source, "digest": digest_statistics(statistics)},
            "normalisation": self.frozen.card.normalisation,
            "layers": list(taps.names),
            "versions": {
                "recald": __version__,
                "torch": str(torch.__version__),
                "backend": self.backend.version(),
            },
        }


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
