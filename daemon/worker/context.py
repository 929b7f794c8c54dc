"""What every job of a worker uses: the frozen model, its scorer, the backend, the stored homogenizers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from calibrate.features.taps import Taps, tap
from calibrate.judge import Evidence, objections
from calibrate.scoring.scorer import Scorer
from calibrate.source.training import Limits
from daemon import __version__
from daemon.model.preprocess import Preprocessor
from daemon.worker.dossier_builder import digest_of
from deploy.backends.protocol import load_backend
from deploy.model.commissioned import load_commissioned
from deploy.model.frozen import FrozenModel
from deploy.store.artefacts import FACTORY, ArtefactStore
from deploy.store.dossier_archive import DossierArchive

MAX_LOADED = 64  # homogenizers kept in memory, each some hundred kB


class WorkerContext:
    """One frozen model and all that is known of it. Raises ModelError for commissioned statistics of another model."""

    def __init__(self, frozen: FrozenModel, backend: str, store: ArtefactStore):
        self.frozen = frozen
        self.backend = load_backend(backend)
        self.store = store
        self.archive = DossierArchive(store.root)
        self.limits = Limits.of(frozen.card.normalisation.mean, frozen.card.normalisation.std)
        taps = tap(frozen.module)
        self.commissioned = load_commissioned(frozen, taps)
        self.scorer = Scorer.of(taps, frozen.card.input.shape, self.limits, self.commissioned)
        self.provenance = self._provenance(taps)
        self._normalise = Preprocessor(frozen.card).normalise
        self._loaded: dict[str, nn.Module] = {}  # homogenizers by version

    def frames(self, images: np.ndarray) -> Tensor:
        """Images (N, h, w, C) uint8 as the model's normalised input, (N, C, h, w) float32."""
        return torch.from_numpy(self._normalise(images))

    def homogenizer(self, version: str) -> nn.Module | None:
        """The stored homogenizer of this version, read once; None for the factory homogenizer. Raises StoreError."""
        if version == FACTORY:
            return None
        if version not in self._loaded:
            while len(self._loaded) >= MAX_LOADED:
                del self._loaded[next(iter(self._loaded))]  # the one loaded first
            self._loaded[version] = self.store.get(version, self.frozen.digest).homogenizer
        return self._loaded[version]

    def _provenance(self, taps: Taps) -> dict[str, Any]:
        """What every dossier says of model, reference and software."""
        commissioned = self.commissioned
        source, statistics = ("commissioned", commissioned.statistics) if commissioned else ("shipped", taps.reference)
        return {
            "model": self.frozen.digest,
            "reference": {"source": source, "digest": digest_of(statistics)},
            "normalisation": self.frozen.card.normalisation,
            "layers": list(taps.names),
            "versions": {
                "recald": __version__,
                "torch": str(torch.__version__),
                "backend": self.backend.version(),
            },
        }


def clean_band(evidence: Evidence, band: float) -> float:
    """The highest drift score that counts as clean: `band`, or no limit under a label shift.

    Clean frames of one class score up to 4. Such frames cannot prove a fit to them; what was judged on other frames
    is compared with the active homogenizer on these.
    """
    return math.inf if evidence.label_shift else band


def clean_without(raw: Evidence, served: Evidence, band: float) -> bool:
    """Whether frames are clean as they come: within the band, or under a label shift better than as they are served."""
    return raw.score <= band or (raw.label_shift and not any(objections(raw, served, "active", back=True)))
