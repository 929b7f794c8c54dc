"""Builds the sensors at a start, with what served before the restart."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from daemon import __version__
from daemon.config import Config, SensorConfig
from daemon.frames.quality_filter import QualityFilter
from daemon.frames.reservoir import MAX_CLASS_SHARE, Reservoir
from daemon.frames.stall_detector import StallDetector
from daemon.levels import PixelValues
from daemon.model.served_model import ServedModel
from daemon.recalibration.drift_alarm import DriftAlarm
from daemon.recalibration.envelope import Envelope, OutsideEnvelope
from daemon.recalibration.sensor import Sensor
from daemon.recalibration.state_machine import StateMachine
from daemon.state.restart import MIN_VALID_TIME_S
from deploy.backends.engine_cache import compile_homogenizer
from deploy.backends.protocol import Runner, same_backend_version
from deploy.model.card import InputCard
from deploy.model.program import ModelError
from deploy.path import InferencePath, SwapRejected
from deploy.store.artefacts import FACTORY, Artefact, ArtefactStore, StoreError
from deploy.store.compiled import input_shape, open_compiled
from deploy.store.golden import golden_noise, golden_of

log = logging.getLogger(__name__)
Record = Callable[[str, str, dict[str, Any]], None]  # AuditWriter.record: sensor, event, details


def unrecorded(sensor: str, event: str, details: dict[str, Any]) -> None:
    """Record nothing."""


def restore_sensor(
    name: str,
    path: InferencePath,
    config: Config,
    store: ArtefactStore,
    model: ServedModel,
    envelope: Envelope | None,
    clock: Callable[[], float],
    record: Record = unrecorded,
) -> Sensor:
    """Return the sensor with its last good homogenizer in `path`. clock: monotonic, s. record: see `restore`.

    A probation that the restart cut short begins anew.
    """
    restore(name, path, store, model, envelope, record)
    now = clock()  # restoring may have taken minutes
    window, fitted = config.drift.window, path.version != FACTORY
    since = serving_since(name, path.version, store)
    return Sensor(
        name,
        path,
        Reservoir(
            config.recalibrate.frames + window,
            config.sensors[name].sample_every,
            window=window,
            quality_filter=QualityFilter(),
            # What is stated of the mix holds for the frames as they come.
            max_share=MAX_CLASS_SHARE if config.sensors[name].class_mix is None else 1.0,
        ),
        DriftAlarm(config.drift),
        StateMachine(
            config.recalibrate,
            now,
            serving=fitted,
            on_probation=fitted and on_probation(since, time.time(), config.recalibrate.probation),
            strict=envelope is not None and envelope.limits_budget,
        ),
        pixel_values=pixel_values(config.sensors[name], model.frozen.card.input),
        stall_detector=StallDetector(now),
        operator_hold=None,  # until the audit log is read
        withdrawn=load_withdrawn(name, store, record),
    )


def pixel_values(config: SensorConfig, card: InputCard) -> PixelValues:
    """Return what the values of a sensor's frames mean: as its configuration says, else as the model card does."""
    bits = card.bits if config.bits is None else config.bits
    return PixelValues(bits, card.inverted if config.inverted is None else config.inverted)


def restore(
    sensor: str,
    path: InferencePath,
    store: ArtefactStore,
    model: ServedModel,
    envelope: Envelope | None = None,
    record: Record = unrecorded,
) -> None:
    """Let the last good homogenizer serve again, with the one before it ready for a rollback.

    What is damaged, does not run or is outside of the envelope is skipped, logged, and recorded with `record`; at worst
    the factory homogenizer serves.
    """
    version, artefact, problems = store.load_current(sensor, model.digest)
    for problem in problems:
        log.error("%s: %s", sensor, problem)
        record(sensor, "homogenizer refused", {"reason": problem})
    if artefact is None:
        return
    previous = store.load_previous(sensor, version, model.digest)
    for stored in filter(None, (previous, artefact)):
        try:
            _serve(sensor, stored, path, store, model, envelope, record)
        except (ModelError, StoreError, SwapRejected, OutsideEnvelope) as error:
            log.error("%s: homogenizer %s cannot serve: %s", sensor, stored.version[:12], error)  # noqa: TRY400
            record(sensor, "homogenizer refused", {"homogenizer": stored.version, "reason": str(error)})


def _serve(
    sensor: str,
    artefact: Artefact,
    path: InferencePath,
    store: ArtefactStore,
    model: ServedModel,
    envelope: Envelope | None,
    record: Record,
) -> None:
    """Repeat the proof that this homogenizer passed before it served, and let it serve.

    One that was stored before manifests described golden frames has passed a proof on frames that nobody kept. Its
    weights are still the same, so it must only run, and compute what they say.
    """
    if envelope is not None:
        envelope.admit(artefact)
    runner = _open(sensor, artefact, store, model, record)
    golden = golden_of(artefact.manifest, input_shape(artefact))
    proven_on = golden_noise(input_shape(artefact)) if golden is None else golden
    path.commit(path.prepare(artefact.version, runner, proven_on, bounded=golden is not None))


def _open(sensor: str, artefact: Artefact, store: ArtefactStore, model: ServedModel, record: Record) -> Runner:
    """Open the compiled form, or build it again of the weights: where it is lost, outdated, or something else."""
    backend, homogenizer, example = model.backend, artefact.homogenizer, torch.zeros(1, *input_shape(artefact))
    compiled = artefact.compiled
    if not same_backend_version(backend, artefact.manifest):
        compiled = None
    try:
        if compiled is None:
            compiled = compile_homogenizer(backend, homogenizer, example, store.root)
        return open_compiled(backend, artefact, compiled)
    except ModelError as error:
        log.error("%s: %s; it is built again", sensor, error)  # noqa: TRY400
        record(sensor, "compiled again", {"homogenizer": artefact.version, "reason": str(error)})
    compiled = compile_homogenizer(backend, homogenizer, example, store.root, anew=True)
    return open_compiled(backend, artefact, compiled)


def serving_since(sensor: str, version: str, store: ArtefactStore) -> float | None:
    """Return since when `version` serves, s since the epoch, as the pointer says; None when it does not say so."""
    try:
        pointer = store.current(sensor)
    except StoreError:  # restore() has logged it
        return None
    return pointer.since if pointer is not None and pointer.homogenizer == version else None


def on_probation(since: float | None, now: float, probation: float) -> bool:
    """Return whether a homogenizer that serves `since` (s since the epoch) has not finished its probation of so many s.

    A start time from a clock that was not set says nothing, so the probation starts anew.
    """
    return since is not None and (since < MIN_VALID_TIME_S or now - since < probation)


def load_withdrawn(sensor: str, store: ArtefactStore, record: Record = unrecorded) -> set[str]:
    """Return the versions that must not be tried again; an empty set, and a record, when the list cannot be read."""
    try:
        return store.withdrawn(sensor)
    except StoreError as error:
        log.warning("%s: the list of withdrawn homogenizers is forgotten: %s", sensor, error)
        record(sensor, "withdrawn forgotten", {"reason": str(error)})
        return set()


def start_details(
    config: Config, model: ServedModel, envelope: Envelope | None, sensors: Mapping[str, Sensor]
) -> dict[str, Any]:
    """Return what runs from this start on: the details of the audit event "start"."""
    return {
        "recald": __version__,
        "torch": str(torch.__version__),
        "backend": model.backend.version(),
        "model": model.digest,
        "served_by": model.served_by,
        "precision": config.model.precision,
        "mode": config.recalibrate.mode,
        "envelope": envelope and envelope.digest,
        "envelope_signed": envelope is not None and envelope.signed,
        "homogenizers": {name: sensor.path.version for name, sensor in sensors.items()},
        "pixel_values": {name: sensor.pixel_values._asdict() for name, sensor in sensors.items()},
    }
