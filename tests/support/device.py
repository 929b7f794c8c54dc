"""A device's state directory, what a daemon writes into it around a swap, and what the next start makes of it."""

from __future__ import annotations

import logging
import os
from concurrent.futures import Executor, Future
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import safetensors.torch
import torch
from prometheus_client import CollectorRegistry

from calibrate.homogenizer import Homogenizer
from daemon.metrics import Metrics
from daemon.recalibration.restore import restore
from daemon.state.audit_writer import AuditWriter
from daemon.state.lock import lock_state
from daemon.state.state_writer import StateWriter
from deploy.audit.log import AuditLog, audit_path
from deploy.backends.engine_cache import ModelCache
from deploy.path import InferencePath
from deploy.store.artefacts import FACTORY, ArtefactStore, StoreError
from deploy.store.retention import retain
from deploy.store.verify import store_problems

MODEL, SHAPE = "a" * 64, (1, 8, 8)
SENSORS = ("front", "rear")
KEPT = 1  # homogenizers of a sensor that nothing points to, so that one has to go
LONG_AGO = 1_600_000_000.0  # s since the epoch: records that are old enough to go


class BiasBackend:
    """Its compiled form are the weights, and it adds but the bias: which homogenizer runs is read off an answer."""

    name = "eager"

    def compile(self, module: torch.nn.Module, example: torch.Tensor) -> bytes:
        return safetensors.torch.save(module.state_dict())

    def load(self, compiled: bytes, threads: int) -> Any:
        bias = float(safetensors.torch.load(compiled)["bias"])
        return SimpleNamespace(run=lambda batch: batch + bias, close=lambda: None)

    def version(self) -> str:
        return "1"


class AtOnce(Executor):
    """Does what it is given before it returns, in the order it is given: what the one background thread comes to."""

    def submit(self, call: Any, /, *given: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(call(*given, **named))
        return done


BACKEND: Any = BiasBackend()
SERVED: Any = SimpleNamespace(digest=MODEL, backend=BACKEND, input_shape=SHAPE)


def homogenizer(number: int) -> Homogenizer:
    made = Homogenizer(*SHAPE).eval()
    with torch.no_grad():
        made.bias.fill_(number)
    return made


# ---- what is written


class Writer:
    """The daemon's own parts, as it puts them together, around one state directory. A context."""

    def __init__(self, state: Path) -> None:
        self.state, self.store = state, ArtefactStore(state)

    def __enter__(self) -> Writer:
        self._closing = ExitStack()
        self._closing.callback(os.close, lock_state(self.state))
        self.store.sweep()
        card = SimpleNamespace(input=SimpleNamespace(shape=SHAPE))
        frozen: Any = SimpleNamespace(digest=MODEL, module=homogenizer(0), card=card)
        ModelCache(BACKEND, frozen, "float32", self.state).get()
        self.state_writer = StateWriter(self.store, MODEL, AtOnce())
        audit = partial(AuditLog, audit_path(self.state))
        self.audit_writer = AuditWriter(audit, AtOnce(), Metrics(CollectorRegistry()))
        self._closing.callback(self.audit_writer.close)
        self.audit_writer.record("", "start", {})
        return self

    def __exit__(self, *_: object) -> None:
        self.audit_writer.record("", "stop", {})
        self._closing.close()

    def swap(self, sensor: str, number: int) -> None:
        """What worker and daemon write of a fit that succeeds and serves, in their order."""
        active = self.serving(sensor)
        try:
            version = self.put(sensor, number)
            retain(self.store, sensor, KEPT, protected=(active, version))
            self.store.get(version, MODEL)
        except (OSError, StoreError) as error:
            self.audit_writer.record(sensor, "fit", {"result": "failed", "reason": str(error)})
            return
        self.audit_writer.record(sensor, "fit", {"result": "accepted", "candidate": version})
        if not self.audit_writer.failing:
            self.audit_writer.record(sensor, "swap", {"from": active, "to": version, "number": number})
            self.state_writer.save_active(sensor, version)

    def roll_back(self, sensor: str) -> None:
        pointer = self.store.current(sensor)
        if pointer is None or pointer.previous is None:
            return
        self.state_writer.save_withdrawn(sensor, {pointer.homogenizer})
        self.audit_writer.record(sensor, "rollback", {"from": pointer.homogenizer, "to": pointer.previous})
        self.state_writer.save_active(sensor, pointer.previous)

    def retry(self) -> None:
        self.audit_writer.retry()
        self.state_writer.retry()

    def serving(self, sensor: str) -> str:
        return self.store.load_current(sensor, MODEL)[0]

    def put(self, sensor: str, number: int) -> str:
        made = homogenizer(number)
        manifest = {"model": MODEL, "sensor": sensor, "versions": {"backend": BACKEND.version()}}
        return self.store.put(made, manifest, BACKEND.compile(made, torch.zeros(1, *SHAPE)), BACKEND.name)


def work(state: Path, number: int) -> None:
    """From a start to a stop: the front camera gets homogenizer `number`, the rear one goes back a step."""
    with Writer(state) as writer:
        writer.swap("front", number)
        writer.retry()
        writer.roll_back("rear")
        writer.retry()


def used(state: Path) -> Path:
    """A device that has been at work: each camera at its second homogenizer, with a third that may go."""
    with closing(AuditLog(audit_path(state), lambda: LONG_AGO)) as audit:
        audit.append("front", "swap", {})
        audit.append("front", "swap", {})
    with Writer(state) as writer:
        writer.put("front", 1)
        for number in (2, 3):
            writer.swap("front", number)
        for number in (4, 5):
            writer.swap("rear", number)
    return state


# ---- what must hold afterwards


class Complaints(logging.Handler):
    """What was logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(record.getMessage())


def served_after_a_start(state: Path) -> tuple[dict[str, float], list[str]]:
    """By sensor the number of the homogenizer that answers a frame, and what was told as an error."""
    complaints, store = Complaints(), ArtefactStore(state)
    logging.getLogger().addHandler(complaints)
    descriptor = lock_state(state)
    try:
        store.sweep()
        answers = {sensor: _answering(sensor, store) for sensor in SENSORS}
    finally:
        os.close(descriptor)
        logging.getLogger().removeHandler(complaints)
    return answers, complaints.told


def _answering(sensor: str, store: ArtefactStore) -> float:
    """The number of the homogenizer that runs, which must be the one of the weights that its version names."""
    path = InferencePath(SimpleNamespace(run=lambda batch: batch, close=lambda: None))
    restore(sensor, path, store, SERVED)
    number = float(path.infer(np.zeros((1, *SHAPE), np.float32)).output[0, 0, 0, 0])
    weights = homogenizer(0) if path.version == FACTORY else store.get(path.version, MODEL).homogenizer
    assert float(weights.bias.detach()) == number, f"{path.version} runs as {number}"
    return number


def damage(state: Path) -> list[str]:
    """What `recald verify` tells of the homogenizers and pointers."""
    return list(store_problems(ArtefactStore(state)))


def audited(state: Path) -> tuple[dict[str, Any], list[str]]:
    """By sensor the newest swap that the audit log tells of, opened as a start opens it; and what is wrong with it."""
    with closing(AuditLog(audit_path(state))) as audit:
        wrong = audit.verify() + [f"set aside: {name}" for name in audit.damaged_before()]
        return {record.sensor: record.content() for record in audit.records() if record.event == "swap"}, wrong
