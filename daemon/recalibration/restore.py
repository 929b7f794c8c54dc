"""After a restart: let the last good homogenizer serve again, and say what is known of it."""

from __future__ import annotations

import logging

import torch

from daemon.model.served_model import ServedModel, golden_noise
from daemon.recalibration.envelope import Envelope, OutsideEnvelope
from daemon.state.restart import CLOCK_SET_S
from deploy.backends.engine_cache import compile_homogenizer
from deploy.backends.protocol import made_by
from deploy.model.program import ModelError
from deploy.path import InferencePath, SwapRejected
from deploy.store.artefacts import Artefact, ArtefactStore, StoreError

log = logging.getLogger(__name__)


def restore(
    sensor: str, path: InferencePath, store: ArtefactStore, model: ServedModel, envelope: Envelope | None = None
) -> None:
    """Let the last good homogenizer serve again, the one before it a step away; or the factory one if there is none
    that can be believed and is inside of the envelope."""
    version, artefact, problems = store.load_current(sensor, model.digest)
    for problem in problems:
        log.error("%s: %s", sensor, problem)
    if artefact is None:
        return
    before = store.load_before(sensor, version, model.digest)
    if before is not None:
        _serve_again(sensor, before, path, store, model, envelope)
    _serve_again(sensor, artefact, path, store, model, envelope)


def served_since(sensor: str, version: str, store: ArtefactStore) -> float | None:
    """Since when, s since the epoch, the pointer says that `version` serves; None where it says nothing of it."""
    try:
        pointer = store.current(sensor)
    except StoreError:  # restore() has told
        return None
    return pointer.since if pointer is not None and pointer.homogenizer == version else None


def on_probation(since: float | None, now: float, probation: float) -> bool:
    """Whether what serves `since` (s since the epoch) has yet to prove itself; so too where no clock told that time."""
    return since is not None and (since < CLOCK_SET_S or now - since < probation)


def withdrawn(sensor: str, store: ArtefactStore) -> set[str]:
    """The versions that were taken back, none where that cannot be read."""
    try:
        return store.withdrawn(sensor)
    except StoreError as error:
        log.warning("%s: what was taken back before is forgotten: %s", sensor, error)
        return set()


def _serve_again(
    sensor: str,
    artefact: Artefact,
    path: InferencePath,
    store: ArtefactStore,
    model: ServedModel,
    envelope: Envelope | None,
) -> None:
    try:
        measured = None if envelope is None else envelope.admit(artefact)
        compiled = artefact.compiled
        if compiled is None or not made_by(model.backend, artefact.manifest):
            example = torch.zeros(1, *model.input_shape)
            compiled = compile_homogenizer(model.backend, artefact.homogenizer, example, store.root)
        golden = golden_noise(model.input_shape)
        path.commit(path.prepare(artefact.version, model.backend.load(compiled, threads=1), golden, measured))
    except (ModelError, SwapRejected, OutsideEnvelope) as error:
        log.warning("%s: homogenizer %s cannot serve: %s", sensor, artefact.version[:12], error)
